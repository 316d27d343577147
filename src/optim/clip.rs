//! Gradient clipping, equal to `torch.nn.utils.clip_grad_value_` and `clip_grad_norm_`.

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::libtorch::optim as kernels;
use crate::schedule::check;
use crate::util::yaml::Invalid;

/// Bounds on the data gradient; the penalty comes after them. With both, the norm is that of the clamped
/// gradient.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Clip {
    /// Clamp each element to [−value, value], as `torch.nn.utils.clip_grad_value_`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub value: Option<f64>,
    /// Scale the gradient of all parameters together to at most this 2-norm, as
    /// `torch.nn.utils.clip_grad_norm_`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub norm: Option<f64>,
}

impl Clip {
    /// Refuses bounds that are not above 0; paths are relative to `clip`.
    pub fn validate(&self) -> Result<(), Invalid> {
        for (key, bound) in [("value", self.value), ("norm", self.norm)] {
            bound.map_or(Ok(()), |bound| check(key, bound, bound > 0.0, "above 0"))?;
        }
        if self.value.is_none() && self.norm.is_none() {
            return Err(Invalid::new("", "states no bound; add `norm: 1.0` or `value: 0.5`"));
        }
        Ok(())
    }

    /// Clips in place; `total` is the norm of `grads` as they come. Nothing waits for the device.
    pub(super) fn apply(&self, grads: &[&Tensor], total: &Tensor) -> Result<()> {
        if let Some(bound) = self.value {
            kernels::clamp(grads, -bound, bound)?;
        }
        let Some(bound) = self.norm else {
            return Ok(());
        };
        let clamped = self.value.map(|_| total_norm(grads)).transpose()?;
        let total = clamped.as_ref().unwrap_or(total);
        let factor = total.f_add_scalar(1e-6)?.f_reciprocal()?.f_mul_scalar(bound)?.f_clamp_max(1.0)?;
        kernels::scale_by(grads, &factor)
    }
}

/// The 2-norm of all gradients together, 0-dim on their device; 0 where there are none.
pub(super) fn total_norm(grads: &[&Tensor]) -> Result<Tensor> {
    if grads.is_empty() {
        return Ok(Tensor::f_zeros([0; 0], (Kind::Float, Device::Cpu))?);
    }
    kernels::total_norm(grads)
}
