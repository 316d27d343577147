//! `tikhonov convert`: weights from one file format to another, renamed and narrowed on the way.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};
use clap::Args;
use tch::{Kind, Tensor};

use crate::libtorch::bytes;
use crate::pytorch::weights::{self, Part, Weights, read_weights};
use crate::pytorch::writer::{self, safetensors};
use crate::train::initial_weights::read_place;
use crate::util::atomic_file;
use crate::util::console::print_out;
use crate::util::exit_code::{ExitCode, fail};
use crate::util::rename::Rule;

/// Convert weights between .pth, .pt and .safetensors; the extension of OUT decides.
///
/// Reads everything that `inspect` reads. A .pt or .pth is a state_dict that torch.load(weights_only=True)
/// opens. Tensors keep their dtype unless --half or --bf16 narrows the floating-point ones.
#[derive(Args, Debug)]
pub struct Options {
    /// The file to read; of a run folder its best checkpoint, else its last
    input: PathBuf,
    /// The file to write: .pt, .pth or .safetensors; never the input itself
    output: PathBuf,
    /// Dotted path of the weights in the input, instead of the part with the most tensors; `.` is the whole
    /// (repeatable: parts are joined)
    #[arg(long, value_name = "PATH")]
    key: Vec<String>,
    /// Leave out the tensors that PATTERN names, by the input's names (repeatable): --ignore 'aux*'
    #[arg(long, value_name = "PATTERN")]
    ignore: Vec<String>,
    /// Take a prefix off the names that have it (repeatable, applied in order): --strip module.
    #[arg(long, value_name = "PREFIX")]
    strip: Vec<String>,
    /// Replace in every name, after --strip (repeatable, applied in order): --rename '^net\.(\d+)=>layers.$1'
    #[arg(long, value_name = "REGEX=>REPLACEMENT")]
    rename: Vec<Rule>,
    /// Replace OUT where it exists
    #[arg(long)]
    force: bool,
    /// Write floating-point tensors as float16
    #[arg(long, conflicts_with = "bf16")]
    half: bool,
    /// Write floating-point tensors as bfloat16
    #[arg(long)]
    bf16: bool,
}

#[derive(Clone, Copy)]
enum Format {
    StateDict,
    Safetensors,
}

pub fn run(options: &Options) -> Result<()> {
    let format = format(&options.output)?;
    if is_same_file(&options.input, &options.output) {
        return Err(fail(ExitCode::Usage, "the output would replace the input: give it another name"));
    }
    if options.output.exists() && !options.force {
        let message = format!("{} is there already; --force replaces it", options.output.display());
        return Err(fail(ExitCode::Usage, message));
    }
    let part = Part { keys: options.key.clone(), ignore: options.ignore.clone(), raw: false };
    let mut weights = read_place(&options.input, &part)?;
    let ignored = weights.leave_out(&part.ignore)? + weights.passed_over.len();
    if weights.tensors.is_empty() {
        return Err(fail(
            ExitCode::Checkpoint,
            format!("{}: no tensor is left to be written", options.input.display()),
        ));
    }
    let tensors = rename(&weights, options)?;
    let tensors = match (options.half, options.bf16) {
        (true, _) => writer::narrow(tensors, Kind::Half)?,
        (_, true) => writer::narrow(tensors, Kind::BFloat16)?,
        _ => tensors,
    };
    // What is wrong with the tensors is no matter of the disk.
    let mut cause = None;
    let written = atomic_file::write_by_path(&options.output, |temporary| {
        let done = match format {
            Format::StateDict => writer::write(temporary, &tensors),
            Format::Safetensors => safetensors::write(temporary, &tensors, &metadata(&weights)),
        };
        done.and_then(|()| reads_back(temporary, &tensors)).map_err(|error| {
            cause = Some(error);
            anyhow!("not written")
        })
    });
    match cause {
        Some(error) => return Err(error),
        None => written?,
    }
    print_out!(
        "{}: {} tensors from the {} of {}",
        options.output.display(),
        tensors.len(),
        weights.structure,
        options.input.display()
    );
    for (key, count) in &weights.others {
        print_out!("not converted: {count} tensors under `{key}`; --key '{key}' takes them");
    }
    if ignored > 0 {
        print_out!("not converted: {ignored} tensors that --ignore names");
    }
    for (name, dtype) in &weights.widened {
        let now = weights
            .tensors
            .iter()
            .find(|(kept, _)| kept == name)
            .and_then(|(_, tensor)| weights::dtype(tensor.kind()));
        if let Some(now) = now {
            print_out!("note: `{name}` is {} in the file and was written as {}", dtype.name(), now.name());
        }
    }
    Ok(())
}

/// Exit 4 where the file does not hold `tensors`, bit by bit.
fn reads_back(file: &Path, tensors: &[(String, Tensor)]) -> Result<()> {
    let written = read_weights(file, None)?.tensors;
    let mut found: HashMap<_, _> = written.into_iter().collect();
    for (name, tensor) in tensors {
        let same = match found.remove(name) {
            Some(found) if found.kind() == tensor.kind() && found.size() == tensor.size() => {
                let tensor = tensor.f_contiguous()?;
                bytes::with(&found.f_contiguous()?, |found| bytes::with(&tensor, |bytes| bytes == found))??
            }
            _ => false,
        };
        if !same {
            let message = format!("`{name}` does not read back as it was written; nothing was kept");
            return Err(fail(ExitCode::Checkpoint, message));
        }
    }
    match found.keys().next() {
        Some(name) => Err(fail(ExitCode::Checkpoint, format!("`{name}` reads back and was not written"))),
        None => Ok(()),
    }
}

fn format(output: &Path) -> Result<Format> {
    let extension = output.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    match extension.to_lowercase().as_str() {
        "pt" | "pth" | "th" => Ok(Format::StateDict),
        "safetensors" => Ok(Format::Safetensors),
        _ => Err(fail(
            ExitCode::Usage,
            format!("{}: the extension must say the format: .pt, .pth or .safetensors", output.display()),
        )),
    }
}

/// Also through links and other spellings of the path.
pub(super) fn is_same_file(a: &Path, b: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (std::fs::metadata(a), std::fs::metadata(b)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

fn rename(weights: &Weights, options: &Options) -> Result<Vec<(String, Tensor)>> {
    let mut names: Vec<String> = weights.tensors.iter().map(|(name, _)| name.clone()).collect();
    for prefix in &options.strip {
        let mut used = false;
        for name in &mut names {
            if let Some(rest) = name.strip_prefix(prefix.as_str()).filter(|rest| !rest.is_empty()) {
                *name = rest.to_owned();
                used = true;
            }
        }
        if !used {
            let first = weights.tensors.first().map_or("", |(name, _)| name);
            let message = format!("--strip {prefix:?} fits no name; the first one in the file is {first:?}");
            return Err(fail(ExitCode::Usage, message));
        }
    }
    options.rename.iter().try_for_each(|rule| rule.apply(&mut names))?;
    let mut seen = HashSet::new();
    if let Some(name) = names.iter().find(|name| name.is_empty() || !seen.insert(name.as_str())) {
        return Err(fail(
            ExitCode::Usage,
            format!("after renaming, two tensors are called {name:?} or one has no name"),
        ));
    }
    Ok(names.into_iter().zip(weights.tensors.iter().map(|(_, tensor)| tensor.shallow_clone())).collect())
}

/// The plain values beside the weights: safetensors keeps strings only.
fn metadata(weights: &Weights) -> Vec<(String, String)> {
    let plain = weights
        .metadata
        .iter()
        .filter(|(_, value)| !value.is_object() && !value.is_array() && !value.is_null());
    plain
        .map(|(key, value)| (key.clone(), value.as_str().map_or_else(|| value.to_string(), str::to_owned)))
        .collect()
}
