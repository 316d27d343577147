//! Weight decay apart from the gradient (Loshchilov and Hutter 2019), and its modes.

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::form::{Penalty, PenaltyStep, StepRates, TorchDecay};
use super::l2::half_square;
use super::table::Mode;
use crate::libtorch::scalar::Scalar;

/// How decay apart from the gradient acts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DecoupledMode {
    /// By η·λ, as PyTorch's AdamW does.
    #[default]
    Plain,
    /// By (η/η_peak)·λ.
    Relative,
    /// By η·λ where the step goes towards 0 too (Chen et al. 2025, algorithm 1).
    Cautious,
    /// By η·λ, the factors 1 − η·λ of several steps multiplied in float64 and applied as one once they take
    /// 2⁻¹² of a weight: for η·λ that float32 rounds away.
    Accumulated,
}

impl Mode for DecoupledMode {
    const FORMS: &'static [&'static dyn Penalty] = &[
        &Decoupled(Self::Plain),
        &Decoupled(Self::Relative),
        &Decoupled(Self::Cautious),
        &Decoupled(Self::Accumulated),
    ];

    fn form(self) -> &'static dyn Penalty {
        Self::FORMS[self as usize]
    }
}

/// `decoupled`: the `weight_decay` of PyTorch's AdamW.
pub struct Decoupled(pub DecoupledMode);

impl Decoupled {
    /// λ of the plain decay that this is: λ/η_peak of relative decay.
    fn plain(&self, lambda: f64, rates: &StepRates) -> f64 {
        if self.0 == DecoupledMode::Relative && rates.peak > 0.0 { lambda / rates.peak } else { lambda }
    }
}

impl Penalty for Decoupled {
    fn key(&self) -> &'static str {
        "decoupled"
    }

    fn mode(&self) -> Option<&'static str> {
        Some(match self.0 {
            DecoupledMode::Plain => "plain",
            DecoupledMode::Relative => "relative",
            DecoupledMode::Cautious => "cautious",
            DecoupledMode::Accumulated => "accumulated",
        })
    }

    fn family(&self) -> &'static str {
        "quadratic"
    }

    fn update_rule(&self) -> &'static str {
        match self.0 {
            DecoupledMode::Plain => "w ← w − η·λ·w, apart from the gradient",
            DecoupledMode::Relative => "w ← w − (η/η_peak)·λ·w: λ does not depend on `lr`",
            DecoupledMode::Cautious => "w ← w − η·λ·w where the step shrinks the weight too",
            DecoupledMode::Accumulated => {
                "the factors 1 − η·λ of several steps at once, when they take 2⁻¹² of a weight"
            }
        }
    }

    fn same_as(&self) -> &'static str {
        match self.0 {
            DecoupledMode::Plain => {
                "PyTorch's AdamW; with SGD the decay of SGDW (Loshchilov & Hutter 2019) on PyTorch's momentum, which has η \
                 outside"
            }
            DecoupledMode::Relative => "the decay as Loshchilov & Hutter wrote it",
            DecoupledMode::Cautious => "cautious weight decay (Chen et al. 2025)",
            DecoupledMode::Accumulated => "plain decay where η·λ < 10⁻⁶, which float32 rounds away",
        }
    }

    /// Decay is not the gradient of a term of the objective (with a preconditioner it minimises something
    /// else); its (λ/2)‖w‖² is logged so that runs can be compared, of relative decay with λ/η_peak, so that
    /// runs with equal weights log equal penalties.
    fn value(&self, ws: &[&Tensor], lambda: f64, rates: &StepRates) -> Result<Tensor> {
        half_square(ws, self.plain(lambda, rates))
    }

    /// What is left of a weight; of cautious decay what is taken.
    fn coefficient(&self, lambda: f64, rates: &StepRates) -> f64 {
        let share = self.share(lambda, rates);
        if self.0 == DecoupledMode::Cautious { share } else { 1.0 - share }
    }

    fn idle(&self) -> f64 {
        if self.0 == DecoupledMode::Cautious { 0.0 } else { 1.0 }
    }

    fn before_update(&self, step: &PenaltyStep, kept: &Scalar) -> Result<()> {
        if self.0 == DecoupledMode::Cautious { Ok(()) } else { kept.scale(step.params) }
    }

    fn follows_update(&self) -> bool {
        self.0 == DecoupledMode::Cautious
    }

    /// w′ ← w′ − η·λ·1[(w − w′)·w ≥ 0]·w: the sign of the step is the sign of what it did to the weight.
    fn after_update(&self, step: &mut PenaltyStep, share: &Scalar) -> Result<()> {
        if self.0 != DecoupledMode::Cautious {
            return Ok(());
        }
        for (old, new) in step.old_weights.iter().zip(step.params) {
            let decayed = towards_zero(old, new)?;
            let taken = match share {
                Scalar::Host(share) => decayed.f_mul_scalar(*share)?,
                Scalar::Device(_) => decayed.f_mul(&share.tensor(&decayed)?)?,
            };
            let _ = new.f_detach()?.f_sub_(&taken)?;
        }
        Ok(())
    }

    fn needs_old_weights(&self) -> bool {
        self.0 == DecoupledMode::Cautious
    }

    fn torch(&self) -> Option<TorchDecay> {
        Some(TorchDecay::Decoupled)
    }

    fn weight_decay(&self, lambda: f64, rates: &StepRates) -> f64 {
        self.plain(lambda, rates)
    }

    fn torch_difference(&self, lambda: f64) -> Option<String> {
        match self.0 {
            DecoupledMode::Cautious => {
                Some("torch.optim has no cautious decay, so Python's steps decay every weight".into())
            }
            DecoupledMode::Relative => {
                Some(format!("its weight_decay is the relative decay {lambda} divided by the peak rate"))
            }
            DecoupledMode::Plain | DecoupledMode::Accumulated => None,
        }
    }

    fn is_fused(&self) -> bool {
        matches!(self.0, DecoupledMode::Plain | DecoupledMode::Relative)
    }

    fn is_tunable(&self) -> bool {
        true
    }

    /// −η·w, relative −(η/η_peak)·w, cautious −η·1[(w − w′)·w ≥ 0]·w.
    fn derivative(&self, step: &PenaltyStep, lambda: f64) -> Result<Vec<Tensor>> {
        let per_unit = -self.share(lambda, &step.rates) / lambda;
        let one = |(old, new): (&Tensor, &&Tensor)| -> Result<Tensor> {
            if self.0 == DecoupledMode::Cautious {
                return Ok(towards_zero(old, new)?.f_mul_scalar(per_unit)?);
            }
            Ok(old.f_mul_scalar(per_unit)?)
        };
        step.old_weights.iter().zip(step.params).map(one).collect()
    }

    fn keeps_derivative(&self) -> bool {
        self.0 != DecoupledMode::Accumulated
    }

    fn shrinkage(&self, rates: &StepRates) -> Option<f64> {
        let is_relative = self.0 == DecoupledMode::Relative && rates.peak > 0.0;
        Some(if is_relative { rates.lr / rates.peak } else { rates.lr })
    }

    fn share(&self, lambda: f64, rates: &StepRates) -> f64 {
        rates.lr * self.plain(lambda, rates)
    }

    fn accumulates(&self) -> bool {
        self.0 == DecoupledMode::Accumulated
    }

    fn graph_obstacle(&self) -> Option<&'static str> {
        match self.0 {
            DecoupledMode::Cautious => Some("cautious decay has no recorded form"),
            DecoupledMode::Accumulated => Some("accumulated decay does not act in every step"),
            DecoupledMode::Plain | DecoupledMode::Relative => None,
        }
    }

    fn supports_found_inf(&self) -> bool {
        self.0 != DecoupledMode::Cautious
    }
}

/// 1[(w − w′)·w ≥ 0]·w: the weights that the step made smaller, or did not move.
fn towards_zero(old: &Tensor, new: &Tensor) -> Result<Tensor> {
    let agrees = old.f_sub(&new.f_detach()?)?.f_mul(old)?.f_ge(0.0)?;
    Ok(old.f_mul(&agrees)?)
}
