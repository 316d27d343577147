//! `tikhonov export`: a trained network for Python, as weights, TorchScript or source code.

mod source;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};

use super::convert::is_same_file;
use crate::data::normalize::{Normalize, NormalizeSpec};
use crate::pytorch::export::{EXPORTS, Export, ExportOptions};
use crate::pytorch::writer;
use crate::train::initial_weights::is_pythons;
use crate::train::python_checkpoint::python_checkpoint;
use crate::train::session::ModelPlan;
use crate::util::atomic_file;
use crate::util::console::print_out;
use crate::util::exit_code::{ExitCode, fail};
use source::{checkpoint, stem};

/// Write a trained network for Python.
///
/// TorchScript is loaded again and compared with the network before the file appears, in evaluation mode:
/// .train() brings dropout and batch statistics back.
#[derive(Args, Debug)]
pub struct Options {
    /// A run folder, a checkpoint's folder, or with --model any file that `inspect` reads
    #[arg(value_name = "SOURCE")]
    source: PathBuf,
    #[arg(long, value_name = "FORMAT", value_parser = formats())]
    to: Export,
    /// The file to write; where absent, in this folder, the name of SOURCE with the format's extension
    #[arg(short, long, value_name = "OUT")]
    output: Option<PathBuf>,
    /// Replace OUT where it exists
    #[arg(long)]
    force: bool,
    /// last, best, or a folder under RUN/checkpoints; without it best, else last
    #[arg(long, value_name = "NAME")]
    checkpoint: Option<String>,
    /// The weights as trained, where the run averaged them too
    #[arg(long)]
    raw: bool,
    /// State-dict: {model, optimizer, epoch, step} for a Python script that goes on training:
    /// optimizer.load_state_dict takes its part. Without --checkpoint the last; the weights are those that
    /// the optimizer moves, the averaged ones stand under `ema`
    #[arg(long, conflicts_with_all = ["raw", "half", "bf16", "model"])]
    with_optimizer: bool,
    /// The network that the weights of a file are for: a shipped name, a .yaml file, or YAML such as '{name:
    /// lenet, args: {classes: 5}}'
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// Dotted path of the weights in a file, instead of the part with the most tensors; `.` is the whole
    /// (repeatable: parts are joined)
    #[arg(long, value_name = "PATH", requires = "model")]
    key: Vec<String>,
    /// Leave out the tensors of a file that PATTERN names, such as 'aux*' (repeatable)
    #[arg(long, value_name = "PATTERN", requires = "model")]
    ignore: Vec<String>,
    /// Write plain weights where the network computes them: those of weight_norm, spectral_norm and
    /// weight_standardization, as evaluation has them
    #[arg(long, conflicts_with = "with_optimizer")]
    fold: bool,
    #[command(flatten)]
    format: ExportOptions,
}

fn formats() -> impl TypedValueParser<Value = Export> {
    let value = |export: &Export| PossibleValue::new(export.name).help(export.exporter.help());
    let find = |name: String| Export::find(&name).ok_or("no such format");
    PossibleValuesParser::new(EXPORTS.iter().map(value)).try_map(find)
}

pub fn run(options: &Options) -> Result<()> {
    validate_flags(options)?;
    if options.with_optimizer {
        return write_resumable(options);
    }
    let mut network = source::open(options)?;
    if options.fold {
        network.fold()?;
    }
    let output = output(options, &network.name)?;
    let exporter = options.to.exporter;
    let written = exporter.write(&network, &options.format, &output)?;
    print_out!("{}: {written}, from {}", output.display(), network.origin.join("; "));
    exporter.notes(&network, &options.format).iter().for_each(|note| print_out!("note: {note}"));
    Ok(())
}

fn validate_flags(options: &Options) -> Result<()> {
    let mut given = options.format.given();
    given.extend(options.with_optimizer.then_some("--with-optimizer"));
    options.to.check(&given).map_err(|message| fail(ExitCode::Usage, message))?;
    if std::fs::symlink_metadata(&options.source).is_err() {
        let message = format!(
            "there is no {}; give a run folder, a checkpoint's folder, or a file with --model",
            options.source.display()
        );
        return Err(fail(ExitCode::Usage, message));
    }
    let is_run = options.source.is_dir() && !is_pythons(&options.source);
    let misplaced = match (is_run, &options.model) {
        (true, Some(_)) => Some("--model is for files; a run folder knows its network"),
        (false, None) => {
            Some("give the network that the file's weights are for: --model NAME or --model FILE.yaml")
        }
        (false, Some(_)) if options.checkpoint.is_some() => Some("--checkpoint is for run folders"),
        (false, Some(_)) if options.raw => {
            Some("--raw is for run folders; a file has the weights that it has")
        }
        _ => None,
    };
    misplaced.map_or(Ok(()), |message| Err(fail(ExitCode::Usage, message)))
}

fn write_resumable(options: &Options) -> Result<()> {
    let (loaded, config) = checkpoint(&options.source, options)?;
    let class = config.optimizer.torch_class();
    if !class.is_in_torch {
        let name = class.name.to_lowercase();
        let message =
            format!("--with-optimizer: no class of torch.optim takes over the state of {name}; leave it out");
        return Err(fail(ExitCode::Usage, message));
    }
    let ModelPlan { model, groups } = ModelPlan::of_run(&config)?;
    let output = output(options, &stem(&options.source))?;
    let (value, notes) = python_checkpoint(&config, &model, &groups, &loaded)?;
    writer::save(&output, &value)?;
    print_out!(
        "{}: {} tensors and the state of torch.optim.{} at step {}, from {}",
        output.display(),
        model.params().len(),
        config.optimizer.torch_class().name,
        loaded.state.step,
        loaded.folder.display()
    );
    notes.iter().for_each(|note| print_out!("note: {note}"));
    if let NormalizeSpec::Given(Normalize { mean, std }) = &config.data.normalize_target {
        print_out!(
            "note: this network answers (y - mean) / std of its target (data.normalize_target), mean {mean:?}, std {std:?}"
        );
    }
    Ok(())
}

/// Where to write; refuses what is there already and, whatever --force says, the source.
fn output(options: &Options, name: &str) -> Result<PathBuf> {
    let output = options.output.clone().unwrap_or_else(|| options.to.exporter.default_file(name));
    let is_inside = || -> Result<bool> {
        let source = options.source.canonicalize().context("the source")?;
        Ok(output.canonicalize().is_ok_and(|output| source.is_dir() && output.starts_with(source)))
    };
    if is_same_file(&options.source, &output) || (output.exists() && is_inside()?) {
        let message = format!(
            "{} belongs to the source, which is never overwritten: give another -o OUT",
            output.display()
        );
        return Err(fail(ExitCode::Usage, message));
    }
    if output.is_dir() {
        return Err(fail(ExitCode::Usage, format!("{} is a folder: give a file", output.display())));
    }
    if output.exists() && !options.force {
        let message = format!("{} exists: give another -o OUT, or --force to replace it", output.display());
        return Err(fail(ExitCode::Usage, message));
    }
    // Before the work, not after it.
    atomic_file::place(&output)?;
    Ok(output)
}
