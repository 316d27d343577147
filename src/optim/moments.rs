//! What Adam's relatives share: the count of steps, the running means of the gradient and of its square, and a decay
//! that is `weight_decay` in `torch.optim`. By tensor, without kernels of their own; nothing waits for the device.

use anyhow::Result;
use tch::{Kind, Tensor};

use super::{GroupTensors, KernelDecay};
use crate::libtorch::optim::Control;
use crate::schedule::check;
use crate::util::yaml::Invalid;

/// Refuses decay rates of running means outside [0, 1).
pub(super) fn check_betas((first, second): (f64, f64)) -> Result<(), Invalid> {
    check("betas.0", first, (0.0..1.0).contains(&first), "in [0, 1)")?;
    check("betas.1", second, (0.0..1.0).contains(&second), "in [0, 1)")
}

/// t·η
pub(super) fn times_lr(t: &Tensor, control: &Control) -> Result<Tensor> {
    Ok(match control.lr_tensor {
        Some(lr) => t.f_mul(&lr.f_to_kind(t.kind())?)?,
        None => t.f_mul_scalar(control.lr)?,
    })
}

/// Counts a step of parameter `i`, whose count is slot 0.
pub(super) fn count(batch: &GroupTensors, i: usize) -> Result<()> {
    let _ = batch.slot(0)[i].shallow_clone().f_add_scalar_(1.0)?;
    Ok(())
}

/// The count of steps of parameter `i`, 0-dim float64: 1 − βᵗ is tiny at first.
pub(super) fn steps(batch: &GroupTensors, i: usize) -> Result<Tensor> {
    Ok(batch.slot(0)[i].f_to_kind(Kind::Double)?)
}

/// 1 − βᵗ
pub(super) fn correction(beta: f64, t: &Tensor) -> Result<Tensor> {
    Ok(Tensor::f_pow_scalar(beta, t)?.f_neg()?.f_add_scalar(1.0)?)
}

/// The gradient with the decay that is a part of it; decay apart from it is taken of the weight.
pub(super) fn decayed(w: &Tensor, g: &Tensor, decay: KernelDecay, control: &Control) -> Result<Tensor> {
    if decay.decoupled > 0.0 {
        let kept = times_lr(&w.f_full_like(decay.decoupled)?, control)?;
        let _ = w.f_detach()?.f_sub_(&w.f_detach()?.f_mul(&kept)?)?;
    }
    Ok(if decay.l2 > 0.0 { g.f_add(&w.f_detach()?.f_mul_scalar(decay.l2)?)? } else { g.shallow_clone() })
}

/// m ← m + (1 − β₁)(g − m), v ← β₂v + (1 − β₂)g²
pub(super) fn blend(betas: (f64, f64), g: &Tensor, m: &Tensor, v: &Tensor) -> Result<()> {
    let _ = m.shallow_clone().f_lerp_(g, 1.0 - betas.0)?;
    let _ = v.shallow_clone().f_mul_scalar_(betas.1)?.f_add_(&g.f_square()?.f_mul_scalar(1.0 - betas.1)?)?;
    Ok(())
}
