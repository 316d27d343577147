//! `tikhonov eval`: the scores of trained runs on one of their splits.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use serde_json::{Value, json};

use super::judged::{Judged, Request};
use super::{MachineOptions, WeightOptions, assignment};
use crate::data::{Dataset, Split};
use crate::metrics::{ClassReport, Scores, bootstrap, is_of_class, reliability, with_class_name};
use crate::plot::png::png;
use crate::plot::standalone;
use crate::report::reliability::figure;
use crate::tasks::tta::Tta;
use crate::util::atomic_file;
use crate::util::console::{self, print_out};
use crate::util::exit_code::{ExitCode, WithExitCode};
use crate::util::terminal::{padded, width};

/// Evaluate trained runs, or a config with weights from elsewhere.
///
/// Of a run: the weights that the validation set chose, else the last, unless --checkpoint or --weights says
/// otherwise. Of a config: those of --weights, or of its `model.init_from`. Only the part of the data that is
/// asked for is read.
#[derive(Args, Debug)]
pub struct Options {
    /// Run folders, or configs: YAML files or names of shipped ones
    #[arg(required = true, value_name = "RUN|CONFIG")]
    pub runs: Vec<PathBuf>,
    #[command(flatten)]
    pub weights: WeightOptions,
    /// Which part of the data; without it the test set, or where there is none the validation set
    #[arg(long, value_enum)]
    pub split: Option<Split>,
    /// Override one key of the run's config, such as a data path (repeatable)
    #[arg(long, value_name = "KEY=VALUE", value_parser = assignment)]
    pub set: Vec<String>,
    #[command(flatten)]
    pub machine: MachineOptions,
    /// The scores of each image as well as the means
    #[arg(long)]
    pub each: bool,
    /// Side-by-side pictures into this folder: what the network saw, what it answers, what was wanted
    #[arg(long, value_name = "DIR")]
    pub pictures: Option<PathBuf>,
    /// Of how many samples --pictures are
    #[arg(long, value_name = "N", default_value_t = 8, requires = "pictures")]
    pub count: usize,
    /// 95 % intervals of the scores, from N draws of as many samples with replacement (bootstrap)
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "1000",
          value_parser = clap::value_parser!(u64).range(2..))]
    pub bootstrap: Option<u64>,
    /// Which draws --bootstrap makes
    #[arg(long, value_name = "N", default_value_t = 0, requires = "bootstrap")]
    pub seed: u64,
    /// The reliability diagram into this .png file: how often answers are right, by their confidence
    #[arg(long, value_name = "FILE")]
    pub reliability: Option<PathBuf>,
    /// Average the answers to an image and to its flips (and quarter turns)
    #[arg(long, value_enum, default_value_t = Tta::None)]
    pub tta: Tta,
    /// As JSON, one object per run, confusion matrix and reliability included
    #[arg(long)]
    pub json: bool,
}

pub fn run(options: &Options) -> Result<()> {
    options.runs.iter().try_for_each(|run| eval_one(run, options))
}

fn eval_one(run: &Path, options: &Options) -> Result<()> {
    let mut judged = Judged::of(&Request {
        run,
        weights: &options.weights,
        set: &options.set,
        machine: &options.machine,
        split: options.split,
        calibrated: true,
        tta: options.tta,
        pictures: options.pictures.as_ref().map_or(0, |_| options.count),
    })?;
    let name = judged.split.key();
    let gallery = std::mem::take(&mut judged.gallery);
    if let (Some(draws), Some(answers)) = (options.bootstrap, judged.scores.answers.clone()) {
        let task = judged.session.task.name();
        judged.scores.intervals = bootstrap::intervals(task, &answers, draws, options.seed);
    }
    let (set, scores, weights) = (judged.data()?, &judged.scores, &judged.weights);
    let (count, left_out) = (scores.indices.len(), set.left_out());
    let bins = scores.answers.as_ref().map(|answers| reliability(answers)).unwrap_or_default();
    if let Some(file) = &options.reliability {
        let what = || format!("--reliability: {} answers with no probabilities of classes", run.display());
        let drawn = figure(&[("", &bins)]).filter(|_| !bins.is_empty());
        let drawn = drawn.with_exit_code(ExitCode::Usage, what)?;
        atomic_file::write_with_folders(file, &png(&standalone(&drawn.svg))?)?;
    }
    if let Some(folder) = &options.pictures {
        let stem = run.file_stem().unwrap_or_default().to_string_lossy();
        let what = || format!("--pictures: {} has no pictures to show of {name}", run.display());
        (!gallery.is_empty()).then_some(()).with_exit_code(ExitCode::Usage, what)?;
        gallery.save(folder, &stem)?;
    }
    if options.json {
        let mut line = json!({
            "run": run, "split": name, "samples": count, "scores": scores, "report": scores.report,
        });
        if !left_out.is_empty() {
            line["skipped"] = json!(left_out);
        }
        if !scores.intervals.is_empty() {
            let named =
                |(name, interval): (&String, &_)| (with_class_name(name, &scores.classes), json!(interval));
            line["intervals"] = scores.intervals.iter().map(named).collect();
        }
        if let Some(temperature) = judged.temperature {
            line["temperature"] = json!(temperature);
        }
        if !bins.is_empty() {
            line["reliability"] = json!(bins);
        }
        if options.each {
            line["each"] = rows(scores, set).collect();
        }
        weights.describe(&mut line);
        print_out!("{line}");
    } else {
        let calibrated = judged.temperature.map_or_else(String::new, |t| format!(", temperature {t:.4}"));
        print_out!("{} on {name} ({count} samples){calibrated}", weights.on(run));
        console::out(format_args!("{}", table(scores, &set.classes)));
        if options.each {
            for row in rows(scores, set) {
                print_out!("{row}");
            }
        }
    }
    Ok(())
}

/// The scores of each image under its name, or its number where it has none.
fn rows<'a>(scores: &'a Scores, set: &'a Dataset) -> impl Iterator<Item = Value> + 'a {
    let images = scores.each.iter().map(|(_, values)| values.len()).max().unwrap_or(0);
    (0..images).map(move |index| {
        let name = scores.indices.get(index).and_then(|&sample| set.name(sample as usize));
        let mut row = json!({ "image": name.unwrap_or_else(|| (index + 1).to_string()) });
        for (metric, values) in &scores.each {
            row[metric] = values.get(index).copied().into();
        }
        row
    })
}

fn table(scores: &Scores, classes: &[String]) -> String {
    let mut text = String::new();
    let has_columns = |name: &str| ["auroc", "average_precision"].iter().any(|stem| is_of_class(stem, name));
    for ((name, value), (plain, _)) in scores.named().zip(&scores.values) {
        // Those of a class are in the table of classes.
        if scores.report.is_some() && has_columns(plain) {
            continue;
        }
        let interval = scores.intervals.get(plain);
        let interval =
            interval.map_or_else(String::new, |within| format!("  [{:.4}, {:.4}]", within.low, within.high));
        text += &format!("  {name:<17} {value:.4}{interval}\n");
    }
    if let Some(report) = &scores.report {
        text += &class_table(report, scores, classes);
    }
    text
}

/// Precision, recall, F1 and more per class, and the confusion matrix where it fits a terminal.
fn class_table(report: &ClassReport, of: &Scores, classes: &[String]) -> String {
    const WIDEST_MATRIX: usize = 20;
    let name = |class: usize| classes.get(class).cloned().unwrap_or_else(|| class.to_string());
    let widest = (0..report.per_class.len()).map(|class| width(&name(class))).max().unwrap_or(0).max(5);
    let more = [("auroc", "auroc"), ("average_precision", "ap")];
    let more: Vec<_> = more.iter().filter(|(stem, _)| of.get(stem).is_some()).collect();
    let has_thresholds = report.per_class.iter().any(|scores| scores.threshold.is_some());
    let mut text = format!("\n  {}  precision  recall      f1", padded("class", widest));
    more.iter().for_each(|(_, head)| text += &format!("  {head:>6}"));
    text += if has_thresholds { "  threshold  samples\n" } else { "  samples\n" };
    for (class, scores) in report.per_class.iter().enumerate() {
        text += &format!(
            "  {}  {:>9.4}  {:>6.4}  {:>6.4}",
            padded(&name(class), widest),
            scores.precision,
            scores.recall,
            scores.f1,
        );
        for (stem, _) in &more {
            let value = of.get(&format!("{stem}_{class}"));
            text += &value.map_or_else(|| format!("  {:>6}", "-"), |value| format!("  {value:>6.4}"));
        }
        if let Some(threshold) = scores.threshold {
            text += &format!("  {threshold:>9.4}");
        }
        text += &format!("  {:>7}\n", scores.support);
    }
    if !report.confusion.is_empty() && report.confusion.len() <= WIDEST_MATRIX {
        let cell = report.confusion.iter().flatten().max().map_or(1, |largest| largest.to_string().len()) + 1;
        text += "\n  rows: truth, columns: prediction, in the order above\n";
        for (class, row) in report.confusion.iter().enumerate() {
            let cells: String = row.iter().map(|count| format!("{count:>cell$}")).collect();
            text += &format!("  {} {cells}\n", padded(&name(class), widest));
        }
    }
    text
}
