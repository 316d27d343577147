//! `tikhonov finetune`: a checkpoint and a folder of pictures become a trained classifier. It writes the config
//! that says how, and runs it.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use serde_json::{Value, json};

use super::{MachineOptions, assignment};
use crate::config::{Config, Override};
use crate::data::{DatasetCache, Split, pictures_at};
use crate::libtorch::machine::keep_memory;
use crate::nn::model::family;
use crate::pytorch::weights::Part;
use crate::train::initial_weights::read_place;
use crate::train::recognition::recognize;
use crate::train::run::{RunOptions, train_run};
use crate::train::session::ModelPlan;
use crate::train::training_loop::NeverPrune;
use crate::util::atomic_file;
use crate::util::console::{print_err, print_out};
use crate::util::exit_code::{ExitCode, WithExitCode, fail};
use crate::util::signals::Stop;
use crate::util::yaml::{self, Document};

/// Fine-tune the network of a checkpoint on a folder of pictures.
///
/// The network is recognised by the names and shapes of the weights, the classes are the folders. All choices are
/// printed and written as a config, which `tikhonov train` runs again, and resumes.
#[derive(Args, Debug)]
pub struct Options {
    /// The weights: any file that `inspect` reads, a run folder or a checkpoint
    file: PathBuf,
    /// A folder with one folder of pictures per class, or with `train` and, where there are, `val` and `test`
    #[arg(long, value_name = "FOLDER")]
    data: PathBuf,
    /// The network, where it is not to be recognised: a shipped one by its name, or a .yaml
    #[arg(long, value_name = "NAME|FILE")]
    model: Option<String>,
    /// Dotted path of the weights in FILE (repeatable: parts are joined)
    #[arg(long, value_name = "PATH")]
    key: Vec<String>,
    /// Leave out the tensors of FILE that PATTERN names, such as 'aux*' (repeatable)
    #[arg(long, value_name = "PATTERN")]
    ignore: Vec<String>,
    /// Passes over the training pictures
    #[arg(long, value_name = "N", default_value_t = 10)]
    epochs: u64,
    /// Side of the pictures in pixels; the network's own when absent
    #[arg(long, value_name = "PIXELS")]
    size: Option<usize>,
    /// Learning rate of the head; blocks before it have 0.75 of the next one's
    #[arg(long, value_name = "RATE", default_value_t = 1e-3)]
    lr: f64,
    /// Seed of the new head, batch order and augmentation
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Change one key of the config; VALUE is YAML (repeatable): --set train.early_stopping.patience=3
    #[arg(long, value_name = "KEY=VALUE", value_parser = assignment)]
    set: Vec<String>,
    /// The config to write; finetune-NAME.yaml for weights NAME.pth when absent
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The run folder; runs/NAME for a config NAME.yaml when absent
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    #[command(flatten)]
    machine: MachineOptions,
    /// Replace the config, and the run, that are there
    #[arg(long)]
    force: bool,
    /// Write the config and check it against the weights, and train nothing
    #[arg(long)]
    dry_run: bool,
    /// Nothing on the terminal but the result
    #[arg(long, short)]
    quiet: bool,
}

/// A network, and what was found of it.
struct Choice {
    /// `name` or `file`, and its value.
    key: &'static str,
    name: String,
    /// The arguments that it declares, with their defaults.
    args: serde_json::Map<String, Value>,
    channels: i64,
    ignore: Vec<String>,
    told: String,
}

/// The sets of pictures.
struct Folders {
    train: PathBuf,
    validation: Option<PathBuf>,
    test: Option<PathBuf>,
    classes: Vec<String>,
    pictures: usize,
}

pub fn run(options: &Options) -> Result<()> {
    let mut told = Vec::new();
    let folders = folders(&options.data)?;
    let part = Part { keys: options.key.clone(), ignore: options.ignore.clone(), raw: false };
    let mut weights = read_place(&options.file, &part)?;
    weights.leave_out(&part.ignore)?;
    let says_normalization = ["mean", "std"].iter().all(|key| weights.metadata.contains_key(*key));
    let choice = match &options.model {
        Some(model) => given(model)?,
        None => recognised(&weights)?,
    };
    told.push(choice.told.clone());
    let text = text(options, &choice, &folders, says_normalization, &mut told)?;
    let path = options.config.clone().unwrap_or_else(|| {
        let stem = options.file.file_stem().unwrap_or_default().to_string_lossy();
        PathBuf::from(format!(
            "finetune-{}.yaml",
            stem.replace(|c: char| !c.is_alphanumeric() && c != '-', "_")
        ))
    });
    if path.exists() && !options.force {
        let message = format!(
            "{} is there already: `tikhonov train` runs it; --config FILE writes another, --force replaces it",
            path.display()
        );
        return Err(fail(ExitCode::Usage, message));
    }
    let mut document = Document::parse(path.display().to_string(), text.as_str())?;
    for set in &options.set {
        document.set(set)?;
    }
    // With changes from the command line the comments would no longer be true.
    let written = if options.set.is_empty() { text } else { yaml::to_string(&document.tree)? };
    atomic_file::write_bytes(&path, written.as_bytes())?;
    told.push(format!("config: {} has all of this; `tikhonov train` runs it again", path.display()));
    if !options.quiet {
        told.iter().for_each(|line| print_err!("{line}"));
    }

    let name = path.to_string_lossy();
    let output = options.output.as_ref();
    let output = output.map(|path| Override::new("--output", "output", path.to_string_lossy().into_owned()));
    let mut config = Config::load(&name, &[], options.machine.overrides().chain(output))?;
    config.validate_data(&Split::ALL)?;
    if options.dry_run {
        let initial = ModelPlan::of(&config)?.initial(&mut config)?;
        if !options.quiet {
            initial.iter().flat_map(|initial| &initial.notes).for_each(|note| print_err!("{note}"));
        }
        return Ok(());
    }
    keep_memory();
    let stop = Stop::on_signals()?;
    let how = RunOptions { resume: false, force: options.force, quiet: options.quiet, plots: true };
    let result = train_run(config, how, &mut DatasetCache::default(), &stop, &mut NeverPrune)?;
    if let Some(result) = result {
        print_out!("{result}");
    }
    Ok(())
}

/// The network whose names and shapes the weights have.
fn recognised(weights: &crate::pytorch::weights::Weights) -> Result<Choice> {
    let found = recognize(weights)?;
    let mut told = format!(
        "network: `{}`, of which the file has all {} tensors, with {} outputs",
        found.name, found.tensors, found.outputs
    );
    if !found.ignore.is_empty() {
        let _ = write!(told, "; left out of the file: {}", found.ignore.join(", "));
    }
    if !found.others.is_empty() {
        let _ = write!(told, "; {} would fit too (--model)", found.others.join(", "));
    }
    let args = declared(&found.name);
    Ok(Choice { key: "name", args, channels: found.channels, ignore: found.ignore, told, name: found.name })
}

/// The network that the command line names.
fn given(model: &str) -> Result<Choice> {
    let is_file = model.ends_with(".yaml") || model.ends_with(".yml");
    let args = match is_file {
        true => Document::read(model)?.value("args").and_then(Value::as_object).cloned().unwrap_or_default(),
        false => declared(model),
    };
    let channels = args.get("channels").and_then(Value::as_i64).unwrap_or(3);
    let key = if is_file { "file" } else { "name" };
    let told = format!("network: `{model}`, as --model says");
    Ok(Choice { key, name: model.to_owned(), args, channels, ignore: Vec::new(), told })
}

/// The arguments of a shipped network; none of one that is not known, which the config's check names.
fn declared(name: &str) -> serde_json::Map<String, Value> {
    family::declared(name).unwrap_or_default()
}

/// The folders of a set of pictures: `data` itself, or those in it.
fn folders(data: &Path) -> Result<Folders> {
    let listed = |folder: &Path| -> Result<Vec<PathBuf>> {
        let unreadable = || format!("--data: {} cannot be read as a folder", folder.display());
        let mut inner = Vec::new();
        for entry in fs::read_dir(folder).with_exit_code(ExitCode::Data, unreadable)? {
            let path = entry.with_exit_code(ExitCode::Data, unreadable)?.path();
            if path.is_dir() && !file_name(&path).starts_with('.') {
                inner.push(path);
            }
        }
        inner.sort();
        Ok(inner)
    };
    let inner = listed(data)?;
    let named = |names: &[&str]| {
        inner.iter().find(|path| names.contains(&file_name(path).to_lowercase().as_str())).cloned()
    };
    let train = named(&["train", "training"]);
    let (validation, test) = match train {
        Some(_) => (named(&["val", "valid", "validation"]), named(&["test"])),
        None => (None, None),
    };
    let train = train.unwrap_or_else(|| data.to_owned());
    let classes: Vec<String> = listed(&train)?.iter().map(|path| file_name(path)).collect();
    if classes.is_empty() {
        let message =
            format!("--data: {} holds no folder; each class is a folder of pictures", train.display());
        return Err(fail(ExitCode::Data, message));
    }
    let pictures = pictures_at(&train)?.0.len();
    Ok(Folders { train, validation, test, classes, pictures })
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The config, each choice told.
fn text(
    options: &Options,
    choice: &Choice,
    folders: &Folders,
    says_normalization: bool,
    told: &mut Vec<String>,
) -> Result<String> {
    let quoted = |path: &Path| {
        let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        json!(absolute.to_string_lossy()).to_string()
    };
    let Folders { classes, pictures, .. } = folders;
    let shown =
        if classes.len() > 10 { format!("{}, …", classes[..9].join(", ")) } else { classes.join(", ") };
    told.push(format!("classes: {} folders of {}: {shown}", classes.len(), folders.train.display()));
    let own_size = choice.args.get("size").and_then(Value::as_u64).map(|size| size as usize);
    let size = options.size.or(own_size).unwrap_or(224);
    let eval = ((size as f64 / 0.875).round()) as usize;
    told.push(format!(
        "pictures: {size}×{size}, for evaluation the centre of {eval}{}",
        if options.size.is_none() && own_size.is_some() { ", as the network has it" } else { "" }
    ));
    let mut args = serde_json::Map::new();
    if !choice.args.contains_key("classes") {
        let message = format!(
            "`{}` has no argument `classes`, so that its head cannot be of {}",
            choice.name,
            classes.len()
        );
        return Err(fail(ExitCode::Usage, message));
    }
    args.insert("classes".into(), json!(classes.len()));
    for (key, value, default) in [
        ("size", json!(size), own_size.map(|size| json!(size))),
        ("channels", json!(choice.channels), choice.args.get("channels").cloned()),
    ] {
        if choice.args.contains_key(key) && default.as_ref() != Some(&value) {
            args.insert(key.into(), value);
        }
    }
    let normalize = match says_normalization {
        true => "checkpoint",
        false
            if choice.name.starts_with("efficientnet-lite")
                || choice.name.starts_with("efficientnet_lite") =>
        {
            "inception"
        }
        false => "imagenet",
    };
    told.push(match normalize {
        "checkpoint" => "normalize: the mean and std that the file says".to_owned(),
        _ => format!(
            "normalize: {normalize}, for the file says no mean and std (--set data.normalize=… changes it)"
        ),
    });
    let fraction = "{fraction: 0.2}".to_owned();
    let source = |root: &Path| {
        let mode = if choice.channels == 1 { ", mode: grey" } else { "" };
        format!("{{folder: {{root: {}, size: {size}, resize: crop{mode}}}}}", quoted(root))
    };
    let validation = folders.validation.as_deref().map_or(fraction, source);
    told.push(match &folders.validation {
        Some(folder) => format!("validation: {}", folder.display()),
        None => format!("validation: a fifth of the {pictures} pictures"),
    });
    let test = match &folders.test {
        Some(folder) => {
            told.push(format!("test: {}", folder.display()));
            format!("\n  test: {}", source(folder))
        }
        None => String::new(),
    };
    let batch = (pictures / 8).clamp(2, 32);
    let Options { epochs, lr, seed, .. } = options;
    told.push(format!(
        "training: {epochs} epochs in batches of {batch}, AdamW at {lr} for the head, 0.75 of that for each block before the next, \
         after a warm-up of one epoch a cosine to 0; weights decay by 0.05"
    ));
    let mut from = format!("{{file: {}", quoted(&options.file));
    let keys: Vec<Value> = options.key.iter().map(|key| json!(key)).collect();
    if !keys.is_empty() {
        let _ = write!(from, ", key: {}", Value::from(keys));
    }
    let ignore: Vec<&String> = options.ignore.iter().chain(&choice.ignore).collect();
    if !ignore.is_empty() {
        let _ = write!(from, ", ignore: {}", json!(ignore));
    }
    from.push('}');
    let (key, name) = (choice.key, json!(choice.name));
    let warmup = if *epochs > 1 { ", warmup: {epochs: 1}" } else { "" };
    Ok(format!(
        "# Fine-tuning, as `tikhonov finetune` chose it.
seed: {seed}
# The head has one output for each class; it starts afresh where the file's has another number of them.
model: {{{key}: {name}, args: {}, init_from: {from}}}
task: {{classification: {{label_smoothing: 0.1}}}}
data:
  train: {}
  validation: {validation}{test}
  batch_size: {batch}
  drop_last: true
  normalize: {normalize}
  eval_transform: {{resize: {eval}, center_crop: {size}}}
  augment: [{{random_resized_crop: {{scale: [0.35, 1.0]}}}}, {{flip: {{horizontal: true}}}}]
penalty: {{decoupled: 0.05}}
# The head learns at the scheduled rate, each block before it at 0.75 of the next one's.
groups: [{{match: \"*\", lr_decay: 0.75}}]
optimizer: {{adamw: {{lr: {lr}}}}}
schedule: {{cosine: {{}}{warmup}}}
train: {{epochs: {epochs}, log_every: 10}}
",
        Value::Object(args),
        source(&folders.train),
    ))
}
