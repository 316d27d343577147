//! Schedule-free AdamW (Defazio et al. 2024), as `AdamWScheduleFree` of the authors' package `schedulefree` writes it.
//!
//! Of three sequences the network holds y, where gradients are taken; the state holds z, which the steps move; and x,
//! their average, is what is judged and exported: y = (1 − β₁)z + β₁x.

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::moments::{correction, count, steps, times_lr};
use super::{Argument, GroupTensors, KernelDecay, RefusedWeightDecay, StateTensor, TorchClass, UpdateRule};
use crate::libtorch::optim::Control;
use crate::penalty::TorchDecay;
use crate::schedule::check;
use crate::util::yaml::Invalid;

/// Schedule-free AdamW: a constant rate (with `warmup`), and an average of the steps in the place of a schedule.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ScheduleFreeSpec {
    /// The learning rate η.
    #[schemars(range(min = 0))]
    pub lr: f64,
    /// How far y lies towards the average, in (0, 1), and the decay rate of the squared gradient's mean, in [0, 1).
    pub betas: (f64, f64),
    /// Added to the denominator.
    #[schemars(range(min = 0))]
    pub eps: f64,
    /// Step t weighs tʳ in the average.
    pub r: f64,
    /// And the highest rate so far to this power.
    pub weight_lr_power: f64,
    #[serde(skip_serializing)]
    #[schemars(skip)]
    pub weight_decay: RefusedWeightDecay,
}

impl Default for ScheduleFreeSpec {
    fn default() -> Self {
        Self {
            lr: 2.5e-3,
            betas: (0.9, 0.999),
            eps: 1e-8,
            r: 0.0,
            weight_lr_power: 2.0,
            weight_decay: RefusedWeightDecay,
        }
    }
}

impl UpdateRule for ScheduleFreeSpec {
    fn lr(&self) -> f64 {
        self.lr
    }

    fn validate(&self) -> Result<(), Invalid> {
        check("lr", self.lr, self.lr >= 0.0, "at least 0")?;
        check("betas.0", self.betas.0, self.betas.0 > 0.0 && self.betas.0 < 1.0, "in (0, 1)")?;
        check("betas.1", self.betas.1, (0.0..1.0).contains(&self.betas.1), "in [0, 1)")?;
        check("eps", self.eps, self.eps >= 0.0, "at least 0")?;
        check("r", self.r, self.r.is_finite(), "a number")?;
        check("weight_lr_power", self.weight_lr_power, self.weight_lr_power.is_finite(), "a number")
    }

    fn torch_class(&self) -> TorchClass {
        TorchClass { is_in_torch: false, ..TorchClass::named("ScheduleFree", &[]) }
    }

    fn arguments(&self) -> Vec<(&'static str, Argument)> {
        vec![("betas", Argument::Pair(self.betas.0, self.betas.1)), ("eps", Argument::Number(self.eps))]
    }

    fn state_spec(&self) -> Vec<StateTensor> {
        let number = |name| StateTensor { name, is_double: true, ..StateTensor::step() };
        let z = StateTensor { is_copy: true, ..StateTensor::zeros("z") };
        vec![StateTensor::step(), z, StateTensor::zeros("exp_avg_sq"), number("lr_max"), number("weight_sum")]
    }

    fn fuses(&self, decay: TorchDecay) -> bool {
        decay == TorchDecay::Decoupled
    }

    fn supports_found_inf(&self) -> bool {
        false
    }

    fn graph_obstacle(&self) -> Option<&'static str> {
        Some("schedulefree keeps two sets of weights")
    }

    fn averages(&self) -> bool {
        true
    }

    /// x = y + (1 − 1/β₁)(z − y)
    fn averaged(&self, y: &Tensor, state: &[Tensor]) -> Result<Option<Tensor>> {
        state.get(1).map(|z| Ok(y.f_detach()?.f_lerp(z, 1.0 - 1.0 / self.betas.0)?)).transpose()
    }

    fn update(&self, batch: &GroupTensors, control: &Control, decay: KernelDecay) -> Result<()> {
        for (i, (y, g)) in batch.params.iter().zip(&batch.grads).enumerate() {
            count(batch, i)?;
            let t = steps(batch, i)?;
            let (z, square) = (batch.slot(1)[i].shallow_clone(), batch.slot(2)[i].shallow_clone());
            let (mut highest, mut sum) = (batch.slot(3)[i].shallow_clone(), batch.slot(4)[i].shallow_clone());
            let lr = times_lr(&t.f_ones_like()?, control)?;
            highest.f_copy_(&highest.f_maximum(&lr)?)?;
            let weight =
                t.f_pow_tensor_scalar(self.r)?.f_mul(&highest.f_pow_tensor_scalar(self.weight_lr_power)?)?;
            let _ = sum.f_add_(&weight)?;
            // 0/0 while the rate is 0.
            let share = weight.f_div(&sum)?.f_masked_fill(&sum.f_eq(0.0)?, 0.0)?;
            let (mut square, mut z, mut y) = (square, z, y.f_detach()?);
            let (beta1, beta2) = self.betas;
            let _ = square.f_mul_scalar_(beta2)?.f_add_(&g.f_square()?.f_mul_scalar(1.0 - beta2)?)?;
            let root = square.f_div(&correction(beta2, &t)?)?.f_sqrt()?;
            let step = g.f_div(&root.f_add_scalar(self.eps)?)?;
            let step = step.f_add(&y.f_mul_scalar(decay.decoupled)?)?;
            // y ← y + c(z − y) + η(β₁(1 − c) − 1)u, z ← z − ηu
            let _ = y.f_add_(&z.f_sub(&y)?.f_mul(&share)?)?;
            let along =
                share.f_neg()?.f_add_scalar(1.0)?.f_mul_scalar(beta1)?.f_sub_scalar(1.0)?.f_mul(&lr)?;
            let _ = y.f_add_(&step.f_mul(&along)?)?;
            let _ = z.f_sub_(&step.f_mul(&lr)?)?;
        }
        Ok(())
    }

    fn update_grad_derivative(&self, _: &GroupTensors, grads: &[Tensor], _: f64) -> Result<Vec<Tensor>> {
        grads.iter().map(|g| Ok(g.f_zeros_like()?)).collect()
    }
}
