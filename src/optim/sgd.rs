//! SGD with momentum (Polyak 1964; Nesterov 1983), as `torch.optim.SGD` writes it; SGDW with `decoupled`.

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::{Argument, GroupTensors, KernelDecay, RefusedWeightDecay, StateTensor, TorchClass, UpdateRule};
use crate::libtorch::optim::{Control, FusedSgd};
use crate::schedule::check;
use crate::util::yaml::Invalid;

/// `torch.optim.SGD`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SgdSpec {
    /// The learning rate η.
    #[schemars(range(min = 0))]
    pub lr: f64,
    /// Momentum factor.
    #[schemars(range(min = 0), extend("exclusiveMaximum" = 1))]
    pub momentum: f64,
    /// Dampening of the momentum; not on the first step, as in PyTorch.
    #[schemars(range(min = 0, max = 1))]
    pub dampening: f64,
    /// Nesterov momentum. Needs momentum above 0 and no dampening.
    pub nesterov: bool,
    #[serde(skip_serializing)]
    #[schemars(skip)]
    pub weight_decay: RefusedWeightDecay,
}

impl Default for SgdSpec {
    fn default() -> Self {
        Self { lr: 1e-3, momentum: 0.0, dampening: 0.0, nesterov: false, weight_decay: RefusedWeightDecay }
    }
}

impl UpdateRule for SgdSpec {
    fn lr(&self) -> f64 {
        self.lr
    }

    fn validate(&self) -> Result<(), Invalid> {
        check("lr", self.lr, self.lr >= 0.0, "at least 0")?;
        check("momentum", self.momentum, (0.0..1.0).contains(&self.momentum), "in [0, 1)")?;
        check("dampening", self.dampening, (0.0..=1.0).contains(&self.dampening), "in [0, 1]")?;
        if self.nesterov && (self.momentum == 0.0 || self.dampening != 0.0) {
            return Err(Invalid::new("nesterov", "needs momentum above 0 and no dampening"));
        }
        Ok(())
    }

    fn torch_class(&self) -> TorchClass {
        TorchClass { fused: true, ..TorchClass::named("SGD", &["dampening", "nesterov"]) }
    }

    fn arguments(&self) -> Vec<(&'static str, Argument)> {
        vec![
            ("momentum", Argument::Number(self.momentum)),
            ("dampening", Argument::Number(self.dampening)),
            ("nesterov", Argument::Flag(self.nesterov)),
        ]
    }

    fn state_spec(&self) -> Vec<StateTensor> {
        if self.momentum == 0.0 { Vec::new() } else { vec![StateTensor::optional_zeros("momentum_buffer")] }
    }

    fn supports_found_inf(&self) -> bool {
        true
    }

    fn update(&self, batch: &GroupTensors, control: &Control, decay: KernelDecay) -> Result<()> {
        let kernel = FusedSgd {
            weight_decay: decay.l2,
            momentum: self.momentum,
            dampening: self.dampening,
            nesterov: self.nesterov,
            is_first_step: batch.fresh,
        };
        kernel.step(&batch.params, &batch.grads, batch.slot(0), control)
    }

    fn steady_state_lr(&self, lr: f64) -> Option<f64> {
        Some(if self.momentum > 0.0 { lr * (1.0 - self.dampening) / (1.0 - self.momentum) } else { lr })
    }

    fn update_grad_derivative(&self, batch: &GroupTensors, grads: &[Tensor], lr: f64) -> Result<Vec<Tensor>> {
        // The first buffer is the gradient itself, undampened.
        let kept = if batch.fresh { 1.0 } else { 1.0 - self.dampening };
        let factor = match (self.momentum > 0.0, self.nesterov) {
            (false, _) => 1.0,
            (true, false) => kept,
            (true, true) => 1.0 + self.momentum * kept,
        };
        grads.iter().map(|g| Ok(g.f_full_like(-lr * factor)?)).collect()
    }
}
