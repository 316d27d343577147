//! The numbers of a step beside its rate, such as η·λ: known to the host, or held by the device where nothing
//! may wait for it.

use anyhow::Result;
use tch::{Device, Kind, Tensor};

use super::Optimizer;
use crate::libtorch::graph::copy_ahead;
use crate::libtorch::optim as kernels;
use crate::penalty::LambdaValues;

/// A number that a step scales by or thresholds at.
pub(super) enum GraphScalar {
    Host(f64),
    /// 0-dim float32.
    Device(Tensor),
}

impl GraphScalar {
    /// `value`, but `idle` where the gate, 0-dim float32, holds 1.
    pub fn gated(value: f64, idle: f64, gate: Option<&Tensor>) -> Result<Self> {
        let Some(gate) = gate else { return Ok(Self::Host(value)) };
        Ok(Self::Device(gate.f_full_like(value)?.f_masked_fill(&gate.f_gt(0.0)?, idle)?))
    }

    /// w ← knob·w
    pub fn scale(&self, params: &[&Tensor]) -> Result<()> {
        match self {
            Self::Host(factor) => kernels::scale(params, *factor),
            Self::Device(factor) => kernels::scale_by(params, factor),
        }
    }

    /// w ← sign(w)·max(|w| − knob, 0)
    pub fn threshold(&self, params: &[&Tensor]) -> Result<()> {
        match self {
            Self::Host(at) => kernels::soft_threshold(params, *at),
            Self::Device(at) => kernels::soft_threshold_by(params, at),
        }
    }

    /// The same with a knob of its own for each value: knob·metric.
    pub fn threshold_in(&self, params: &[&Tensor], metric: &[Tensor]) -> Result<()> {
        for (w, metric) in params.iter().zip(metric) {
            let at = match self {
                Self::Host(at) => metric.f_mul_scalar(*at)?,
                Self::Device(at) => metric.f_mul(&at.f_to_kind(metric.kind())?)?,
            };
            let mut w = w.f_detach()?;
            let inner = w.f_clamp_tensor(Some(&at.f_neg()?), Some(&at))?;
            let _ = w.f_sub_(&inner)?;
        }
        Ok(())
    }

    /// t ← t + knob·(other − t)
    pub fn lerp(&self, tensors: &[&Tensor], others: &[&Tensor]) -> Result<()> {
        match self {
            Self::Host(weight) => kernels::lerp(tensors, others, *weight),
            Self::Device(weight) => kernels::lerp_by(tensors, others, weight),
        }
    }
}

/// All numbers of a step that change from step to step, on the device: what was recorded once is replayed
/// under others.
pub struct GraphScalars {
    /// `[2 + 4·groups]` float32: the rate, the weight of the average, and those of each group.
    all: Tensor,
    lr: Tensor,
    average: Tensor,
    groups: Vec<GroupScalars>,
}

/// Those of one penalty group.
pub(super) struct GroupScalars {
    pub l2: Tensor,
    /// What decay apart from the gradient leaves of a weight.
    pub keep: Tensor,
    pub l1: Tensor,
    pub threshold: Tensor,
}

impl GraphScalars {
    /// All 0, for so many penalty groups.
    pub fn new(groups: usize, device: Device) -> Result<Self> {
        let all = Tensor::f_zeros([2 + 4 * groups as i64], (Kind::Float, device))?;
        let at = |index: usize| all.f_select(0, index as i64);
        let of = |group: usize| -> Result<GroupScalars> {
            let first = 2 + 4 * group;
            let [l2, keep, l1, threshold] = [at(first)?, at(first + 1)?, at(first + 2)?, at(first + 3)?];
            Ok(GroupScalars { l2, keep, l1, threshold })
        };
        let groups = (0..groups).map(of).collect::<Result<_>>()?;
        Ok(Self { lr: at(0)?, average: at(1)?, groups, all })
    }

    /// Sets them for the next step of `optimizer`; `average` is the weight that an average of the weights
    /// gives the new ones. Nothing waits for the device.
    pub fn set(
        &mut self,
        optimizer: &Optimizer,
        lr: f64,
        rates: &[LambdaValues],
        average: f64,
    ) -> Result<()> {
        let of = |rates: &LambdaValues| {
            [rates.l2, 1.0 - optimizer.strength(lr, rates), rates.l1, optimizer.threshold(lr, rates)]
        };
        let numbers: Vec<f64> = [lr, average].into_iter().chain(rates.iter().flat_map(of)).collect();
        let mut numbers = Tensor::from_slice(&numbers).f_to_kind(Kind::Float)?;
        if self.all.device().is_cuda() {
            numbers = numbers.f_pin_memory(self.all.device())?;
        }
        copy_ahead(&self.all, &numbers)
    }

    /// The weight that an average of the weights gives the new ones.
    pub fn average(&self) -> &Tensor {
        &self.average
    }

    pub(super) fn lr(&self) -> &Tensor {
        &self.lr
    }

    pub(super) fn group(&self, index: usize) -> &GroupScalars {
        &self.groups[index]
    }
}
