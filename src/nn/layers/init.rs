//! Initial weights, drawn as PyTorch draws them, so that equal seeds give equal networks.

use tch::{Device, Kind, Tensor, no_grad};

/// Overwrites `tensor` with a draw on the CPU in fp32, whatever its own device and kind: PyTorch's modules
/// are made so and moved afterwards.
pub(crate) fn fill(tensor: &Tensor, draw: impl FnOnce(&mut Tensor)) {
    let mut drawn = Tensor::empty(tensor.size(), (Kind::Float, Device::Cpu));
    draw(&mut drawn);
    no_grad(|| tensor.shallow_clone().copy_(&drawn));
}

pub(crate) fn uniform(tensor: &Tensor, bound: f64) {
    fill(tensor, |drawn| {
        let _ = drawn.uniform_(-bound, bound);
    });
}

pub(crate) fn normal(tensor: &Tensor, mean: f64, std: f64) {
    fill(tensor, |drawn| {
        let _ = drawn.normal_(mean, std);
    });
}

/// (fan in, fan out) of a weight `[out, in, ...]`, counted as PyTorch counts them.
pub(crate) fn fans(weight: &Tensor) -> (f64, f64) {
    let size = weight.size();
    let field: i64 = size.iter().skip(2).product();
    let fan = |axis: usize| (size.get(axis).copied().unwrap_or(1) * field) as f64;
    (fan(1), fan(0))
}

/// PyTorch's `reset_parameters` of convolutions and linear layers: `kaiming_uniform_(weight, a=√5)`, then the
/// bias uniform in ±1/√fan_in.
pub(crate) fn reset_parameters(weight: &Tensor, bias: Option<&Tensor>) {
    let (fan_in, _) = fans(weight);
    // Every operation as in torch.nn.init: the bound must agree to the last bit.
    let a = 5f64.sqrt();
    let gain = (2.0 / (1.0 + a * a)).sqrt();
    let std = gain / fan_in.sqrt();
    uniform(weight, 3f64.sqrt() * std);
    if let Some(bias) = bias {
        uniform(bias, 1.0 / fan_in.sqrt());
    }
}
