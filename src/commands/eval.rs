//! `tikhonov eval`: the scores of trained runs on one of their splits.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use serde_json::{Value, json};

use super::{MachineOptions, assignment};
use crate::checkpoint::Checkpoints;
use crate::checkpoint::initial::Initial;
use crate::checkpoint::store::Loaded;
use crate::config::{CONFIG_FILE, Config};
use crate::data::Split;
use crate::eval::evaluate;
use crate::exit::{Exit, OrExit};
use crate::metrics::{ClassReport, Scores};
use crate::model::{InitFrom, Network};
use crate::session::{Plan, Session};

/// Evaluate trained runs, or a config with weights from elsewhere.
///
/// Of a run: the weights that the validation set chose, else the last, unless --checkpoint or --weights says otherwise. Of a
/// config: those of --weights, or of its `model.init_from`. Only the part of the data that is asked for is read.
#[derive(Args, Debug)]
pub struct Options {
    /// Run folders, or configs: YAML files or names of shipped ones
    #[arg(required = true, value_name = "RUN|CONFIG")]
    pub runs: Vec<PathBuf>,
    /// last, best, or a folder under RUN/checkpoints
    #[arg(long, value_name = "NAME", conflicts_with = "weights")]
    pub checkpoint: Option<String>,
    /// Weights from a file that Python or tikhonov wrote, from a run folder or a checkpoint
    #[arg(long, value_name = "FILE")]
    pub weights: Option<PathBuf>,
    /// Dotted path of the weights in FILE, instead of the part with the most tensors
    #[arg(long, value_name = "PATH", requires = "weights")]
    pub key: Option<String>,
    /// Which part of the data
    #[arg(long, value_enum, default_value = "test")]
    pub split: Split,
    /// Override one key of the run's config, such as a data path (repeatable)
    #[arg(long, value_name = "KEY=VALUE", value_parser = assignment)]
    pub set: Vec<String>,
    #[command(flatten)]
    pub machine: MachineOptions,
    /// As JSON, one object per run, confusion matrix included
    #[arg(long)]
    pub json: bool,
}

pub fn run(options: &Options) -> Result<()> {
    options.runs.iter().try_for_each(|run| eval_one(run, options))
}

fn eval_one(run: &Path, options: &Options) -> Result<()> {
    let is_run = run.join(CONFIG_FILE).is_file();
    let mut config = match (is_run, run.is_dir()) {
        (false, false) => Config::load(&run.to_string_lossy(), &options.set, options.machine.overrides())?,
        _ => Config::of_run(run, &options.set, options.machine.overrides())?,
    };
    config.validate_data(&[options.split])?;
    if let Some(weights) = &options.weights {
        let given = InitFrom::new(weights.to_string_lossy());
        config.spec.model.init_from = Some(InitFrom { key: options.key.clone(), ..given });
    }
    let plan = Plan::of(&config)?;
    let source = match is_run && options.weights.is_none() {
        true => {
            let checkpoints = Checkpoints::new(config.spec.output.join("checkpoints"));
            Source::Checkpoint(Box::new(checkpoints.chosen(options.checkpoint.as_deref())?))
        }
        false => Source::File(plan.initial(&config)?.or_exit(Exit::Usage, || {
            format!("{} has no trained weights: give --weights FILE, or a run folder", run.display())
        })?),
    };
    let classes = source.classes();
    let session = Session::open_only(config, plan, options.split, classes)?;
    let network = session.network()?;
    let described = source.load_into(&network)?;
    let name = format!("{:?}", options.split).to_lowercase();
    let set = session.split(options.split);
    let set =
        set.or_exit(Exit::Usage, || format!("{} has no {name} set; try --split train", run.display()))?;
    let loader = session.loader(set, false)?;
    let scores = evaluate(&network, &*session.task, session.model.output(), &loader)?;
    if options.json {
        let mut line = json!({
            "run": run, "split": name, "samples": set.len(), "scores": scores, "report": scores.report,
        });
        source.describe(&mut line);
        println!("{line}");
    } else {
        println!("{described} on {name} ({} samples)", set.len());
        print!("{}", table(&scores, &set.classes));
    }
    Ok(())
}

/// Where the weights come from.
enum Source {
    Checkpoint(Box<Loaded>),
    File(Initial),
}

impl Source {
    /// The class names that the network was trained on, where they are known.
    fn classes(&self) -> Option<&[String]> {
        match self {
            Self::Checkpoint(loaded) => Some(&loaded.state.classes),
            Self::File(_) => None,
        }
    }

    /// Puts the weights in place; returns their name for people.
    fn load_into(&self, network: &Network) -> Result<String> {
        match self {
            Self::Checkpoint(loaded) => {
                let context = || format!("the weights of {}", loaded.folder.display());
                network.load_state(&loaded.weights()).with_context(context)?;
                Ok(loaded.folder.display().to_string())
            }
            Self::File(initial) => {
                initial.load_into(network)?;
                Ok(initial.notes.join("\n"))
            }
        }
    }

    fn describe(&self, line: &mut Value) {
        match self {
            Self::Checkpoint(loaded) => {
                line["checkpoint"] = json!(loaded.folder);
                line["epoch"] = json!(loaded.state.epoch);
            }
            Self::File(initial) => line["weights"] = json!(initial.notes),
        }
    }
}

fn table(scores: &Scores, classes: &[String]) -> String {
    let mut text = String::new();
    for (name, value) in &scores.values {
        text += &format!("  {name:<16} {value:.4}\n");
    }
    if let Some(report) = &scores.report {
        text += &class_table(report, classes);
    }
    text
}

/// Precision, recall and F1 per class, and the confusion matrix where it fits a terminal.
fn class_table(report: &ClassReport, classes: &[String]) -> String {
    const WIDEST_MATRIX: usize = 20;
    let name = |class: usize| classes.get(class).cloned().unwrap_or_else(|| class.to_string());
    let width =
        (0..report.per_class.len()).map(|class| name(class).chars().count()).max().unwrap_or(0).max(5);
    let mut text = format!("\n  {:<width$}  precision  recall      f1  samples\n", "class");
    for (class, scores) in report.per_class.iter().enumerate() {
        text += &format!(
            "  {:<width$}  {:>9.4}  {:>6.4}  {:>6.4}  {:>7}\n",
            name(class),
            scores.precision,
            scores.recall,
            scores.f1,
            scores.support
        );
    }
    if report.confusion.len() <= WIDEST_MATRIX {
        let cell = report.confusion.iter().flatten().max().map_or(1, |largest| largest.to_string().len()) + 1;
        text += "\n  rows: truth, columns: prediction, in the order above\n";
        for (class, row) in report.confusion.iter().enumerate() {
            let cells: String = row.iter().map(|count| format!("{count:>cell$}")).collect();
            text += &format!("  {:<width$} {cells}\n", name(class));
        }
    }
    text
}
