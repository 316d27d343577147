//! NAdam: Adam with Nesterov's momentum (Dozat 2016), as `torch.optim.NAdam` writes it.

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

/// `torch.optim.NAdam`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct NAdamSpec {
    /// The learning rate η.
    #[schemars(range(min = 0))]
    pub lr: f64,
    /// Decay rates of the running means of the gradient and of its square, each in [0, 1).
    pub betas: (f64, f64),
    /// Added to the denominator.
    #[schemars(range(min = 0))]
    pub eps: f64,
    /// How fast the momentum rises from β₁/2 to β₁.
    #[schemars(range(min = 0))]
    pub momentum_decay: f64,
    #[serde(skip_serializing)]
    #[schemars(skip)]
    pub weight_decay: RefusedWeightDecay,
}

impl Default for NAdamSpec {
    fn default() -> Self {
        Self {
            lr: 2e-3,
            betas: (0.9, 0.999),
            eps: 1e-8,
            momentum_decay: 4e-3,
            weight_decay: RefusedWeightDecay,
        }
    }
}

/// u = (A·g + B·m)/(√v̂ + ε) in numbers of one step.
struct Parts {
    gradient: Tensor,
    mean: Tensor,
    /// √v̂
    root: Tensor,
    /// 1 − β₂ᵗ
    second: Tensor,
}

impl NAdamSpec {
    /// μ of step t.
    fn momentum(&self, t: &Tensor) -> Result<Tensor> {
        let fallen = Tensor::f_pow_scalar(0.96, &t.f_mul_scalar(self.momentum_decay)?)?;
        Ok(fallen.f_mul_scalar(-0.5)?.f_add_scalar(1.0)?.f_mul_scalar(self.betas.0)?)
    }

    /// Of the step that was counted last.
    fn parts(&self, batch: &GroupTensors, i: usize) -> Result<Parts> {
        let t = steps(batch, i)?;
        let (now, next) = (self.momentum(&t)?, self.momentum(&t.f_add_scalar(1.0)?)?);
        let product = batch.slot(1)[i].f_to_kind(tch::Kind::Double)?;
        let left = |product: &Tensor| product.f_neg()?.f_add_scalar(1.0);
        let second = correction(self.betas.1, &t)?;
        Ok(Parts {
            gradient: left(&now)?.f_div(&left(&product)?)?,
            mean: next.f_div(&left(&product.f_mul(&next)?)?)?,
            root: batch.slot(3)[i].f_div(&second)?.f_sqrt()?,
            second,
        })
    }
}

impl UpdateRule for NAdamSpec {
    fn lr(&self) -> f64 {
        self.lr
    }

    fn validate(&self) -> Result<(), Invalid> {
        check("lr", self.lr, self.lr >= 0.0, "at least 0")?;
        check_betas(self.betas)?;
        check("eps", self.eps, self.eps >= 0.0, "at least 0")?;
        check("momentum_decay", self.momentum_decay, self.momentum_decay >= 0.0, "at least 0")
    }

    fn torch_class(&self) -> TorchClass {
        TorchClass {
            capturable: true,
            decoupled_weight_decay: true,
            ..TorchClass::named("NAdam", &["momentum_decay"])
        }
    }

    fn arguments(&self) -> Vec<(&'static str, Argument)> {
        vec![
            ("betas", Argument::Pair(self.betas.0, self.betas.1)),
            ("eps", Argument::Number(self.eps)),
            ("momentum_decay", Argument::Number(self.momentum_decay)),
        ]
    }

    fn state_spec(&self) -> Vec<StateTensor> {
        let product = StateTensor { name: "mu_product", initial: 1.0, ..StateTensor::step() };
        vec![StateTensor::step(), product, StateTensor::zeros("exp_avg"), StateTensor::zeros("exp_avg_sq")]
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
            let mut product = batch.slot(1)[i].shallow_clone();
            let _ = product.f_mul_(&self.momentum(&steps(batch, i)?)?.f_to_kind(product.kind())?)?;
            let (m, v) = (batch.slot(2)[i], batch.slot(3)[i]);
            blend(self.betas, &g, m, v)?;
            let Parts { gradient, mean, root, .. } = self.parts(batch, i)?;
            let denominator = root.f_add_scalar(self.eps)?;
            // One after the other, as PyTorch rounds them.
            for part in [g.f_mul(&gradient.f_neg()?)?, m.f_mul(&mean.f_neg()?)?] {
                let _ = w.f_detach()?.f_addcdiv_(&times_lr(&part, control)?, &denominator)?;
            }
        }
        Ok(())
    }

    /// 1/(√v̂ + ε), as Adam's.
    fn preconditioner(&self, batch: &GroupTensors) -> Result<Option<Vec<Tensor>>> {
        let one = |i: usize| Ok(self.parts(batch, i)?.root.f_add_scalar(self.eps)?.f_reciprocal()?);
        (0..batch.params.len()).map(one).collect::<Result<_>>().map(Some)
    }

    /// −η·[(A + B(1 − β₁))/d − (A·g + B·m)·r′/d²] with d = r + ε, r = √v̂ and r′ = (1 − β₂)g/(r(1 − β₂ᵗ)).
    fn update_grad_derivative(&self, batch: &GroupTensors, grads: &[Tensor], lr: f64) -> Result<Vec<Tensor>> {
        let (beta1, beta2) = self.betas;
        let one = |(i, g): (usize, &Tensor)| -> Result<Tensor> {
            let Parts { gradient, mean, root, second } = self.parts(batch, i)?;
            let denominator = root.f_add_scalar(self.eps)?;
            let slope = over_root(&g.f_mul_scalar(1.0 - beta2)?.f_div(&second)?, &root)?;
            let above = g.f_mul(&gradient)?.f_add(&batch.slot(2)[i].f_mul(&mean)?)?;
            let direct = gradient.f_add(&mean.f_mul_scalar(1.0 - beta1)?)?;
            let direct = denominator.f_reciprocal()?.f_mul(&direct)?;
            let through_v = above.f_mul(&slope)?.f_div(&denominator.f_square()?)?;
            Ok(direct.f_sub(&through_v)?.f_mul_scalar(-lr)?)
        };
        grads.iter().enumerate().map(one).collect()
    }
}
