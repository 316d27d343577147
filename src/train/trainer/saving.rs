//! When a run saves, and what of it: all that a resume needs to go on bit for bit.

use anyhow::Result;

use super::Trainer;
use crate::checkpoint::Snapshot;
use crate::optim::GradScaler;
use crate::train::trainer::deferred_scalar::DeferredScalar;
use crate::train::{early_stopping, records};
use crate::util::exit_code;

impl Trainer<'_> {
    /// Whether a checkpoint is due at this step, within an epoch: the config wants it, it is the best or the last,
    /// or the rate begins to fall for the end of the run.
    pub fn is_checkpoint_due(&self) -> bool {
        let is_end_of_epoch = self.state.batch >= self.loader.steps();
        let every = self.session.config.spec.train.checkpoint.every_steps;
        let is_due = every.is_some_and(|every| self.state.step.is_multiple_of(every))
            || early_stopping::is_best(&self.state)
            || self.is_over()
            || self.is_decay_to_begin();
        !is_end_of_epoch && is_due
    }

    /// Whether the next step is the first of those in which the rate falls for the end of the run.
    fn is_decay_to_begin(&self) -> bool {
        let start = self.session.config.spec.schedule.decay_start(self.clock());
        start.is_some_and(|start| start > 0 && start == self.position())
    }

    /// Saves at the end of an epoch if it is the best, the last, or simply time.
    pub fn save_if_due(&mut self) -> Result<()> {
        let every = self.session.config.spec.train.checkpoint.every_epochs;
        let is_due = self.is_over()
            || early_stopping::is_best(&self.state)
            || self.should_stop()
            || self.is_decay_to_begin()
            || self.state.epoch.is_multiple_of(every);
        if is_due { self.save() } else { Ok(()) }
    }

    /// Writes a checkpoint of this very moment, unless it is saved already. A broken network is never saved.
    pub fn save(&mut self) -> Result<()> {
        self.sync_skipped_step()?;
        let position = (self.state.step, self.state.epoch, self.state.batch);
        let checkpoints = self.session.checkpoints();
        if self.on_first_rank(|| Ok(self.saved.is_some() && !checkpoints.are_kept()))? {
            let message = "the folder of the checkpoints was removed while the run went on; it is made anew, those before are lost";
            self.warnings.push(message.into());
        } else if self.saved == Some(position) {
            return Ok(());
        }
        let weight_norm = records::weight_norm(&self.network)?;
        self.finite_check.add(&DeferredScalar::Here(weight_norm), 1.0);
        self.check_finite()?;
        self.check_ranks_alike(weight_norm)?;
        let mut state = self.state.clone();
        state.loss_sum = self.over_ranks(self.loss_sum.read())?;
        if state.batch > 0 {
            state.seconds = self.seconds();
        }
        state.plateau = serde_json::to_value(&self.plateau)?;
        state.decay = match self.optimizer.pending() {
            pending if pending.iter().all(|&left| left == 1.0) => Vec::new(),
            pending => pending.to_vec(),
        };
        state.tuned = self.lambda_tuner.tuned().to_vec();
        state.scaling = self.scale.as_ref().map(GradScaler::state).transpose()?;
        let snapshot = || Snapshot {
            state: state.clone(),
            model: self.network.state(),
            optimizer: self.optimizer.state(),
            ema: self.averaged.as_ref().map(|(ema, _)| ema.state()),
        };
        self.folder.sync()?;
        let is_best = early_stopping::is_best(&self.state);
        let keep = self.session.config.spec.train.checkpoint.keep;
        let monitor = &self.session.monitor;
        let is_decay_to_begin = self.is_decay_to_begin();
        let warning = self.on_first_rank(|| {
            let warning = match checkpoints.save(snapshot(), is_best) {
                Err(error) if exit_code::is_full(&error) => {
                    let removed = checkpoints.make_room(keep, monitor, is_best);
                    checkpoints.save(snapshot(), is_best)?;
                    let removed = if removed.is_empty() { "drafts alone".into() } else { removed.join(", ") };
                    Some(format!(
                        "the disk was full when a checkpoint was to be saved: removed {removed}, and the second attempt went well"
                    ))
                }
                saved => {
                    saved?;
                    None
                }
            };
            if is_decay_to_begin {
                checkpoints.mark_stable()?;
            }
            checkpoints.prune(keep, monitor)?;
            Ok(warning)
        })?;
        self.warnings.extend(warning);
        self.saved = Some(position);
        Ok(())
    }
}
