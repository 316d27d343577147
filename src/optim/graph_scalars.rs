//! The numbers of a step that change from step to step, on the GPU: what a CUDA graph recorded once is replayed
//! under others.

use anyhow::Result;
use tch::{Device, Kind, Tensor};

use super::Optimizer;
use crate::libtorch::graph::copy_ahead;
use crate::libtorch::scalar::Scalar;
use crate::libtorch::stream::pin;
use crate::penalty::LambdaValues;

/// The weight of the average of the weights, the number of the loss, and the learning rate and the coefficient of each
/// form of penalty in each group.
pub struct GraphScalars {
    /// `[2 + (1 + forms)·groups]` float32: average, loss, then group by group the rate and the coefficients.
    all: Tensor,
    lrs: Vec<Tensor>,
    average: Tensor,
    loss: Tensor,
}

/// What a step needs beside rates and λs.
#[derive(Clone, Copy, Debug, Default)]
pub struct StepNumbers {
    /// The weight that an average of the weights gives the new ones.
    pub average: f64,
    /// Through which the loss depends on the step.
    pub loss: f64,
}

/// The place of a group's rate; its coefficients follow.
fn place(group: usize) -> usize {
    2 + group * (1 + crate::penalty::FORMS)
}

impl GraphScalars {
    /// All 0, for so many penalty groups.
    pub fn new(groups: usize, device: Device) -> Result<Self> {
        let all = Tensor::f_zeros([place(groups) as i64], (Kind::Float, device))?;
        let lrs =
            (0..groups).map(|group| Ok(all.f_select(0, place(group) as i64)?)).collect::<Result<_>>()?;
        Ok(Self { lrs, average: all.f_select(0, 0)?, loss: all.f_select(0, 1)?, all })
    }

    /// Sets them for the next step of `optimizer`, with one entry of `lambdas` per group. Nothing waits for the device.
    pub fn set(
        &mut self,
        optimizer: &Optimizer,
        lr: f64,
        lambdas: &[LambdaValues],
        step: StepNumbers,
    ) -> Result<()> {
        let mut numbers = vec![0.0; self.all.numel()];
        (numbers[0], numbers[1]) = (step.average, step.loss);
        for (group, lambdas) in lambdas.iter().enumerate() {
            let rates = optimizer.rates(lr, group);
            numbers[place(group)] = rates.lr;
            for (form, penalty, lambda) in lambdas.active() {
                numbers[place(group) + 1 + form] = penalty.coefficient(lambda, &rates);
            }
        }
        let numbers = Tensor::from_slice(&numbers).f_to_kind(Kind::Float)?;
        copy_ahead(&self.all, &if self.all.device().is_cuda() { pin(&numbers)? } else { numbers })
    }

    /// The weight that an average of the weights gives the new ones, 0-dim.
    pub fn average(&self) -> &Tensor {
        &self.average
    }

    /// The number through which the loss depends on the step, 0-dim.
    pub fn loss(&self) -> &Tensor {
        &self.loss
    }

    /// The rate of a group, 0-dim.
    pub(super) fn lr(&self, group: usize) -> &Tensor {
        &self.lrs[group]
    }

    /// The coefficient of row `form` of the table of penalties in a group.
    pub(super) fn coefficient(&self, group: usize, form: usize) -> Result<Scalar> {
        Ok(Scalar::Device(self.all.f_select(0, (place(group) + 1 + form) as i64)?))
    }
}
