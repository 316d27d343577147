//! Lion: steps of the sign of a momentum (Chen et al. 2023), as the authors' code writes it (google/automl, lion).

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::moments::{check_betas, times_lr};
use super::{Argument, GroupTensors, KernelDecay, RefusedWeightDecay, StateTensor, TorchClass, UpdateRule};
use crate::libtorch::optim::{Control, add_scaled};
use crate::penalty::TorchDecay;
use crate::schedule::check;
use crate::util::yaml::Invalid;

/// Lion. Its steps are ±η: the paper takes a third to a tenth of AdamW's rate, and a λ of `decoupled` as many times
/// larger.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LionSpec {
    /// The learning rate η.
    #[schemars(range(min = 0))]
    pub lr: f64,
    /// The momentum's weight in the step, and its decay rate, each in [0, 1).
    pub betas: (f64, f64),
    #[serde(skip_serializing)]
    #[schemars(skip)]
    pub weight_decay: RefusedWeightDecay,
}

impl Default for LionSpec {
    fn default() -> Self {
        Self { lr: 1e-4, betas: (0.9, 0.99), weight_decay: RefusedWeightDecay }
    }
}

impl UpdateRule for LionSpec {
    fn lr(&self) -> f64 {
        self.lr
    }

    fn validate(&self) -> Result<(), Invalid> {
        check("lr", self.lr, self.lr >= 0.0, "at least 0")?;
        check_betas(self.betas)
    }

    fn torch_class(&self) -> TorchClass {
        TorchClass { is_in_torch: false, ..TorchClass::named("Lion", &[]) }
    }

    fn arguments(&self) -> Vec<(&'static str, Argument)> {
        vec![("betas", Argument::Pair(self.betas.0, self.betas.1))]
    }

    fn state_spec(&self) -> Vec<StateTensor> {
        vec![StateTensor::zeros("exp_avg")]
    }

    fn fuses(&self, _: TorchDecay) -> bool {
        false
    }

    fn supports_found_inf(&self) -> bool {
        false
    }

    fn indifferentiable(&self) -> Option<&'static str> {
        Some("lion steps by the sign of its momentum")
    }

    fn update(&self, batch: &GroupTensors, control: &Control, _: KernelDecay) -> Result<()> {
        for (i, (w, g)) in batch.params.iter().zip(&batch.grads).enumerate() {
            let mut m = batch.slot(0)[i].shallow_clone();
            let mixed = m.f_mul_scalar(self.betas.0)?.f_add(&g.f_mul_scalar(1.0 - self.betas.0)?)?;
            let _ = w.f_detach()?.f_sub_(&times_lr(&mixed.f_sign()?, control)?)?;
            let _ = m.f_mul_scalar_(self.betas.1)?;
            add_scaled(&[&m], &[g], 1.0 - self.betas.1)?;
        }
        Ok(())
    }

    fn update_grad_derivative(&self, _: &GroupTensors, grads: &[Tensor], _: f64) -> Result<Vec<Tensor>> {
        grads.iter().map(|g| Ok(g.f_zeros_like()?)).collect()
    }
}
