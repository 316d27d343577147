//! Weights as a safetensors file.

use std::path::Path;

use anyhow::Result;

use super::{ExportOptions, Exporter, TrainedNetwork};
use crate::pytorch::writer::safetensors;

/// `--to safetensors`.
pub struct Safetensors;

impl Exporter for Safetensors {
    fn extension(&self) -> &'static str {
        "safetensors"
    }

    fn help(&self) -> &'static str {
        "The weights under PyTorch's names, for safetensors.torch.load_file"
    }

    fn options(&self) -> &'static [&'static str] {
        &["--half", "--bf16"]
    }

    fn write(&self, from: &TrainedNetwork, options: &ExportOptions, path: &Path) -> Result<String> {
        let tensors = from.tensors(options.kind())?;
        safetensors::write(path, &tensors, &from.metadata)?;
        Ok(format!("{} tensors", tensors.len()))
    }
}
