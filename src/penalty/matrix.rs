//! A weight as a matrix, and functions of its singular values.

use anyhow::Result;
use tch::{Kind, Tensor};

/// Why a step that needs singular values cannot be recorded.
pub(super) const EIGENVALUES_WAIT: &str = "singular values are computed by a solver that the GPU waits for";

/// `w` as `[out, the rest]` in float64; a tensor of one dimension is one column.
pub(super) fn matrix(w: &Tensor) -> Result<Tensor> {
    let rows = w.size().first().copied().unwrap_or(1);
    Ok(w.f_detach()?.f_to_kind(Kind::Double)?.f_reshape([rows, -1])?)
}

/// The singular values of a weight, by the eigenvalues of the smaller of WWᵀ and WᵀW: they are exact to 10⁻⁸ of the
/// largest.
pub(super) struct Singular {
    /// The matrix, transposed where it is taller than wide: `[n, m]`, n ≤ m.
    wide: Tensor,
    is_transposed: bool,
    /// Ascending, `[n]`.
    pub values: Tensor,
    /// The left singular vectors of `wide`, as columns.
    left: Tensor,
}

impl Singular {
    /// None where a weight is NaN or infinite.
    pub fn of(w: &Tensor) -> Result<Option<Self>> {
        let matrix = matrix(w)?;
        let is_transposed = matrix.size()[0] > matrix.size()[1];
        let wide = if is_transposed { matrix.f_tr()? } else { matrix };
        let gram = wide.f_matmul(&wide.f_tr()?)?;
        if gram.f_isfinite()?.f_all()?.f_int64_value(&[])? == 0 {
            return Ok(None);
        }
        let (squares, left) = gram.f_linalg_eigh("L")?;
        Ok(Some(Self { wide, is_transposed, values: squares.f_clamp_min(0.0)?.f_sqrt()?, left }))
    }

    /// The weight with other singular values: `values`, in their order, 0 where they were 0. Shaped as `w`, float64.
    pub fn with(&self, values: &Tensor, w: &Tensor) -> Result<Tensor> {
        let factors = values.f_div(&self.values.f_clamp_min(f64::MIN_POSITIVE)?)?;
        let factors = factors.f_masked_fill(&self.values.f_eq(0.0)?, 0.0)?;
        let wide = self.left.f_mul(&factors)?.f_matmul(&self.left.f_tr()?.f_matmul(&self.wide)?)?;
        Ok(if self.is_transposed { wide.f_tr()? } else { wide }.f_reshape(w.size())?)
    }

    /// The largest, 0-dim.
    pub fn largest(&self) -> Result<Tensor> {
        Ok(self.values.f_select(0, -1)?)
    }
}
