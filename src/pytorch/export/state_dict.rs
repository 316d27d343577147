//! Weights as `torch.save(net.state_dict(), …)` writes them.

use std::path::Path;

use anyhow::Result;

use super::{ExportOptions, Exporter, TrainedNetwork};
use crate::pytorch::writer;

/// `--to state-dict`.
pub struct StateDict;

impl Exporter for StateDict {
    fn extension(&self) -> &'static str {
        "pt"
    }

    fn help(&self) -> &'static str {
        "The weights under PyTorch's names, for torch.load"
    }

    fn options(&self) -> &'static [&'static str] {
        &["--half", "--bf16", "--with-optimizer"]
    }

    fn write(&self, from: &TrainedNetwork, options: &ExportOptions, path: &Path) -> Result<String> {
        let tensors = from.tensors(options.kind())?;
        writer::write_with(path, &tensors, from.about.value())?;
        Ok(format!("{} tensors", tensors.len()))
    }
}
