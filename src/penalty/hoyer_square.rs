//! Hoyer-square (Yang, Wen and Li 2020, "DeepHoyer"): (Σ‖w_g‖₂)²/Σ‖w_g‖₂² of each weight tensor, between 1 (one value
//! is not 0) and the number of values (all alike): it measures sparsity whatever the scale of the weights.

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::form::Penalty;
use super::gradient::GradientForm;
use super::slices::slice_norms;
use super::table::Mode;

/// What becomes sparse.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum HoyerSquareMode {
    /// Single weights.
    #[default]
    Elements,
    /// Filters of a convolution, neurons of a linear layer (the paper's group-HS).
    Filters,
    /// What a layer takes from one input channel or feature.
    InputChannels,
}

impl Mode for HoyerSquareMode {
    const FORMS: &'static [&'static dyn Penalty] =
        &[&HoyerSquare(Self::Elements), &HoyerSquare(Self::Filters), &HoyerSquare(Self::InputChannels)];

    fn form(self) -> &'static dyn Penalty {
        Self::FORMS[self as usize]
    }
}

/// `hoyer_square`.
pub struct HoyerSquare(pub HoyerSquareMode);

impl HoyerSquare {
    /// ‖w_g‖₂ of each group, float64.
    fn norms(&self, w: &Tensor) -> Result<Tensor> {
        Ok(match self.0 {
            HoyerSquareMode::Elements => w.f_to_kind(Kind::Double)?.f_abs()?,
            HoyerSquareMode::Filters => slice_norms(w, 0)?.0,
            HoyerSquareMode::InputChannels => slice_norms(w, 1)?.0,
        })
    }
}

/// Σn and Σn², above 0.
fn sums(norms: &Tensor) -> Result<(Tensor, Tensor)> {
    let squares = norms.f_square()?.f_sum(Kind::Double)?;
    Ok((norms.f_sum(Kind::Double)?, squares.f_clamp_min(f64::MIN_POSITIVE)?))
}

impl GradientForm for HoyerSquare {
    fn key(&self) -> &'static str {
        "hoyer_square"
    }

    fn mode(&self) -> Option<&'static str> {
        Some(match self.0 {
            HoyerSquareMode::Elements => "elements",
            HoyerSquareMode::Filters => "filters",
            HoyerSquareMode::InputChannels => "input_channels",
        })
    }

    fn update_rule(&self) -> &'static str {
        match self.0 {
            HoyerSquareMode::Elements => {
                "g ← g + λ·2r·(sign(w) − r·w), r = ‖w‖₁/‖w‖₂² of the tensor: small weights shrink, large ones grow, \
                 the norm stays; weights hover around 0"
            }
            HoyerSquareMode::Filters => {
                "g ← g + λ·2r·(w_g/‖w_g‖₂ − r·w_g), r = Σ‖w_g‖₂/‖w‖₂², for each filter (neuron) w_g"
            }
            HoyerSquareMode::InputChannels => {
                "the same for what a layer takes from one input channel or feature"
            }
        }
    }

    fn same_as(&self) -> &'static str {
        match self.0 {
            HoyerSquareMode::Elements => {
                "Hoyer-square, the term λ·Σ‖w‖₁²/‖w‖₂² over tensors (Yang, Wen & Li 2020)"
            }
            HoyerSquareMode::Filters => "group-HS of the same paper",
            HoyerSquareMode::InputChannels => "the same",
        }
    }

    fn term(&self, w: &Tensor, _: Option<&Tensor>) -> Result<Tensor> {
        let (sum, squares) = sums(&self.norms(w)?)?;
        Ok(sum.f_square()?.f_div(&squares)?)
    }

    fn gradient(&self, w: &Tensor, _: Option<&Tensor>) -> Result<Tensor> {
        let norms = self.norms(w)?;
        let (sum, squares) = sums(&norms)?;
        let ratio = sum.f_div(&squares)?;
        let w = w.f_to_kind(Kind::Double)?;
        // w_g/‖w_g‖₂, 0 at 0.
        let directions = w.f_div(&norms.f_clamp_min(f64::MIN_POSITIVE)?)?;
        Ok(directions.f_sub(&w.f_mul(&ratio)?)?.f_mul(&ratio)?.f_mul_scalar(2.0)?)
    }
}
