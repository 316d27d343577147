//! The slices of a weight tensor that a form treats as one: filters, neurons, input channels.

use anyhow::Result;
use tch::{Kind, Tensor};

/// ‖w_g‖₂ of the slices of `w` along dimension `along` (0: filters or neurons; 1: input channels), shaped to be
/// broadcast over `w`, in float64; and √n of their n weights. The slices of a tensor of one dimension are its values.
pub(super) fn slice_norms(w: &Tensor, along: i64) -> Result<(Tensor, f64)> {
    let kept = if w.dim() > 1 { along } else { 0 };
    let others: Vec<i64> = (0..w.dim() as i64).filter(|&dim| dim != kept).collect();
    let w = w.f_detach()?.f_to_kind(Kind::Double)?;
    if others.is_empty() {
        return Ok((w.f_abs()?, 1.0));
    }
    let size = w.size();
    let root = others.iter().map(|&dim| size[dim as usize] as f64).product::<f64>().sqrt();
    Ok((w.f_square()?.f_sum_dim_intlist(&others[..], true, Kind::Double)?.f_sqrt()?, root))
}
