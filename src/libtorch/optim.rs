//! Optimiser kernels over lists of tensors: `at::_fused_*` and `at::_foreach_*`. None of them records
//! gradients, none waits for the device. Lists that belong together must be equally long; an empty list does
//! nothing.

use std::ffi::c_char;
use std::ptr::{null, null_mut};

use anyhow::{Result, anyhow};
use tch::Tensor;
use torch_sys::C_tensor;

use super::kernels::norms::two_norm;
use super::lists::{Borrowed, kernel};

/// The learning rate of a step, and whether it is skipped.
#[derive(Clone, Copy)]
pub struct Control<'a> {
    pub lr: f64,
    /// The rate where it is read on the device: 0-dim float32, in the place of `lr`.
    pub lr_tensor: Option<&'a Tensor>,
    /// 0-dim float32 on the device: where it is 1 the step changes nothing.
    pub found_inf: Option<&'a Tensor>,
}

impl Control<'_> {
    fn raw(&self) -> RawControl {
        let pointer = |tensor: Option<&Tensor>| tensor.map_or(null(), |tensor| tensor.as_ptr());
        RawControl { lr: self.lr, lr_tensor: pointer(self.lr_tensor), found_inf: pointer(self.found_inf) }
    }
}

/// Laid out as `Control` in optim.cpp; its pointers live as long as the [`Control`] it is made of.
#[repr(C)]
struct RawControl {
    lr: f64,
    lr_tensor: *const C_tensor,
    found_inf: *const C_tensor,
}

unsafe extern "C" {
    fn tikhonov_unscale(
        grads: Borrowed,
        found_inf: *const C_tensor,
        inverse_scale: *const C_tensor,
    ) -> *mut c_char;
    fn tikhonov_gradients(params: Borrowed, grads: *mut *mut C_tensor) -> *mut c_char;
    fn tikhonov_forget_gradients(params: Borrowed) -> *mut c_char;
    fn tikhonov_norms(tensors: Borrowed, ord: f64, in_double: bool, norms: *mut *mut C_tensor)
    -> *mut c_char;
    fn tikhonov_total_norm(tensors: Borrowed, norm: *mut *mut C_tensor) -> *mut c_char;
    fn tikhonov_zeros(tensors: Borrowed, zeros: *mut *mut C_tensor) -> *mut c_char;
    fn tikhonov_clamp(tensors: Borrowed, low: f64, high: f64) -> *mut c_char;
    fn tikhonov_scale(tensors: Borrowed, factor: f64) -> *mut c_char;
    fn tikhonov_add_by(
        tensors: Borrowed,
        others: Borrowed,
        signs: bool,
        alpha: *const C_tensor,
    ) -> *mut c_char;
    fn tikhonov_scale_by(tensors: Borrowed, factor: *const C_tensor) -> *mut c_char;
    fn tikhonov_add_sign(tensors: Borrowed, others: Borrowed, alpha: f64) -> *mut c_char;
    fn tikhonov_add_scaled(tensors: Borrowed, others: Borrowed, alpha: f64) -> *mut c_char;
    fn tikhonov_addmm(
        t: Borrowed,
        left: Borrowed,
        right: Borrowed,
        beta: f64,
        alpha: f64,
        out: *mut *mut C_tensor,
    ) -> *mut c_char;
    fn tikhonov_soft_threshold(tensors: Borrowed, threshold: f64) -> *mut c_char;
    fn tikhonov_soft_threshold_by(tensors: Borrowed, threshold: *const C_tensor) -> *mut c_char;
    fn tikhonov_lerp_by(tensors: Borrowed, others: Borrowed, weight: *const C_tensor) -> *mut c_char;
    fn tikhonov_lerp(tensors: Borrowed, others: Borrowed, weight: f64) -> *mut c_char;
    fn tikhonov_fused_sgd(
        params: Borrowed,
        grads: Borrowed,
        momentum_buffers: Borrowed,
        control: RawControl,
        weight_decay: f64,
        momentum: f64,
        dampening: f64,
        nesterov: bool,
        is_first_step: bool,
    ) -> *mut c_char;
    fn tikhonov_fused_adam(
        params: Borrowed,
        grads: Borrowed,
        exp_avgs: Borrowed,
        exp_avg_sqs: Borrowed,
        max_exp_avg_sqs: Borrowed,
        steps: Borrowed,
        control: RawControl,
        beta1: f64,
        beta2: f64,
        weight_decay: f64,
        eps: f64,
        amsgrad: bool,
        decoupled: bool,
    ) -> *mut c_char;
    fn tikhonov_fused_adagrad(
        params: Borrowed,
        grads: Borrowed,
        sums: Borrowed,
        steps: Borrowed,
        control: RawControl,
        lr_decay: f64,
        weight_decay: f64,
        eps: f64,
    ) -> *mut c_char;
    fn tikhonov_foreach_rmsprop(
        params: Borrowed,
        grads: Borrowed,
        square_avgs: Borrowed,
        momentum_buffers: Borrowed,
        grad_avgs: Borrowed,
        steps: Borrowed,
        control: RawControl,
        alpha: f64,
        eps: f64,
        weight_decay: f64,
        momentum: f64,
    ) -> *mut c_char;
}

/// The gradient of each parameter, or None where the graph did not reach it. Laid out in memory as the
/// parameter.
pub fn gradients(params: &[&Tensor]) -> Result<Vec<Option<Tensor>>> {
    let mut grads = vec![null_mut(); params.len()];
    let outcome = kernel!([params], |[params]| tikhonov_gradients(params, grads.as_mut_ptr()));
    // Owned before the outcome is looked at, so that an error half-way frees the first half.
    let grads = grads
        .into_iter()
        // SAFETY: a non-null pointer is a tensor that the shim made with `new` for us to own.
        .map(|grad| (!grad.is_null()).then(|| unsafe { Tensor::from_ptr(grad) }))
        .collect();
    outcome.map(|()| grads)
}

/// g ← g·`inverse_scale`; `found_inf` ← 1 where one of them holds NaN or infinity. Both are 0-dim float32 on
/// the device.
pub fn unscale(grads: &[&Tensor], found_inf: &Tensor, inverse_scale: &Tensor) -> Result<()> {
    kernel!([grads], |[grads]| tikhonov_unscale(grads, found_inf.as_ptr(), inverse_scale.as_ptr()))
}

/// Makes the gradients undefined (PyTorch's `zero_grad(set_to_none=True)`).
pub fn forget_gradients(params: &[&Tensor]) -> Result<()> {
    kernel!([params], |[params]| tikhonov_forget_gradients(params))
}

/// The norm of order `ord` of each of n > 0 tensors, `[n]`, on their device; computed in float64 or in each
/// tensor's own kind.
pub fn norms(tensors: &[&Tensor], ord: f64, in_double: bool) -> Result<Tensor> {
    let mut norms = null_mut();
    kernel!([tensors], |[tensors]| tikhonov_norms(tensors, ord, in_double, &mut norms))?;
    owned(norms, "norms")
}

/// How many values of n > 0 tensors together are 0: 0-dim int64, on their device.
pub fn zeros(tensors: &[&Tensor]) -> Result<Tensor> {
    let mut zeros = null_mut();
    kernel!([tensors], |[tensors]| tikhonov_zeros(tensors, &mut zeros))?;
    owned(zeros, "zeros")
}

/// The 2-norm of n > 0 tensors together, 0-dim, on their device.
pub fn total_norm(tensors: &[&Tensor]) -> Result<Tensor> {
    if let Some(norm) = two_norm(tensors)? {
        return Ok(norm);
    }
    let mut norm = null_mut();
    kernel!([tensors], |[tensors]| tikhonov_total_norm(tensors, &mut norm))?;
    owned(norm, "norm")
}

fn owned(out: *mut C_tensor, what: &str) -> Result<Tensor> {
    if out.is_null() {
        return Err(anyhow!("the {what} of no tensors"));
    }
    // SAFETY: the shim made it with `new` for us to own.
    Ok(unsafe { Tensor::from_ptr(out) })
}

/// t ← min(max(t, low), high)
pub fn clamp(tensors: &[&Tensor], low: f64, high: f64) -> Result<()> {
    kernel!([tensors], |[tensors]| tikhonov_clamp(tensors, low, high))
}

/// t ← factor·t
pub fn scale(tensors: &[&Tensor], factor: f64) -> Result<()> {
    kernel!([tensors], |[tensors]| tikhonov_scale(tensors, factor))
}

/// t ← factor·t with a 0-dim factor on the same device.
pub fn scale_by(tensors: &[&Tensor], factor: &Tensor) -> Result<()> {
    kernel!([tensors], |[tensors]| tikhonov_scale_by(tensors, factor.as_ptr()))
}

/// t ← t + alpha·sign(other), sign(0) = 0
pub fn add_sign(tensors: &[&Tensor], others: &[&Tensor], alpha: f64) -> Result<()> {
    kernel!([tensors, others], |[tensors, others]| tikhonov_add_sign(tensors, others, alpha))
}

/// t ← t + alpha·other with a 0-dim alpha on the same device; `signs`: of the others, sign(0) = 0.
pub fn add_by(tensors: &[&Tensor], others: &[&Tensor], signs: bool, alpha: &Tensor) -> Result<()> {
    kernel!([tensors, others], |[tensors, others]| tikhonov_add_by(tensors, others, signs, alpha.as_ptr()))
}

/// t ← t + alpha·other, rounded once as PyTorch's `add_(other, alpha=alpha)`
pub fn add_scaled(tensors: &[&Tensor], others: &[&Tensor], alpha: f64) -> Result<()> {
    kernel!([tensors, others], |[tensors, others]| tikhonov_add_scaled(tensors, others, alpha))
}

/// beta·t + alpha·(left·right) of matrices, as `torch.addmm`
pub fn addmm(t: &Tensor, left: &Tensor, right: &Tensor, beta: f64, alpha: f64) -> Result<Tensor> {
    let mut out = null_mut();
    kernel!([&[t], &[left], &[right]], |[t, left, right]| tikhonov_addmm(
        t, left, right, beta, alpha, &mut out
    ))?;
    owned(out, "product")
}

/// w ← sign(w)·max(|w| − threshold, 0): exact zeros; NaN stays NaN.
pub fn soft_threshold(tensors: &[&Tensor], threshold: f64) -> Result<()> {
    kernel!([tensors], |[tensors]| tikhonov_soft_threshold(tensors, threshold))
}

/// The same with a 0-dim threshold on the same device.
pub fn soft_threshold_by(tensors: &[&Tensor], threshold: &Tensor) -> Result<()> {
    kernel!([tensors], |[tensors]| tikhonov_soft_threshold_by(tensors, threshold.as_ptr()))
}

/// t ← t + weight·(other − t) with a 0-dim weight on the same device; tensors of one kind.
pub fn lerp_by(tensors: &[&Tensor], others: &[&Tensor], weight: &Tensor) -> Result<()> {
    kernel!([tensors, others], |[tensors, others]| tikhonov_lerp_by(tensors, others, weight.as_ptr()))
}

/// t ← t + weight·(other − t)
pub fn lerp(tensors: &[&Tensor], others: &[&Tensor], weight: f64) -> Result<()> {
    kernel!([tensors, others], |[tensors, others]| tikhonov_lerp(tensors, others, weight))
}

/// `at::_fused_sgd_`. `momentum_buffers` is empty where momentum is 0; on their first step the buffers are
/// overwritten with the gradient.
#[derive(Clone, Copy, Debug)]
pub struct FusedSgd {
    pub weight_decay: f64,
    pub momentum: f64,
    pub dampening: f64,
    pub nesterov: bool,
    pub is_first_step: bool,
}

impl FusedSgd {
    pub fn step(
        &self,
        params: &[&Tensor],
        grads: &[&Tensor],
        buffers: &[&Tensor],
        control: &Control,
    ) -> Result<()> {
        let Self { weight_decay, momentum, dampening, nesterov, is_first_step } = *self;
        kernel!([params, grads, buffers], |[params, grads, buffers]| tikhonov_fused_sgd(
            params,
            grads,
            buffers,
            control.raw(),
            weight_decay,
            momentum,
            dampening,
            nesterov,
            is_first_step
        ))
    }
}

/// `at::_fused_adam_`, or `at::_fused_adamw_` where the decay is decoupled.
#[derive(Clone, Copy, Debug)]
pub struct FusedAdam {
    pub betas: (f64, f64),
    pub eps: f64,
    pub weight_decay: f64,
    pub decoupled: bool,
}

/// The state that [`FusedAdam`] updates; `max_exp_avg_sqs` is empty without amsgrad.
pub struct AdamState<'a> {
    pub steps: &'a [&'a Tensor],
    pub exp_avgs: &'a [&'a Tensor],
    pub exp_avg_sqs: &'a [&'a Tensor],
    pub max_exp_avg_sqs: &'a [&'a Tensor],
}

impl FusedAdam {
    /// Counts the step, then makes it.
    pub fn step(
        &self,
        params: &[&Tensor],
        grads: &[&Tensor],
        state: &AdamState,
        control: &Control,
    ) -> Result<()> {
        let Self { betas: (beta1, beta2), eps, weight_decay, decoupled } = *self;
        let amsgrad = !state.max_exp_avg_sqs.is_empty();
        kernel!(
            [params, grads, state.exp_avgs, state.exp_avg_sqs, state.max_exp_avg_sqs, state.steps],
            |[params, grads, means, squares, maxima, steps]| tikhonov_fused_adam(
                params,
                grads,
                means,
                squares,
                maxima,
                steps,
                control.raw(),
                beta1,
                beta2,
                weight_decay,
                eps,
                amsgrad,
                decoupled
            )
        )
    }
}

/// `at::_fused_adagrad_`.
#[derive(Clone, Copy, Debug)]
pub struct FusedAdagrad {
    pub lr_decay: f64,
    pub eps: f64,
    pub weight_decay: f64,
}

impl FusedAdagrad {
    /// Counts the step, then makes it.
    pub fn step(
        &self,
        params: &[&Tensor],
        grads: &[&Tensor],
        sums: &[&Tensor],
        steps: &[&Tensor],
        control: &Control,
    ) -> Result<()> {
        let Self { lr_decay, eps, weight_decay } = *self;
        kernel!([params, grads, sums, steps], |[params, grads, sums, steps]| tikhonov_fused_adagrad(
            params,
            grads,
            sums,
            steps,
            control.raw(),
            lr_decay,
            weight_decay,
            eps
        ))
    }
}

/// RMSprop on `at::_foreach_*`: libtorch has no fused kernel for it.
#[derive(Clone, Copy, Debug)]
pub struct ForeachRmsProp {
    pub alpha: f64,
    pub eps: f64,
    pub weight_decay: f64,
    pub momentum: f64,
}

/// The state that [`ForeachRmsProp`] updates; `momentum_buffers` is empty where momentum is 0, `grad_avgs`
/// where the variance is not centred.
pub struct RmsPropState<'a> {
    pub steps: &'a [&'a Tensor],
    pub square_avgs: &'a [&'a Tensor],
    pub momentum_buffers: &'a [&'a Tensor],
    pub grad_avgs: &'a [&'a Tensor],
}

impl ForeachRmsProp {
    /// Counts the step, then makes it.
    pub fn step(
        &self,
        params: &[&Tensor],
        grads: &[&Tensor],
        state: &RmsPropState,
        control: &Control,
    ) -> Result<()> {
        let Self { alpha, eps, weight_decay, momentum } = *self;
        kernel!(
            [params, grads, state.square_avgs, state.momentum_buffers, state.grad_avgs, state.steps],
            |[params, grads, squares, buffers, means, steps]| tikhonov_foreach_rmsprop(
                params,
                grads,
                squares,
                buffers,
                means,
                steps,
                control.raw(),
                alpha,
                eps,
                weight_decay,
                momentum
            )
        )
    }
}
