//! The training loop: learn from a batch, penalise, step; look at the validation set; save; go on.

use anyhow::Result;

use crate::metrics::Scores;
use crate::train::progress::Progress;
use crate::train::trainer::Trainer;
use crate::util::exit_code::{self, ExitCode};
use crate::util::signals::Stop;

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// All epochs are done.
    Completed,
    /// The validation metric stopped getting better.
    EarlyStopped,
    /// Stopped by the sweep's pruner.
    Pruned,
    /// A signal came; the state is saved.
    Interrupted,
}

/// Called after each evaluation and each step; returning false ends the run.
pub trait Pruner {
    /// The scores on the validation set after `epoch` epochs; false ends the run. Asked between two epochs,
    /// and once more when a run goes on from there.
    fn should_continue(&mut self, epoch: u64, scores: &Scores) -> Result<bool>;

    /// After each step: `done` of the `of` steps of the whole run are made, in epoch `epoch` from 0.
    fn steps(&mut self, _epoch: u64, _done: u64, _of: u64) -> Result<()> {
        Ok(())
    }
}

/// Lets every run finish.
pub struct NeverPrune;

impl Pruner for NeverPrune {
    fn should_continue(&mut self, _: u64, _: &Scores) -> Result<bool> {
        Ok(true)
    }
}

/// Trains until the epochs are over, early stopping says so, `pruner` stops it, or `stop` is requested.
pub fn train(
    run: &mut Trainer,
    progress: &mut Progress,
    stop: &Stop,
    pruner: &mut dyn Pruner,
) -> Result<StopReason> {
    'run: while !run.is_over() {
        // Asked before learning too: a run that stopped early and is resumed stops again.
        if run.should_stop() {
            return Ok(StopReason::EarlyStopped);
        }
        if let Some(scores) = run.latest_validation()? {
            if !pruner.should_continue(run.epoch(), &scores)? {
                return Ok(StopReason::Pruned);
            }
            // Here and no step later, so that a resumed run asks about this epoch again.
            if run.vote(stop)?.is_stop(stop)? {
                run.save()?;
                return Ok(StopReason::Interrupted);
            }
        }
        run.begin_epoch();
        // Due before a signal came or the process was killed.
        if run.is_look_due()?
            && let Some(ended) = look(run, progress)?
        {
            return Ok(ended);
        }
        let loader = run.loader();
        for batches in run.remaining_steps(&loader) {
            let batches = batches?;
            let vote = run.vote(stop)?;
            let logged = run.train_step(batches)?;
            if let Some(note) = run.take_note() {
                progress.say(&note, run.folder())?;
            }
            for line in run.left_out() {
                progress.say(&line, run.folder())?;
            }
            for warning in run.take_warnings() {
                progress.warn(&warning, run.folder())?;
            }
            progress.step(run.epoch(), run.done().0);
            pruner.steps(run.epoch(), run.step(), run.total_steps())?;
            if let Some(record) = logged {
                progress.numbers(&record);
            }
            if vote.is_stop(stop)? {
                run.save()?;
                return Ok(StopReason::Interrupted);
            }
            if run.is_look_due()?
                && let Some(ended) = look(run, progress)?
            {
                return Ok(ended);
            }
            if run.is_checkpoint_due() {
                run.save()?;
            }
            if run.is_over() && run.is_within_epoch() {
                break 'run;
            }
        }
        let record = match run.end_epoch() {
            Err(error) if exit_code::code(&error) == ExitCode::Interrupted as u8 => {
                run.save()?;
                return Ok(StopReason::Interrupted);
            }
            record => record?,
        };
        for line in run.left_out() {
            progress.say(&line, run.folder())?;
        }
        progress.epoch(&record, run.folder())?;
        run.save_if_due()?;
    }
    // Of a run whose steps or hours were spent within an epoch.
    if run.is_look_due()? {
        if let Some(ended) = look(run, progress)? {
            return Ok(ended);
        }
        run.save()?;
    }
    Ok(StopReason::Completed)
}

/// Evaluates within an epoch; how the run ends, if it does.
fn look(run: &mut Trainer, progress: &mut Progress) -> Result<Option<StopReason>> {
    let record = match run.look() {
        Err(error) if exit_code::code(&error) == ExitCode::Interrupted as u8 => {
            run.save()?;
            return Ok(Some(StopReason::Interrupted));
        }
        record => record?,
    };
    for line in run.left_out() {
        progress.say(&line, run.folder())?;
    }
    progress.epoch(&record, run.folder())?;
    if run.should_stop() {
        run.save()?;
        return Ok(Some(StopReason::EarlyStopped));
    }
    Ok(None)
}
