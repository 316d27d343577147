//! Group lasso (Yuan and Lin 2006): λ·Σ √n‖w_g‖₂ over groups g of n weights, by block soft threshold, so that
//! whole filters, neurons or input channels become exactly 0 (in networks: Wen et al. 2016; Scardapane et al.
//! 2017).

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::form::{Penalty, PenaltyStep, StepRates, threshold, unscaled};
use super::slices::slice_norms;
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
    const FORMS: &'static [&'static dyn Penalty] =
        &[&GroupLasso(Self::Filters), &GroupLasso(Self::InputChannels)];

    fn form(self) -> &'static dyn Penalty {
        Self::FORMS[self as usize]
    }
}

/// `group_lasso`.
pub struct GroupLasso(pub GroupLassoMode);

impl GroupLasso {
    fn norms(&self, w: &Tensor) -> Result<(Tensor, f64)> {
        slice_norms(w, if self.0 == GroupLassoMode::Filters { 0 } else { 1 })
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

    fn update_rule(&self) -> &'static str {
        match self.0 {
            GroupLassoMode::Filters => {
                "after the step w_g ← w_g·max(1 − η·λ·√n/‖w_g‖₂, 0) for each filter (neuron) w_g of n weights: whole \
                 filters become 0"
            }
            GroupLassoMode::InputChannels => {
                "the same for what a layer takes from one input channel or feature"
            }
        }
    }

    fn same_as(&self) -> &'static str {
        match self.0 {
            GroupLassoMode::Filters => {
                "group lasso (Yuan & Lin 2006); with `l1` the sparse group lasso (Simon et al. 2013), whose prox is the \
                 two thresholds one after the other"
            }
            GroupLassoMode::InputChannels => {
                "with one linear layer scikit-learn's `MultiTaskLasso(alpha)`, λ = alpha/(T·√T) on ½·MSE over T outputs"
            }
        }
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
        threshold(lambda, rates)
    }

    fn idle(&self) -> f64 {
        0.0
    }

    fn follows_update(&self) -> bool {
        true
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
        Some(unscaled(self.key(), "η·λ·√n is the same for every group of n weights", optimizer))
    }
}
