//! Trees as YAML text.

use anyhow::Result;
use serde_json::{Map, Value};

/// Characters that end a line in YAML 1.1, 1.2 or both. The package that writes YAML leaves them unescaped
/// in quotes, where a reader takes them for folded lines.
fn ends_line(c: char) -> bool {
    matches!(c, '\r' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

/// `tree` as YAML that [`Document::parse`](super::Document::parse) reads as the same tree.
pub fn to_string(tree: &Value) -> Result<String> {
    let json = tree.to_string();
    if !json.contains(ends_line) && !json.contains(r"\r") {
        return Ok(serde_yaml::to_string(tree)?);
    }
    let mut escaped = Escaped { mark: "escaped".into(), texts: Vec::new() };
    while json.contains(&escaped.mark) {
        escaped.mark.push('x');
    }
    let mut text = serde_yaml::to_string(&escaped.take(tree))?;
    for (index, original) in escaped.texts.iter().enumerate() {
        text = text.replace(&escaped.placeholder(index), &quoted(original));
    }
    Ok(text)
}

/// Strings that are replaced by placeholders while the rest is written.
struct Escaped {
    /// In no string of the tree.
    mark: String,
    texts: Vec<String>,
}

impl Escaped {
    fn placeholder(&self, index: usize) -> String {
        format!("{}-{index}-", self.mark)
    }

    fn take(&mut self, value: &Value) -> Value {
        match value {
            Value::String(text) => Value::String(self.text(text)),
            Value::Array(list) => list.iter().map(|item| self.take(item)).collect(),
            Value::Object(map) => {
                let entry = |(key, value): (&String, &Value)| (self.text(key), self.take(value));
                Value::Object(map.iter().map(entry).collect::<Map<_, _>>())
            }
            other => other.clone(),
        }
    }

    fn text(&mut self, text: &str) -> String {
        if !text.contains(ends_line) {
            return text.to_owned();
        }
        self.texts.push(text.to_owned());
        self.placeholder(self.texts.len() - 1)
    }
}

/// A double-quoted scalar in ASCII.
fn quoted(text: &str) -> String {
    let escape = |c: char| match c {
        '"' | '\\' => format!("\\{c}"),
        ' '..='~' => c.to_string(),
        _ => format!("\\U{:08x}", u32::from(c)),
    };
    format!("\"{}\"", text.chars().map(escape).collect::<String>())
}
