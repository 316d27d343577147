//! `tikhonov sweep`: many runs that differ in λ, or in any other key, side by side; and which of them to choose.

use std::collections::{HashSet, VecDeque};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use super::{ConfigOptions, MachineOptions};
use crate::config::Config;
use crate::data::Split;
use crate::exit::{Exit, OrExit, fail};
use crate::session::Plan;
use crate::stop::{LEASH, Stop};
use crate::sweep::over::{Axis, grid, random};
use crate::sweep::{Design, Ending, Finished, Folder, Outcome, Trial, words};

/// Train over a grid of λ, or of any other keys, and choose.
///
/// Every trial is a run of its own, several at a time. It is judged by its validation set, or with --folds by k-fold
/// cross-validation, after which the chosen point is trained once more on everything. Kill it anywhere: --resume goes on.
#[derive(Args, Debug)]
pub struct Options {
    #[command(flatten)]
    pub config: ConfigOptions,
    /// A key and its values (repeatable): penalty.l2=1e-6:1e-1:log:9, optimizer.sgd.lr=0.1,0.03
    #[arg(long, required = true, value_name = "KEY=VALUES")]
    pub over: Vec<String>,
    /// So many trials drawn at random, instead of the whole grid
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub random: Option<u32>,
    /// Repeat every point with so many seeds, from the config's own on
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub seeds: u32,
    /// Cross-validate with so many folds of the training set
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u32).range(2..=1000))]
    pub folds: Option<u32>,
    /// The score that decides, instead of the task's own; losses and errors are better when they are low
    #[arg(long, value_name = "NAME")]
    pub metric: Option<String>,
    /// Which point is trained once more, without a validation set; with --folds the best, otherwise none
    #[arg(long, value_enum, value_name = "WHICH")]
    pub final_fit: Option<FinalFit>,
    /// Trials at a time; by default one per core, or one on a GPU
    #[arg(long, short, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub jobs: Option<u32>,
    /// The sweep's folder; runs/NAME-sweep by default
    #[arg(long, value_name = "DIR")]
    pub output: Option<PathBuf>,
    /// Go on with a sweep that was stopped
    #[arg(long)]
    pub resume: bool,
    #[command(flatten)]
    pub machine: MachineOptions,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FinalFit {
    Best,
    /// The strongest penalty within one standard error of the best
    OneSe,
    None,
}

pub fn run(options: &Options) -> Result<()> {
    let config = options.config.load(options.machine.overrides())?;
    config.validate_data(&Split::ALL)?;
    let design = design(options, &config)?;
    let jobs = options.jobs.map_or_else(|| default_jobs(&config), |jobs| Ok(jobs as usize))?;
    let path = options.output.clone().unwrap_or_else(|| {
        let mut name = config.spec.output.as_os_str().to_owned();
        name.push("-sweep");
        name.into()
    });
    let stop = Stop::on_signals()?;
    let (folder, finished) = Folder::open(&path, &design, options.resume)?;
    folder.write("base.yaml", &config.resolved()?)?;

    let finished = Runner::new(options, &folder, &design, finished, jobs, &stop).run()?;
    let outcome = folder.conclude(&design, &finished)?;
    print!("{}", outcome.table(&design));
    let Some(choice) = outcome.choice else {
        return Err(fail(Exit::Numeric, "every point diverged; lower the learning rate"));
    };
    tell(&design, &outcome, "* best", choice.best);
    if let Some(at) = choice.one_standard_error {
        tell(&design, &outcome, "+ strongest within one standard error", at);
    }
    let wanted =
        options.final_fit.unwrap_or(if design.folds.is_some() { FinalFit::Best } else { FinalFit::None });
    let at = match wanted {
        FinalFit::None => None,
        FinalFit::Best => Some(choice.best),
        FinalFit::OneSe => Some(choice.one_standard_error.or_exit(
            Exit::Usage,
            || "--final-fit one-se wants one number to vary and two trials or more per point; take `best`",
        )?),
    };
    if let Some(at) = at {
        let output = folder.path.join("final");
        let mut command = train(options, &folder, &output)?;
        for set in design.assignments(&outcome.standings[at].point) {
            command.args(["--set", &set]);
        }
        let status = command.args(["--set", "data.validation=null"]).stdin(Stdio::null()).status()?;
        if !status.success() {
            let code = Exit::from_code(status.code()).unwrap_or(Exit::Usage);
            return Err(fail(code, format!("the final fit failed; its log is in {}", output.display())));
        }
    }
    println!("saved in {}", folder.path.display());
    Ok(())
}

fn tell(design: &Design, outcome: &Outcome, what: &str, at: usize) {
    println!("{what}: {}", words(&design.named(&outcome.standings[at].point)));
}

/// Lays out the trials and refuses what cannot work, before anything runs.
fn design(options: &Options, config: &Config) -> Result<Design> {
    let axes = options.over.iter().map(|over| Axis::parse(over)).collect::<Result<Vec<_>>>()?;
    let mut keys = HashSet::new();
    if let Some(twice) = axes.iter().find(|axis| !keys.insert(&axis.key)) {
        return Err(fail(Exit::Usage, format!("--over names {} twice", twice.key)));
    }
    let spec = &config.spec;
    let points = match options.random {
        Some(count) => random(&axes, count as usize, spec.seed),
        None => grid(&axes),
    };
    if points.len() > 10_000 {
        return Err(fail(
            Exit::Usage,
            format!("a grid of {} points; --random N draws some of them", points.len()),
        ));
    }
    if spec.data.validation.is_none() && options.folds.is_none() {
        let message = "a sweep judges by the validation set: declare one, such as --set data.validation.fraction=0.1, or \
                       cross-validate with --folds 5";
        return Err(fail(Exit::Usage, message));
    }
    let goal = spec.task.build().goal();
    let metric = options.metric.clone().unwrap_or_else(|| goal.metric.to_owned());
    let is_cost = ["loss", "mse", "rmse", "mae"].contains(&metric.as_str());
    let higher_is_better = if metric == goal.metric { goal.higher_is_better } else { !is_cost };
    let mut base = serde_json::to_value(spec)?;
    // Where it runs changes nothing of what it is.
    if let Some(base) = base.as_object_mut() {
        ["device", "threads", "output"].iter().for_each(|key| drop(base.remove(*key)));
    }
    let seeds = (0..u64::from(options.seeds)).map(|more| spec.seed + more).collect();
    let folds = options.folds.map(|folds| folds as usize);
    let design = Design { base, axes, points, seeds, folds, metric, higher_is_better };
    let trials = design.trials();
    for trial in trials.iter().step_by(design.seeds.len() * folds.unwrap_or(1)) {
        let sets = [options.config.set.clone(), design.sets(trial)].concat();
        let with = ConfigOptions { set: sets, ..options.config.clone() };
        let point = with.load(options.machine.overrides())?;
        Plan::of(&point)?;
    }
    Ok(design)
}

fn default_jobs(config: &Config) -> Result<usize> {
    Ok(match config.spec.device.resolve()? {
        tch::Device::Cpu => std::thread::available_parallelism().map_or(1, usize::from),
        _ => 1,
    })
}

/// `tikhonov train` on the base config.
fn train(options: &Options, folder: &Folder, output: &std::path::Path) -> Result<Command> {
    let program = std::env::current_exe().context("finding the program itself")?;
    let mut command = Command::new(program);
    command
        .arg("train")
        .arg(folder.path.join("base.yaml"))
        .arg("--output")
        .arg(output)
        .args(["--resume", "--quiet"]);
    if let Some(device) = options.machine.device {
        command.args(["--device", &String::from(device)]);
    }
    Ok(command)
}

/// Keeps several trials going.
struct Runner<'a> {
    options: &'a Options,
    folder: &'a Folder,
    design: &'a Design,
    queue: Mutex<VecDeque<Trial>>,
    finished: Mutex<Vec<Finished>>,
    jobs: usize,
    stop: &'a Stop,
    bar: ProgressBar,
}

impl<'a> Runner<'a> {
    fn new(
        options: &'a Options,
        folder: &'a Folder,
        design: &'a Design,
        finished: Vec<Finished>,
        jobs: usize,
        stop: &'a Stop,
    ) -> Self {
        let done: HashSet<usize> = finished.iter().map(|one| one.trial).collect();
        let trials = design.trials();
        let bar = ProgressBar::new(trials.len() as u64).with_position(done.len() as u64);
        let style =
            ProgressStyle::with_template("{bar:28.cyan/blue} {pos}/{len} trials · {eta} left · {wide_msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        let queue = trials.into_iter().filter(|trial| !done.contains(&trial.id)).collect();
        let (queue, finished) = (Mutex::new(queue), Mutex::new(finished));
        Self { options, folder, design, queue, finished, jobs, stop, bar }
    }

    /// All trials, the finished ones too. The first trial that fails for another reason than diverging ends the sweep.
    fn run(self) -> Result<Vec<Finished>> {
        let outcome = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..self.jobs).map(|_| scope.spawn(|| self.work())).collect();
            let outcomes: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
            outcomes
                .into_iter()
                .try_for_each(|outcome| outcome.unwrap_or_else(|_| Err(anyhow!("a worker died"))))
        });
        self.bar.finish_and_clear();
        outcome?;
        if self.stop.is_requested() {
            let message = "interrupted; the same command with --resume goes on from here";
            return Err(fail(Exit::Interrupted, message));
        }
        Ok(self.finished.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    fn work(&self) -> Result<()> {
        while let Some(trial) = self.next() {
            match self.one(&trial) {
                Ok(Some(finished)) => {
                    // Under the lock, so that lines do not mix.
                    let mut all = self.finished.lock().unwrap_or_else(PoisonError::into_inner);
                    self.folder.record(&finished)?;
                    self.bar.inc(1);
                    self.tell(&finished);
                    all.push(finished);
                }
                Ok(None) => break,
                Err(error) => {
                    // The others finish what they are at.
                    self.queue.lock().unwrap_or_else(PoisonError::into_inner).clear();
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn next(&self) -> Option<Trial> {
        if self.stop.is_requested() {
            return None;
        }
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    fn tell(&self, finished: &Finished) {
        let fold = finished.fold.map_or_else(String::new, |fold| format!(", fold {fold}"));
        let score = finished
            .score
            .map_or_else(|| "diverged".into(), |score| format!("{} {score:.5}", self.design.metric));
        self.bar.suspend(|| {
            eprintln!(
                "{}, seed {}{fold}: {score}, {:.1} s",
                words(&finished.point),
                finished.seed,
                finished.seconds
            )
        });
    }

    /// Runs one trial to its end; None when the sweep is to stop.
    fn one(&self, trial: &Trial) -> Result<Option<Finished>> {
        const PATIENCE: Duration = Duration::from_secs(60);
        let output = self.folder.trial(trial);
        let began = Instant::now();
        loop {
            let mut command = train(self.options, self.folder, &output)?;
            for set in self.design.sets(trial) {
                command.args(["--set", &set]);
            }
            let threads = self.options.machine.threads.unwrap_or_else(|| {
                let cores = std::thread::available_parallelism().map_or(1, usize::from);
                (cores / self.jobs).max(1) as u32
            });
            command.args(["--threads", &threads.to_string()]).env(LEASH, "1");
            command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
            let child = command.spawn().context("starting a trial")?;
            let (code, stderr) = self.wait(child)?;
            match code {
                Some(0) => return self.judge(trial, &output).map(Some),
                Some(5) => {
                    let seconds = began.elapsed().as_secs_f64();
                    return Ok(Some(self.ended(trial, None, Value::Null, seconds)));
                }
                _ if self.stop.is_requested() => return Ok(None),
                // A trial of a sweep that was killed may still be saving.
                Some(2) if stderr.contains("another process") && began.elapsed() < PATIENCE => {
                    std::thread::sleep(Duration::from_secs(1));
                }
                code => {
                    let exit = Exit::from_code(code).unwrap_or(Exit::Usage);
                    return Err(fail(exit, format!("trial {} failed: {}", trial.id, stderr.trim())));
                }
            }
        }
    }

    /// Exit code and what it said on stderr. When the sweep is to stop, the trial is let go: it saves and ends.
    fn wait(&self, mut child: Child) -> Result<(Option<i32>, String)> {
        let mut leash = child.stdin.take();
        let stderr = child.stderr.take();
        let reader = std::thread::spawn(move || {
            let mut text = String::new();
            if let Some(mut stderr) = stderr {
                let _ = std::io::Read::read_to_string(&mut stderr, &mut text);
            }
            text
        });
        let status = loop {
            if let Some(status) = child.try_wait().context("waiting for a trial")? {
                break status;
            }
            if self.stop.is_requested() {
                drop(leash.take());
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        Ok((status.code(), reader.join().unwrap_or_default()))
    }

    fn judge(&self, trial: &Trial, output: &std::path::Path) -> Result<Finished> {
        let path = output.join("result.json");
        let text = std::fs::read_to_string(&path).or_exit(Exit::Storage, || path.display())?;
        let result: Value = serde_json::from_str(&text).or_exit(Exit::Storage, || path.display())?;
        let scores = result["last"]["validation"].clone();
        let score = scores[&self.design.metric].as_f64().or_exit(Exit::Usage, || {
            let known: Vec<_> = scores.as_object().into_iter().flat_map(|map| map.keys().cloned()).collect();
            format!("there is no score `{}`; the scores are {}", self.design.metric, known.join(", "))
        })?;
        let score = Some(score).filter(|score| score.is_finite());
        Ok(self.ended(trial, score, scores, result["seconds"].as_f64().unwrap_or_default()))
    }

    /// A trial without a score has diverged.
    fn ended(&self, trial: &Trial, score: Option<f64>, scores: Value, seconds: f64) -> Finished {
        Finished {
            trial: trial.id,
            point: self.design.named(&self.design.points[trial.point]),
            seed: trial.seed,
            fold: trial.fold,
            ending: if score.is_some() { Ending::Done } else { Ending::Diverged },
            score,
            scores,
            seconds,
        }
    }
}
