//! Decay apart from the gradient, for the rules whose kernels do not have it, and in the modes that none has.

use anyhow::Result;
use tch::Tensor;

use super::GroupTensors;

/// Takes η·λ of the weights that the step just made moved towards 0 or not at all: w′ ← w′ − η·λ·1[(w − w′)·w
/// ≥ 0]·w (Chen et al. 2025; the sign of the step is the sign of what it did to the weight). Returns what was
/// decayed, 1[…]·w.
pub(super) fn cautious(before: &[Tensor], batch: &GroupTensors, strength: f64) -> Result<Vec<Tensor>> {
    let decay = |(old, new): (&Tensor, &&Tensor)| -> Result<Tensor> {
        let mut new = new.f_detach()?;
        let agrees = old.f_sub(&new)?.f_mul(old)?.f_ge(0.0)?;
        let decayed = old.f_mul(&agrees)?;
        let _ = new.f_sub_(&decayed.f_mul_scalar(strength)?)?;
        Ok(decayed)
    };
    before.iter().zip(&batch.params).map(decay).collect()
}
