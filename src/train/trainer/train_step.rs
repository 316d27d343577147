//! One optimiser step in one view: forward and backward of the micro-batches (twice with `sam`), learning rate and λ, unscale, clip,
//! penalty and update, λ tuning, weight average, gradient scaler, counters and log.

use anyhow::Result;
use tch::Tensor;

use super::Trainer;
use super::data_parallel::StepBatches;
use super::deferred_scalar::DeferredScalar;
use super::input_gradient::BatchLoss;
use super::micro_batch_loss::{Answers, MicroBatchLoss};
use crate::config::{Amp, Budget};
use crate::functional::channels_last;
use crate::libtorch::autocast::{autocast, has_no_deterministic_algorithm};
use crate::libtorch::{catch_panics, device};
use crate::metrics::ModelOutput;
use crate::nn::model::Network;
use crate::optim::{StepOptions, StepOutput};
use crate::penalty::LambdaValues;
use crate::train::distributed::ProcessGroup;
use crate::train::records::{StepRecord, WeightStats, of_inputs};
use crate::util::exit_code::{ExitCode, fail};
use crate::util::rng::{CounterRng, RngStream};
use crate::util::stopwatch::Phase;

/// One step that was made.
pub(super) struct StepResult {
    /// Of the data.
    pub loss: DeferredScalar,
    /// Of the auxiliary heads, where there are some.
    pub auxiliary: Option<DeferredScalar>,
    /// The input-gradient penalty, where there is one.
    pub input_gradient: Option<DeferredScalar>,
    pub grad_norm: DeferredScalar,
    /// As in [`StepOutput::found_inf`].
    pub found_inf: Option<Tensor>,
    /// Statistics of the weights before it, where it is logged.
    pub before: Option<WeightStats>,
    pub samples: i64,
}

/// What to do about an operation that `train.deterministic` rules out.
fn deterministic_alone(error: anyhow::Error) -> anyhow::Error {
    let text = format!("{error:#}");
    if !has_no_deterministic_algorithm(&text) {
        return error;
    }
    // libtorch's advice is for Python.
    let first = text.split(", but you set").next().unwrap_or_default();
    fail(
        ExitCode::Usage,
        format!("train.deterministic: {first}; leave it out, or take another layer or loss"),
    )
}

impl Trainer<'_> {
    /// One optimiser step on `accumulate` micro-batches, fewer at the end of an epoch. Returns the numbers when it is
    /// time to log them; otherwise nothing waits for the device.
    pub fn train_step(&mut self, step_batches: StepBatches) -> Result<Option<StepRecord>> {
        let log_every = self.session.config.spec.train.log_every;
        let is_logged = self.state.step % log_every == log_every - 1;
        let batches = step_batches.batches;
        if let Budget::Hours(hours) = self.budget() {
            self.time_share = (self.seconds() / (hours * 3600.0)).min(1.0);
        }
        self.freeze_and_thaw();
        self.seed();
        let step = self.any_step(step_batches, is_logged).map_err(deterministic_alone)?;
        self.state.batch += batches;
        self.update_counters(&step);
        match step.before {
            Some(before) => {
                let (heads, inputs) = (step.auxiliary.as_ref(), step.input_gradient.as_ref());
                self.log_step(before, &step.loss, heads, inputs, &step.grad_norm).map(Some)
            }
            None => Ok(None),
        }
    }

    fn any_step(&mut self, step_batches: StepBatches, is_logged: bool) -> Result<StepResult> {
        match self.try_replay(step_batches, is_logged)? {
            Ok(step) => Ok(step),
            Err(step_batches) => self.eager_step(step_batches, is_logged),
        }
    }

    fn eager_step(&mut self, step_batches: StepBatches, is_logged: bool) -> Result<StepResult> {
        let samples = step_batches.samples;
        let BatchLoss { data: loss, auxiliary, input_gradient } = self.gradients(step_batches)?;
        // Not earlier: this may wait for the step before, and now the device has a backward pass to compute.
        let (lr, lambdas) = self.next_lr_and_lambdas()?;
        let before = self.weight_stats(is_logged, lr, &lambdas)?;
        let step = self.clip_penalize_update(lr, &lambdas)?;
        self.update_average(&step)?;
        self.update_scale(&step)?;
        self.stopwatch.passed(Phase::Optimizer);
        let grad_norm = DeferredScalar::of(&step.grad_norm);
        let found_inf = step.found_inf;
        Ok(StepResult { loss, auxiliary, input_gradient, grad_norm, found_inf, before, samples })
    }

    /// Adds up the gradients of the micro-batches, and averages those of all ranks. Returns the losses of the whole
    /// batch, of several ranks such that their mean over the ranks is that.
    pub(super) fn forward_backward(&mut self, step_batches: StepBatches) -> Result<BatchLoss> {
        let parts = self.micro_batch_loss(&step_batches)?;
        let StepBatches { own, samples, is_idle, .. } = step_batches;
        // The mean over the ranks makes of N times a rank's part the whole.
        let samples = samples as f64 / self.session.world_size() as f64;
        let last = own.len() - 1;
        let (device, amp) = (self.session.device, self.session.config.spec.train.amp.map(Amp::kind));
        let mut total = DeferredScalar::new(0.0, device);
        let (mut auxiliary, mut input_gradient): (Option<DeferredScalar>, Option<DeferredScalar>) =
            (None, None);
        let add = |sum: &mut Option<DeferredScalar>, part: Option<DeferredScalar>| {
            if let Some(part) = part {
                sum.get_or_insert_with(|| DeferredScalar::new(0.0, device)).add(&part, 1.0);
            }
        };
        for (at, batch) in own.into_iter().enumerate() {
            let share = if is_idle { 0.0 } else { batch.xs.size()[0] as f64 / samples };
            if at == last {
                self.begin_sharing()?;
            }
            let (task, network, scale) = (&self.session.task, &self.network, &self.scale);
            let part = catch_panics(|| -> Result<_> {
                let (xs, ys) = task.make_batch(batch.xs, batch.ys, true)?;
                let xs = self.tracked(if self.channels_last { channels_last(&xs) } else { xs });
                self.stopwatch.passed(Phase::Prepare);
                let loss = autocast(device, amp, || -> Result<_> {
                    let answers = Answers::of(task.as_ref(), network, &xs)?;
                    let loss = |answer: &ModelOutput| task.loss(answer, &ys, Some(self.clock()));
                    Ok(parts.of(task.as_ref(), &answers, &ys, share, loss))
                })??;
                self.stopwatch.passed(Phase::Forward);
                let (objective, penalty) = self.with_input_gradient(&loss.main, &xs, samples)?;
                let objective = loss.with_auxiliary(&objective);
                // What is no share of the samples but of something else.
                let objective = if is_idle { objective * 0.0 } else { objective };
                if at == last {
                    self.share_gradients()?;
                }
                scale.as_ref().map_or(objective.shallow_clone(), |scale| scale.scaled(&objective)).backward();
                self.stopwatch.passed(Phase::Backward);
                let [heads, penalty] =
                    [&loss.auxiliary, &penalty].map(|part| part.as_ref().map(DeferredScalar::of));
                Ok((DeferredScalar::of(&loss.main), heads, penalty))
            })??;
            if is_idle {
                continue;
            }
            total.add(&part.0, 1.0);
            add(&mut auxiliary, part.1);
            add(&mut input_gradient, part.2);
        }
        let (data, auxiliary) = match &parts {
            MicroBatchLoss::Joint { loss, .. } => {
                (DeferredScalar::of(&loss.main), loss.auxiliary.as_ref().map(DeferredScalar::of))
            }
            _ => (total, auxiliary),
        };
        Ok(BatchLoss { data, auxiliary, input_gradient })
    }

    /// The optimiser's step, and the one of the λs that the validation set tunes.
    fn clip_penalize_update(&mut self, lr: f64, lambdas: &[LambdaValues]) -> Result<StepOutput> {
        let mut due = self.lambda_tuner.due(self.state.step);
        due.retain(|&group| !self.frozen[group]);
        let step = self.optimizer.step_with(&StepOptions {
            lr,
            lambdas,
            clip: self.session.config.spec.train.clip.as_ref(),
            differentiate: &due,
            scale: self.scale.as_ref(),
            graph_scalars: None,
        })?;
        if !step.lambda_gradients.is_empty() {
            let gradients = &step.lambda_gradients;
            self.lambda_tuner.update_lambdas(&self.network, self.state.step, &due, gradients)?;
            if let Some(ranks) = self.ranks() {
                let tuned = ranks.first(|| Ok(self.lambda_tuner.tuned().to_vec()))?;
                self.lambda_tuner.set_tuned(tuned);
            }
            self.optimizer.zero_grad()?;
        }
        Ok(step)
    }

    fn update_average(&mut self, step: &StepOutput) -> Result<()> {
        match &mut self.averaged {
            Some((ema, _)) => {
                ema.update(&self.optimizer.averaged(self.network.state())?, step.found_inf.as_ref())
            }
            None => Ok(()),
        }
    }

    fn update_scale(&mut self, step: &StepOutput) -> Result<()> {
        match (&mut self.scale, &step.found_inf) {
            (Some(scale), Some(found_inf)) => scale.update(found_inf),
            _ => Ok(()),
        }
    }

    /// Counts a step, and adds its loss to the epoch's; nothing waits for the device.
    fn update_counters(&mut self, step: &StepResult) {
        let samples = step.samples as u64;
        // A skipped step is no sign of ill health, and no part of the epoch's loss.
        let [loss, grad_norm] =
            [&step.loss, &step.grad_norm].map(|number| number.unless(step.found_inf.as_ref()));
        self.finite_check.add(&loss, 1.0);
        self.finite_check.add(&grad_norm, 1.0);
        self.loss_sum.add(&loss, step.samples as f64);
        self.samples_of_step = samples;
        self.state.step += 1;
        self.state.samples += samples;
        self.samples_since_log += samples;
        self.samples_since_begin += samples;
        self.state.score = None;
        self.state.thresholds.clear();
        self.latest = None;
    }

    /// Dropout and noise are functions of the seed, the step and the rank, so that nothing of the generator needs
    /// saving.
    pub(super) fn seed(&self) {
        let rank = self.ranks().map_or(0, ProcessGroup::rank) as u64;
        let mut draw = CounterRng::new(self.session.config.spec.seed, self.state.step, rank, RngStream::Step);
        device::seed(draw.bits());
    }

    /// The learning rate and the λs of the step to come; waits for the gradients of the one before where it
    /// could have been skipped.
    pub(super) fn next_lr_and_lambdas(&mut self) -> Result<(f64, Vec<LambdaValues>)> {
        self.sync_skipped_step()?;
        let lr = self.lr_at(self.position());
        self.lambda_tuner.bound(&self.optimizer, lr);
        Ok((lr, self.lambdas_at(self.position())))
    }

    /// Statistics of the weights of `network` under the λs of the step that `step` others precede.
    pub(super) fn stats_of(
        &self,
        network: &Network,
        step: u64,
        lr: f64,
        lambdas: &[LambdaValues],
    ) -> Result<WeightStats> {
        let initial = self.optimizer.initial();
        let mut stats = WeightStats::of(network, &self.session.groups, lambdas, initial, lr, self.peak())?;
        stats.lambda.0.extend(self.input_gradient_at(step).map(of_inputs));
        Ok(stats)
    }

    /// Statistics of the weights before the step, where it is logged.
    pub(super) fn weight_stats(
        &self,
        is_logged: bool,
        lr: f64,
        lambdas: &[LambdaValues],
    ) -> Result<Option<WeightStats>> {
        is_logged.then(|| self.stats_of(&self.network, self.position(), lr, lambdas)).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::util::exit_code;

    #[test]
    fn an_operation_without_a_deterministic_algorithm_is_named_with_what_to_do() {
        // libtorch 2.11, Context::alertNotDeterministic.
        let text = "nll_loss2d_forward_out_cuda_template does not have a deterministic implementation, but you set \
                    'torch.use_deterministic_algorithms(True)'. You can turn off determinism just for this operation, …";
        let error = deterministic_alone(anyhow::anyhow!(text));
        assert_eq!(exit_code::code(&error), ExitCode::Usage as u8);
        assert_eq!(
            error.to_string(),
            "train.deterministic: nll_loss2d_forward_out_cuda_template does not have a deterministic implementation; \
             leave it out, or take another layer or loss"
        );
        let other = deterministic_alone(anyhow::anyhow!("CUDA error: out of memory"));
        assert_eq!(exit_code::code(&other), ExitCode::Memory as u8);
    }
}
