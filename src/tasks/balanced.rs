//! Weights and adjustments of the classes where the loss is computed.

use tch::{Device, Kind, Tensor};

use crate::data::balance::ClassBalance;

/// One number per output, on the device; nothing where nothing is balanced.
#[derive(Debug, Default)]
pub struct Balanced {
    weights: Option<Tensor>,
    adjustment: Option<Tensor>,
}

impl Clone for Balanced {
    fn clone(&self) -> Self {
        let same = |tensor: &Option<Tensor>| tensor.as_ref().map(Tensor::shallow_clone);
        Self { weights: same(&self.weights), adjustment: same(&self.adjustment) }
    }
}

impl Balanced {
    pub fn of(classes: &[ClassBalance], kind: Kind, device: Device) -> Self {
        let tensor = |of: fn(&ClassBalance) -> Option<f64>| {
            let values: Vec<f64> = classes.iter().map(of).collect::<Option<_>>()?;
            (!values.is_empty()).then(|| Tensor::from_slice(&values).to_kind(kind).to_device(device))
        };
        Self {
            weights: tensor(|class| class.loss_weight),
            adjustment: tensor(|class| class.logit_adjustment),
        }
    }

    pub fn weights(&self) -> Option<&Tensor> {
        self.weights.as_ref()
    }

    /// Logits `[N, K]` as the loss takes them in training.
    pub fn adjusted(&self, logits: &Tensor) -> Tensor {
        match &self.adjustment {
            Some(adjustment) => logits + adjustment,
            None => logits.shallow_clone(),
        }
    }
}
