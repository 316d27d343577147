//! How fast a config trains: steps as the loop takes them, timed by phase, with one evaluation after them.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use serde::Serialize;
use serde_json::json;
use tch::Device;

use crate::data::Split;
use crate::train::records::Named;
use crate::train::session::Session;
use crate::train::trainer::Trainer;
use crate::util::exit_code::{ExitCode, fail};
use crate::util::stopwatch::{Lap, Phase, Stopwatch, settle};

/// How much of what is measured.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// Optimiser steps that count.
    pub steps: usize,
    /// Those before them, which do not.
    pub warmup: usize,
    /// Only loads the batches, and learns from none.
    pub data_only: bool,
    pub evaluation: bool,
    pub checkpoint: bool,
}

/// What `bench --json` prints.
#[derive(Debug, Serialize)]
pub struct Report {
    pub device: String,
    pub threads: i32,
    pub steps: usize,
    /// Samples that those steps learnt from.
    pub samples: u64,
    pub step_ms: Spread,
    /// Over all measured steps, waiting included.
    pub images_per_s: f64,
    /// Share of the time in which the loop waited for the loader, in [0, 1].
    pub data_wait: f64,
    pub phases: Named<PhaseTime>,
    /// The same steps without the waits that tell the phases apart; None on the CPU, where nothing is waited
    /// for.
    pub free_running: Option<FreeRunning>,
    /// The most memory that the process had resident, before the evaluation; None where the system does not
    /// tell.
    pub peak_memory_bytes: Option<u64>,
    /// When the first step was done, in seconds since 1970: the parent process knows how long it
    /// took.
    pub first_step_unix_s: f64,
    pub evaluation: Option<Evaluation>,
    pub checkpoint: Option<Checkpoint>,
    /// One list of laps per measured step.
    #[serde(skip)]
    pub laps: Vec<Vec<Lap>>,
}

/// Milliseconds; nearest ranks.
#[derive(Debug, Serialize)]
pub struct Spread {
    pub median: f64,
    pub p10: f64,
    pub p90: f64,
}

#[derive(Debug, Serialize)]
pub struct PhaseTime {
    /// Mean per step.
    pub ms: f64,
    /// Of the time of all steps, in [0, 1].
    pub share: f64,
}

#[derive(Debug, Serialize)]
pub struct FreeRunning {
    /// Mean.
    pub step_ms: f64,
    pub images_per_s: f64,
}

#[derive(Debug, Serialize)]
pub struct Evaluation {
    /// validation or test.
    pub split: String,
    pub samples: usize,
    pub seconds: f64,
    pub images_per_s: f64,
}

/// One checkpoint, as training writes it: hashed, synced to disk, renamed; and read back, its hashes
/// verified.
#[derive(Debug, Serialize)]
pub struct Checkpoint {
    pub save_s: f64,
    pub load_s: f64,
}

/// Trains `extent.warmup + extent.steps` steps, over as many epochs as that takes, and measures. Whatever
/// `run` writes is its folder's owner's to remove.
pub fn bench(session: &Session, run: &mut Trainer, extent: Extent) -> Result<Report> {
    let device = session.device;
    let mut laps = Vec::with_capacity(extent.steps);
    let (mut samples, mut first_step) = (0, None);
    run.time_phases(Stopwatch::start(device));
    drive(run, extent, |run, step, batch| {
        let own = run.stopwatch().take();
        first_step.get_or_insert_with(unix_time);
        if step >= extent.warmup {
            laps.push(own);
            samples += batch;
        }
    })?;
    run.time_phases(Stopwatch::default());
    let peak_memory_bytes = peak_memory();
    let free_running = match device {
        Device::Cpu => None,
        _ => Some(run_free(device, run, extent)?),
    };
    let times: Vec<Duration> = laps.iter().map(|step| step.iter().map(|lap| lap.took).sum()).collect();
    let total = times.iter().sum::<Duration>().as_secs_f64();
    let phases =
        Named(Phase::ALL.map(|phase| (phase.name().to_owned(), phase_time(&laps, phase, total))).into());
    Ok(Report {
        device: format!("{device:?}").to_lowercase(),
        threads: tch::get_num_threads(),
        steps: extent.steps,
        samples,
        step_ms: Spread::of(times),
        images_per_s: samples as f64 / total,
        data_wait: phase_time(&laps, Phase::Data, total).share,
        phases,
        free_running,
        peak_memory_bytes,
        first_step_unix_s: first_step.unwrap_or_default(),
        checkpoint: if extent.checkpoint { Some(checkpoint(run)?) } else { None },
        evaluation: if extent.evaluation { evaluation(session, run)? } else { None },
        laps,
    })
}

/// Takes all steps of `extent`; `each` hears of every one, with its number from 0 and its samples.
fn drive(run: &mut Trainer, extent: Extent, mut each: impl FnMut(&Trainer, usize, u64)) -> Result<()> {
    let Extent { data_only, .. } = extent;
    let count = extent.warmup + extent.steps;
    let loader = run.loader();
    let (mut step, mut idle) = (0, 0);
    while step < count {
        let before = step;
        for group in run.remaining_steps(&loader).take(count - step) {
            let group = group?;
            run.stopwatch().passed(Phase::Data);
            let samples = group.samples as u64;
            if !data_only {
                run.train_step(group)?;
            }
            run.stopwatch().passed(Phase::Other);
            each(run, step, samples);
            step += 1;
        }
        if step < count {
            run.next_epoch()?;
        }
        // What is left of an epoch may be nothing; a whole one is not, unless none of its files can be read.
        idle = if step == before { idle + 1 } else { 0 };
        if idle > 1 {
            return Err(fail(ExitCode::Data, "the training set gives no batch"));
        }
    }
    Ok(())
}

fn run_free(device: Device, run: &mut Trainer, extent: Extent) -> Result<FreeRunning> {
    let mut began = Instant::now();
    let mut samples = 0;
    drive(run, extent, |_, step, batch| {
        if step >= extent.warmup {
            samples += batch;
        } else if step + 1 == extent.warmup {
            settle(device);
            began = Instant::now();
        }
    })?;
    settle(device);
    let seconds = began.elapsed().as_secs_f64();
    Ok(FreeRunning { step_ms: seconds * 1e3 / extent.steps as f64, images_per_s: samples as f64 / seconds })
}

fn phase_time(laps: &[Vec<Lap>], phase: Phase, total: f64) -> PhaseTime {
    let own = laps.iter().flatten().filter(|lap| lap.phase == phase);
    let seconds = own.map(|lap| lap.took).sum::<Duration>().as_secs_f64();
    PhaseTime { ms: seconds * 1e3 / laps.len() as f64, share: seconds / total }
}

impl Spread {
    fn of(mut times: Vec<Duration>) -> Self {
        times.sort();
        let at = |share: f64| {
            let rank = (share * (times.len() as f64 - 1.0)).round() as usize;
            times.get(rank).map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
        };
        Self { median: at(0.5), p10: at(0.1), p90: at(0.9) }
    }
}

fn evaluation(session: &Session, run: &Trainer) -> Result<Option<Evaluation>> {
    for split in [Split::Validation, Split::Test] {
        let Some(set) = session.split(split) else { continue };
        let began = Instant::now();
        run.scores(split)?;
        let (samples, seconds) = (set.len(), began.elapsed().as_secs_f64());
        let split = format!("{split:?}").to_lowercase();
        return Ok(Some(Evaluation { split, samples, seconds, images_per_s: samples as f64 / seconds }));
    }
    Ok(None)
}

fn checkpoint(run: &mut Trainer) -> Result<Checkpoint> {
    let began = Instant::now();
    run.save()?;
    let save_s = began.elapsed().as_secs_f64();
    let began = Instant::now();
    run.folder().checkpoints().last()?;
    Ok(Checkpoint { save_s, load_s: began.elapsed().as_secs_f64() })
}

fn unix_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// Bytes, where the system is Linux.
fn peak_memory() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

impl Report {
    /// Writes the measured steps where `chrome://tracing` and Perfetto read them: the phases of a step stand
    /// under it.
    pub fn write_trace(&self, path: &Path) -> Result<()> {
        let event = |name: &str, start: Duration, took: Duration, step: usize| {
            let (ts, dur) = (start.as_nanos() as f64 / 1e3, took.as_nanos() as f64 / 1e3);
            json!({"name": name, "cat": "train", "ph": "X", "ts": ts, "dur": dur, "pid": 1, "tid": 1, "args": {"step": step}})
        };
        let mut events = Vec::new();
        for (number, laps) in self.laps.iter().enumerate() {
            if let (Some(first), Some(last)) = (laps.first(), laps.last()) {
                events.push(event("step", first.start, last.start + last.took - first.start, number));
            }
            events.extend(laps.iter().map(|lap| event(lap.phase.name(), lap.start, lap.took, number)));
        }
        let trace = json!({"displayTimeUnit": "ms", "traceEvents": events});
        let mut file = fs::File::create(path)?;
        serde_json::to_writer(&mut file, &trace)?;
        Ok(file.write_all(b"\n")?)
    }
}
