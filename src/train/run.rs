//! One run from its config to its result, for every command that trains.

use anyhow::Result;

use crate::checkpoint::Checkpoints;
use crate::config::{COEFFICIENTS_FILE, Config};
use crate::data::DatasetCache;
use crate::report::plots;
use crate::train::coefficients::Coefficients;
use crate::train::progress::Progress;
use crate::train::run_folder::LockedFolder;
use crate::train::run_result::{self, RunResult};
use crate::train::session::{ModelPlan, Session};
use crate::train::trainer::{Start, Trainer};
use crate::train::training_loop::{Pruner, StopReason, train};
use crate::util::console;
use crate::util::exit_code::{ExitCode, fail};
use crate::util::signals::Stop;

/// How to go about it.
#[derive(Clone, Copy, Debug)]
pub struct RunOptions {
    /// Go on from the run folder's last checkpoint; start where there is none.
    pub resume: bool,
    /// Replace a run that is there already.
    pub force: bool,
    /// Nothing on the terminal.
    pub quiet: bool,
    /// Draws the curves into the run folder. Nobody looks at each trial of a sweep.
    pub plots: bool,
}

/// Trains what `config` declares, whose plan is `plan`, and writes the result into the run folder. None where
/// `watch` has ended the run early: then there is no result, and the last checkpoint is from the end of that
/// epoch.
pub fn train_run(
    config: Config,
    plan: ModelPlan,
    manner: RunOptions,
    shelf: &mut DatasetCache,
    stop: &Stop,
    watch: &mut dyn Pruner,
) -> Result<Option<RunResult>> {
    // A device that cannot be used is refused before anything is written.
    config.spec.device.resolve()?;
    // A folder that is taken, or holds a run, is refused before the data is read.
    let output = config.spec.output.clone();
    let folder = LockedFolder::take(&output)?;
    let checkpoints = Checkpoints::of(&output);
    // Told with --quiet too: what is lost or not as it was left.
    let mut warnings = checkpoints.recover()?;
    let is_replaced = manner.force && folder.holds_run();
    let holds_run = checkpoints.exist()? && !is_replaced;
    if holds_run && !manner.resume {
        let message = format!(
            "{} holds a run already; --resume goes on with it, --output FOLDER puts the new one elsewhere, --force replaces it",
            output.display()
        );
        return Err(fail(ExitCode::Usage, message));
    }
    // Weights that do not fit are refused before the data is read, too.
    let initial = if holds_run { None } else { plan.initial_with_optimizer(&config)? };
    if manner.quiet {
        console::hush();
    }
    let session = Session::open(config, plan, shelf)?;
    let mut notes = session.notes();
    let start = match holds_run {
        true => {
            warnings.extend(["last", "best"].iter().filter_map(|link| checkpoints.dangling(link)));
            let (loaded, complaints) = checkpoints.last()?;
            if !complaints.is_empty() {
                warnings.extend(complaints);
                warnings.push(format!("going back to {}", loaded.folder.display()));
            }
            warnings.extend(session.is_same_data(&loaded.state)?);
            notes.extend(session.differences(&loaded.state)?);
            notes.push(format!("resuming at step {} (epoch {})", loaded.state.step, loaded.state.epoch + 1));
            Start::Resumed(Box::new(loaded))
        }
        false => {
            if manner.resume
                && let Some(dangling) = checkpoints.dangling("last")
            {
                warnings.push(format!("{dangling}: there is nothing to go on from, the run starts anew"));
            }
            notes.extend(initial.iter().flat_map(|initial| initial.notes.clone()));
            Start::Fresh(initial)
        }
    };
    if is_replaced {
        notes.push(folder.clear()?);
    }
    let mut run = Trainer::new(&session, folder, start)?;
    notes.extend(run.notes()?);
    let epochs = session.config.spec.train.epochs;
    let steps = (run.step(), run.total_steps());
    let mut progress = Progress::new(epochs, &session.monitor.metric, steps, manner.quiet);
    warnings.extend(run.take_warnings());
    for warning in warnings {
        progress.warn(&warning, run.folder())?;
    }
    for note in notes {
        progress.say(&note, run.folder())?;
    }
    let ended = train(&mut run, &mut progress, stop, watch);
    progress.finish();
    for warning in run.take_warnings() {
        progress.warn(&warning, run.folder())?;
    }
    let ended = ended.and_then(|ended| run.folder().sync().map(|()| ended));
    let outcome = ended.and_then(|ended| match ended {
        StopReason::Interrupted => {
            let message = format!(
                "interrupted and saved at step {}; the same command with --resume goes on from there",
                run.step()
            );
            Err(fail(ExitCode::Interrupted, message))
        }
        StopReason::Pruned => Ok(None),
        ended => run_result::final_evaluation(&session, &run, ended).map(Some),
    });
    for line in run.left_out() {
        progress.say(&line, run.folder())?;
    }
    let ended = match outcome {
        Ok(Some(mut result)) => {
            let which = if result.best.is_some() { "best" } else { "last" };
            let (spec, names) = (&session.config.spec, &run.state().features);
            let coefficients = Coefficients::of(spec, &session.model, names, &checkpoints, which)?;
            if let Some(coefficients) = &coefficients {
                run.folder().write(COEFFICIENTS_FILE, &coefficients.csv()?)?;
            }
            result.coefficients = coefficients;
            // Before the result, which says that the run is over.
            if let Some(confusion) = result.confusion(&run.state().classes) {
                run.folder().write("confusion.json", &confusion.to_string())?;
            }
            run.folder().write("result.json", &serde_json::to_string_pretty(&result)?)?;
            run.folder().log(&result.to_string())?;
            Ok(Some(result))
        }
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
    };
    // A run of which nothing can be drawn is complete all the same.
    if manner.plots
        && let Err(error) = plots(&output)
    {
        let _ = progress.warn(&format!("no plots: {error:#}"), run.folder());
    }
    ended
}
