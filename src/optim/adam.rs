//! Adam (Kingma and Ba 2015) and AMSGrad (Reddi et al. 2018); AdamW (Loshchilov and Hutter 2019) with
//! `decoupled`.

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::moments::check_betas;
use super::{Argument, GroupTensors, KernelDecay, RefusedWeightDecay, StateTensor, TorchClass, UpdateRule};
use crate::libtorch::optim::{AdamState, Control, FusedAdam};
use crate::optim::lambda_gradient::over_root;
use crate::penalty::TorchDecay;
use crate::schedule::check;
use crate::util::yaml::Invalid;

/// `torch.optim.Adam` and `AdamW`: the penalty tells them apart.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AdamSpec {
    /// The learning rate η.
    #[schemars(range(min = 0))]
    pub lr: f64,
    /// Decay rates of the running means of the gradient and of its square, each in [0, 1).
    pub betas: (f64, f64),
    /// Added to the denominator.
    #[schemars(range(min = 0))]
    pub eps: f64,
    /// Divide by the largest mean square so far (Reddi et al. 2018).
    pub amsgrad: bool,
    #[serde(skip_serializing)]
    #[schemars(skip)]
    pub weight_decay: RefusedWeightDecay,
}

impl Default for AdamSpec {
    fn default() -> Self {
        Self { lr: 1e-3, betas: (0.9, 0.999), eps: 1e-8, amsgrad: false, weight_decay: RefusedWeightDecay }
    }
}

impl AdamSpec {
    /// √v̂ + ε of parameter `i`, v̂ corrected for its start.
    fn denominator(&self, batch: &GroupTensors, i: usize) -> Result<Tensor> {
        // In float64: 1 − β₂ᵗ is tiny at first.
        let t = batch.slot(0)[i].f_to_kind(Kind::Double)?;
        let correction = t.f_mul_scalar(self.betas.1.ln())?.f_exp()?.f_neg()?.f_add_scalar(1.0)?.f_sqrt()?;
        let used = batch.slot(if self.amsgrad { 3 } else { 2 })[i];
        Ok(used.f_sqrt()?.f_div(&correction)?.f_add_scalar(self.eps)?)
    }
}

impl UpdateRule for AdamSpec {
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
            family: "Adam or AdamW",
            capturable: true,
            fused: true,
            decoupled_weight_decay: true,
            decoupled_class: Some("AdamW"),
            ..TorchClass::named("Adam", &["betas", "amsgrad"])
        }
    }

    fn arguments(&self) -> Vec<(&'static str, Argument)> {
        vec![
            ("betas", Argument::Pair(self.betas.0, self.betas.1)),
            ("eps", Argument::Number(self.eps)),
            ("amsgrad", Argument::Flag(self.amsgrad)),
        ]
    }

    fn state_spec(&self) -> Vec<StateTensor> {
        let mut slots =
            vec![StateTensor::step(), StateTensor::zeros("exp_avg"), StateTensor::zeros("exp_avg_sq")];
        if self.amsgrad {
            slots.push(StateTensor::optional_zeros("max_exp_avg_sq"));
        }
        slots
    }

    fn fuses(&self, _: TorchDecay) -> bool {
        true
    }

    fn supports_found_inf(&self) -> bool {
        true
    }

    fn update(&self, batch: &GroupTensors, control: &Control, decay: KernelDecay) -> Result<()> {
        let decoupled = decay.decoupled > 0.0;
        let kernel = FusedAdam {
            betas: self.betas,
            eps: self.eps,
            weight_decay: if decoupled { decay.decoupled } else { decay.l2 },
            decoupled,
        };
        let state = AdamState {
            steps: batch.slot(0),
            exp_avgs: batch.slot(1),
            exp_avg_sqs: batch.slot(2),
            max_exp_avg_sqs: batch.slot(3),
        };
        kernel.step(&batch.params, &batch.grads, &state, control)
    }

    /// 1/(√v̂ + ε): the mean of a steady gradient is the gradient.
    fn preconditioner(&self, batch: &GroupTensors) -> Result<Option<Vec<Tensor>>> {
        let one = |i: usize| Ok(self.denominator(batch, i)?.f_reciprocal()?);
        (0..batch.params.len()).map(one).collect::<Result<_>>().map(Some)
    }

    /// −η·[(1 − β₁)/d − m·r′/d²]/(1 − β₁ᵗ) with d = r + ε, r = √(v/(1 − β₂ᵗ)) and r′ = ∂r/∂g; where amsgrad
    /// holds on to an older v, r′ = 0.
    fn update_grad_derivative(&self, batch: &GroupTensors, grads: &[Tensor], lr: f64) -> Result<Vec<Tensor>> {
        let (beta1, beta2) = self.betas;
        let one = |i: usize| -> Result<Tensor> {
            let (g, m, v) = (&grads[i], batch.slot(1)[i], batch.slot(2)[i]);
            // In float64: 1 − β₂ᵗ is tiny at first.
            let t = batch.slot(0)[i].f_to_kind(Kind::Double)?;
            let correction = |beta: f64| -> Result<Tensor> {
                Ok(t.f_mul_scalar(beta.ln())?.f_exp()?.f_neg()?.f_add_scalar(1.0)?)
            };
            let (first, second) = (correction(beta1)?, correction(beta2)?.f_sqrt()?);
            let used = if self.amsgrad { batch.slot(3)[i] } else { v };
            let root = used.f_sqrt()?;
            let mut slope = over_root(&g.f_mul_scalar(1.0 - beta2)?, &root)?.f_div(&second)?;
            if self.amsgrad {
                slope = slope.f_mul(&used.f_le_tensor(v)?)?;
            }
            let denominator = self.denominator(batch, i)?;
            let through_m = denominator.f_reciprocal()?.f_mul_scalar(1.0 - beta1)?;
            let through_v = m.f_mul(&slope)?.f_div(&denominator.f_square()?)?;
            Ok(through_m.f_sub(&through_v)?.f_mul_scalar(-lr)?.f_div(&first)?)
        };
        (0..grads.len()).map(one).collect()
    }
}
