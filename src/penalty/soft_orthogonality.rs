//! Soft orthogonality (Brock et al. 2017; Bansal, Chen and Wang 2018): ‖WWᵀ − I‖² of each weight as a matrix of its
//! filters, or ‖WᵀW − I‖² where it has more rows than columns.

use anyhow::Result;
use tch::{Kind, Tensor};

use super::gradient::GradientForm;
use super::matrix::matrix;

/// `soft_orthogonality`.
pub struct SoftOrthogonality;

/// The matrix `[n, m]`, n ≤ m; whether it was transposed for that; and WWᵀ − I.
fn apart(w: &Tensor) -> Result<(Tensor, bool, Tensor)> {
    let matrix = matrix(w)?;
    let is_tall = matrix.size()[0] > matrix.size()[1];
    let wide = if is_tall { matrix.f_tr()? } else { matrix };
    let identity = Tensor::f_eye(wide.size()[0], (Kind::Double, wide.device()))?;
    let apart = wide.f_matmul(&wide.f_tr()?)?.f_sub(&identity)?;
    Ok((wide, is_tall, apart))
}

impl GradientForm for SoftOrthogonality {
    fn key(&self) -> &'static str {
        "soft_orthogonality"
    }

    fn update_rule(&self) -> &'static str {
        "g ← g + 4λ·(WWᵀ − I)·W, W the weight as a matrix `[out, the rest]` (which is 4λ·W·(WᵀW − I) too): singular \
         values go towards 1"
    }

    fn same_as(&self) -> &'static str {
        "SO of Bansal et al. 2018, the term λ·‖WᵀW − I‖²; of the two Gram matrices the smaller is logged, whose term \
         differs by the constant λ·\\|rows − columns\\|"
    }

    fn term(&self, w: &Tensor, _: Option<&Tensor>) -> Result<Tensor> {
        Ok(apart(w)?.2.f_square()?.f_sum(Kind::Double)?)
    }

    fn gradient(&self, w: &Tensor, _: Option<&Tensor>) -> Result<Tensor> {
        let (wide, is_tall, apart) = apart(w)?;
        let gradient = apart.f_matmul(&wide)?.f_mul_scalar(4.0)?;
        Ok(if is_tall { gradient.f_tr()? } else { gradient }.f_reshape(w.size())?)
    }
}
