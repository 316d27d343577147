//! `tikhonov sweep`: many runs that differ in λ, or in any other key, side by side; and which of them to
//! choose.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use clap::Args;

use super::{ConfigOptions, MachineOptions};
use crate::config::Config;
use crate::data::Split;
use crate::libtorch::device::{DeviceSpec, cores};
use crate::libtorch::machine::gpu;
use crate::metrics::{Monitor, with_class_name};
use crate::sweep::choice::is_strength;
use crate::sweep::path;
use crate::sweep::prune::Prune;
use crate::sweep::runner::{Place, Runner, Slot};
use crate::sweep::search::Search;
use crate::sweep::search_space::{Axis, Point, draw, grid};
use crate::sweep::spec::{FinalFit, SweepSpec};
use crate::sweep::{Design, Folder, Outcome, join_pairs};
use crate::train::session::ModelPlan;
use crate::util::console::{self, print_out};
use crate::util::exit_code::{ExitCode, WithExitCode, fail};
use crate::util::signals::Stop;
use crate::util::terminal::stdout_columns;
use crate::util::yaml::Document;

/// Train over a grid of λ, or of any other keys, and choose.
///
/// Every trial is a run of its own, several at a time. It is judged by its validation set, or with --folds by
/// k-fold cross-validation, after which the chosen point is trained once more on everything. Kill it
/// anywhere: --resume goes on.
#[derive(Args, Debug)]
pub struct Options {
    #[command(flatten)]
    pub config: ConfigOptions,
    /// A key and its values (repeatable): penalty.l2=1e-6:1e-1:log:9, optimizer.sgd.lr=0.1,0.03; instead of
    /// the config's
    #[arg(long, value_name = "KEY=VALUES")]
    pub over: Vec<String>,
    /// Which points are tried
    #[arg(long, value_enum, value_name = "HOW")]
    pub search: Option<Search>,
    /// Points of a random search or of TPE
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub trials: Option<u32>,
    /// So many points drawn at random, instead of the whole grid: --search random --trials N
    #[arg(long, value_name = "N", conflicts_with_all = ["search", "trials"], value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub random: Option<u32>,
    /// Repeat every point with so many seeds, from the config's own on
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub seeds: Option<u32>,
    /// Cross-validate with so many folds of the training set
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u32).range(2..=1000))]
    pub folds: Option<u32>,
    /// The score that decides, instead of the config's `train.monitor` or the task's own
    #[arg(long, value_name = "NAME")]
    pub metric: Option<String>,
    /// Give trials up that do badly: median, halving, or with settings {halving: {warmup: 1, factor: 3}}
    #[arg(long, value_name = "RULE")]
    pub prune: Option<String>,
    /// Along one λ from the strongest to the weakest, each trial from the weights of the one before; for
    /// convex problems
    #[arg(long)]
    pub path: bool,
    /// Which point is trained once more, without a validation set; with --folds the best, otherwise none
    #[arg(long, value_enum, value_name = "WHICH")]
    pub final_fit: Option<FinalFit>,
    /// Trials at a time; by default one per core, or one on a GPU
    #[arg(long, short, value_name = "N", conflicts_with = "devices", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub jobs: Option<u32>,
    /// GPUs to share the trials: cuda:0,cuda:1
    #[arg(long, value_name = "DEVICES", value_delimiter = ',', conflicts_with = "device")]
    pub devices: Vec<DeviceSpec>,
    /// Trials at a time on each of --devices
    #[arg(long, value_name = "N", requires = "devices", value_parser = clap::value_parser!(u32).range(1..=256))]
    pub per_device: Option<u32>,
    /// Memory that one trial needs, in GiB: as many at a time on each of --devices as its free memory holds
    #[arg(long, value_name = "GIB", requires = "devices", conflicts_with = "per_device")]
    pub trial_memory: Option<f64>,
    /// The sweep's folder; runs/NAME-sweep by default
    #[arg(long, value_name = "DIR")]
    pub output: Option<PathBuf>,
    /// Go on with a sweep that was stopped
    #[arg(long)]
    pub resume: bool,
    #[command(flatten)]
    pub machine: MachineOptions,
}

/// The config that all trials share, in the sweep's folder.
const BASE: &str = "base.yaml";

pub fn run(options: &Options) -> Result<()> {
    let config = options.config.load(options.machine.overrides())?;
    config.validate_data(&Split::ALL)?;
    let spec = settled(options, &config)?;
    let design = design(options, &spec, &config)?;
    let wanted =
        spec.final_fit.unwrap_or(if design.folds.is_some() { FinalFit::Best } else { FinalFit::None });
    if wanted == FinalFit::OneSe
        && (!matches!(design.keys()[..], [key] if is_strength(key)) || design.per_point() < 2)
    {
        let message = "--final-fit one-se takes the strongest penalty: vary one λ, such as penalty.l2, with two trials or more per \
                       point (--folds, --seeds); of other keys more is not simpler: take `best`";
        return Err(fail(ExitCode::Usage, message));
    }
    let slots = slots(options, &config, design.breadth())?;
    let path = options.output.clone().unwrap_or_else(|| {
        let mut name = config.spec.output.as_os_str().to_owned();
        name.push("-sweep");
        name.into()
    });
    let stop = Stop::on_signals()?;
    let (folder, past) = Folder::open(&path, &design, options.resume)?;
    folder.write(BASE, &config.resolved()?)?;

    let base = folder.path.join(BASE).to_string_lossy().into_owned();
    let (design, finished) =
        Runner::new(&folder, design, past, Place { config: base, slots }, &stop).run()?;
    let outcome = folder.conclude(&design, &finished)?;
    console::out(format_args!("{}", outcome.table(&design, stdout_columns())));
    let Some(choice) = outcome.choice else {
        let message = "no point came through; the table says how they ended. Where they diverged, lower the learning rate";
        return Err(fail(ExitCode::Numeric, message));
    };
    tell(&design, &outcome, "* best", choice.best);
    if let Some(at) = choice.one_standard_error {
        tell(&design, &outcome, "+ strongest within one standard error", at);
    }
    for remark in outcome.view(&design).remarks() {
        print_out!("{remark}");
    }
    let at = match wanted {
        FinalFit::None => None,
        FinalFit::Best => Some(choice.best),
        FinalFit::OneSe => Some(choice.one_standard_error.with_exit_code(
            ExitCode::Usage,
            || "--final-fit one-se: the best point has no standard error; take `best`",
        )?),
    };
    if let Some(at) = at {
        let output = folder.path.join("final");
        let mut command = train(options, &folder, &output)?;
        for set in design.assignments(&outcome.standings[at].point) {
            command.args(["--set", &set]);
        }
        // A score on the validation set decides no more.
        command.args(["--set", "data.validation=null", "--set", "train.monitor=null"]);
        let status = command.stdin(Stdio::null()).status()?;
        if !status.success() {
            let code = ExitCode::from_code(status.code()).unwrap_or(ExitCode::Usage);
            return Err(fail(code, format!("the final fit failed; its log is in {}", output.display())));
        }
    }
    print_out!("saved in {}", folder.path.display());
    Ok(())
}

fn tell(design: &Design, outcome: &Outcome, what: &str, at: usize) {
    print_out!("{what}: {}", join_pairs(&design.named(&outcome.standings[at].point)));
}

/// What the config declares, and what the command line says instead.
fn settled(options: &Options, config: &Config) -> Result<SweepSpec> {
    let mut spec = SweepSpec::of(&config.document)?;
    if let Some(count) = options.random {
        (spec.search, spec.trials) = (Search::Random, Some(count));
    }
    spec.search = options.search.unwrap_or(spec.search);
    spec.trials = options.trials.or(spec.trials);
    spec.seeds = options.seeds.or(spec.seeds);
    spec.folds = options.folds.or(spec.folds);
    spec.metric = options.metric.clone().or(spec.metric);
    spec.final_fit = options.final_fit.or(spec.final_fit);
    spec.path |= options.path;
    if spec.path && spec.search != Search::Grid {
        return Err(fail(ExitCode::Usage, "--path goes along a grid; leave the search out"));
    }
    if let Some(rule) = &options.prune {
        let document = Document::parse("--prune", format!("prune: {rule}"))?;
        spec.prune = Some(document.decode_at::<Prune>("prune")?);
    }
    if let Some(prune) = &spec.prune {
        prune.validate().map_err(|invalid| fail(ExitCode::Usage, format!("prune: {invalid}")))?;
    }
    Ok(spec)
}

/// The points: those of the grid or of the draws; of TPE none yet. And how many there will be.
fn points(sweep: &SweepSpec, axes: &[Axis], seed: u64) -> Result<(Vec<Point>, usize)> {
    let count = || {
        let message = "a search needs to know when to end: say how many points with --trials N";
        sweep.trials.map(|count| count as usize).with_exit_code(ExitCode::Usage, || message)
    };
    let points = match sweep.search {
        Search::Grid if sweep.trials.is_some() => {
            let message = "a grid has as many points as it has; --search random or tpe takes --trials";
            return Err(fail(ExitCode::Usage, message));
        }
        Search::Grid => grid(axes),
        Search::Random => (0..count()?).map(|index| draw(axes, index, seed)).collect(),
        Search::Tpe => return Ok((Vec::new(), count()?)),
    };
    if points.len() > 10_000 {
        let message = format!("a grid of {} points; --random N draws some of them", points.len());
        return Err(fail(ExitCode::Usage, message));
    }
    let count = points.len();
    Ok((points, count))
}

/// Lays out the trials and refuses what cannot work, before anything runs.
fn design(options: &Options, sweep: &SweepSpec, config: &Config) -> Result<Design> {
    let axes = match options.over.as_slice() {
        [] => sweep.axes(&config.document)?,
        over => over.iter().map(|over| Axis::parse(over)).collect::<Result<Vec<_>>>()?,
    };
    if axes.is_empty() {
        let message = "nothing to vary: say --over KEY=VALUES, such as --over penalty.l2=1e-6:1e-1:log:9, or declare \
                       `sweep: {over: {…}}` in the config";
        return Err(fail(ExitCode::Usage, message));
    }
    let mut keys = HashSet::new();
    if let Some(twice) = axes.iter().find(|axis| !keys.insert(&axis.key)) {
        return Err(fail(ExitCode::Usage, format!("--over names {} twice", twice.key)));
    }
    let spec = &config.spec;
    let (mut points, count) = points(sweep, &axes, spec.seed)?;
    if sweep.path {
        points = path::ordered(&axes, points)?;
        if let Some(path) = spec.penalty().needs_initial() {
            let message = format!(
                "penalty.{path} pulls to the weights that a fit begins with, and along a path each begins with the one before; \
                 leave --path out"
            );
            return Err(fail(ExitCode::Usage, message));
        }
    }
    if spec.data.validation.is_none() && sweep.folds.is_none() {
        let message = "a sweep judges by the validation set: declare one, such as --set data.validation.fraction=0.1, or \
                       cross-validate with --folds 5";
        return Err(fail(ExitCode::Usage, message));
    }
    if let (Some(path), Some(_)) = (spec.penalty().tuned(), sweep.folds) {
        let message = format!(
            "penalty.{path} is tuned on the validation set, and the final fit of a cross-validation has none; leave --folds out, or \
             give λ numbers to choose from"
        );
        return Err(fail(ExitCode::Usage, message));
    }
    let Monitor { metric, higher_is_better } = match &sweep.metric {
        None => spec.monitor().map_err(|invalid| config.document.invalid_at("", invalid))?,
        Some(name) => spec.task.monitor(Some(name)).map_err(|message| match options.metric {
            Some(_) => fail(ExitCode::Usage, format!("--metric: {message}")),
            None => config.document.error_at("sweep.metric", message),
        })?,
    };
    let metric = with_class_name(&metric, spec.data.mask_classes());
    let mut base = serde_json::to_value(spec)?;
    // Where it runs changes nothing of what it is.
    if let Some(base) = base.as_object_mut() {
        ["device", "threads", "output"].iter().for_each(|key| drop(base.remove(*key)));
    }
    let seeds = (0..u64::from(sweep.seeds.unwrap_or(1))).map(|more| spec.seed + more).collect();
    let folds = sweep.folds.map(|folds| folds as usize);
    let (search, prune, path) = (sweep.search, sweep.prune.clone(), sweep.path);
    let mut design =
        Design { base, axes, search, points, count, seeds, folds, metric, higher_is_better, prune, path };
    // Of points that are not known yet, some at the ends of the ranges.
    let known = design.points.clone();
    if known.is_empty() {
        let ends = |axis: &Axis| match (axis.range, axis.values.as_slice()) {
            (Some(_), [first, .., last]) => vec![first.clone(), last.clone()],
            (_, values) => values.to_vec(),
        };
        let ends: Vec<_> =
            design.axes.iter().map(|axis| Axis { values: ends(axis), ..axis.clone() }).collect();
        design.points = grid(&ends).into_iter().take(64).collect();
    }
    for trial in design.trials().iter().step_by(design.per_point()) {
        let sets = [options.config.set.clone(), design.sets(trial)].concat();
        let with = ConfigOptions { set: sets, ..options.config.clone() };
        let point = with.load(options.machine.overrides())?;
        ModelPlan::of(&point)?;
    }
    design.points = known;
    Ok(design)
}

/// The places for trials, which share the cores.
fn slots(options: &Options, config: &Config, trials: usize) -> Result<Vec<Slot>> {
    let cores = cores();
    let mut devices: Vec<Option<DeviceSpec>> = Vec::new();
    for &device in &options.devices {
        let tch::Device::Cuda(index) = device.resolve()? else {
            return Err(fail(
                ExitCode::Usage,
                "--devices are GPUs; on the CPU, --jobs N runs N trials at a time",
            ));
        };
        let count = match options.trial_memory {
            Some(gib) if gib > 0.0 => {
                let free = gpu(index).map_err(|reason| fail(ExitCode::Usage, reason))?.memory_free as f64;
                (free / gib / f64::from(1 << 30)).floor().min(256.0) as usize
            }
            Some(_) => 0,
            None => options.per_device.unwrap_or(1) as usize,
        };
        if count == 0 {
            return Err(fail(
                ExitCode::Usage,
                format!("cuda:{index} has no room for one trial of this --trial-memory"),
            ));
        }
        devices.extend(std::iter::repeat_n(Some(device), count));
    }
    if devices.is_empty() {
        let jobs = match (options.jobs, config.spec.device.resolve()?) {
            (Some(jobs), _) => jobs as usize,
            (None, tch::Device::Cpu) => cores,
            (None, _) => 1,
        };
        devices = vec![options.machine.device; jobs.min(trials).max(1)];
    }
    let share = (cores / devices.len()).max(1) as u32;
    let threads = options.machine.threads.unwrap_or(share);
    Ok(devices.into_iter().map(|device| Slot { device, threads }).collect())
}

/// `tikhonov train` on the base config.
fn train(options: &Options, folder: &Folder, output: &Path) -> Result<Command> {
    let program = std::env::current_exe().context("finding the program itself")?;
    let mut command = Command::new(program);
    command
        .arg("train")
        .arg(folder.path.join(BASE))
        .arg("--output")
        .arg(output)
        .args(["--resume", "--quiet"]);
    if let Some(device) = options.machine.device {
        command.args(["--device", &String::from(device)]);
    }
    Ok(command)
}
