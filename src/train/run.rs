//! One run, for every command that trains: open, train, finish.

use std::rc::Rc;

use anyhow::Result;
use image::ImageFormat;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tch::Device;

use crate::checkpoint::{Checkpoints, Loaded, STABLE, State};
use crate::config::{Budget, COEFFICIENTS_FILE, Config, FILTERS, differences};
use crate::data::DatasetCache;
use crate::data::normalize::NormalizeSpec;
use crate::libtorch::kernels;
use crate::report::history::History;
use crate::report::plots;
use crate::schedule::ScheduleStep;
use crate::train::coefficients::Coefficients;
use crate::train::distributed::ProcessGroup;
use crate::train::filters::filters;
use crate::train::predicted;
use crate::train::progress::Progress;
use crate::train::run_folder::LockedFolder;
use crate::train::run_result::{self, RunResult};
use crate::train::session::{ModelPlan, Session};
use crate::train::trainer::{Start, Trainer};
use crate::train::training_loop::{NeverPrune, Pruner, StopReason, train};
use crate::util::exit_code::{ExitCode, WithExitCode, fail};
use crate::util::signals::Stop;
use crate::util::yaml::Invalid;
use crate::util::{atomic_file, console};

/// What a command asks of a run beside its config.
#[derive(Clone, Copy, Debug)]
pub struct RunOptions {
    /// Go on from the run folder's last checkpoint; start where there is none.
    pub resume: bool,
    /// Replace a run that is there already.
    pub force: bool,
    /// Nothing on the terminal.
    pub quiet: bool,
    /// Draw the curves into the run folder.
    pub plots: bool,
}

/// Trains what `config` declares and writes the result into the run folder. None where `pruner` has ended the
/// run: then there is no result, and the last checkpoint is from the end of that epoch.
pub fn train_run(
    config: Config,
    options: RunOptions,
    cache: &mut DatasetCache,
    stop: &Stop,
    pruner: &mut dyn Pruner,
) -> Result<Option<RunResult>> {
    train_shared(config, options, cache, stop, pruner, None)
}

/// The same by one of the processes that share the run; None where it is not the one that writes the result.
pub fn train_as_rank(
    config: Config,
    options: RunOptions,
    cache: &mut DatasetCache,
    stop: &Stop,
    ranks: Rc<ProcessGroup>,
) -> Result<Option<RunResult>> {
    let is_first = ranks.is_first();
    // torchrun starts a job anew after a failure: it goes on from what was saved.
    let restarted = ranks.env().restarts > 0;
    let options = RunOptions {
        resume: options.resume || restarted,
        force: options.force && !restarted,
        quiet: options.quiet || !is_first,
        plots: options.plots && is_first,
    };
    let shared = Some(ranks.clone());
    let result = train_shared(config, options, cache, stop, &mut NeverPrune, shared);
    result.map_err(|error| ranks.last_words(error))
}

fn train_shared(
    config: Config,
    options: RunOptions,
    cache: &mut DatasetCache,
    stop: &Stop,
    pruner: &mut dyn Pruner,
    ranks: Option<Rc<ProcessGroup>>,
) -> Result<Option<RunResult>> {
    let opened = open(config, options, cache, ranks.as_ref());
    let Opened { session, folder, start, mut notes, mut warnings, is_replaced } = match &ranks {
        Some(ranks) => connect(ranks, opened)?,
        None => opened?,
    };
    if is_replaced {
        notes.push(folder.clear()?);
    }
    let run = Trainer::new(&session, folder, start);
    let mut run = match &ranks {
        Some(ranks) => ranks.agree(run)?,
        None => run?,
    };
    notes.extend(run.notes()?);
    warnings.extend(run.take_warnings());
    let epochs = run.planned_epochs();
    let mut progress = Progress::new(epochs, &session.monitor.metric, run.done(), options.quiet);
    for warning in warnings {
        progress.warn(&warning, run.folder())?;
    }
    for note in notes {
        progress.say(&note, run.folder())?;
    }
    let ended = train(&mut run, &mut progress, stop, pruner);
    progress.finish();
    let result = finish(&session, &mut run, &mut progress, ended);
    if options.plots
        && let Err(error) = draw(&mut run, result.as_ref().ok().and_then(Option::as_ref))
    {
        // The result does not depend on it.
        let _ = progress.warn(&format!("no plots: {error:#}"), run.folder());
    }
    result
}

/// Sees that all ranks have opened the same, and connects them.
fn connect(ranks: &ProcessGroup, opened: Result<Opened>) -> Result<Opened> {
    let opened = ranks.agree(opened)?;
    let session = &opened.session;
    let step = match &opened.start {
        Start::Resumed(loaded) => loaded.state.step,
        Start::Fresh(_) => 0,
    };
    let params: Vec<_> = session.model.params().iter().map(|param| (&param.name, &param.shape)).collect();
    let own = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "config": session.config.spec,
        "data": session.fingerprints(),
        "parameters": params,
        "step": step,
    });
    ranks.same(own, |first, own| {
        let of = |(key, change): (String, String)| {
            format!("{}: {}", key.trim_start_matches("config."), change.replace("was ", "rank 0 has "))
        };
        differences(first, own).into_iter().map(of).collect()
    })?;
    ranks.connect()?;
    Ok(opened)
}

/// Everything that a run starts from.
struct Opened {
    session: Session,
    folder: LockedFolder,
    start: Start,
    notes: Vec<String>,
    /// Shown with `--quiet` too: what is lost or changed since the run was left.
    warnings: Vec<String>,
    /// Whether a run that is there is to be removed first.
    is_replaced: bool,
}

/// What rank 0 found in the run folder.
#[derive(Serialize, Deserialize)]
struct Found {
    holds_run: bool,
    is_replaced: bool,
    warnings: Vec<String>,
}

/// Refuses what cannot work, the cheapest first: the device, the model, the folder, the initial weights, the
/// data. Nothing is written.
fn open(
    config: Config,
    options: RunOptions,
    cache: &mut DatasetCache,
    ranks: Option<&Rc<ProcessGroup>>,
) -> Result<Opened> {
    // Before the first tensor: libtorch looks for a GPU's libraries once.
    if let (Some(_), Budget::Hours(_)) = (ranks, config.spec.train.budget()) {
        let message = "several processes share no clock: say `epochs` or `steps`";
        return Err(config.document.invalid_at("train", Invalid::new("hours", message)));
    }
    let device = match ranks {
        Some(ranks) => ranks.device(config.spec.device)?,
        None => config.spec.device.resolve()?,
    };
    let plan = ModelPlan::of(&config)?;
    let output = config.spec.output.clone();
    let checkpoints = Checkpoints::of(&output);
    let mut folder = None;
    let mut look = || {
        let folder = folder.insert(LockedFolder::take(&output)?);
        let warnings = checkpoints.recover()?;
        let is_replaced = options.force && folder.holds_run();
        let holds_run = checkpoints.exist()? && !is_replaced;
        Ok(Found { holds_run, is_replaced, warnings })
    };
    let found = match ranks {
        Some(ranks) => ranks.first(look),
        None => look(),
    };
    let Found { holds_run, is_replaced, mut warnings } = found?;
    if holds_run && !options.resume {
        let message = format!(
            "{} holds a run already; --resume goes on with it, --output FOLDER puts the new one elsewhere, --force replaces it",
            output.display()
        );
        return Err(fail(ExitCode::Usage, message));
    }
    let mut config = config;
    let initial = match holds_run {
        true => {
            if config.spec.data.normalize == NormalizeSpec::Checkpoint {
                // As the run was started with.
                let known = &checkpoints.named("last")?.state.config["data"]["normalize"];
                config.spec.data.normalize = serde_json::from_value(known.clone())?;
            }
            None
        }
        false => plan.initial_with_optimizer(&mut config)?,
    };
    if options.quiet {
        console::hush();
    }
    let mut session = Session::open(config, plan, device, cache)?;
    session.ranks = ranks.cloned();
    let mut notes = session.notes();
    notes.extend(kernels::note().filter(|_| session.device == Device::Cpu));
    let start = match holds_run {
        true => resume(&session, &checkpoints, &mut notes, &mut warnings)?,
        false => {
            if options.resume
                && let Some(dangling) = checkpoints.dangling("last")
            {
                warnings.push(format!("{dangling}: there is nothing to go on from, the run starts anew"));
            }
            notes.extend(initial.iter().flat_map(|initial| initial.notes.clone()));
            Start::Fresh(initial)
        }
    };
    let (folder, is_replaced) = match (folder, ranks) {
        (Some(folder), _) => (folder, is_replaced),
        // Its log and its numbers, in a folder of its own.
        (None, ranks) => {
            let rank = ranks.map_or(0, |ranks| ranks.rank());
            (LockedFolder::take(&output.join("ranks").join(rank.to_string()))?, false)
        }
    };
    Ok(Opened { session, folder, start, notes, warnings, is_replaced })
}

/// The run's last checkpoint, if it is of the same data.
fn resume(
    session: &Session,
    checkpoints: &Checkpoints,
    notes: &mut Vec<String>,
    warnings: &mut Vec<String>,
) -> Result<Start> {
    warnings.extend(["last", "best"].iter().filter_map(|link| checkpoints.dangling(link)));
    let (loaded, complaints) = checkpoints.last()?;
    if !complaints.is_empty() {
        warnings.extend(complaints);
        warnings.push(format!("going back to {}", loaded.folder.display()));
    }
    let loaded = match before_decay(session, checkpoints, &loaded.state)? {
        Some((stable, note)) => {
            notes.push(note);
            stable
        }
        None => loaded,
    };
    warnings.extend(session.is_same_data(&loaded.state)?);
    notes.extend(session.differences(&loaded.state)?);
    notes.push(format!("resuming at step {} (epoch {})", loaded.state.step, loaded.state.epoch + 1));
    Ok(Start::Resumed(Box::new(loaded)))
}

/// The checkpoint from before the rate fell for the end of the run, and a line on it, where this config makes the
/// run so much longer that it would not have fallen by the step of `last`.
fn before_decay(
    session: &Session,
    checkpoints: &Checkpoints,
    last: &State,
) -> Result<Option<(Loaded, String)>> {
    let spec = &session.config.spec;
    if !checkpoints.has(STABLE) {
        return Ok(None);
    }
    let batches = session.loader(session.train()?, true)?.steps();
    let steps_per_epoch = batches.div_ceil(session.batches_per_step()) as u64;
    let Some(total_steps) = spec.train.budget().steps(steps_per_epoch) else { return Ok(None) };
    let run = ScheduleStep { step: last.step, steps_per_epoch, total_steps };
    let Some(start) = spec.schedule.decay_start(run) else { return Ok(None) };
    let stable = checkpoints.named(STABLE)?;
    let (then, now) = (stable.state.step, last.step - last.skipped);
    if then >= last.step || now > start {
        return Ok(None);
    }
    let note = format!(
        "the run is longer now, and its learning rate stays until step {start}: going back to step {then}, from where it fell"
    );
    Ok(Some((stable, note)))
}

/// Evaluates and writes the result; how the run ended goes into its log in any case. None where it was pruned.
fn finish(
    session: &Session,
    run: &mut Trainer,
    progress: &mut Progress,
    ended: Result<StopReason>,
) -> Result<Option<RunResult>> {
    for warning in run.take_warnings() {
        progress.warn(&warning, run.folder())?;
    }
    let ended = ended.and_then(|ended| run.folder().sync().map(|()| ended));
    let result = ended.and_then(|ended| match ended {
        StopReason::Interrupted => {
            let message = format!(
                "interrupted and saved at step {}; the same command with --resume goes on from there",
                run.step()
            );
            Err(fail(ExitCode::Interrupted, message))
        }
        StopReason::Pruned => Ok(None),
        // The other ranks have nothing left to do.
        _ if !session.is_first_rank() => Ok(None),
        ended => run_result::final_evaluation(session, run, ended).map(Some),
    });
    for line in run.left_out() {
        progress.say(&line, run.folder())?;
    }
    match result {
        Ok(Some(mut result)) => {
            write(session, run, &mut result)?;
            Ok(Some(result))
        }
        Ok(None) if !session.is_first_rank() => Ok(None),
        Ok(None) => {
            let epoch = run.epoch();
            run.folder().log(&format!("pruned by the sweep after epoch {epoch}"))?;
            Ok(None)
        }
        Err(error) => {
            // The error itself matters more than a log that cannot be written any more.
            let _ = run.folder().log(&format!("{error:#}"));
            Err(error)
        }
    }
}

/// Writes `result` and what goes with it. The file of the result comes last: it marks the run as done.
fn write(session: &Session, run: &mut Trainer, result: &mut RunResult) -> Result<()> {
    let which = if result.best.is_some() { "best" } else { "last" };
    let (spec, names) = (&session.config.spec, &run.state().features);
    let coefficients = Coefficients::of(spec, &session.model, names, &session.checkpoints(), which)?;
    if let Some(coefficients) = &coefficients {
        run.folder().write(COEFFICIENTS_FILE, &coefficients.csv()?)?;
    }
    result.coefficients = coefficients;
    if let Some(confusion) = result.confusion(&run.state().classes) {
        run.folder().write("confusion.json", &confusion.to_string())?;
    }
    predicted::write(session, run.folder())?;
    let network = session.trained(&session.checkpoints().named(which)?)?;
    if let Some(filters) = filters(&network)? {
        let path = run.folder().path().join("pictures").join(FILTERS);
        atomic_file::write_with_folders(&path, &filters.encode(ImageFormat::Png)?)
            .with_exit_code(ExitCode::Storage, || format!("writing {}", path.display()))?;
    }
    run.folder().write("result.json", &serde_json::to_string_pretty(&result)?)?;
    run.folder().log(&result.to_string())
}

/// Draws the run's figures from its records in memory.
fn draw(run: &mut Trainer, result: Option<&RunResult>) -> Result<()> {
    let (config, classes) = (run.state().config.clone(), run.state().classes.clone());
    let confusion = result.and_then(|result| result.confusion(&classes)).unwrap_or_default();
    let folder = run.folder();
    plots(&History::new(folder.path(), config, folder.records(), serde_json::to_value(result)?, confusion))
}
