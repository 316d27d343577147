//! The numbers of a step that change from step to step, on the GPU: what a CUDA graph recorded once is replayed
//! under others.

use anyhow::Result;
use tch::{Device, Kind, Tensor};

use super::Optimizer;
use crate::libtorch::graph::copy_ahead;
use crate::libtorch::scalar::Scalar;
use crate::penalty::LambdaValues;

/// The learning rate, the weight of the average of the weights, and the coefficient of each form of penalty in each
/// group.
pub struct GraphScalars {
    /// `[2 + forms·groups]` float32: rate, average, and the coefficients group by group.
    all: Tensor,
    lr: Tensor,
    average: Tensor,
    forms: usize,
}

impl GraphScalars {
    /// All 0, for so many penalty groups.
    pub fn new(groups: usize, device: Device) -> Result<Self> {
        let forms = crate::penalty::FORMS;
        let all = Tensor::f_zeros([2 + (forms * groups) as i64], (Kind::Float, device))?;
        Ok(Self { lr: all.f_select(0, 0)?, average: all.f_select(0, 1)?, forms, all })
    }

    /// Sets them for the next step of `optimizer`, with one entry of `lambdas` per group; `average` is the weight
    /// that an average of the weights gives the new ones. Nothing waits for the device.
    pub fn set(
        &mut self,
        optimizer: &Optimizer,
        lr: f64,
        lambdas: &[LambdaValues],
        average: f64,
    ) -> Result<()> {
        let rates = optimizer.rates(lr);
        let mut numbers = vec![0.0; self.all.numel()];
        (numbers[0], numbers[1]) = (lr, average);
        for (group, lambdas) in lambdas.iter().enumerate() {
            for (form, penalty, lambda) in lambdas.active() {
                numbers[2 + group * self.forms + form] = penalty.coefficient(lambda, &rates);
            }
        }
        let mut numbers = Tensor::from_slice(&numbers).f_to_kind(Kind::Float)?;
        if self.all.device().is_cuda() {
            numbers = numbers.f_pin_memory(self.all.device())?;
        }
        copy_ahead(&self.all, &numbers)
    }

    /// The weight that an average of the weights gives the new ones, 0-dim.
    pub fn average(&self) -> &Tensor {
        &self.average
    }

    /// 0-dim.
    pub(super) fn lr(&self) -> &Tensor {
        &self.lr
    }

    /// The coefficient of row `form` of the table of penalties in a group.
    pub(super) fn coefficient(&self, group: usize, form: usize) -> Result<Scalar> {
        Ok(Scalar::Device(self.all.f_select(0, (2 + group * self.forms + form) as i64)?))
    }
}
