//! Group lasso (Yuan and Lin 2006): λ·Σ √n‖w_g‖₂ over groups g of n weights, by block soft threshold, so that
//! whole filters, neurons or input channels become exactly 0 (in networks: Wen et al. 2016; Scardapane et al.
//! 2017).

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::form::{Penalty, PenaltyStep, StepRates};
use super::table::Mode;
use crate::libtorch::scalar::Scalar;

/// Which weights of a tensor are a group. A tensor of one dimension has its single values as groups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum GroupLassoMode {
    /// Slices along dimension 0: the filters of a convolution, the neurons of a linear layer.
    #[default]
    Filters,
    /// Slices along dimension 1: what a layer takes from one input channel or feature.
    InputChannels,
}

impl Mode for GroupLassoMode {
    fn form(self) -> &'static dyn Penalty {
        match self {
            Self::Filters => &GroupLasso(Self::Filters),
            Self::InputChannels => &GroupLasso(Self::InputChannels),
        }
    }
}

/// `group_lasso`.
pub struct GroupLasso(pub GroupLassoMode);

impl GroupLasso {
    /// ‖w_g‖₂ of each group, shaped to be broadcast over `w`, in float64; and √n.
    fn norms(&self, w: &Tensor) -> Result<(Tensor, f64)> {
        let kept = match self.0 {
            GroupLassoMode::InputChannels if w.dim() > 1 => 1,
            _ => 0,
        };
        let others: Vec<i64> = (0..w.dim() as i64).filter(|&dim| dim != kept).collect();
        let w = w.f_detach()?.f_to_kind(Kind::Double)?;
        if others.is_empty() {
            return Ok((w.f_abs()?, 1.0));
        }
        let size = w.size();
        let root = others.iter().map(|&dim| size[dim as usize] as f64).product::<f64>().sqrt();
        Ok((w.f_square()?.f_sum_dim_intlist(&others[..], true, Kind::Double)?.f_sqrt()?, root))
    }
}

impl Penalty for GroupLasso {
    fn key(&self) -> &'static str {
        "group_lasso"
    }

    fn mode(&self) -> Option<&'static str> {
        Some(match self.0 {
            GroupLassoMode::Filters => "filters",
            GroupLassoMode::InputChannels => "input_channels",
        })
    }

    fn value(&self, ws: &[&Tensor], lambda: f64, _: &StepRates) -> Result<Tensor> {
        let mut total = Tensor::f_zeros([0; 0], (Kind::Double, ws[0].device()))?;
        for w in ws {
            let (norms, root) = self.norms(w)?;
            total = total.f_add(&norms.f_sum(Kind::Double)?.f_mul_scalar(lambda * root)?)?;
        }
        Ok(total)
    }

    /// The threshold of a group of one weight, as that of `l1`.
    fn coefficient(&self, lambda: f64, rates: &StepRates) -> f64 {
        rates.steady_state.unwrap_or(rates.lr) * lambda
    }

    fn idle(&self) -> f64 {
        0.0
    }

    /// w_g ← w_g·max(1 − threshold·√n/‖w_g‖₂, 0)
    fn after_update(&self, step: &mut PenaltyStep, threshold: &Scalar) -> Result<()> {
        for w in step.params {
            let (norms, root) = self.norms(w)?;
            // A group of zeros stays one.
            let norms = norms.f_clamp_min(f64::MIN_POSITIVE)?;
            let taken = norms.f_reciprocal()?.f_mul(&threshold.tensor(&norms)?)?.f_mul_scalar(root)?;
            let kept = taken.f_neg()?.f_add_scalar(1.0)?.f_clamp_min(0.0)?;
            let _ = w.f_detach()?.f_mul_(&kept.f_to_kind(w.kind())?)?;
        }
        Ok(())
    }

    fn is_sparse(&self) -> bool {
        true
    }

    fn adaptive_note(&self, optimizer: &str) -> Option<String> {
        Some(format!(
            "group_lasso: the threshold η·λ·√n is the same for every group of n weights, and the steps of {optimizer} are not \
             proportional to the gradient, so the run does not end at the minimum of the objective; `sgd` does"
        ))
    }
}
