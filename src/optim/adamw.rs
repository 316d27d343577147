//! AdamW (Loshchilov and Hutter 2019): Adam with `decoupled`, and never with `l2`.

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::{AdamSpec, Argument, GroupTensors, KernelDecay, StateTensor, TorchClass, UpdateRule};
use crate::libtorch::optim::Control;
use crate::penalty::TorchDecay;
use crate::util::yaml::Invalid;

/// `torch.optim.AdamW`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(transparent)]
pub struct AdamWSpec(pub AdamSpec);

impl UpdateRule for AdamWSpec {
    fn lr(&self) -> f64 {
        self.0.lr()
    }

    fn validate(&self) -> Result<(), Invalid> {
        self.0.validate()
    }

    fn torch_class(&self) -> TorchClass {
        TorchClass { name: "AdamW", decoupled_class: None, ..self.0.torch_class() }
    }

    fn refuses(&self) -> Option<(TorchDecay, &'static str)> {
        const REMEDY: &str =
            "adamw decays apart from the gradient: write `decoupled`, or take `optimizer: adam` for L2";
        Some((TorchDecay::L2, REMEDY))
    }

    fn arguments(&self) -> Vec<(&'static str, Argument)> {
        self.0.arguments()
    }

    fn state_spec(&self) -> Vec<StateTensor> {
        self.0.state_spec()
    }

    fn fuses(&self, decay: TorchDecay) -> bool {
        self.0.fuses(decay)
    }

    fn supports_found_inf(&self) -> bool {
        self.0.supports_found_inf()
    }

    fn update(&self, batch: &GroupTensors, control: &Control, decay: KernelDecay) -> Result<()> {
        self.0.update(batch, control, decay)
    }

    fn preconditioner(&self, batch: &GroupTensors) -> Result<Option<Vec<Tensor>>> {
        self.0.preconditioner(batch)
    }

    fn update_grad_derivative(&self, batch: &GroupTensors, grads: &[Tensor], lr: f64) -> Result<Vec<Tensor>> {
        self.0.update_grad_derivative(batch, grads, lr)
    }
}
