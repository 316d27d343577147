//! The nodes of a YAML text with their lines and columns, from the events of saphyr-parser. Depth and size
//! are limited, with aliases expanded.

use std::borrow::Cow;
use std::collections::HashMap;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Tag};

/// Limits of nesting, and of nodes after aliases are expanded.
const MAX_DEPTH: usize = 64;
const MAX_NODES: u64 = 200_000;

/// The first mistake in a text; line and column count from 1.
pub struct Mistake {
    pub line: usize,
    pub column: usize,
    pub message: String,
}

impl Mistake {
    fn new(at: Marker, message: impl Into<String>) -> Self {
        Self { line: at.line(), column: at.col() + 1, message: message.into() }
    }
}

/// What is wrong with the bytes of a file that are no UTF-8, after its name.
pub fn no_utf8(bytes: &[u8]) -> String {
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return ": is UTF-16; save it as UTF-8".into();
    }
    let Err(error) = std::str::from_utf8(bytes) else { return String::new() };
    let (good, rest) = bytes.split_at(error.valid_up_to());
    let line = good.split(|byte| *byte == b'\n');
    let (count, last) =
        line.fold((0, 0), |(count, _), line| (count + 1, String::from_utf8_lossy(line).chars().count()));
    let byte = rest.first().copied().unwrap_or_default();
    format!(":{count}:{}: byte 0x{byte:02X} is no UTF-8; save the file as UTF-8", last + 1)
}

/// The first control character other than tabs and line ends: YAML forbids them, and the parser does not
/// check.
fn control_character(text: &str) -> Option<Mistake> {
    let is_refused = |c: char| c.is_control() && !matches!(c, '\t' | '\n' | '\r' | '\u{85}');
    let (before, found) = text.char_indices().find_map(|(at, c)| is_refused(c).then(|| (&text[..at], c)))?;
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|&c| c != '\n').count();
    let message =
        format!("the control character U+{:04X} is not allowed; write it as an escape", u32::from(found));
    Some(Mistake { line, column: column + 1, message })
}

/// The place of a key; `exact` is false where the text has only a parent of it.
pub struct Found {
    pub line: usize,
    pub column: usize,
    pub exact: bool,
}

/// Every node of a document, children before parents; the last is the root. An alias is the index of its
/// anchor.
#[derive(Clone, Debug, Default)]
pub struct Nodes(Vec<Node>);

#[derive(Clone, Debug)]
pub struct Node {
    pub at: Marker,
    pub tag: Option<Tag>,
    pub kind: Kind,
    /// Nodes in it, aliases expanded.
    size: u64,
    depth: usize,
}

#[derive(Clone, Debug)]
pub enum Kind {
    Scalar {
        text: String,
        is_plain: bool,
    },
    /// Each with its place.
    Sequence(Vec<(Marker, usize)>),
    /// Keys and values, alternating.
    Mapping(Vec<(Marker, usize)>),
}

/// A collection whose end has not come yet.
struct Open {
    at: Marker,
    anchor: usize,
    tag: Option<Tag>,
    mapping: bool,
    children: Vec<(Marker, usize)>,
}

impl Nodes {
    pub fn parse(text: &str) -> Result<Self, Mistake> {
        let mut nodes: Vec<Node> = Vec::new();
        let mut open: Vec<Open> = Vec::new();
        let mut anchors: HashMap<usize, usize> = HashMap::new();
        if let Some(mistake) = control_character(text) {
            return Err(mistake);
        }
        for event in Parser::new_from_str(text) {
            let (event, span) = event.map_err(|error| Mistake::new(*error.marker(), error.info()))?;
            let at = span.start;
            let (anchor, node) = match event {
                Event::DocumentStart(_) if !nodes.is_empty() => {
                    return Err(Mistake::new(
                        at,
                        "more than one YAML document; keep one and remove the `---`",
                    ));
                }
                Event::Scalar(text, style, anchor, tag) => {
                    let kind =
                        Kind::Scalar { text: text.into_owned(), is_plain: style == ScalarStyle::Plain };
                    (anchor, Node { at, tag: tag.map(Cow::into_owned), kind, size: 1, depth: 0 })
                }
                Event::SequenceStart(anchor, ref tag) | Event::MappingStart(anchor, ref tag) => {
                    if open.len() >= MAX_DEPTH {
                        return Err(Mistake::new(at, "nested too deeply for a config"));
                    }
                    let (tag, mapping) = (tag.as_deref().cloned(), matches!(event, Event::MappingStart(..)));
                    open.push(Open { at, anchor, tag, mapping, children: Vec::new() });
                    continue;
                }
                Event::SequenceEnd | Event::MappingEnd => {
                    let Some(Open { at, anchor, tag, mapping, children }) = open.pop() else { continue };
                    let size = children.iter().map(|(_, index)| nodes[*index].size);
                    let size = size.fold(1, u64::saturating_add);
                    let depth = children.iter().map(|(_, index)| nodes[*index].depth + 1).max().unwrap_or(0);
                    if size > MAX_NODES || depth > MAX_DEPTH {
                        return Err(Mistake::new(at, "too large for a config once its aliases are expanded"));
                    }
                    let kind = if mapping { Kind::Mapping(children) } else { Kind::Sequence(children) };
                    (anchor, Node { at, tag, kind, size, depth })
                }
                Event::Alias(anchor) => {
                    let Some(index) = anchors.get(&anchor) else {
                        return Err(Mistake::new(at, "an alias inside its own anchor"));
                    };
                    if let Some(parent) = open.last_mut() {
                        parent.children.push((at, *index));
                    }
                    continue;
                }
                _ => continue,
            };
            if anchor > 0 {
                anchors.insert(anchor, nodes.len());
            }
            if let Some(parent) = open.last_mut() {
                parent.children.push((node.at, nodes.len()));
            }
            nodes.push(node);
        }
        Ok(Self(nodes))
    }

    pub fn root(&self) -> Option<&Node> {
        self.0.last()
    }

    /// A child by its index.
    pub fn node(&self, index: usize) -> &Node {
        &self.0[index]
    }

    /// The place of the key at `path` (of the value, for the element of a list), or of its nearest parent.
    pub fn find(&self, path: &[String]) -> Option<Found> {
        let mut node = self.0.last()?;
        let mut at = node.at;
        for key in path {
            match self.step(node, key) {
                Some((key_at, value)) => (at, node) = (key_at, value),
                None => return Some(Found { line: at.line(), column: at.col() + 1, exact: false }),
            }
        }
        Some(Found { line: at.line(), column: at.col() + 1, exact: true })
    }

    fn step(&self, node: &Node, key: &str) -> Option<(Marker, &Node)> {
        let entries = match &node.kind {
            Kind::Scalar { .. } => return None,
            Kind::Sequence(items) => {
                let (at, index) = items.get(key.parse::<usize>().ok()?)?;
                return self.0.get(*index).map(|node| (*at, node));
            }
            Kind::Mapping(entries) => entries,
        };
        let entry = |name: &str| {
            entries.chunks_exact(2).find_map(|pair| match &self.0[pair[0].1].kind {
                Kind::Scalar { text, .. } if text == name => Some((pair[0].0, &self.0[pair[1].1])),
                _ => None,
            })
        };
        entry(key).or_else(|| {
            let (_, merged) = entry("<<")?;
            match &merged.kind {
                Kind::Sequence(sources) => {
                    sources.iter().find_map(|(_, index)| self.step(&self.0[*index], key))
                }
                _ => self.step(merged, key),
            }
        })
    }
}
