//! YAML files as trees with the line and column of each key, so that a mistake is reported by file, line and
//! key path.

mod environment;
mod locate;
mod strict;
#[cfg(test)]
mod tests;
mod tree;
mod wording;
mod write;

use std::io::{ErrorKind, Read};
use std::path::Path;

use anyhow::Result;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use serde_path_to_error::Segment;

use crate::util::exit_code::{ExitCode, WithExitCode, fail};
use crate::util::regular_file;
pub use environment::expand_env;
use locate::Nodes;
use strict::Strict;
use tree::Refused;
pub use write::to_string;

/// A value that serde accepts and the program refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// Key path relative to the spec that refuses, such as `groups.0.l2`; empty for the spec itself.
    pub path: String,
    /// What is wrong, and the remedy.
    pub message: String,
}

impl Invalid {
    pub fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into() }
    }

    /// The same mistake seen from the spec that holds this one under `key`.
    pub fn under(mut self, key: impl std::fmt::Display) -> Self {
        self.path = if self.path.is_empty() { key.to_string() } else { format!("{key}.{}", self.path) };
        self
    }
}

impl std::fmt::Display for Invalid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.path.is_empty() {
            f.write_str(&self.message)
        } else {
            write!(f, "{}: {}", self.path, self.message)
        }
    }
}

impl std::error::Error for Invalid {}

/// A config is written by hand; what is larger than this is not a config.
const MAX_BYTES: u64 = 4 << 20;

fn too_large(name: &str) -> anyhow::Error {
    fail(ExitCode::Usage, format!("{name} is too large for a config: it has more than {MAX_BYTES} bytes"))
}

/// One YAML document: its tree, and the `--set` overrides on top of it. Anchors and merge keys are
/// resolved in the tree; mappings keep the order of the file.
#[derive(Clone, Debug)]
pub struct Document {
    /// The file as the user named it, or `<built-in> x.yaml`.
    pub name: String,
    pub tree: Value,
    nodes: Nodes,
    overrides: Vec<Override>,
}

#[derive(Clone, Debug)]
struct Override {
    path: Vec<String>,
    /// The option that set it, as in `--set train.epochs=3`.
    origin: String,
}

impl Document {
    /// Parses `text`. Errors are exit 2 and say `name:line:column`: bad syntax, a repeated key, a key that is
    /// not text, a tag, NaN or infinity, more than one document, nesting or aliases beyond the limits.
    pub fn parse(name: impl Into<String>, text: impl Into<String>) -> Result<Self> {
        let (name, mut text) = (name.into(), text.into());
        // Windows editors begin a file with a byte order mark, which YAML allows.
        if text.starts_with('\u{feff}') {
            text.remove(0);
        }
        let nodes = Nodes::parse(&text).map_err(|mistake| {
            fail(ExitCode::Usage, format!("{name}:{}:{}: {}", mistake.line, mistake.column, mistake.message))
        })?;
        let tree = match tree::tree(&nodes) {
            // An empty file has no keys: what is missing is said when it is decoded.
            Ok(Value::Null) => Value::Object(Map::new()),
            Ok(tree) => tree,
            Err(Refused { path, at, message }) => {
                let (dotted, separator) = (path.join("."), if path.is_empty() { "" } else { ": " });
                let (line, column) = (at.line(), at.col() + 1);
                return Err(fail(
                    ExitCode::Usage,
                    format!("{name}:{line}:{column}: {dotted}{separator}{message}"),
                ));
            }
        };
        Ok(Self { name, tree, nodes, overrides: Vec::new() })
    }

    /// Reads and parses a file. One that cannot be read is exit 2.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let name = path.display().to_string();
        let bytes = match regular_file::read(path, MAX_BYTES) {
            Err(error) if error.kind() == ErrorKind::FileTooLarge => return Err(too_large(&name)),
            bytes => bytes.with_exit_code(ExitCode::Usage, || format!("cannot read {name}"))?,
        };
        Self::of_bytes(name, bytes)
    }

    /// The same of a pipe, as the shell's `<(…)` gives one; never more than a config may have.
    pub fn read_pipe(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let unreadable = || format!("cannot read {name}");
        let mut bytes = Vec::new();
        let pipe = std::fs::File::open(path).with_exit_code(ExitCode::Usage, unreadable)?;
        pipe.take(MAX_BYTES + 1).read_to_end(&mut bytes).with_exit_code(ExitCode::Usage, unreadable)?;
        if bytes.len() as u64 > MAX_BYTES {
            return Err(too_large(&name));
        }
        Self::of_bytes(name, bytes)
    }

    fn of_bytes(name: String, bytes: Vec<u8>) -> Result<Self> {
        match String::from_utf8(bytes) {
            Ok(text) => Self::parse(name, text),
            Err(error) => Err(fail(ExitCode::Usage, format!("{name}{}", locate::no_utf8(error.as_bytes())))),
        }
    }

    /// Exit 2 unless the document is a mapping, as a config is.
    pub fn expect_mapping(&self) -> Result<()> {
        match &self.tree {
            Value::Object(_) => Ok(()),
            other => {
                let found = wording::describe(other);
                let message =
                    format!("expected a mapping of keys, such as `model: …` and `data: …`, found {found}");
                Err(self.error(&[], &message))
            }
        }
    }

    /// Replaces a leading `~/` of every text by the home folder, as a shell does.
    pub fn expand_home(&mut self) -> Result<()> {
        let mut path = Vec::new();
        let home = std::env::var("HOME").ok().filter(|home| !home.is_empty());
        environment::expand_home(&mut self.tree, home.as_deref(), &mut path)
            .map_err(|message| self.error(&path, &message))
    }

    /// Applies `a.b.0.c=VALUE`; VALUE is YAML and replaces what is there. Mappings on the way are made
    /// where they are missing; the index that follows a list's last appends to it.
    pub fn set(&mut self, assignment: &str) -> Result<()> {
        let refuse = |message: String| fail(ExitCode::Usage, format!("--set {assignment}: {message}"));
        let Some((key, text)) = assignment.split_once('=') else {
            return Err(refuse("expected KEY=VALUE, such as train.epochs=3".into()));
        };
        let path: Vec<String> = key.trim().split('.').map(str::to_owned).collect();
        if path.iter().any(String::is_empty) {
            return Err(refuse(format!("`{key}` is no key path; write it as in train.epochs=3")));
        }
        let value = Self::parse("value", text).map_err(|error| refuse(error.to_string()))?;
        // `a=` and `a=null` give null, which an optional key reads as "not given".
        let value = if matches!(text.trim(), "" | "null" | "~") { Value::Null } else { value.tree };
        *place(&mut self.tree, &path).map_err(refuse)? = value;
        self.overrides.push(Override { path, origin: format!("--set {assignment}") });
        Ok(())
    }

    /// Puts `value` at `key_path` on behalf of `origin`, such as `--seed 3`, which errors about it will name.
    pub fn set_value(&mut self, key_path: &str, value: Value, origin: impl Into<String>) -> Result<()> {
        let (path, origin) = (split(key_path), origin.into());
        let slot = place(&mut self.tree, &path)
            .map_err(|message| fail(ExitCode::Usage, format!("{origin}: {message}")))?;
        *slot = value;
        self.overrides.push(Override { path, origin });
        Ok(())
    }

    /// The value at a key path, if there is one; the empty path is the whole tree.
    pub fn value(&self, key_path: &str) -> Option<&Value> {
        split(key_path).iter().try_fold(&self.tree, |value, key| child(value, key))
    }

    /// Decodes the whole document.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T> {
        self.decode_at("")
    }

    /// Decodes the whole document but for one of its keys.
    pub fn decode_without<T: DeserializeOwned>(&self, key: &str) -> Result<T> {
        let mut tree = self.tree.clone();
        if let Value::Object(map) = &mut tree {
            map.shift_remove(key);
        }
        self.decode_tree(tree, Vec::new())
    }

    /// Decodes the part under `key_path`; a part that is missing reads as null. A choice written as its name
    /// alone (`schedule: cosine`) is the choice with its defaults (`schedule: {cosine: {}}`).
    pub fn decode_at<T: DeserializeOwned>(&self, key_path: &str) -> Result<T> {
        self.decode_tree(self.tree.clone(), split(key_path))
    }

    /// Unknown keys are reported together, and with them the first mistake of another kind.
    fn decode_tree<T: DeserializeOwned>(&self, mut tree: Value, part: Vec<String>) -> Result<T> {
        const MOST: usize = 10;
        let (mut mistakes, mut parents) = (Vec::new(), Vec::new());
        loop {
            let Mistake { path, message, is_unknown_key } = match decode_part(&tree, part.clone()) {
                Ok(decoded) if mistakes.is_empty() => return Ok(decoded),
                Ok(_) => break,
                // The missing key may be the misspelt one.
                Err(mistake) if parents.contains(&mistake.path) => break,
                Err(mistake) => mistake,
            };
            parents.push(path.split_last().map_or_else(Vec::new, |(_, parent)| parent.to_vec()));
            mistakes.push(self.error(&path, &message).to_string());
            if !is_unknown_key || mistakes.len() == MOST || !remove(&mut tree, &path) {
                break;
            }
        }
        Err(fail(ExitCode::Usage, mistakes.join("\n       ")))
    }

    /// An error (exit 2) about the value at `key_path`: `file:line:column: key.path: message`, or
    /// `--set key.path=value: message` where the value came from the command line.
    pub fn error_at(&self, key_path: &str, message: impl std::fmt::Display) -> anyhow::Error {
        self.error(&split(key_path), &message.to_string())
    }

    /// The error of the spec under `key_path`.
    pub fn invalid_at(&self, key_path: &str, invalid: Invalid) -> anyhow::Error {
        let invalid = if key_path.is_empty() { invalid } else { invalid.under(key_path) };
        self.error_at(&invalid.path, invalid.message)
    }

    fn error(&self, path: &[String], message: &str) -> anyhow::Error {
        let dotted = path.join(".");
        let separator = if dotted.is_empty() { "" } else { ": " };
        let found = self.nodes.find(path);
        let in_file = found.as_ref().is_some_and(|found| found.exact);
        let overridden = self.overrides.iter().rev().find(|set| {
            path.starts_with(&set.path) || (!in_file && !path.is_empty() && set.path.starts_with(path))
        });
        let text = match (overridden, found) {
            (Some(set), _) if set.path == path => format!("{}: {message}", set.origin),
            (Some(set), _) => format!("{}: {dotted}{separator}{message}", set.origin),
            (None, Some(at)) => {
                format!("{}:{}:{}: {dotted}{separator}{message}", self.name, at.line, at.column)
            }
            (None, None) => format!("{}: {dotted}{separator}{message}", self.name),
        };
        fail(ExitCode::Usage, text)
    }
}

/// Decodes a tree that a room has made itself; the mistake's path starts at its root.
pub fn decode<T: DeserializeOwned>(tree: &Value) -> Result<T, Invalid> {
    decode_part(tree, Vec::new()).map_err(|mistake| Invalid::new(mistake.path.join("."), mistake.message))
}

fn decode_part<T: DeserializeOwned>(tree: &Value, part: Vec<String>) -> Result<T, Mistake> {
    let at = |path: &[String]| path.iter().try_fold(tree, |value, key| child(value, key));
    serde_path_to_error::deserialize(Strict(at(&part).unwrap_or(&Value::Null))).map_err(|error| {
        let mut path = part;
        path.extend(error.path().iter().filter_map(|segment| match segment {
            Segment::Seq { index } => Some(index.to_string()),
            Segment::Map { key } => Some(key.clone()),
            Segment::Enum { variant } => Some(variant.clone()),
            Segment::Unknown => None,
        }));
        let message = error.into_inner().to_string();
        // A wrong choice is a key of the tree, unless it is written as plain text (`optimizer: sdg`).
        if let Some(choice) = wording::unknown_choice(&message) {
            path.push(choice.to_owned());
            if at(&path).is_none() {
                path.pop();
            }
        }
        // A hand-written `Deserialize` may report a key below the path.
        let is_unknown_key =
            wording::unknown_key(&message).is_some_and(|key| path.last().is_some_and(|last| last == key));
        let message = wording::mistake(&message, at(&path));
        Mistake { path, message, is_unknown_key }
    })
}

/// Takes the key at `path` away; false where it is none of the tree's.
fn remove(tree: &mut Value, path: &[String]) -> bool {
    let Some((key, parents)) = path.split_last() else { return false };
    let parent = parents.iter().try_fold(tree, |value, key| match value {
        Value::Object(map) => map.get_mut(key),
        Value::Array(list) => list.get_mut(key.parse::<usize>().ok()?),
        _ => None,
    });
    parent.and_then(Value::as_object_mut).is_some_and(|map| map.shift_remove(key).is_some())
}

fn split(key_path: &str) -> Vec<String> {
    if key_path.is_empty() { Vec::new() } else { key_path.split('.').map(str::to_owned).collect() }
}

fn child<'a>(value: &'a Value, key: &str) -> Option<&'a Value> {
    match value {
        Value::Object(map) => map.get(key),
        Value::Array(list) => list.get(key.parse::<usize>().ok()?),
        _ => None,
    }
}

/// The slot at `path`, made if need be.
fn place<'a>(tree: &'a mut Value, path: &[String]) -> Result<&'a mut Value, String> {
    let mut slot = tree;
    for (depth, key) in path.iter().enumerate() {
        if slot.is_null() {
            *slot = Value::Object(Map::new());
        }
        let parent = || path[..depth].join(".");
        slot = match slot {
            Value::Object(map) => map.entry(key).or_insert(Value::Null),
            Value::Array(list) => {
                let len = list.len();
                let index =
                    key.parse::<usize>().ok().filter(|index| *index <= len).ok_or_else(|| {
                        format!("`{}` is a list of {len}: `{key}` is no index of it", parent())
                    })?;
                if index == len {
                    list.push(Value::Null);
                }
                &mut list[index]
            }
            other => {
                let (parent, found) = (parent(), wording::describe(other));
                return Err(format!(
                    "`{parent}` is {found}, so it has no key `{key}`; set `{parent}` itself"
                ));
            }
        };
    }
    Ok(slot)
}

/// Why a tree is no such spec.
struct Mistake {
    path: Vec<String>,
    message: String,
    is_unknown_key: bool,
}

/// The candidate that `word` is most likely a misspelling of, if any is close enough.
pub fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let plain = |text: &str| text.to_lowercase().replace('-', "_");
    let word = plain(word);
    candidates
        .map(|candidate| (strsim::damerau_levenshtein(&word, &plain(candidate)), candidate))
        .filter(|(distance, candidate)| {
            *distance <= (word.chars().count().max(candidate.chars().count()) / 3).max(1)
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// `a, b or c`; empty for no words.
pub fn any_of(words: &[String]) -> String {
    match words {
        [] => String::new(),
        [one] => one.clone(),
        [head @ .., last] => format!("{} or {last}", head.join(", ")),
    }
}
