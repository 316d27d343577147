//! What several batches that make one step count: their loss is that of one large batch, also where it is no
//! mean over samples.

use anyhow::Result;
use tch::{Kind, Tensor, no_grad};

use super::Trainer;
use crate::config::Amp;
use crate::data::loader::Batch;
use crate::libtorch::autocast::autocast;
use crate::libtorch::catch_panics;
use crate::metrics::ModelOutput;

/// How the loss of one batch of a group becomes its part of the group's.
pub(super) enum MicroBatchLoss {
    /// By its share of the samples.
    Samples,
    /// By its share of what the task counts, 0-dim float64: pixels, or their weights.
    Weight(Tensor),
    /// The loss is a function of sums over all batches: its value, and its gradient by those sums. A batch's
    /// part of the gradient is that of its own sums times this one.
    Joint { loss: Tensor, slope: Tensor },
}

impl MicroBatchLoss {
    /// What to differentiate for a batch that is `share` of the samples.
    pub fn of(&self, trainer: &Trainer, answer: &ModelOutput, ys: &Tensor, share: f64) -> Tensor {
        let task = &trainer.session.task;
        let loss = || task.loss(answer, ys, Some(trainer.clock()));
        match self {
            Self::Joint { slope, .. } => {
                task.sums(answer, ys).map_or_else(loss, |sums| (sums * slope).sum(Kind::Double))
            }
            Self::Weight(whole) => match task.weight(ys) {
                // A batch of which nothing counts has no mean.
                Some(own) => (loss() * (&own / whole)).masked_fill(&own.eq(0.0), 0.0),
                None => loss(),
            },
            Self::Samples if share < 1.0 => loss() * share,
            Self::Samples => loss(),
        }
    }
}

impl Trainer<'_> {
    /// How the losses of `group` are to be put together. Where the loss is no mean over anything that is
    /// known before, this is a forward pass of its own over all batches, which leaves neither running
    /// statistics nor random numbers changed.
    pub(super) fn micro_batch_loss(&self, group: &[Batch]) -> Result<MicroBatchLoss> {
        let (task, network) = (&self.session.task, &self.network);
        if group.len() < 2 {
            return Ok(MicroBatchLoss::Samples);
        }
        if !task.is_joint() {
            let weights: Option<Vec<_>> = group.iter().map(|batch| task.weight(&batch.ys)).collect();
            return Ok(match weights.as_deref() {
                Some([first, rest @ ..]) => MicroBatchLoss::Weight(
                    rest.iter().fold(first.shallow_clone(), |sum, weight| sum + weight),
                ),
                _ => MicroBatchLoss::Samples,
            });
        }
        let (device, amp) = (self.session.device, self.session.config.spec.train.amp.map(Amp::kind));
        let parts = catch_panics(|| -> Result<Option<MicroBatchLoss>> {
            let kept: Vec<_> = network.buffers().into_iter().map(|buffer| (buffer.copy(), buffer)).collect();
            let mut total: Option<Tensor> = None;
            for Batch { xs, ys, .. } in group {
                let (xs, ys) = task.make_batch(xs.shallow_clone(), ys.shallow_clone(), true)?;
                let sums = autocast(device, amp, || {
                    no_grad(|| task.forward(network, &xs, true).map(|answer| task.sums(&answer, &ys)))
                })??;
                total = match (total, sums) {
                    (Some(total), Some(sums)) => Some(total + sums),
                    (_, sums) => sums,
                };
            }
            no_grad(|| kept.into_iter().try_for_each(|(copy, mut buffer)| buffer.f_copy_(&copy).map(drop)))?;
            self.seed();
            let Some(total) = total else { return Ok(None) };
            let total = total.set_requires_grad(true);
            let loss = task.joint_loss(&total);
            let slope = Tensor::f_run_backward(&[&loss], &[&total], false, false)?.swap_remove(0);
            Ok(Some(MicroBatchLoss::Joint { loss: loss.detach(), slope }))
        })??;
        Ok(parts.unwrap_or(MicroBatchLoss::Samples))
    }
}
