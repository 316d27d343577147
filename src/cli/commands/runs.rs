//! `tikhonov runs`: the runs below a folder, in a table.

use std::cmp::Ordering;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::penalty::KEYS;
use crate::plot::number;
use crate::report::history::{History, Swept};
use crate::util::exit_code::{ExitCode, WithExitCode};
use crate::util::terminal::{fitted, stdout_columns};

/// List the runs below a folder.
///
/// Best: on the validation set, or without one on the test set, by the run's `train.monitor`
/// or its task's own score. Trials
/// of sweeps are listed with --all.
#[derive(Args, Debug)]
pub struct Options {
    /// Where to look
    #[arg(default_value = "runs", value_name = "DIR")]
    pub folder: PathBuf,
    /// By what they are sorted
    #[arg(long, value_enum, value_name = "KEY", default_value = "name")]
    pub sort: Key,
    /// The largest or last first; with --sort best the worst
    #[arg(long)]
    pub reverse: bool,
    /// The trials of sweeps too
    #[arg(long)]
    pub all: bool,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Key {
    Name,
    State,
    Epochs,
    /// The best first, whichever way the metric goes
    Best,
    Test,
    Lambda,
    Lr,
    Time,
    Speed,
}

/// A run in a row.
#[derive(Default, Serialize)]
struct Row {
    /// Below the folder that was asked for.
    name: String,
    folder: PathBuf,
    state: &'static str,
    epochs: u64,
    epochs_planned: Option<u64>,
    metric: Option<String>,
    higher_is_better: Option<bool>,
    best: Option<f64>,
    best_epoch: Option<u64>,
    last_test: Option<f64>,
    penalty: String,
    /// The first λ above the groups.
    lambda: Option<f64>,
    optimizer: Option<String>,
    lr: Option<f64>,
    seconds: f64,
    images_per_s: Option<f64>,
    /// Why nothing more can be said of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

pub fn run(options: &Options) -> Result<()> {
    let root = &options.folder;
    fs::read_dir(root).with_exit_code(ExitCode::Usage, || {
        format!("{}: give the folder that holds the runs", root.display())
    })?;
    let mut folders = Vec::new();
    find(root, options.all, 0, &mut folders);
    let mut rows: Vec<Row> = folders.iter().map(|folder| Row::of(root, folder)).collect();
    rows.sort_by(|a, b| order(options.sort, a, b).then_with(|| a.name.cmp(&b.name)));
    if options.reverse {
        rows.reverse();
    }
    let mut out = std::io::stdout().lock();
    if options.json {
        serde_json::to_writer_pretty(&mut out, &rows)?;
        writeln!(out)?;
        return Ok(());
    }
    if rows.is_empty() {
        writeln!(out, "no runs in {}", root.display())?;
        return Ok(());
    }
    let head = ["run", "state", "epochs", "best", "", "test", "λ", "optimizer", "lr", "time", "samples/s"];
    // Where a terminal is too narrow, in this order: speed, time, optimizer, rate, metric, epochs, λ, test.
    let dispensable = [10, 9, 7, 8, 4, 2, 6, 5];
    let rows_of = rows.iter().map(Row::cells).collect();
    writeln!(out, "{}", fitted(&head, 2, rows_of, stdout_columns(), &dispensable).trim_end())?;
    for row in rows.iter().filter(|row| row.error.is_some()) {
        writeln!(out, "{}: {}", row.name, row.error.as_deref().unwrap_or_default())?;
    }
    Ok(())
}

/// Run folders below `folder`; nothing is looked for inside of one, and links to folders are not followed.
fn find(folder: &Path, all: bool, depth: usize, found: &mut Vec<PathBuf>) {
    const DEPTH: usize = 6;
    if History::is_run(folder) {
        return found.push(folder.to_owned());
    }
    // What cannot be listed holds no run that could be read.
    let Ok(entries) = fs::read_dir(folder) else { return };
    let is_sweep = Swept::is_sweep(folder);
    let mut below: Vec<PathBuf> = (entries.flatten())
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .filter(|entry| all || !is_sweep || entry.file_name() != "trials")
        .map(|entry| entry.path())
        .collect();
    below.sort();
    if depth < DEPTH {
        below.iter().for_each(|path| find(path, all, depth + 1, found));
    }
}

impl Row {
    fn of(root: &Path, folder: &Path) -> Self {
        let name = folder.strip_prefix(root).unwrap_or(folder).display().to_string();
        let name = if name.is_empty() { crate::report::history::name_of(folder) } else { name };
        match History::read(folder) {
            Ok(history) => Self::of_history(name, &history),
            Err(error) => Self {
                name,
                folder: folder.to_owned(),
                state: "unreadable",
                error: Some(format!("{error:#}")),
                ..Self::default()
            },
        }
    }

    fn of_history(name: String, run: &History) -> Self {
        let monitor = run.monitor();
        let best = monitor.as_ref().and_then(|monitor| run.best(monitor));
        let optimizer = run.optimizer();
        let penalty = &run.config["penalty"];
        let readable = !run.config.is_null();
        Self {
            name,
            folder: run.path.clone(),
            state: run.status.word(),
            epochs: run.epochs_done(),
            epochs_planned: run.epochs_planned(),
            higher_is_better: monitor.as_ref().map(|monitor| monitor.higher_is_better),
            best: best.map(|best| best.0),
            best_epoch: best.map(|best| best.1),
            last_test: monitor.as_ref().and_then(|monitor| run.last_test(&monitor.metric)),
            metric: monitor.map(|monitor| monitor.metric),
            penalty: if readable { run.penalty() } else { String::new() },
            lambda: KEYS.iter().find_map(|key| penalty[*key].as_f64()),
            lr: optimizer.as_ref().map(|optimizer| optimizer.1),
            optimizer: optimizer.map(|optimizer| optimizer.0),
            seconds: run.seconds(),
            images_per_s: run.images_per_s(),
            error: (!readable).then(|| "its config.yaml cannot be read".to_owned()),
        }
    }

    fn cells(&self) -> Vec<String> {
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
        let planned = self.epochs_planned.map_or_else(String::new, |epochs| format!("/{epochs}"));
        vec![
            self.name.clone(),
            self.state.into(),
            format!("{}{planned}", self.epochs),
            or_dash(self.best.map(number)),
            or_dash(self.metric.clone().filter(|_| self.best.is_some())),
            or_dash(self.last_test.map(number)),
            self.penalty.clone(),
            or_dash(self.optimizer.clone()),
            or_dash(self.lr.map(number)),
            format!("{:.0} s", self.seconds),
            or_dash(self.images_per_s.map(|images| format!("{images:.0}"))),
        ]
    }
}

/// Those that have no such number come last.
fn order(key: Key, a: &Row, b: &Row) -> Ordering {
    let numbers = |of: &dyn Fn(&Row) -> Option<f64>| match (of(a), of(b)) {
        (Some(a), Some(b)) => a.total_cmp(&b),
        (a, b) => b.is_some().cmp(&a.is_some()),
    };
    let cost = |row: &Row, value: Option<f64>| {
        value.map(|v| if row.higher_is_better == Some(true) { -v } else { v })
    };
    match key {
        Key::Name => a.name.cmp(&b.name),
        Key::State => a.state.cmp(b.state),
        Key::Epochs => a.epochs.cmp(&b.epochs),
        Key::Best => numbers(&|row| cost(row, row.best)),
        Key::Test => numbers(&|row| cost(row, row.last_test)),
        Key::Lambda => numbers(&|row| row.lambda),
        Key::Lr => numbers(&|row| row.lr),
        Key::Time => numbers(&|row| Some(row.seconds)),
        Key::Speed => numbers(&|row| row.images_per_s),
    }
}
