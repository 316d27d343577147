//! How far a step would have gone elsewhere with another λ: ∂w′/∂λ, weight by weight, for tuning λ.

use anyhow::Result;
use tch::Tensor;

/// ∂w′/∂λ of one parameter, of its shape.
pub struct LambdaGradient {
    /// Its index among those given to [`OptimizerSpec::build`](super::OptimizerSpec::build).
    pub param: usize,
    pub tensor: Tensor,
}

/// Copies of `tensors`, laid out as they are.
pub(super) fn copies(tensors: &[&Tensor]) -> Result<Vec<Tensor>> {
    let copy = |t: &&Tensor| -> Result<Tensor> {
        let mut own = t.f_detach()?.f_empty_like()?;
        own.f_copy_(&t.f_detach()?)?;
        Ok(own)
    };
    tensors.iter().map(copy).collect()
}

/// x/√s where s > 0, else 0: the derivative of √s times x/2, which nothing moves at 0.
pub(super) fn over_root(x: &Tensor, root: &Tensor) -> Result<Tensor> {
    Ok(x.f_div(root)?.f_masked_fill(&root.f_le(0.0)?, 0.0)?)
}
