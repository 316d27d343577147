//! Adam (Kingma and Ba 2015) and AMSGrad (Reddi et al. 2018); AdamW (Loshchilov and Hutter 2019) with `decoupled`.

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::{Argument, Batch, Rule, Slot, WeightDecay};
use crate::libtorch::optim::{AdamState, FusedAdam};
use crate::penalty::Rates;
use crate::schedule::check;
use crate::yaml::Invalid;

/// `torch.optim.Adam` and `AdamW`: the penalty tells them apart.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdamSpec {
    pub lr: f64,
    /// Each in [0, 1).
    pub betas: (f64, f64),
    pub eps: f64,
    pub amsgrad: bool,
    #[serde(skip_serializing)]
    pub weight_decay: WeightDecay,
}

impl Default for AdamSpec {
    fn default() -> Self {
        Self { lr: 1e-3, betas: (0.9, 0.999), eps: 1e-8, amsgrad: false, weight_decay: WeightDecay }
    }
}

impl AdamSpec {
    pub(super) fn validate(&self) -> Result<(), Invalid> {
        check("lr", self.lr, self.lr >= 0.0, "at least 0")?;
        check("betas.0", self.betas.0, (0.0..1.0).contains(&self.betas.0), "in [0, 1)")?;
        check("betas.1", self.betas.1, (0.0..1.0).contains(&self.betas.1), "in [0, 1)")?;
        check("eps", self.eps, self.eps >= 0.0, "at least 0")
    }
}

impl Rule for AdamSpec {
    fn arguments(&self) -> Vec<(&'static str, Argument)> {
        vec![
            ("betas", Argument::Pair(self.betas.0, self.betas.1)),
            ("eps", Argument::Number(self.eps)),
            ("amsgrad", Argument::Flag(self.amsgrad)),
        ]
    }

    fn slots(&self) -> Vec<Slot> {
        let mut slots = vec![Slot::step(), Slot::zeros("exp_avg"), Slot::zeros("exp_avg_sq")];
        if self.amsgrad {
            slots.push(Slot::zeros("max_exp_avg_sq"));
        }
        slots
    }

    fn decouples(&self) -> bool {
        true
    }

    fn update(&self, batch: &Batch, lr: f64, rates: &Rates) -> Result<()> {
        let decoupled = rates.decoupled > 0.0;
        let kernel = FusedAdam {
            betas: self.betas,
            eps: self.eps,
            weight_decay: if decoupled { rates.decoupled } else { rates.l2 },
            decoupled,
        };
        let state = AdamState {
            steps: batch.slot(0),
            exp_avgs: batch.slot(1),
            exp_avg_sqs: batch.slot(2),
            max_exp_avg_sqs: batch.slot(3),
        };
        kernel.step(&batch.params, &batch.grads, &state, lr)
    }
}
