//! `tikhonov compare`: whether one run is better than another, or only seems to be.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use serde::Serialize;
use serde_json::{Value, json};

use super::judged::{Judged, Request};
use super::{MachineOptions, WeightOptions, assignment};
use crate::data::Split;
use crate::metrics::answers::{Answers, Counts};
use crate::metrics::bootstrap::{Interval, interval, replicates};
use crate::metrics::mcnemar::{Mcnemar, mcnemar};
use crate::metrics::{Monitor, is_of_class, resampled, with_class_name};
use crate::tasks::tta::Tta;
use crate::util::console::print_out;
use crate::util::exit_code::{ExitCode, WithExitCode, fail};

/// Compare two trained runs on the same samples.
///
/// The difference of each score has an interval of 95 % by the paired bootstrap: both runs are scored on the same
/// draws of samples. For classes McNemar's exact test compares which samples only one of the two gets right. Both
/// say what these samples show, of these weights: another seed of the same config would differ as well.
#[derive(Args, Debug)]
pub struct Options {
    /// A run folder
    #[arg(value_name = "A")]
    a: PathBuf,
    /// Another run folder, of the same task and data
    #[arg(value_name = "B")]
    b: PathBuf,
    /// The score that decides, such as auroc; the `monitor` of A when absent
    #[arg(long, value_name = "NAME")]
    metric: Option<String>,
    /// Which part of the data; without it the test set, or where there is none the validation set
    #[arg(long, value_enum)]
    split: Option<Split>,
    /// Draws of the bootstrap
    #[arg(long, value_name = "N", default_value_t = 2000, value_parser = clap::value_parser!(u64).range(100..))]
    bootstrap: u64,
    /// Which draws these are
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Override one key of both configs, such as a data path (repeatable)
    #[arg(long, value_name = "KEY=VALUE", value_parser = assignment)]
    set: Vec<String>,
    #[command(flatten)]
    machine: MachineOptions,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// One score of both.
#[derive(Serialize)]
struct Row {
    name: String,
    a: f64,
    b: f64,
    /// b - a.
    difference: f64,
    interval: Interval,
    /// Two-sided: twice the share of the draws on the rarer side of 0.
    p: f64,
}

/// Fewer make intervals that are too narrow.
const FEW: usize = 30;

pub fn run(options: &Options) -> Result<()> {
    let weights = WeightOptions::default();
    let judge = |run, split| {
        Judged::of(&Request {
            run,
            weights: &weights,
            set: &options.set,
            machine: &options.machine,
            split,
            calibrated: true,
            tta: Tta::None,
            pictures: 0,
        })
    };
    let a = judge(&options.a, options.split)?;
    let b = judge(&options.b, Some(a.split))?;
    let task = a.session.task.name();
    let (answers_a, answers_b) = same_questions(options, &a, &b)?;
    let (metric, higher_is_better) = match &options.metric {
        None => (a.session.monitor.metric.clone(), a.session.monitor.higher_is_better),
        Some(name) => {
            let monitor = Monitor::new(task, name);
            let monitor = monitor.map_err(|message| fail(ExitCode::Usage, format!("--metric: {message}")))?;
            (monitor.metric, monitor.higher_is_better)
        }
    };
    let rows = rows(task, answers_a, answers_b, options);
    let row = rows.iter().find(|row| row.name == metric).with_exit_code(ExitCode::Usage, || {
        let known: Vec<_> = rows.iter().map(|row| row.name.as_str()).collect();
        format!("{metric} is not known sample by sample here; --metric takes {}", known.join(", "))
    })?;
    let test = mcnemar(answers_a, answers_b);
    let classes = &a.scores.classes;
    let sentence = sentence(options, &a, row, higher_is_better, answers_a.samples(), classes);
    if options.json {
        let line = |row: &Row| {
            let mut line = json!(row);
            line["name"] = json!(with_class_name(&row.name, classes));
            line
        };
        let table: Vec<Value> = rows.iter().map(line).collect();
        print_out!(
            "{}",
            json!({
                "a": options.a, "b": options.b, "split": a.split.key(), "samples": answers_a.samples(), "metric": metric,
                "answer": sentence, "scores": table, "mcnemar": test, "draws": options.bootstrap, "seed": options.seed,
            })
        );
        return Ok(());
    }
    print_out!("{sentence}");
    if let Some(Mcnemar { only_a, only_b, p }) = test {
        let what = if matches!(answers_a, Answers::Labels(_)) { "all labels of" } else { "" };
        let what = format!("{what} {only_a} samples right, only B {only_b}").trim_start().to_owned();
        print_out!("McNemar's test: only A has {what}: p {}", probability(p));
    }
    if answers_a.samples() < FEW {
        print_out!("{} samples are few: such intervals are too narrow", answers_a.samples());
    }
    print_out!("\n  A = {}, B = {}", options.a.display(), options.b.display());
    // Those of single classes are in the JSON.
    let is_single =
        |row: &&Row| ["auroc", "average_precision"].iter().any(|stem| is_of_class(stem, &row.name));
    let rows: Vec<&Row> = rows.iter().filter(|row| row.name == metric || !is_single(row)).collect();
    let widest =
        rows.iter().map(|row| with_class_name(&row.name, classes).chars().count()).max().unwrap_or(0);
    print_out!("  {:<widest$} {:>9} {:>9} {:>9}  {:^20}  {:>7}", "", "A", "B", "B - A", "95 % interval", "p");
    for row in rows {
        let Row { a, b, difference, interval: Interval { low, high }, p, .. } = row;
        let within = format!("{low:+.4} to {high:+.4}");
        let name = with_class_name(&row.name, classes);
        print_out!("  {name:<widest$} {a:>9.4} {b:>9.4} {difference:>+9.4}  {within:^20}  {p:>7.4}");
    }
    Ok(())
}

/// The answers of both, if they are to the same samples.
fn same_questions<'a>(options: &Options, a: &'a Judged, b: &'a Judged) -> Result<(&'a Answers, &'a Answers)> {
    let refuse = |why: String| {
        let (a, b) = (options.a.display(), options.b.display());
        Err(fail(ExitCode::Usage, format!("{a} and {b} cannot be compared: {why}")))
    };
    let (task_a, task_b) = (a.session.task.name(), b.session.task.name());
    if task_a != task_b {
        return refuse(format!("the one is {task_a} and the other {task_b}"));
    }
    let (Some(ours), Some(theirs)) = (&a.scores.answers, &b.scores.answers) else {
        return refuse(format!("{task_a} has no scores of single samples"));
    };
    let split = a.split;
    if ours.samples() != theirs.samples() {
        let (ours, theirs) = (ours.samples(), theirs.samples());
        return refuse(format!("the {split} of the one has {ours} samples and that of the other {theirs}"));
    }
    if a.scores.classes != b.scores.classes {
        return refuse("their classes are others, or in another order".into());
    }
    if !ours.is_of_same(theirs) || a.names()? != b.names()? {
        return refuse(format!("the samples of the {split} are not the same, in the same order"));
    }
    Ok((ours, theirs))
}

fn rows(task: &str, a: &Answers, b: &Answers, options: &Options) -> Vec<Row> {
    let both = |counts: Counts| (resampled(task, a, counts), resampled(task, b, counts));
    let draws = replicates(a.samples(), options.bootstrap, options.seed, both);
    let (whole_a, whole_b) = both(None);
    let find = |scores: &[(String, f64)], name: &str| {
        scores.iter().find(|(known, _)| known == name).map(|(_, value)| *value)
    };
    let row = |(name, a): &(String, f64)| {
        let b = find(&whole_b, name)?;
        let differences = draws.iter().map(|(a, b)| Some(find(b, name)? - find(a, name)?));
        // A class that a draw lacks has no score there, and its interval would be one of other draws.
        let differences: Vec<f64> = differences.collect::<Option<_>>()?;
        let side = |is: fn(&f64) -> bool| differences.iter().filter(|value| is(value)).count() + 1;
        let rarer = side(|value| *value <= 0.0).min(side(|value| *value >= 0.0));
        let p = (2.0 * rarer as f64 / (differences.len() + 1) as f64).min(1.0);
        Some(Row { name: name.clone(), a: *a, b, difference: b - a, interval: interval(differences), p })
    };
    whole_a.iter().filter_map(row).collect()
}

fn sentence(
    options: &Options,
    judged: &Judged,
    row: &Row,
    higher_is_better: bool,
    samples: usize,
    classes: &[String],
) -> String {
    let Row { a, b, difference, interval: Interval { low, high }, .. } = row;
    let name = with_class_name(&row.name, classes);
    let on = format!("on {samples} samples of the {}", judged.split);
    let within = format!("B - A {difference:+.4}, 95 % interval {low:+.4} to {high:+.4}");
    let is_shown = *low > 0.0 || *high < 0.0;
    if !is_shown {
        return format!("No difference is shown: {name} {a:.4} for A and {b:.4} for B ({within}), {on}.");
    }
    let (better, worse) = if (*difference > 0.0) == higher_is_better { ("B", "A") } else { ("A", "B") };
    let run = if better == "A" { &options.a } else { &options.b };
    let (first, second) = if better == "A" { (a, b) } else { (b, a) };
    format!(
        "{better} ({}) is better than {worse}: {name} {first:.4} against {second:.4} ({within}), {on}.",
        run.display()
    )
}

fn probability(p: f64) -> String {
    if p < 1e-4 { "< 0.0001".into() } else { format!("= {p:.4}") }
}
