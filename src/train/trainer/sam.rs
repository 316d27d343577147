//! The gradient of a step: that of the batch, with `sam` the one of a second pass over it at the worst point nearby.

use anyhow::Result;
use tch::{Tensor, no_grad};

use super::Trainer;
use super::data_parallel::StepBatches;
use super::input_gradient::BatchLoss;
use crate::data::loader::Batch;

impl Trainer<'_> {
    /// Leaves the gradients of a step's batches in the parameters; returns their loss at the weights as they are. The
    /// second pass of `sam` draws the same noise and leaves running statistics as the first made them.
    pub(super) fn gradients(&mut self, step_batches: StepBatches) -> Result<BatchLoss> {
        let Some(sam) = &self.session.config.spec.train.sam else {
            return self.forward_backward(step_batches);
        };
        let own = step_batches.own.iter().map(Batch::shallow_clone).collect();
        let again = StepBatches { own, ..step_batches };
        let loss = self.forward_backward(step_batches)?;
        let params = self.network.parameters().iter().map(|param| param.tensor.shallow_clone());
        let params: Vec<Tensor> = params.collect();
        let weights = sam.ascend(&params.iter().collect::<Vec<_>>())?;
        let buffers: Vec<_> =
            self.network.buffers().into_iter().map(|buffer| (buffer.copy(), buffer)).collect();
        self.optimizer.zero_grad()?;
        self.seed();
        self.forward_backward(again)?;
        no_grad(|| {
            params.iter().zip(&weights).try_for_each(|(w, old)| w.f_detach()?.f_copy_(old))?;
            buffers.into_iter().try_for_each(|(copy, mut buffer)| buffer.f_copy_(&copy))
        })?;
        Ok(loss)
    }
}
