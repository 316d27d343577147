//! A number of an optimiser step, such as η·λ: known to the host, or held by the device where nothing may wait for it.

use anyhow::Result;
use tch::Tensor;

use super::optim as kernels;

/// A number that tensors are scaled by, thresholded at or mixed by.
pub enum Scalar {
    Host(f64),
    /// 0-dim float32.
    Device(Tensor),
}

impl Scalar {
    /// `value`, but `idle` where `found_inf` (0-dim float32 on the device) is 1: the step is skipped there.
    pub fn gated(value: f64, idle: f64, found_inf: Option<&Tensor>) -> Result<Self> {
        let Some(gate) = found_inf else { return Ok(Self::Host(value)) };
        Ok(Self::Device(gate.f_full_like(value)?.f_masked_fill(&gate.f_gt(0.0)?, idle)?))
    }

    /// This number, but `idle` where `found_inf` (0-dim float32 on the device) is 1.
    pub fn unless(self, found_inf: Option<&Tensor>, idle: f64) -> Result<Self> {
        match (self, found_inf) {
            (Self::Device(value), Some(gate)) => {
                Ok(Self::Device(value.f_masked_fill(&gate.f_gt(0.0)?, idle)?))
            }
            (Self::Host(value), gate) => Self::gated(value, idle, gate),
            (device, None) => Ok(device),
        }
    }

    /// As a factor of `like`: 0-dim, of its kind, on its device.
    pub fn tensor(&self, like: &Tensor) -> Result<Tensor> {
        match self {
            Self::Host(value) => Ok(Tensor::f_full([0; 0], *value, (like.kind(), like.device()))?),
            Self::Device(value) => Ok(value.f_to_kind(like.kind())?),
        }
    }

    /// t ← scalar·t
    pub fn scale(&self, tensors: &[&Tensor]) -> Result<()> {
        match self {
            Self::Host(factor) => kernels::scale(tensors, *factor),
            Self::Device(factor) => kernels::scale_by(tensors, factor),
        }
    }

    /// t ← t + scalar·other
    pub fn add(&self, tensors: &[&Tensor], others: &[&Tensor]) -> Result<()> {
        match self {
            Self::Host(alpha) => {
                for (t, other) in tensors.iter().zip(others) {
                    let _ = t.f_detach()?.f_add_(&other.f_detach()?.f_mul_scalar(*alpha)?)?;
                }
                Ok(())
            }
            Self::Device(alpha) => kernels::add_by(tensors, others, false, alpha),
        }
    }

    /// t ← t + scalar·sign(other), sign(0) = 0
    pub fn add_sign(&self, tensors: &[&Tensor], others: &[&Tensor]) -> Result<()> {
        match self {
            Self::Host(alpha) => kernels::add_sign(tensors, others, *alpha),
            Self::Device(alpha) => kernels::add_by(tensors, others, true, alpha),
        }
    }

    /// w ← sign(w)·max(|w| − scalar, 0)
    pub fn soft_threshold(&self, params: &[&Tensor]) -> Result<()> {
        match self {
            Self::Host(at) => kernels::soft_threshold(params, *at),
            Self::Device(at) => kernels::soft_threshold_by(params, at),
        }
    }

    /// The same with a threshold of its own for each value: scalar·scale.
    pub fn soft_threshold_scaled(&self, params: &[&Tensor], scales: &[Tensor]) -> Result<()> {
        for (w, scale) in params.iter().zip(scales) {
            let at = match self {
                Self::Host(at) => scale.f_mul_scalar(*at)?,
                Self::Device(at) => scale.f_mul(&at.f_to_kind(scale.kind())?)?,
            };
            let mut w = w.f_detach()?;
            let inner = w.f_clamp_tensor(Some(&at.f_neg()?), Some(&at))?;
            let _ = w.f_sub_(&inner)?;
        }
        Ok(())
    }

    /// t ← t + scalar·(other − t)
    pub fn lerp(&self, tensors: &[&Tensor], others: &[&Tensor]) -> Result<()> {
        match self {
            Self::Host(weight) => kernels::lerp(tensors, others, *weight),
            Self::Device(weight) => kernels::lerp_by(tensors, others, weight),
        }
    }
}
