//! Sharpness-aware minimisation (Foret et al. 2021), adaptive as ASAM (Kwon et al. 2021): the gradient of a step is taken
//! where the loss within ρ of the weights is largest, to first order.

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::lambda_gradient::copies;
use crate::schedule::check;
use crate::util::yaml::Invalid;

/// The gradient of each step at w + e in the place of w, e = ρ·g/‖g‖₂ (adaptive: ρ·w²·g/‖w·g‖₂) over all parameters.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SamSpec {
    /// ρ: the radius.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub rho: f64,
    /// Measure the radius in units of each weight (ASAM).
    pub adaptive: bool,
}

impl Default for SamSpec {
    fn default() -> Self {
        Self { rho: 0.05, adaptive: false }
    }
}

impl SamSpec {
    /// Paths are relative to `sam`.
    pub fn validate(&self) -> Result<(), Invalid> {
        check("rho", self.rho, self.rho > 0.0, "above 0")
    }

    /// Moves the parameters by e where they have a gradient; returns copies of all as they were. Nothing waits for the
    /// device.
    pub fn ascend(&self, params: &[&Tensor]) -> Result<Vec<Tensor>> {
        let old = copies(params)?;
        let mut moved = Vec::new();
        for (w, old) in params.iter().zip(&old) {
            let g = w.grad();
            if g.defined() {
                moved.push((w, old, if self.adaptive { g.f_mul(&old.f_abs()?)? } else { g }));
            }
        }
        let each: Vec<Tensor> =
            moved.iter().map(|(.., g)| Ok(g.f_norm()?.f_to_kind(Kind::Double)?)).collect::<Result<_>>()?;
        if each.is_empty() {
            return Ok(old);
        }
        let norm = Tensor::f_stack(&each, 0)?.f_norm()?;
        let scale = norm.f_add_scalar(1e-12)?.f_reciprocal()?.f_mul_scalar(self.rho)?;
        for (w, old, g) in moved {
            let e = g.f_mul(&scale.f_to_kind(g.kind())?)?;
            let _ = w.f_detach()?.f_add_(&if self.adaptive { e.f_mul(&old.f_abs()?)? } else { e })?;
        }
        Ok(old)
    }
}
