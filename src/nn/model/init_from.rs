//! The spec of `model: {init_from: …}`: the file with the initial weights, and which parameters get them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use wildmatch::WildMatch;

use crate::nn::layers::Param;
use crate::util::rename::Rule;
use crate::util::yaml::{Invalid, nearest};

/// Initial weights from a file. `init_from: x.pth` is short for `{file: x.pth}`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct InitFrom {
    /// Any file that `inspect` reads, a run folder or one of its checkpoints; several are joined.
    pub file: Texts,
    /// Dotted path of the weights in the file, instead of the part with the most tensors; several are joined.
    #[serde(default, skip_serializing_if = "Texts::is_empty")]
    pub key: Texts,
    /// Patterns of names of the file that are left out, such as `aux.*`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ignore: Vec<String>,
    /// `REGEX=>REPLACEMENT`, applied to every name of the file, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rename: Vec<Rule>,
    /// Load what fits and report the rest. Otherwise anything that does not fit is an error.
    #[serde(default)]
    pub partial: bool,
    /// Patterns of names that keep their new initial values, such as `fc.*`, even if the file holds them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reset: Vec<String>,
    /// Patterns of names that training does not change. A layer all of whose tensors match keeps its running
    /// statistics.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub freeze: Vec<String>,
    /// Also load the state of the Python optimiser beside the weights: `true`, or its dotted path in the
    /// file.
    #[serde(default, skip_serializing_if = "OptimizerFrom::is_nowhere")]
    pub optimizer: OptimizerFrom,
}

/// A file or dotted path, or a list of them.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(from = "OneOrMany", into = "OneOrMany")]
pub struct Texts(pub Vec<String>);

impl Texts {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[derive(Deserialize, Serialize, JsonSchema)]
#[serde(untagged, expecting = "expected text, or a list of texts")]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl From<OneOrMany> for Texts {
    fn from(keys: OneOrMany) -> Self {
        match keys {
            OneOrMany::One(key) => Self(vec![key]),
            OneOrMany::Many(keys) => Self(keys),
        }
    }
}

impl From<Texts> for OneOrMany {
    fn from(Texts(mut keys): Texts) -> Self {
        if keys.len() == 1 { Self::One(keys.remove(0)) } else { Self::Many(keys) }
    }
}

/// Where in the file an optimiser's state is.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(
    untagged,
    expecting = "expected true, false, or the dotted path of the optimizer's state in the file"
)]
pub enum OptimizerFrom {
    /// `true` to search the file for it, `false` to leave it out.
    Anywhere(bool),
    Key(String),
}

impl Default for OptimizerFrom {
    fn default() -> Self {
        Self::Anywhere(false)
    }
}

impl OptimizerFrom {
    /// Whether it is left out.
    pub fn is_nowhere(&self) -> bool {
        *self == Self::Anywhere(false)
    }

    /// The path, where it is given.
    pub fn key(&self) -> Option<&str> {
        match self {
            Self::Anywhere(_) => None,
            Self::Key(key) => Some(key),
        }
    }
}

impl InitFrom {
    /// All of `file`, strictly.
    pub fn new(file: impl Into<String>) -> Self {
        Self {
            file: Texts(vec![file.into()]),
            key: Texts::default(),
            ignore: Vec::new(),
            rename: Vec::new(),
            partial: false,
            reset: Vec::new(),
            freeze: Vec::new(),
            optimizer: OptimizerFrom::default(),
        }
    }

    /// The file, or all of them, as a message says it.
    pub fn files(&self) -> String {
        self.file.0.join(" and ")
    }

    /// Marks frozen parameters; refuses patterns that match nothing. Paths are relative to `init_from`.
    pub(super) fn mark(&self, params: &mut [Param]) -> Result<(), Invalid> {
        if self.file.is_empty() {
            return Err(Invalid::new("file", "names no file"));
        }
        for (key, patterns) in [("reset", &self.reset), ("freeze", &self.freeze)] {
            for (index, pattern) in patterns.iter().enumerate() {
                let matcher = WildMatch::new(pattern);
                if !params.iter().any(|param| matcher.matches(&param.name)) {
                    let hint = match nearest(pattern, params.iter().map(|param| param.name.as_str())) {
                        Some(near) => format!("did you mean `{near}`?"),
                        None => format!(
                            "the network's names are such as `{}`; `*` stands for any text",
                            params.first().map_or("", |param| &param.name)
                        ),
                    };
                    return Err(Invalid::new(
                        format!("{key}.{index}"),
                        format!("`{pattern}` matches no tensor; {hint}"),
                    ));
                }
            }
        }
        let frozen = Patterns::new(&self.freeze);
        // Parameters that a TorchScript program does not train (`requires_grad_(False)`) stay frozen.
        params.iter_mut().for_each(|param| param.frozen |= frozen.matches(&param.name));
        if !params.iter().any(Param::is_trainable) {
            return Err(Invalid::new("freeze", "freezes everything; leave something to train"));
        }
        Ok(())
    }
}

/// Patterns with `*` and `?`.
pub(crate) struct Patterns(Vec<WildMatch>);

impl Patterns {
    pub fn new(patterns: &[String]) -> Self {
        Self(patterns.iter().map(|pattern| WildMatch::new(pattern)).collect())
    }

    pub fn matches(&self, name: &str) -> bool {
        self.0.iter().any(|pattern| pattern.matches(name))
    }
}
