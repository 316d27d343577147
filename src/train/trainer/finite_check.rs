//! Whether a run still computes with numbers: losses, gradients, and steps that were made at all.

use anyhow::Result;

use super::Trainer;
use crate::util::exit_code::{ExitCode, fail};

impl Trainer<'_> {
    /// Stops the run when a loss or a gradient was NaN or infinite, with `amp: fp16` at whatever scale; waits
    /// for the device.
    pub(super) fn check_finite(&self) -> Result<()> {
        if let Some(scale) = &self.scale
            && scale.state()?.is_exhausted()
        {
            let message = format!(
                "the loss scale fell to nothing by step {}: at any scale the loss or its float16 gradients became NaN or \
                 infinite ({} of all steps were skipped). {}",
                self.state.step, self.state.skipped, HALF
            );
            return Err(fail(ExitCode::Numeric, message));
        }
        if self.over_ranks(self.finite_check.read())?.is_finite() {
            return Ok(());
        }
        let message = format!(
            "the loss or its gradient became NaN or infinite by step {} (epoch {}); {}",
            self.state.step,
            self.state.epoch + 1,
            self.remedy()
        );
        Err(fail(ExitCode::Numeric, message))
    }

    /// Stops a run whose last epoch learnt nothing, because each of its steps was skipped. Before the last
    /// the loss scale may still be sought, as `GradScaler` seeks it: until it is spent.
    pub(super) fn check_steps(&self) -> Result<()> {
        let budget = self.session.config.spec.train.budget();
        let is_last = budget.is_spent(self.state.epoch + 1, self.state.step, self.seconds());
        if self.state.samples > 0 || self.state.batch == 0 || !is_last {
            return Ok(());
        }
        let message = format!(
            "every step of epoch {} was skipped: its loss or float16 gradients became NaN or infinite ({} steps of the run \
             were skipped, the loss scale is down to {}). {}",
            self.state.epoch + 1,
            self.state.skipped,
            self.scaling()?.map_or(1.0, |scaling| scaling.loss_scale),
            HALF
        );
        Err(fail(ExitCode::Numeric, message))
    }

    /// What is left, and what to do: in a clause for an error.
    pub(super) fn remedy(&self) -> String {
        let saved = match self.folder.checkpoints().exist() {
            Ok(true) => "the last checkpoint is from before",
            _ => "there is no checkpoint from before",
        };
        let remedy = self.overshoot().unwrap_or_else(|| {
            "Lower `optimizer` lr, clip (`train: {clip: {norm: 1.0}}`), or look for broken inputs".into()
        });
        format!("{saved}. {remedy}")
    }

    /// The penalty that alone can have done it: w ← (1 − ηλ)·w goes past 0 where ηλ > 1, and ever further
    /// where it is above 2.
    fn overshoot(&self) -> Option<String> {
        let mut worst = (1.0, None);
        for step in 0..=self.position() {
            let lr = self.lr_at(step);
            let groups = self.session.groups.iter().zip(self.lambdas_at(step)).enumerate();
            for (at, (group, lambdas)) in groups {
                let share = self.optimizer.share(lr, at, &lambdas);
                if share > worst.0 {
                    worst = (share, Some((&group.label, lambdas)));
                }
            }
        }
        let (label, lambdas) = worst.1?;
        let (form, lambda) = lambdas.weight_decay()?;
        let key = form.key();
        Some(format!(
            "η·λ of the penalty group `{label}` was {:.3}: above 1 a step takes more than the whole of a weight, above 2 what is \
             left grows with every step. Lower its λ (`penalty`: {key} {lambda}), or `optimizer` lr",
            worst.0
        ))
    }
}

const HALF: &str = "Take `train: {amp: bf16}`, whose range is that of float32, lower `optimizer` lr, or look for broken inputs";
