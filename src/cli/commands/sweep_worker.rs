//! `tikhonov sweep-worker`: the other end of a sweep's worker, no command for people.

use std::io::Write;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::config::{Config, Override};
use crate::data::DatasetCache;
use crate::libtorch::machine::keep_memory;
use crate::metrics::Scores;
use crate::sweep::worker::{Report, Request, Verdict};
use crate::train::run::{RunOptions, train_run};
use crate::train::session::ModelPlan;
use crate::train::training_loop::Pruner;
use crate::util::exit_code;
use crate::util::signals::Stop;

/// Runs trials until stdin ends or a signal comes.
pub fn run() -> Result<()> {
    keep_memory();
    let (stop, lines) = Stop::on_signals_and_end_of_stdin()?;
    let mut shelf = DatasetCache::default();
    while let Ok(line) = lines.recv() {
        let request: Request = serde_json::from_str(&line).context("a line that asks for no trial")?;
        let report = match trial(request, &mut shelf, &stop, &lines) {
            Ok(true) => Report::Done,
            Ok(false) => Report::Pruned,
            Err(error) => Report::Failed { code: exit_code::code(&error), message: format!("{error:#}") },
        };
        tell(&report)?;
        if stop.is_requested() {
            break;
        }
    }
    Ok(())
}

/// Whether the trial came to its own end.
fn trial(request: Request, shelf: &mut DatasetCache, stop: &Stop, lines: &Receiver<String>) -> Result<bool> {
    let Request { config, sets, output, threads, device } = request;
    let device = device.map(|device| Override::new("--device", "device", String::from(device)));
    let overrides = [
        Override::new("--threads", "threads", threads),
        Override::new("--output", "output", output.to_string_lossy().into_owned()),
    ];
    let config = Config::load(&config, &sets, overrides.into_iter().chain(device))?;
    let plan = ModelPlan::of(&config)?;
    let manner = RunOptions { resume: true, force: false, quiet: true, plots: false };
    let result =
        train_run(config, plan, manner, shelf, stop, &mut Asking { lines, stop, told: Instant::now() })?;
    Ok(result.is_some())
}

/// Tells whoever started us of every epoch, and does as it says.
struct Asking<'a> {
    lines: &'a Receiver<String>,
    stop: &'a Stop,
    /// When it last told of a step.
    told: Instant,
}

/// Between two lines about steps: more often is not seen.
const STEPS_EVERY: Duration = Duration::from_millis(900);

impl Pruner for Asking<'_> {
    fn should_continue(&mut self, epoch: u64, scores: &Scores) -> Result<bool> {
        tell(&Report::Epoch { epoch, scores: serde_json::to_value(scores)? })?;
        match self.lines.recv() {
            Ok(line) => Ok(serde_json::from_str::<Verdict>(&line)? == Verdict::GoOn),
            // Nobody decides any more; the loop saves and stops.
            Err(_) => {
                self.stop.request();
                Ok(true)
            }
        }
    }

    fn steps(&mut self, epoch: u64, done: u64, of: u64) -> Result<()> {
        if self.told.elapsed() < STEPS_EVERY {
            return Ok(());
        }
        self.told = Instant::now();
        tell(&Report::Steps { epoch: epoch + 1, done, of })
    }
}

fn tell(report: &Report) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    Ok(stdout.write_all((serde_json::to_string(report)? + "\n").as_bytes()).and_then(|()| stdout.flush())?)
}
