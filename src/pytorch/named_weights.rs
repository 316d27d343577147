//! Named tensors and what is saved beside them.

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value as Json};
use tch::Tensor;

use crate::nn::model::Patterns;
use crate::pytorch::reader::Container;
use crate::pytorch::reader::dtype::Dtype;
use crate::pytorch::reader::modules::Module;
use crate::util::exit_code::{ExitCode, fail};
use crate::util::yaml::nearest;

/// Which tensors of a file are meant.
#[derive(Clone, Debug, Default)]
pub struct Part {
    /// Dotted paths of the weights, joined where there are several; none for the part with the most tensors.
    pub keys: Vec<String>,
    /// Patterns of names, as the file has them, that are left out.
    pub ignore: Vec<String>,
    /// Rather the weights as trained than their moving average, where both are there.
    pub raw: bool,
}

/// What a file holds.
#[derive(Debug)]
pub struct Weights {
    pub container: Container,
    /// As a message says it: which part of the file the tensors are, such as "state_dict under `net`".
    pub structure: String,
    /// Dotted path of that part; empty for the whole file.
    pub key: String,
    /// What else could have been meant: path and number of tensors.
    pub others: Vec<(String, usize)>,
    /// In the file's order, on the CPU, in the file's dtypes. Tied tensors share their memory, strides are
    /// the file's.
    pub tensors: Vec<(String, Tensor)>,
    /// Those of unsigned dtypes that libtorch computes little with, with the file's dtype: read as the next
    /// wider signed one.
    pub widened: Vec<(String, Dtype)>,
    /// Names of tensors that cannot be read and that [`Part::ignore`] leaves out.
    pub passed_over: Vec<String>,
    /// Of a module that was pickled whole.
    pub modules: Vec<Module>,
    /// Epoch, accuracy and the like; objects by their class name.
    pub metadata: Map<String, Json>,
}

/// A tensor that a file lists and that cannot be loaded here.
#[derive(Debug)]
pub struct Unreadable {
    pub name: String,
    /// Empty where the file does not say it.
    pub shape: Vec<i64>,
    pub dtype: String,
    pub reason: String,
}

impl Weights {
    /// Named tensors and nothing else.
    pub fn new(container: Container, structure: impl Into<String>, tensors: Vec<(String, Tensor)>) -> Self {
        Self {
            container,
            structure: structure.into(),
            key: String::new(),
            others: Vec::new(),
            tensors,
            widened: Vec::new(),
            passed_over: Vec::new(),
            modules: Vec::new(),
            metadata: Map::new(),
        }
    }

    /// Those of several files as those of one. A name that two of them have is an error.
    pub fn joined(parts: Vec<Self>) -> Result<Self> {
        let mut parts = parts.into_iter();
        let mut all = parts.next().context("there is no file")?;
        for part in parts {
            for (name, tensor) in part.tensors {
                if all.tensors.iter().any(|(known, _)| *known == name) {
                    bail!("`{name}` is in two of the files; `ignore` and `key` leave parts of them out");
                }
                all.tensors.push((name, tensor));
            }
            all.structure += &format!(" and the {}", part.structure);
            all.widened.extend(part.widened);
            all.passed_over.extend(part.passed_over);
            all.modules.extend(part.modules);
            all.others.extend(part.others);
        }
        Ok(all)
    }

    /// Of each tensor whether it stays when those that `ignore` names are left out. Exit 2 where a pattern
    /// fits none.
    pub fn kept(&self, ignore: &[String]) -> Result<Vec<bool>> {
        let names = || self.tensors.iter().map(|(name, _)| name).chain(&self.passed_over);
        for pattern in ignore {
            let one = Patterns::new(std::slice::from_ref(pattern));
            if !names().any(|name| one.matches(name)) {
                let hint = match nearest(pattern, names().take(500).map(String::as_str)) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!(
                        "the file's names are such as `{}`; `*` stands for any text",
                        names().next().map_or("", String::as_str)
                    ),
                };
                return Err(fail(ExitCode::Usage, format!("ignore: `{pattern}` fits no tensor; {hint}")));
            }
        }
        let ignored = Patterns::new(ignore);
        Ok(self.tensors.iter().map(|(name, _)| !ignored.matches(name)).collect())
    }

    /// Removes the tensors that `ignore` names. How many those were; exit 2 where a pattern fits none.
    pub fn leave_out(&mut self, ignore: &[String]) -> Result<usize> {
        let (before, mut kept) = (self.tensors.len(), self.kept(ignore)?.into_iter());
        self.tensors.retain(|_| kept.next().unwrap_or(true));
        Ok(before - self.tensors.len())
    }

    /// The other parts, as a message lists them; empty where there are none.
    pub fn other_parts(&self) -> String {
        let name = |(path, count): &(String, usize)| match path.as_str() {
            crate::pytorch::reader::ROOT => format!("`{path}`, the file's root ({count})"),
            _ => format!("`{path}` ({count})"),
        };
        self.others.iter().map(name).collect::<Vec<_>>().join(", ")
    }
}
