//! The share of one process in each step of a data-parallel run: which batches are its own, gradients averaged over the
//! ranks in the backward pass, and decisions that all ranks take alike (Li et al. 2020, "PyTorch Distributed").
//!
//! N ranks see the samples that one process with N times `accumulate` sees, batch by batch: of the batches of a step
//! rank r takes those numbered r, r + N, …. `batch_size` is a rank's own, as in PyTorch. Near the end of an epoch there
//! may be fewer batches than ranks: a rank without one computes the first once more, and it counts nothing.

use anyhow::Result;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tch::Tensor;

use super::Trainer;
use crate::config::CommHook;
use crate::data::loader::{Batch, Loader};
use crate::libtorch::distributed::{Reducer, Work};
use crate::train::distributed::ProcessGroup;
use crate::util::exit_code::{ExitCode, fail};
use crate::util::signals::Stop;

/// By how much the norms of the ranks' weights may differ, relatively: processors of several kinds round differently.
const DRIFT: f64 = 1e-3;

/// The batches of one optimiser step: `accumulate` on each rank, fewer at the end of an epoch.
pub struct StepBatches {
    /// Those of this rank.
    pub own: Vec<Batch>,
    /// Batches of all ranks.
    pub batches: usize,
    /// Samples of all ranks.
    pub samples: i64,
    /// Whether this rank has none of its own, and computes one that counts nothing.
    pub is_idle: bool,
}

impl StepBatches {
    /// All of them are this process's.
    pub fn alone(own: Vec<Batch>) -> Self {
        let samples = own.iter().map(|batch| batch.xs.size()[0]).sum();
        Self { batches: own.len(), samples, is_idle: false, own }
    }
}

/// Whether the run is to stop after the step that is being made: all ranks stop at the same.
pub enum StopVote {
    /// One process decides by itself.
    Alone,
    /// The votes are on their way.
    Ranks(Work, Tensor),
}

impl StopVote {
    pub fn is_stop(self, stop: &Stop) -> Result<bool> {
        match self {
            Self::Alone => Ok(stop.is_requested()),
            Self::Ranks(work, votes) => {
                work.wait()?;
                Ok(votes.double_value(&[0]) > 0.0)
            }
        }
    }
}

/// The rest of an epoch from batch `from` on, as rank `rank` of `ranks` sees it.
pub(super) fn step_batches<'l>(
    loader: &'l Loader,
    (epoch, from): (u64, usize),
    (rank, ranks): (usize, usize),
    accumulate: usize,
) -> impl Iterator<Item = Result<StepBatches>> + 'l {
    let mut own_batches = loader.share(epoch, from, rank, ranks);
    let per_step = accumulate * ranks;
    let mut next = from;
    std::iter::from_fn(move || {
        let batches = loader.steps().saturating_sub(next).min(per_step);
        let count = batches.saturating_sub(rank).div_ceil(ranks);
        let own: Result<Vec<Batch>> = own_batches.by_ref().take(count).collect();
        let first = next;
        next += batches;
        match own {
            Err(error) => Some(Err(error)),
            Ok(own) if ranks == 1 => (!own.is_empty()).then(|| Ok(StepBatches::alone(own))),
            Ok(_) if batches == 0 => None,
            Ok(mut own) => {
                let is_idle = own.is_empty();
                if is_idle {
                    match loader.batch(epoch, first) {
                        Ok(batch) => own.extend(batch),
                        Err(error) => return Some(Err(error)),
                    }
                }
                let samples = loader.samples_in(first..next);
                Some(Ok(StepBatches { own, batches, samples, is_idle }))
            }
        }
    })
}

impl Trainer<'_> {
    pub(super) fn ranks(&self) -> Option<&ProcessGroup> {
        self.session.ranks.as_deref()
    }

    /// The mean over the ranks of a number that each of them has.
    pub(super) fn over_ranks(&self, value: f64) -> Result<f64> {
        self.ranks().map_or(Ok(value), |ranks| ranks.mean(value))
    }

    /// Has one process do `f`, where there are several rank 0; the others get its value, or fail as it did.
    pub(super) fn on_first_rank<T: Serialize + DeserializeOwned>(
        &self,
        f: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        match self.ranks() {
            Some(ranks) => ranks.first(f),
            None => f(),
        }
    }

    /// Ranks whose weights have drifted apart would train different networks.
    pub(super) fn check_ranks_alike(&self, weight_norm: f64) -> Result<()> {
        let mean = self.over_ranks(weight_norm)?;
        let outcome = match (mean - weight_norm).abs() <= DRIFT * mean {
            true => Ok(()),
            false => {
                let message = format!(
                    "the weights of rank {} are not those of the other ranks: their norm is {weight_norm}, the mean of all                      {mean}",
                    self.ranks().map_or(0, ProcessGroup::rank)
                );
                Err(fail(ExitCode::Distributed, message))
            }
        };
        self.ranks().map_or(Ok(()), |ranks| ranks.agree(outcome))
    }

    /// Starts a step with the weights and statistics of rank 0 everywhere.
    pub(super) fn share_weights(&self) -> Result<()> {
        let Some(ranks) = self.ranks() else { return Ok(()) };
        let state = self.network.state();
        ranks.broadcast(&state.iter().map(|(_, tensor)| tensor).collect::<Vec<_>>())
    }

    /// Asks whether any rank wants to stop; the answer is there after the step.
    pub fn vote(&self, stop: &Stop) -> Result<StopVote> {
        let Some(ranks) = self.ranks() else { return Ok(StopVote::Alone) };
        let votes = Tensor::from_slice(&[f64::from(u8::from(stop.is_requested()))]);
        Ok(StopVote::Ranks(ranks.start_sum(&votes)?, votes))
    }

    /// Before the forward pass of the last micro-batch of a step, whose backward pass averages the gradients.
    pub(super) fn begin_sharing(&mut self) -> Result<()> {
        let Some(ranks) = self.session.ranks.as_deref() else { return Ok(()) };
        if self.reducer.is_none() {
            let spec = &self.session.config.spec.train.distributed;
            let parameters = self.network.parameters().iter().map(|parameter| &parameter.tensor);
            let trained: Vec<&Tensor> = parameters.filter(|tensor| tensor.requires_grad()).collect();
            let bytes = i64::from(spec.bucket_cap_mb) << 20;
            let reducer = ranks.reducer(&trained, bytes, spec.comm_hook == CommHook::Bf16Compress)?;
            self.reducer = Some(reducer);
        }
        self.reducer.as_ref().map_or(Ok(()), Reducer::rebuild)
    }

    /// Between that forward pass and its backward pass.
    pub(super) fn share_gradients(&self) -> Result<()> {
        self.reducer.as_ref().map_or(Ok(()), Reducer::prepare)
    }
}
