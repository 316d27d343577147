//! `tikhonov sweep-worker`: the process that `tikhonov sweep` starts for its trials; hidden from `--help`.

use std::io::Write;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;

use crate::config::{Config, Override};
use crate::data::DatasetCache;
use crate::libtorch::machine::keep_memory;
use crate::metrics::Scores;
use crate::sweep::worker::{Report, Request, Verdict};
use crate::train::run::{RunOptions, train_run};
use crate::train::training_loop::Pruner;
use crate::util::exit_code;
use crate::util::signals::Stop;

#[derive(Args, Debug)]
pub struct Options {}

/// Runs trials until stdin ends or a signal comes.
pub fn run(_options: &Options) -> Result<()> {
    keep_memory();
    let (stop, lines) = Stop::on_signals_and_end_of_stdin()?;
    let mut cache = DatasetCache::default();
    while let Ok(line) = lines.recv() {
        let request: Request = serde_json::from_str(&line).context("a line that asks for no trial")?;
        let report = match trial(request, &mut cache, &stop, &lines) {
            Ok(true) => Report::Done,
            Ok(false) => Report::Pruned,
            Err(error) => Report::Failed { code: exit_code::code(&error), message: format!("{error:#}") },
        };
        send(&report)?;
        if stop.is_requested() {
            break;
        }
    }
    Ok(())
}

/// Whether the trial came to its own end.
fn trial(request: Request, cache: &mut DatasetCache, stop: &Stop, lines: &Receiver<String>) -> Result<bool> {
    let Request { config, sets, output, threads, device } = request;
    let device = device.map(|device| Override::new("--device", "device", String::from(device)));
    let overrides = [
        Override::new("--threads", "threads", threads),
        Override::new("--output", "output", output.to_string_lossy().into_owned()),
    ];
    let config = Config::load(&config, &sets, overrides.into_iter().chain(device))?;
    let options = RunOptions { resume: true, force: false, quiet: true, plots: false };
    let mut pruner = SweepPruner { lines, stop, reported: Instant::now() };
    let result = train_run(config, options, cache, stop, &mut pruner)?;
    Ok(result.is_some())
}

/// Reports every epoch to the sweep, which decides whether the trial goes on.
struct SweepPruner<'a> {
    lines: &'a Receiver<String>,
    stop: &'a Stop,
    /// When steps were last reported.
    reported: Instant,
}

/// Between two reports of steps: the display shows no more.
const STEPS_EVERY: Duration = Duration::from_millis(900);

impl Pruner for SweepPruner<'_> {
    fn should_continue(&mut self, epoch: u64, scores: &Scores) -> Result<bool> {
        send(&Report::Epoch { epoch, scores: serde_json::to_value(scores)? })?;
        match self.lines.recv() {
            Ok(line) => Ok(serde_json::from_str::<Verdict>(&line)? == Verdict::GoOn),
            // The sweep is gone; the loop saves and stops.
            Err(_) => {
                self.stop.request();
                Ok(true)
            }
        }
    }

    fn steps(&mut self, epoch: u64, done: u64, of: u64) -> Result<()> {
        if self.reported.elapsed() < STEPS_EVERY {
            return Ok(());
        }
        self.reported = Instant::now();
        send(&Report::Steps { epoch: epoch + 1, done, of })
    }
}

fn send(report: &Report) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    Ok(stdout.write_all((serde_json::to_string(report)? + "\n").as_bytes()).and_then(|()| stdout.flush())?)
}
