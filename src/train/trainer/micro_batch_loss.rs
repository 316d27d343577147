//! What several batches that make one step count: their loss is that of one large batch, also where it is no
//! mean over samples.

use anyhow::Result;
use tch::{Kind, Tensor, no_grad};

use super::Trainer;
use super::data_parallel::StepBatches;
use crate::config::Amp;
use crate::data::loader::Batch;
use crate::libtorch::autocast::autocast;
use crate::libtorch::catch_panics;
use crate::metrics::ModelOutput;
use crate::nn::model::Network;
use crate::tasks::Task;

/// The answers of one forward pass in training.
pub(super) struct Answers {
    pub main: ModelOutput,
    /// Those of the auxiliary heads, with the weights of their losses.
    pub auxiliary: Vec<(f64, ModelOutput)>,
}

impl Answers {
    pub fn of(task: &dyn Task, network: &Network, xs: &Tensor) -> Result<Self> {
        let (main, heads) = network.with_auxiliary(|| task.forward(network, xs, true));
        let auxiliary = heads.into_iter().map(|(weight, ys)| (weight, task.answer(ys))).collect();
        Ok(Self { main: main?, auxiliary })
    }

    /// The network's own, then those of the heads.
    fn all(&self) -> impl Iterator<Item = &ModelOutput> {
        std::iter::once(&self.main).chain(self.auxiliary.iter().map(|(_, answer)| answer))
    }

    /// Σ of `of` the number of an answer and the heads' answers, times their weights; None without heads.
    fn weighted(&self, of: impl Fn(usize, &ModelOutput) -> Tensor) -> Option<Tensor> {
        let terms = self.auxiliary.iter().enumerate();
        terms.map(|(at, (weight, answer))| of(at + 1, answer) * *weight).reduce(|sum, term| sum + term)
    }
}

/// The data loss of a batch, 0-dim.
pub(super) struct AnswerLosses {
    /// Of the network's answer.
    pub main: Tensor,
    /// Σ weight·loss of the auxiliary heads, where there are some.
    pub auxiliary: Option<Tensor>,
}

impl AnswerLosses {
    pub fn of(answers: &Answers, loss: impl Fn(usize, &ModelOutput) -> Tensor) -> Self {
        Self { main: loss(0, &answers.main), auxiliary: answers.weighted(loss) }
    }

    /// `objective` plus the loss of the heads.
    pub fn with_auxiliary(&self, objective: &Tensor) -> Tensor {
        match &self.auxiliary {
            Some(auxiliary) => objective + auxiliary,
            None => objective.shallow_clone(),
        }
    }
}

/// How the loss of one batch of a group becomes its part of the group's.
pub(super) enum MicroBatchLoss {
    /// By its share of the samples.
    Samples,
    /// By its share of what the task counts, 0-dim float64: pixels, or their weights.
    Weight(Tensor),
    /// The loss is a function of sums over all batches: its value, and its gradient by those sums. A batch's
    /// part of the gradient is that of its own sums times this one. One for each of the [`Answers`].
    Joint { loss: AnswerLosses, slopes: Vec<Tensor> },
}

impl MicroBatchLoss {
    /// Of a task whose loss is a mean over samples, or over what it counts, from the targets of each of several
    /// batches.
    pub fn separate<'t>(task: &dyn Task, ys: impl Iterator<Item = &'t Tensor>) -> Self {
        let weights: Option<Vec<_>> = ys.map(|ys| task.weight(ys)).collect();
        match weights.as_deref() {
            Some([first, rest @ ..]) => {
                Self::Weight(rest.iter().fold(first.shallow_clone(), |sum, weight| sum + weight))
            }
            _ => Self::Samples,
        }
    }

    /// What to differentiate for a batch that is `share` of the samples; `loss` is the task's.
    pub fn of(
        &self,
        task: &dyn Task,
        answers: &Answers,
        ys: &Tensor,
        share: f64,
        loss: impl Fn(&ModelOutput) -> Tensor,
    ) -> AnswerLosses {
        AnswerLosses::of(answers, |at, answer| {
            let loss = || loss(answer);
            match self {
                Self::Joint { slopes, .. } => match (task.sums(answer, ys), slopes.get(at)) {
                    (Some(sums), Some(slope)) => (sums * slope).sum(Kind::Double),
                    _ => loss(),
                },
                Self::Weight(whole) => match task.weight(ys) {
                    // A batch of which nothing counts has no mean.
                    Some(own) => (loss() * (&own / whole)).masked_fill(&own.eq(0.0), 0.0),
                    None => loss(),
                },
                Self::Samples if share != 1.0 => loss() * share,
                Self::Samples => loss(),
            }
        })
    }
}

impl Trainer<'_> {
    /// The mean over the ranks of what each has, nothing where it is idle.
    fn mean_of_ranks(&self, own: Tensor, is_idle: bool) -> Result<Tensor> {
        let Some(ranks) = self.ranks() else { return Ok(own) };
        let mean = if is_idle { own.zeros_like() } else { own / ranks.size() as f64 };
        ranks.sum(&mean)?;
        Ok(mean)
    }

    /// How the losses of `group` are to be put together. Where the loss is no mean over anything that is
    /// known before, this is a forward pass of its own over all batches, which leaves neither running
    /// statistics nor random numbers changed.
    ///
    /// Of several ranks: all their batches, and what each makes of it is such that the mean over the ranks counts.
    pub(super) fn micro_batch_loss(&self, step_batches: &StepBatches) -> Result<MicroBatchLoss> {
        let (task, network) = (&self.session.task, &self.network);
        let StepBatches { own: group, batches, is_idle, .. } = step_batches;
        if *batches < 2 {
            return Ok(MicroBatchLoss::Samples);
        }
        if !task.is_joint() {
            let own = MicroBatchLoss::separate(task.as_ref(), group.iter().map(|batch| &batch.ys));
            return Ok(match own {
                MicroBatchLoss::Weight(own) => MicroBatchLoss::Weight(self.mean_of_ranks(own, *is_idle)?),
                own => own,
            });
        }
        let (device, amp) = (self.session.device, self.session.config.spec.train.amp.map(Amp::kind));
        let parts = catch_panics(|| -> Result<Option<MicroBatchLoss>> {
            let kept: Vec<_> = network.buffers().into_iter().map(|buffer| (buffer.copy(), buffer)).collect();
            let mut totals: Option<Vec<Tensor>> = None;
            let mut last = None;
            for Batch { xs, ys, .. } in group {
                let (xs, ys) = task.make_batch(xs.shallow_clone(), ys.shallow_clone(), true)?;
                let (answers, sums) = autocast(device, amp, || {
                    no_grad(|| -> Result<_> {
                        let answers = Answers::of(task.as_ref(), network, &xs)?;
                        let sums: Option<Vec<_>> =
                            answers.all().map(|answer| task.sums(answer, &ys)).collect();
                        Ok((answers, sums))
                    })
                })??;
                totals = match (totals, sums) {
                    (Some(totals), Some(sums)) => {
                        Some(totals.into_iter().zip(sums).map(|(total, sum)| total + sum).collect())
                    }
                    (_, sums) => sums,
                };
                last = Some(answers);
            }
            no_grad(|| kept.into_iter().try_for_each(|(copy, mut buffer)| buffer.f_copy_(&copy).map(drop)))?;
            self.seed();
            let (Some(totals), Some(answers)) = (totals, last) else { return Ok(None) };
            let world_size = self.session.world_size() as f64;
            let totals = totals.into_iter().map(|total| {
                let total = self.mean_of_ranks(total, *is_idle)? * world_size;
                Ok(total.set_requires_grad(true))
            });
            let totals: Vec<_> = totals.collect::<Result<_>>()?;
            let losses: Vec<_> = totals.iter().map(|total| task.joint_loss(total)).collect();
            let slope = |(total, loss): (&Tensor, &Tensor)| -> Result<Tensor> {
                Ok(Tensor::f_run_backward(&[loss], &[total], false, false)?.swap_remove(0) * world_size)
            };
            let slopes = totals.iter().zip(&losses).map(slope).collect::<Result<_>>()?;
            let loss = AnswerLosses::of(&answers, |at, _| losses[at].detach());
            Ok(Some(MicroBatchLoss::Joint { loss, slopes }))
        })??;
        Ok(parts.unwrap_or(MicroBatchLoss::Samples))
    }
}
