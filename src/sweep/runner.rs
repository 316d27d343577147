//! Runs the trials of a sweep, several at a time, each in a worker process.

use std::collections::{HashSet, VecDeque};
use std::os::unix::process::ExitStatusExt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::Value;

use super::folder::Past;
use super::prune::TrialPruner;
use super::search::{Search, suggest};
use super::worker::{Heard, Report, Request, Verdict, Worker};
use super::{Design, Ending, Finished, Folder, Trial, path};
use crate::libtorch::device::DeviceSpec;
use crate::sweep::display::Display;
use crate::util::exit_code::{ExitCode, WithExitCode, fail};
use crate::util::signals::Stop;
use crate::util::threads::each;

/// A place for one trial at a time.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    /// None for the config's own.
    pub device: Option<DeviceSpec>,
    pub threads: u32,
}

/// What all trials share beside the design: the file of the base config, and where they run.
pub struct Place {
    pub config: String,
    pub slots: Vec<Slot>,
}

pub struct Runner<'a> {
    folder: &'a Folder,
    place: Place,
    stop: &'a Stop,
    display: Display,
    work: Mutex<Work>,
}

/// What the slots share.
struct Work {
    design: Design,
    queue: VecDeque<Trial>,
    finished: Vec<Finished>,
    pruner: TrialPruner,
    /// Something failed: no more trials.
    is_over: bool,
}

/// What became of a trial.
enum End {
    Ran,
    Pruned {
        epoch: u64,
        value: f64,
    },
    Failed {
        code: u8,
        message: String,
    },
    /// The worker was killed.
    Killed,
}

impl<'a> Runner<'a> {
    pub fn new(folder: &'a Folder, mut design: Design, past: Past, place: Place, stop: &'a Stop) -> Self {
        let Past { finished, points, scores } = past;
        if design.search == Search::Tpe {
            design.points = points;
        }
        let over: HashSet<usize> = finished.iter().map(|one| one.trial).collect();
        let done = finished.iter().filter(|one| one.ending == Ending::Done).map(|one| one.trial).collect();
        let mut queue: VecDeque<Trial> =
            design.trials().into_iter().filter(|trial| !over.contains(&trial.id)).collect();
        if design.path {
            // The first of each path; it brings the next.
            let mut begun = HashSet::new();
            queue.retain(|trial| begun.insert((trial.seed, trial.fold)));
        }
        let pruner = TrialPruner::new(design.prune.clone(), design.higher_is_better, scores, done);
        let display = Display::new(design.total(), over.len(), place.slots.len());
        let work = Mutex::new(Work { design, queue, finished, pruner, is_over: false });
        Self { folder, place, stop, display, work }
    }

    /// All trials, the finished ones too, and the design with all its points. The first trial that fails for
    /// another reason than diverging or a process that was killed ends the sweep.
    pub fn run(self) -> Result<(Design, Vec<Finished>)> {
        let runner = &self;
        let slots = (0..self.place.slots.len()).collect::<Vec<_>>();
        let outcomes = each(slots.len(), slots, |at| runner.work(at));
        self.display.finish();
        outcomes.into_iter().collect::<Result<()>>()?;
        if self.stop.is_requested() {
            let message = "interrupted; the same command with --resume goes on from here";
            return Err(fail(ExitCode::Interrupted, message));
        }
        let work = self.work.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok((work.design, work.finished))
    }

    fn lock(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self, at: usize) -> Result<()> {
        let mut worker = None;
        while let Some(trial) = self.next()? {
            match self.one(&trial, at, &mut worker) {
                Ok(Some(finished)) => {
                    let mut work = self.lock();
                    // Under the lock, so that lines do not mix.
                    self.folder.record(&finished)?;
                    if finished.ending == Ending::Done {
                        work.pruner.finish(finished.trial);
                    }
                    self.display.ended(at, &finished, &work.design.metric);
                    work.finished.push(finished);
                    work.enqueue_next_on_path(&trial);
                }
                Ok(None) => break,
                Err(error) => {
                    // The others finish what they are at.
                    self.lock().is_over = true;
                    return Err(error);
                }
            }
        }
        self.display.idle(at);
        Ok(())
    }

    fn next(&self) -> Result<Option<Trial>> {
        if self.stop.is_requested() {
            return Ok(None);
        }
        let mut work = self.lock();
        if work.is_over {
            return Ok(None);
        }
        if work.queue.is_empty() && work.design.points.len() < work.design.count {
            let index = work.design.points.len();
            let point = suggest(&work.design.axes, work.design.seeds[0], index, &work.past())?;
            self.folder.record_point(&point)?;
            work.design.points.push(point);
            work.queue = work.design.trials_of(index).into();
        }
        Ok(work.queue.pop_front())
    }

    fn sets(&self, trial: &Trial) -> Vec<String> {
        let work = self.lock();
        let mut sets = work.design.sets(trial);
        if work.design.path
            && let Some(start) = path::start(self.folder, &work.design, &work.finished, trial)
        {
            sets.push(format!("model.init_from={}", Value::from(start)));
        }
        sets
    }

    /// Runs one trial to its end; None when the sweep is to stop.
    fn one(&self, trial: &Trial, at: usize, slot_worker: &mut Option<Worker>) -> Result<Option<Finished>> {
        const PATIENCE: Duration = Duration::from_secs(60);
        const LIVES: usize = 2;
        let slot = &self.place.slots[at];
        let output = self.folder.trial(trial);
        let request = Request {
            config: self.place.config.clone(),
            sets: self.sets(trial),
            output: output.clone(),
            threads: slot.threads,
            device: slot.device,
        };
        let (began, mut lost) = (Instant::now(), 0);
        loop {
            let worker = match slot_worker {
                Some(worker) => worker,
                None => slot_worker.insert(Worker::start()?),
            };
            self.display.began(at, trial, &self.lock().design);
            worker.ask(&request)?;
            let mut end = self.monitor_trial(worker, trial, at)?;
            if let End::Killed = end {
                let (status, errors) = match slot_worker.take() {
                    Some(worker) => worker.end()?,
                    None => continue,
                };
                if let (Some(code), None) = (status.code(), status.signal()) {
                    end = End::Failed { code: code as u8, message: errors.trim().to_owned() };
                }
            }
            let seconds = began.elapsed().as_secs_f64();
            let ended = |ending, epoch, score| self.ended(trial, ending, epoch, score, Value::Null, seconds);
            match end {
                End::Ran => return self.result(trial, &output).map(Some),
                End::Pruned { epoch, value } => {
                    let score = Some(value).filter(|value| value.is_finite());
                    return Ok(Some(ended(Ending::Pruned, Some(epoch), score)));
                }
                End::Failed { code: 5, .. } => return Ok(Some(ended(Ending::Diverged, None, None))),
                _ if self.stop.is_requested() => return Ok(None),
                // A trial of a sweep that was killed may still be saving.
                End::Failed { code: 2, ref message }
                    if message.contains("another process") && began.elapsed() < PATIENCE =>
                {
                    std::thread::sleep(Duration::from_secs(1));
                }
                // Out of memory it starts anew, with nothing of the trials before.
                End::Killed | End::Failed { code: 6, .. } => {
                    *slot_worker = None;
                    lost += 1;
                    if lost == LIVES {
                        return Ok(Some(ended(Ending::Crashed, None, None)));
                    }
                }
                End::Failed { code, message } => {
                    let exit = ExitCode::from_code(Some(code.into())).unwrap_or(ExitCode::Usage);
                    return Err(fail(exit, format!("trial {} failed: {message}", trial.id)));
                }
            }
        }
    }

    /// Receives the worker's reports until its trial ends, and decides after each epoch whether it goes on. When
    /// the sweep is to stop, the worker's stdin is closed: it saves and ends.
    fn monitor_trial(&self, worker: &mut Worker, trial: &Trial, at: usize) -> Result<End> {
        let mut last = (0, f64::NAN);
        loop {
            match worker.listen(Duration::from_millis(50)) {
                Heard::Report(Report::Epoch { epoch, scores }) => {
                    let score = {
                        let mut work = self.lock();
                        let value = work.design.score(&scores)?;
                        last = (epoch, value);
                        let (score, is_new) = work.pruner.decide(trial, epoch, value);
                        // Recorded before it is sent, so that a resumed sweep repeats the decision.
                        if is_new && work.design.prune.is_some() {
                            self.folder.record_score(&score)?;
                        }
                        self.display.scored(at, epoch, &work.design.metric, value);
                        score
                    };
                    worker.answer(if score.pruned { Verdict::Prune } else { Verdict::GoOn })?;
                }
                Heard::Report(Report::Steps { epoch, done, of }) => self.display.steps(at, epoch, done, of),
                Heard::Report(Report::Done) => return Ok(End::Ran),
                Heard::Report(Report::Pruned) => return Ok(End::Pruned { epoch: last.0, value: last.1 }),
                Heard::Report(Report::Failed { code, message }) => return Ok(End::Failed { code, message }),
                Heard::End => return Ok(End::Killed),
                Heard::Nothing => {}
            }
            if self.stop.is_requested() {
                worker.let_go();
            }
        }
    }

    /// What the run folder says of a trial that came to its own end.
    fn result(&self, trial: &Trial, output: &std::path::Path) -> Result<Finished> {
        let file = output.join("result.json");
        let text = std::fs::read_to_string(&file).with_exit_code(ExitCode::Storage, || file.display())?;
        let result: Value =
            serde_json::from_str(&text).with_exit_code(ExitCode::Storage, || file.display())?;
        let scores = result["last"]["validation"].clone();
        let (score, metric) = {
            let work = self.lock();
            (work.design.score(&scores)?, work.design.metric.clone())
        };
        // Nothing diverged: a run whose loss is not finite ends with exit 5.
        score.is_finite().then_some(()).with_exit_code(ExitCode::Usage, || {
            format!(
                "trial {} has no finite `{metric}` on its validation set (R² of one sample is none, PSNR of an image that is met \
                 exactly is infinite); take fewer folds, or pruner by another --metric, such as loss",
                trial.id
            )
        })?;
        let seconds = result["seconds"].as_f64().unwrap_or_default();
        Ok(self.ended(trial, Ending::Done, None, Some(score), scores, seconds))
    }

    fn ended(
        &self,
        trial: &Trial,
        ending: Ending,
        epoch: Option<u64>,
        score: Option<f64>,
        scores: Value,
        seconds: f64,
    ) -> Finished {
        let work = self.lock();
        let point = work.design.named(&work.design.points[trial.point]);
        let &Trial { id, seed, fold, .. } = trial;
        Finished { trial: id, point, seed, fold, ending, epoch, score, scores, seconds }
    }
}

impl Work {
    /// After `trial`, the next one along its path.
    fn enqueue_next_on_path(&mut self, trial: &Trial) {
        if !self.design.path {
            return;
        }
        let step = self.design.per_point();
        let rest = (trial.point + 1..self.design.points.len()).map(|point| Trial {
            id: trial.id + (point - trial.point) * step,
            point,
            ..*trial
        });
        let is_left = |next: &Trial| self.finished.iter().all(|one| one.trial != next.id);
        let next = rest.into_iter().find(is_left);
        self.queue.extend(next);
    }

    /// The points that are finished, in their order, and what they cost.
    fn past(&self) -> Vec<(crate::sweep::search_space::Point, f64)> {
        let sign = if self.design.higher_is_better { -1.0 } else { 1.0 };
        let standings = self.design.standings(&self.finished).into_iter();
        standings.map(|one| (one.point, one.mean.map_or(f64::INFINITY, |mean| sign * mean))).collect()
    }
}
