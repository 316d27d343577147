//! `tikhonov export`: a trained network for Python, as weights, TorchScript or source code.

mod source;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use tch::Device;

use super::convert::is_same_file;
use crate::checkpoint::safetensors;
use crate::nn::model::Op;
use crate::pytorch::export::{python, torchscript};
use crate::pytorch::writer;
use crate::train::initial_weights::is_pythons;
use crate::train::python_checkpoint::python_checkpoint;
use crate::train::session::ModelPlan;
use crate::util::atomic_file;
use crate::util::console::print_out;
use crate::util::exit_code::{ExitCode, fail};
use source::{Source, checkpoint, stem};

/// Write a trained network for Python.
///
/// Formats: `safetensors` and `state-dict` are the weights under PyTorch's names; `torchscript` is the whole
/// network for torch.jit.load, its weights in state_dict(), for any batch size and any image size that the
/// network takes; `python` is nn.Module source that loads the weights with strict=True. TorchScript is loaded
/// again and compared with the network before the file appears, in evaluation mode: .train() brings dropout
/// and batch statistics back.
#[derive(Args, Debug)]
pub struct Options {
    /// A run folder, a checkpoint's folder, or with --model any file that `inspect` reads
    #[arg(value_name = "SOURCE")]
    source: PathBuf,
    #[arg(long, value_enum, value_name = "FORMAT")]
    to: Format,
    /// The file to write; NAME.safetensors, NAME.pt, NAME.torchscript.pt or NAME.py in this folder, after
    /// SOURCE, where absent
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
    /// Write weights as float16
    #[arg(long, conflicts_with = "bf16")]
    half: bool,
    /// Write weights as bfloat16
    #[arg(long)]
    bf16: bool,
    /// TorchScript: weights as constants, evaluation only, batch norms folded into convolutions
    #[arg(long)]
    freeze: bool,
    /// TorchScript: --freeze, and of torch.jit.optimize_for_inference what a file can hold (linear weights
    /// transposed). Its oneDNN half cannot be saved: call it on the loaded file
    #[arg(long)]
    optimize: bool,
    /// TorchScript: take pictures of any size, 0..1 as floats or 0..255 as uint8 [N, C, H, W]; resize
    /// (bilinear, antialiased) and normalise them as the run did
    #[arg(long)]
    preprocess: bool,
    /// TorchScript: answer probabilities
    #[arg(long)]
    softmax: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Safetensors,
    StateDict,
    Torchscript,
    Python,
}

impl Format {
    /// Added to the name of the source.
    fn extension(self) -> &'static str {
        match self {
            Self::Safetensors => "safetensors",
            Self::StateDict => "pt",
            Self::Torchscript => "torchscript.pt",
            Self::Python => "py",
        }
    }
}

pub fn run(options: &Options) -> Result<()> {
    validate_flags(options)?;
    if options.with_optimizer {
        return write_resumable(options);
    }
    let source = Source::open(options)?;
    let output = output(options, &source.name)?;
    let written = match options.to {
        Format::Safetensors => {
            let tensors = source.tensors(options)?;
            safetensors::write(&output, &tensors, &source.metadata)?;
            format!("{} tensors", tensors.len())
        }
        Format::StateDict => {
            let tensors = source.tensors(options)?;
            writer::write_with(&output, &tensors, source.about.value())?;
            format!("{} tensors", tensors.len())
        }
        Format::Torchscript => write_script(&source, options, &output)?,
        Format::Python => {
            python::write(&output, &source.model, &source.name, &source.remarks(), &source.about)?;
            "source of class Net".to_owned()
        }
    };
    print_out!("{}: {written}, from {}", output.display(), source.notes.join("; "));
    let broken = source.broken();
    if !broken.is_empty() && options.to != Format::Python {
        print_out!("note: not all values are finite in {}", broken.join(", "));
    }
    if options.to == Format::Torchscript && source.answers_residual() {
        print_out!(
            "note: this network answers what is to be subtracted from its input (task.reconstruction.residual)"
        );
    }
    Ok(())
}

fn validate_flags(options: &Options) -> Result<()> {
    let is_script = options.to == Format::Torchscript;
    let script_only = [
        (options.freeze, "--freeze"),
        (options.optimize, "--optimize"),
        (options.preprocess, "--preprocess"),
        (options.softmax, "--softmax"),
    ];
    if let Some((_, option)) = script_only.iter().find(|(given, _)| *given && !is_script) {
        return Err(fail(
            ExitCode::Usage,
            format!("{option} changes a program; say --to torchscript, or leave it out"),
        ));
    }
    if options.to == Format::Python && (options.half || options.bf16) {
        let message =
            "source code has no dtype: leave --half and --bf16 out, and write Net().half() in Python";
        return Err(fail(ExitCode::Usage, message));
    }
    if options.with_optimizer && options.to != Format::StateDict {
        let message = "--with-optimizer is for Python's training: say --to state-dict, or leave it out";
        return Err(fail(ExitCode::Usage, message));
    }
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
    Ok(())
}

fn write_script(source: &Source, options: &Options, output: &Path) -> Result<String> {
    if options.softmax {
        let output = source.model.output();
        let is_classifier =
            source.config.as_ref().is_none_or(|config| config.task.task().answers_logits(output));
        let last = source.model.root().leaves().last().map(|leaf| &leaf.op);
        let ends_in_one =
            matches!(last, Some(Op::Layer(spec)) if ["softmax", "log_softmax"].contains(&spec.kind()));
        if !is_classifier || ends_in_one {
            let why = match ends_in_one {
                true => "the network ends in one already",
                false => "this run answers with no logits of several classes",
            };
            return Err(fail(ExitCode::Usage, format!("--softmax: {why}; leave it out")));
        }
    }
    // Refuses what narrowing would break.
    source.tensors(options)?;
    let kind = source.narrowed(options).unwrap_or(source.kind);
    let network = source.model.build(Device::Cpu, kind)?;
    network.load_state(&source.weights)?;
    let mut about = source.about.clone();
    if options.preprocess {
        // They are in the program, and must not be applied once more.
        (about.mean, about.std) = Default::default();
    }
    let script = torchscript::Options {
        preprocess: options.preprocess.then(|| source.preprocess()).transpose()?,
        softmax: options.softmax,
        freeze: options.freeze,
        optimize: options.optimize,
        about,
    };
    let agreement = torchscript::write(output, &source.model, &network, &script)?;
    let train =
        agreement.train.map(|apart| format!(", {apart:.0e} in training (float64)")).unwrap_or_default();
    Ok(format!(
        "TorchScript of {} tensors, {:.0e} apart from the network in evaluation{train}",
        source.model.params().len(),
        agreement.eval
    ))
}

/// Where to write; refuses what is there already and, whatever --force says, the source.
fn output(options: &Options, name: &str) -> Result<PathBuf> {
    let output = match (&options.output, options.to) {
        (Some(output), _) => output.clone(),
        // It is to be imported.
        (None, Format::Python) => {
            let word = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
            PathBuf::from(name.chars().map(word).collect::<String>()).with_extension("py")
        }
        (None, format) => PathBuf::from(format!("{name}.{}", format.extension())),
    };
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
