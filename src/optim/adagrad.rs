//! Adagrad (Duchi, Hazan and Singer 2011), as `torch.optim.Adagrad` writes it.

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::{Argument, GroupTensors, KernelDecay, RefusedWeightDecay, StateTensor, TorchClass, UpdateRule};
use crate::libtorch::optim::{Control, FusedAdagrad};
use crate::optim::lambda_gradient::over_root;
use crate::schedule::check;
use crate::util::yaml::Invalid;

/// `torch.optim.Adagrad`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AdagradSpec {
    /// The learning rate η.
    #[schemars(range(min = 0))]
    pub lr: f64,
    /// The optimiser's own decay, η/(1 + lr_decay·(step − 1)), beside the schedule. Decoupled decay and the
    /// soft threshold use η.
    #[schemars(range(min = 0))]
    pub lr_decay: f64,
    /// Initial sum of squared gradients.
    #[schemars(range(min = 0))]
    pub initial_accumulator_value: f64,
    /// Added to the denominator.
    #[schemars(range(min = 0))]
    pub eps: f64,
    #[serde(skip_serializing)]
    #[schemars(skip)]
    pub weight_decay: RefusedWeightDecay,
}

impl Default for AdagradSpec {
    fn default() -> Self {
        Self {
            lr: 1e-2,
            lr_decay: 0.0,
            initial_accumulator_value: 0.0,
            eps: 1e-10,
            weight_decay: RefusedWeightDecay,
        }
    }
}

impl AdagradSpec {
    /// 1 + (t − 1)·lr_decay of parameter `i`, 0-dim float64.
    fn slowed(&self, batch: &GroupTensors, i: usize) -> Result<Tensor> {
        let t = batch.slot(0)[i].f_to_kind(Kind::Double)?;
        Ok(t.f_sub_scalar(1.0)?.f_mul_scalar(self.lr_decay)?.f_add_scalar(1.0)?)
    }
}

impl UpdateRule for AdagradSpec {
    fn lr(&self) -> f64 {
        self.lr
    }

    fn validate(&self) -> Result<(), Invalid> {
        check("lr", self.lr, self.lr >= 0.0, "at least 0")?;
        check("lr_decay", self.lr_decay, self.lr_decay >= 0.0, "at least 0")?;
        let initial = self.initial_accumulator_value;
        check("initial_accumulator_value", initial, initial >= 0.0, "at least 0")?;
        check("eps", self.eps, self.eps >= 0.0, "at least 0")
    }

    fn torch_class(&self) -> TorchClass {
        TorchClass { fused: true, state_from_start: true, ..TorchClass::named("Adagrad", &["lr_decay"]) }
    }

    fn arguments(&self) -> Vec<(&'static str, Argument)> {
        vec![
            ("lr_decay", Argument::Number(self.lr_decay)),
            ("eps", Argument::Number(self.eps)),
            ("initial_accumulator_value", Argument::Number(self.initial_accumulator_value)),
        ]
    }

    fn state_spec(&self) -> Vec<StateTensor> {
        vec![
            StateTensor::step(),
            StateTensor { initial: self.initial_accumulator_value, ..StateTensor::zeros("sum") },
        ]
    }

    fn supports_found_inf(&self) -> bool {
        true
    }

    fn update(&self, batch: &GroupTensors, control: &Control, decay: KernelDecay) -> Result<()> {
        let kernel = FusedAdagrad { lr_decay: self.lr_decay, eps: self.eps, weight_decay: decay.l2 };
        kernel.step(&batch.params, &batch.grads, batch.slot(1), batch.slot(0), control)
    }

    /// 1/(√sum + ε)/(1 + (t − 1)·lr_decay): the composite step of Duchi, Hazan and Singer 2011.
    fn preconditioner(&self, batch: &GroupTensors) -> Result<Option<Vec<Tensor>>> {
        let one = |i: usize| -> Result<Tensor> {
            let denominator = batch.slot(1)[i].f_sqrt()?.f_add_scalar(self.eps)?;
            Ok(denominator.f_mul(&self.slowed(batch, i)?)?.f_reciprocal()?)
        };
        (0..batch.params.len()).map(one).collect::<Result<_>>().map(Some)
    }

    /// −η·[1/d − g·r′/d²]/(1 + (t − 1)·lr_decay) with d = r + ε, r the root of the sum and r′ = g/r.
    fn update_grad_derivative(&self, batch: &GroupTensors, grads: &[Tensor], lr: f64) -> Result<Vec<Tensor>> {
        let one = |i: usize| -> Result<Tensor> {
            let g = &grads[i];
            let slowed = self.slowed(batch, i)?;
            let root = batch.slot(1)[i].f_sqrt()?;
            let denominator = root.f_add_scalar(self.eps)?;
            let through_sum = over_root(&g.f_square()?, &root)?.f_div(&denominator.f_square()?)?;
            Ok(denominator.f_reciprocal()?.f_sub(&through_sum)?.f_mul_scalar(-lr)?.f_div(&slowed)?)
        };
        (0..grads.len()).map(one).collect()
    }
}
