//! The nodes of a YAML text as the tree that is decoded: JSON, with merge keys resolved and tags refused.

use std::collections::HashSet;

use saphyr_parser::{Marker, Tag};
use serde_json::{Map, Number, Value};

use super::locate::{Kind, Node, Nodes};

/// A value or key that is refused.
pub struct Refused {
    /// Its key path.
    pub path: Vec<String>,
    /// Its key, or itself where it is an element of a list.
    pub at: Marker,
    pub message: String,
}

/// The tree of all nodes; nothing at all is null.
pub fn tree(nodes: &Nodes) -> Result<Value, Refused> {
    match nodes.root() {
        Some(root) => Builder { nodes, path: Vec::new() }.value(root, root.at),
        None => Ok(Value::Null),
    }
}

struct Builder<'a> {
    nodes: &'a Nodes,
    path: Vec<String>,
}

impl<'a> Builder<'a> {
    fn refuse<T>(&self, at: Marker, message: impl Into<String>) -> Result<T, Refused> {
        Err(Refused { path: self.path.clone(), at, message: message.into() })
    }

    /// `node` as a part of the tree; a mistake in it is reported at `at`.
    fn value(&mut self, node: &'a Node, at: Marker) -> Result<Value, Refused> {
        if let Some(tag) = &node.tag {
            return self.refuse(at, meaningless(tag));
        }
        match &node.kind {
            Kind::Scalar { text, is_plain: true } => plain(text).or_else(|message| self.refuse(at, message)),
            Kind::Scalar { text, .. } => Ok(Value::String(text.clone())),
            Kind::Sequence(items) => {
                let mut list = Vec::with_capacity(items.len());
                for (index, &(at, item)) in items.iter().enumerate() {
                    self.path.push(index.to_string());
                    list.push(self.value(self.nodes.node(item), at)?);
                    self.path.pop();
                }
                Ok(Value::Array(list))
            }
            Kind::Mapping(entries) => self.mapping(entries),
        }
    }

    /// A mapping's own keys win over merged ones.
    fn mapping(&mut self, entries: &'a [(Marker, usize)]) -> Result<Value, Refused> {
        let mut own = HashSet::new();
        for pair in entries.chunks_exact(2) {
            let key = self.key(pair[0])?;
            if !own.insert(key) {
                return self.refuse(pair[0].0, format!("the key `{key}` is here twice; remove one"));
            }
        }
        let mut map = Map::new();
        for pair in entries.chunks_exact(2) {
            let (at, key) = (pair[0].0, self.key(pair[0])?);
            self.path.push(key.to_owned());
            let value = self.value(self.nodes.node(pair[1].1), at)?;
            if key == "<<" {
                let sources = match value {
                    Value::Array(sources) => sources,
                    source => vec![source],
                };
                for source in sources {
                    let Value::Object(source) = source else {
                        return self.refuse(at, "only a mapping, or a list of them, can be merged");
                    };
                    for (key, value) in source {
                        if !own.contains(key.as_str()) && !map.contains_key(&key) {
                            map.insert(key, value);
                        }
                    }
                }
            } else {
                map.insert(key.to_owned(), value);
            }
            self.path.pop();
        }
        Ok(Value::Object(map))
    }

    fn key(&self, (at, index): (Marker, usize)) -> Result<&'a str, Refused> {
        let node = self.nodes.node(index);
        match (&node.tag, &node.kind) {
            (Some(tag), _) => self.refuse(at, meaningless(tag)),
            (None, Kind::Scalar { text, is_plain }) => {
                if *is_plain && !matches!(plain(text), Ok(Value::String(_))) {
                    return self.refuse(at, format!("the key `{text}` is not text; put it in quotes"));
                }
                Ok(text)
            }
            _ => self.refuse(at, "a list or a mapping is no key; a key is text"),
        }
    }
}

/// A plain scalar by the core schema of YAML 1.2, and `0b` for binary numbers.
fn plain(text: &str) -> Result<Value, String> {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Ok(Value::Null),
        "true" | "True" | "TRUE" => return Ok(Value::Bool(true)),
        "false" | "False" | "FALSE" => return Ok(Value::Bool(false)),
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" | "-.inf" | "-.Inf" | "-.INF" | ".nan"
        | ".NaN" | ".NAN" => return Err("NaN and infinity are not allowed: expected a finite number".into()),
        _ => {}
    }
    let (sign, unsigned) = match text.strip_prefix('-') {
        Some(rest) => ("-", rest),
        None => ("", text.strip_prefix('+').unwrap_or(text)),
    };
    let prefixes = [("0x", 16), ("0o", 8), ("0b", 2)];
    let prefixed = prefixes.iter().find_map(|&(prefix, radix)| Some((unsigned.strip_prefix(prefix)?, radix)));
    let (digits, radix) = prefixed.unwrap_or((unsigned, 10));
    let all_digits = !digits.is_empty() && digits.chars().all(|digit| digit.is_digit(radix));
    // Such as 007, a name rather than a number.
    if all_digits && radix == 10 && digits.len() > 1 && digits.starts_with('0') {
        return Ok(Value::String(text.to_owned()));
    }
    if all_digits {
        let number = match sign {
            "" => u64::from_str_radix(digits, radix).map(Value::from),
            _ => i64::from_str_radix(&format!("-{digits}"), radix).map(Value::from),
        };
        return number.map_err(|_| {
            let (least, most) = (i64::MIN, u64::MAX);
            format!("the number {text} is too large: whole numbers reach from {least} to {most}")
        });
    }
    let float = unsigned.parse::<f64>().ok().filter(|_| !unsigned.starts_with(['+', '-']));
    let number = float.map(|float| if sign == "-" { -float } else { float }).and_then(Number::from_f64);
    Ok(number.map_or_else(|| Value::String(text.to_owned()), Value::Number))
}

fn meaningless(tag: &Tag) -> String {
    let handle = if tag.is_yaml_core_schema() { "!!" } else { &tag.handle };
    format!("the tag {handle}{} means nothing here; remove it", tag.suffix)
}
