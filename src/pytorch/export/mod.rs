//! Networks for Python. A format is one file, with its [`Exporter`], and one row of `exports!`.

mod about;
mod classes;
pub mod flat;
mod network;
pub mod onnx;
mod options;
mod plan;
pub mod pt2;
pub mod python;
mod safetensors;
mod state_dict;
pub mod torchscript;

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::Result;

pub use about::About;
pub use network::{TrainedNetwork, narrowed};
pub use options::ExportOptions;

/// A format that `tikhonov export --to` writes.
pub trait Exporter: Sync {
    /// What the file's name ends with, without the dot.
    fn extension(&self) -> &'static str;

    /// One line for `--help`.
    fn help(&self) -> &'static str;

    /// The options of `export` that only some formats take, and this one does: `--half`.
    fn options(&self) -> &'static [&'static str];

    /// Why it does not take `option`, where there is more to say than which formats do.
    fn refusal(&self, _option: &str) -> Option<&'static str> {
        None
    }

    /// The file for a network called `name`, where the user names none.
    fn default_file(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("{name}.{}", self.extension()))
    }

    /// Writes the file at `path`, atomically. Returns what it holds, such as `12 tensors`.
    fn write(&self, from: &TrainedNetwork, options: &ExportOptions, path: &Path) -> Result<String>;

    /// What the user should know of the file.
    fn notes(&self, from: &TrainedNetwork, _options: &ExportOptions) -> Vec<String> {
        from.non_finite().into_iter().chain(from.target_note()).collect()
    }
}

/// A row of the table.
#[derive(Clone, Copy)]
pub struct Export {
    /// What `--to` calls it.
    pub name: &'static str,
    pub exporter: &'static dyn Exporter,
}

macro_rules! exports {
    ($($name:literal => $exporter:expr,)*) => {
        /// Every format, in the order of `--help`.
        pub const EXPORTS: &[Export] = &[$(Export { name: $name, exporter: &$exporter },)*];
    };
}

exports! {
    "safetensors" => safetensors::Safetensors,
    "state-dict" => state_dict::StateDict,
    "torchscript" => torchscript::TorchScript,
    "pt2" => pt2::Pt2,
    "python" => python::Python,
    "onnx" => onnx::Onnx,
}

impl fmt::Debug for Export {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl Export {
    pub fn find(name: &str) -> Option<Self> {
        EXPORTS.iter().copied().find(|export| export.name == name)
    }

    /// Refuses those of the options `given` that the format does not take; the message ends with the remedy.
    pub fn check(&self, given: &[&str]) -> Result<(), String> {
        let Some(option) = given.iter().find(|option| !self.exporter.options().contains(option)) else {
            return Ok(());
        };
        if let Some(message) = self.exporter.refusal(option) {
            return Err(message.into());
        }
        let takes = |export: &&Export| export.exporter.options().contains(option);
        let others: Vec<_> = EXPORTS.iter().filter(takes).map(|export| export.name).collect();
        Err(format!(
            "{option} means nothing for {}: say --to {}, or leave it out",
            self.name,
            others.join(" or ")
        ))
    }
}

/// `basic_block` as `BasicBlock`.
fn camel_case(name: &str) -> String {
    let capital = |word: &str| {
        let mut letters = word.chars();
        letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
    };
    name.split(|c: char| !c.is_ascii_alphanumeric()).map(capital).collect()
}
