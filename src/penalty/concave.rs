//! Concave penalties, which shrink small weights as the lasso does and large ones not at all: MCP (Zhang 2010) and SCAD
//! (Fan and Li 2001), by their proximal maps (Breheny and Huang 2011).

use std::sync::{Mutex, PoisonError};

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::form::{Penalty, PenaltyStep, StepRates, threshold, unscaled};
use super::table::Mode;
use crate::libtorch::scalar::Scalar;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kinds {
    Mcp,
    Scad,
}

/// `mcp` or `scad` with its γ.
#[derive(Clone, Copy)]
pub struct Concave {
    kind: Kinds,
    gamma: f64,
    name: &'static str,
}

pub const MCP: Concave = Concave { kind: Kinds::Mcp, gamma: 3.0, name: "3" };
pub const SCAD: Concave = Concave { kind: Kinds::Scad, gamma: 3.7, name: "3.7" };

/// γ of a concave penalty, as a number of the YAML: from where on weights are not shrunk, in units of λ.
macro_rules! gamma {
    ($(#[$doc:meta])* $name:ident: $form:ident above $least:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
        #[serde(try_from = "f64", into = "f64")]
        #[schemars(extend("exclusiveMinimum" = $least))]
        pub struct $name(f64);

        impl TryFrom<f64> for $name {
            type Error = String;

            fn try_from(gamma: f64) -> Result<Self, String> {
                let fits = gamma > f64::from($least) && gamma.is_finite();
                if fits { Ok(Self(gamma)) } else { Err(format!("γ is {gamma}; it must be above {}", $least)) }
            }
        }

        impl From<$name> for f64 {
            fn from($name(gamma): $name) -> Self {
                gamma
            }
        }

        impl Mode for $name {
            const FORMS: &'static [&'static dyn Penalty] = &[&$form];

            fn form(self) -> &'static dyn Penalty {
                known(Concave { gamma: self.0, ..$form })
            }
        }
    };
}

gamma! {
    /// γ above 1.
    McpGamma: MCP above 1
}
gamma! {
    /// γ above 2.
    ScadGamma: SCAD above 2
}

/// The form with this γ for the rest of the program: a config has one or two of them.
fn known(form: Concave) -> &'static Concave {
    static KNOWN: Mutex<Vec<&'static Concave>> = Mutex::new(Vec::new());
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(own) = known.iter().find(|own| own.kind == form.kind && own.gamma == form.gamma) {
        return own;
    }
    let own =
        Box::leak(Box::new(Concave { name: Box::leak(form.gamma.to_string().into_boxed_str()), ..form }));
    known.push(own);
    own
}

impl Concave {
    /// The rate up to which a step of the proximal map has one answer.
    fn limit(&self) -> f64 {
        if self.kind == Kinds::Mcp { self.gamma } else { self.gamma - 1.0 }
    }
}

impl Penalty for Concave {
    fn key(&self) -> &'static str {
        if self.kind == Kinds::Mcp { "mcp" } else { "scad" }
    }

    /// γ.
    fn mode(&self) -> Option<&'static str> {
        Some(self.name)
    }

    fn family(&self) -> &'static str {
        "l1"
    }

    fn update_rule(&self) -> &'static str {
        match self.kind {
            Kinds::Mcp => {
                "after the step \\|w\\| ← min(\\|w\\|, max(\\|w\\| − η·λ, 0)/(1 − η/γ)): exact zeros, and no shrinking above \
                 γ·λ; `mcp_gamma` is γ (3), η < γ"
            }
            Kinds::Scad => {
                "after the step \\|w\\| ← max(max(\\|w\\| − η·λ, 0), min(\\|w\\|, ((γ − 1)·\\|w\\| − γ·η·λ)/(γ − 1 − η))): \
                 exact zeros, and no shrinking above γ·λ; `scad_gamma` is γ (3.7), η < γ − 1"
            }
        }
    }

    fn same_as(&self) -> &'static str {
        match self.kind {
            Kinds::Mcp => {
                "MCP (Zhang 2010); skglm's `MCPRegression(alpha=λ, gamma=γ)` on ½·MSE of one output"
            }
            Kinds::Scad => "SCAD (Fan & Li 2001); skglm's `SCAD(alpha=λ, gamma=γ)` on ½·MSE of one output",
        }
    }

    fn check_rates(&self, rates: &StepRates) -> Result<(), String> {
        let (rate, limit, key) = (threshold(1.0, rates), self.limit(), Penalty::key(self));
        if rate < limit {
            return Ok(());
        }
        Err(format!(
            "the step η(1 − d)/(1 − m) = {rate} has no single proximal point: `{key}` needs it below {limit}; lower `lr` or \
             `momentum`, or raise `{key}_gamma`"
        ))
    }

    /// Σ λ|w| − w²/(2γ) up to |w| = γλ, from there on its value there; SCAD: λ|w| up to λ, (2γλ|w| − w² − λ²)/(2(γ −
    /// 1)) up to γλ.
    fn value(&self, ws: &[&Tensor], lambda: f64, _: &StepRates) -> Result<Tensor> {
        let gamma = self.gamma;
        let mut total = Tensor::f_zeros([0; 0], (Kind::Double, ws[0].device()))?;
        for w in ws {
            let size = w.f_detach()?.f_to_kind(Kind::Double)?.f_abs()?;
            let term = match self.kind {
                Kinds::Mcp => {
                    let inner = size.f_clamp_max(gamma * lambda)?;
                    inner.f_mul_scalar(lambda)?.f_sub(&inner.f_square()?.f_mul_scalar(0.5 / gamma)?)?
                }
                Kinds::Scad => {
                    let middle = size.f_clamp(lambda, gamma * lambda)?;
                    let middle = middle.f_mul_scalar(2.0 * gamma * lambda)?.f_sub(&middle.f_square()?)?;
                    let middle = middle.f_sub_scalar(lambda * lambda)?.f_mul_scalar(0.5 / (gamma - 1.0))?;
                    let inner = size.f_clamp_max(lambda)?.f_mul_scalar(lambda)?;
                    inner.f_add(&middle)?.f_sub_scalar(lambda * lambda)?
                }
            };
            total = total.f_add(&term.f_sum(Kind::Double)?)?;
        }
        Ok(total)
    }

    fn coefficient(&self, lambda: f64, rates: &StepRates) -> f64 {
        threshold(lambda, rates)
    }

    fn idle(&self) -> f64 {
        0.0
    }

    fn follows_update(&self) -> bool {
        true
    }

    fn after_update(&self, step: &mut PenaltyStep, threshold: &Scalar) -> Result<()> {
        let gamma = self.gamma;
        for w in step.params {
            let mut w = w.f_detach()?;
            let (size, at, rate) = (w.f_abs()?, threshold.tensor(&w)?, step.steady_lr(&w)?);
            let soft = size.f_sub(&at)?.f_clamp_min(0.0)?;
            let room = rate.f_neg()?.f_add_scalar(self.limit())?;
            let kept = match self.kind {
                Kinds::Mcp => size.f_minimum(&soft.f_div(&room)?.f_mul_scalar(gamma)?)?,
                Kinds::Scad => {
                    let middle =
                        size.f_mul_scalar(gamma - 1.0)?.f_sub(&at.f_mul_scalar(gamma)?)?.f_div(&room)?;
                    soft.f_maximum(&size.f_minimum(&middle)?)?
                }
            };
            // Positive zeros, as those of `l1`.
            let signed = w.f_sign()?.f_mul(&kept)?.f_add_scalar(0.0)?;
            w.f_copy_(&signed)?;
        }
        Ok(())
    }

    fn is_sparse(&self) -> bool {
        true
    }

    fn adaptive_note(&self, optimizer: &str) -> Option<String> {
        Some(unscaled(Penalty::key(self), "is the same for every weight", optimizer))
    }
}
