//! RAdam: Adam that waits with its denominator until its variance is known (Liu et al. 2020), as `torch.optim.RAdam`
//! writes it.

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::moments::{blend, check_betas, correction, count, decayed, steps, times_lr};
use super::{Argument, GroupTensors, KernelDecay, RefusedWeightDecay, StateTensor, TorchClass, UpdateRule};
use crate::libtorch::optim::Control;
use crate::optim::lambda_gradient::over_root;
use crate::penalty::TorchDecay;
use crate::schedule::check;
use crate::util::yaml::Invalid;

/// `torch.optim.RAdam`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RAdamSpec {
    /// The learning rate η.
    #[schemars(range(min = 0))]
    pub lr: f64,
    /// Decay rates of the running means of the gradient and of its square, each in [0, 1).
    pub betas: (f64, f64),
    /// Added to the denominator.
    #[schemars(range(min = 0))]
    pub eps: f64,
    #[serde(skip_serializing)]
    #[schemars(skip)]
    pub weight_decay: RefusedWeightDecay,
}

impl Default for RAdamSpec {
    fn default() -> Self {
        Self { lr: 1e-3, betas: (0.9, 0.999), eps: 1e-8, weight_decay: RefusedWeightDecay }
    }
}

impl RAdamSpec {
    /// Whether the variance is known (0-dim bool), and r·√(1 − β₂ᵗ), r the rectification: 0-dim float64.
    fn rectified(&self, t: &Tensor) -> Result<(Tensor, Tensor)> {
        let beta2 = self.betas.1;
        let longest = 2.0 / (1.0 - beta2) - 1.0;
        let second = correction(beta2, t)?;
        let fallen = Tensor::f_pow_scalar(beta2, t)?.f_mul(t)?.f_mul_scalar(2.0)?.f_div(&second)?;
        let length = fallen.f_neg()?.f_add_scalar(longest)?;
        let ratio = length.f_sub_scalar(4.0)?.f_mul(&length.f_sub_scalar(2.0)?)?.f_div(&length)?;
        let ratio = ratio.f_mul_scalar(longest / ((longest - 4.0) * (longest - 2.0)))?;
        Ok((length.f_gt(5.0)?, ratio.f_mul(&second)?.f_sqrt()?))
    }

    /// What the mean of parameter `i` is multiplied by, beside η/(1 − β₁ᵗ); after the step that was counted last.
    fn scale(&self, batch: &GroupTensors, i: usize) -> Result<Tensor> {
        let (is_known, factor) = self.rectified(&steps(batch, i)?)?;
        let root = batch.slot(2)[i].f_sqrt()?;
        let scaled = root.f_add_scalar(self.eps)?.f_reciprocal()?.f_mul(&factor)?;
        Ok(scaled.f_where_self(&is_known, &root.f_ones_like()?)?)
    }
}

impl UpdateRule for RAdamSpec {
    fn lr(&self) -> f64 {
        self.lr
    }

    fn validate(&self) -> Result<(), Invalid> {
        check("lr", self.lr, self.lr >= 0.0, "at least 0")?;
        check_betas(self.betas)?;
        check("eps", self.eps, self.eps >= 0.0, "at least 0")
    }

    fn torch_class(&self) -> TorchClass {
        TorchClass {
            capturable: true,
            decoupled_weight_decay: true,
            ..TorchClass::named("RAdam", &["betas", "decoupled_weight_decay"])
        }
    }

    fn arguments(&self) -> Vec<(&'static str, Argument)> {
        vec![("betas", Argument::Pair(self.betas.0, self.betas.1)), ("eps", Argument::Number(self.eps))]
    }

    fn state_spec(&self) -> Vec<StateTensor> {
        vec![StateTensor::step(), StateTensor::zeros("exp_avg"), StateTensor::zeros("exp_avg_sq")]
    }

    fn fuses(&self, _: TorchDecay) -> bool {
        true
    }

    fn supports_found_inf(&self) -> bool {
        false
    }

    fn update(&self, batch: &GroupTensors, control: &Control, decay: KernelDecay) -> Result<()> {
        for (i, (w, g)) in batch.params.iter().zip(&batch.grads).enumerate() {
            count(batch, i)?;
            let g = decayed(w, g, decay, control)?;
            blend(self.betas, &g, batch.slot(1)[i], batch.slot(2)[i])?;
            let mean = batch.slot(1)[i].f_div(&correction(self.betas.0, &steps(batch, i)?)?)?;
            let _ = w.f_detach()?.f_sub_(&times_lr(&mean.f_mul(&self.scale(batch, i)?)?, control)?)?;
        }
        Ok(())
    }

    /// r/(√v̂ + ε), 1 while the variance is not known.
    fn preconditioner(&self, batch: &GroupTensors) -> Result<Option<Vec<Tensor>>> {
        (0..batch.params.len()).map(|i| self.scale(batch, i)).collect::<Result<_>>().map(Some)
    }

    /// −η·[(1 − β₁)·s + m·s′]/(1 − β₁ᵗ), s the scale: where the variance is known s′ = −f·(1 − β₂)g/(√v(√v + ε)²)
    /// with f = r·√(1 − β₂ᵗ), else 0.
    fn update_grad_derivative(&self, batch: &GroupTensors, grads: &[Tensor], lr: f64) -> Result<Vec<Tensor>> {
        let (beta1, beta2) = self.betas;
        let one = |(i, g): (usize, &Tensor)| -> Result<Tensor> {
            let t = steps(batch, i)?;
            let (is_known, factor) = self.rectified(&t)?;
            let root = batch.slot(2)[i].f_sqrt()?;
            let slope = over_root(&g.f_mul_scalar(1.0 - beta2)?, &root)?;
            let slope = slope.f_div(&root.f_add_scalar(self.eps)?.f_square()?)?.f_mul(&factor)?;
            let through_v = batch.slot(1)[i].f_mul(&slope)?;
            let through_v = through_v.f_where_self(&is_known, &root.f_zeros_like()?)?;
            let direct = self.scale(batch, i)?.f_mul_scalar(1.0 - beta1)?;
            Ok(direct.f_sub(&through_v)?.f_mul_scalar(-lr)?.f_div(&correction(beta1, &t)?)?)
        };
        grads.iter().enumerate().map(one).collect()
    }
}
