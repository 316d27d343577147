//! The numbers of a step beside its rate, such as η·λ: known to the host, or held by the device where nothing may wait for it.

use anyhow::Result;
use tch::Tensor;

use crate::libtorch::optim as kernels;

/// A number that a step scales by or thresholds at.
pub(super) enum Knob {
    Host(f64),
    /// 0-dim float32.
    Device(Tensor),
}

impl Knob {
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

    /// t ← t + knob·(other − t)
    pub fn lerp(&self, tensors: &[&Tensor], others: &[&Tensor]) -> Result<()> {
        match self {
            Self::Host(weight) => kernels::lerp(tensors, others, *weight),
            Self::Device(weight) => kernels::lerp_by(tensors, others, weight),
        }
    }
}
