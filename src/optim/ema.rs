//! An exponential moving average of the weights (Polyak and Juditsky 1992).

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::refuse;
use crate::libtorch::scalar::Scalar;
use crate::schedule::check;
use crate::util::yaml::Invalid;

/// How much of the average each step keeps.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EmaSpec {
    /// The share of the average that a step keeps.
    #[schemars(range(min = 0), extend("exclusiveMaximum" = 1))]
    pub decay: f64,
    /// Start with a short memory, as TensorFlow and timm do: update n (from 0) keeps min(decay, (1 + n)/(10 +
    /// n)). Without it the average after n steps still holds decayⁿ of the initial weights.
    pub warmup: bool,
}

impl Default for EmaSpec {
    fn default() -> Self {
        Self { decay: 0.999, warmup: true }
    }
}

impl EmaSpec {
    /// Refuses a decay outside [0, 1); paths are relative to `ema`.
    pub fn validate(&self) -> Result<(), Invalid> {
        check("decay", self.decay, (0.0..1.0).contains(&self.decay), "in [0, 1)")
    }
}

/// The averaged copy of a network's state: floating tensors averaged, others (batch counters) copied.
pub struct Ema {
    spec: EmaSpec,
    shadow: Vec<(String, Tensor)>,
    updates: u64,
}

/// Puts 0 into the averages of the parameters `names` where the weights themselves, `raw`, are 0: the average
/// of weights under a soft threshold only comes near it.
pub fn keep_zeros<'a>(
    averages: &mut BTreeMap<String, Tensor>,
    names: &[String],
    raw: impl Fn(&str) -> Option<&'a Tensor>,
) {
    for name in names {
        let (Some(average), Some(raw)) = (averages.get_mut(name), raw(name)) else { continue };
        if average.size() == raw.size() {
            *average = average.where_self(&raw.detach().ne(0.0), &average.zeros_like());
        }
    }
}

/// How many updates were made, under the name that PyTorch's `AveragedModel` gives it.
const UPDATES: &str = "n_averaged";

impl Ema {
    /// Starts from a copy of `state`.
    pub fn new(spec: &EmaSpec, state: &[(String, Tensor)]) -> Result<Self> {
        let copy = |(name, tensor): &(String, Tensor)| -> Result<_> {
            let mut own = tensor.f_detach()?.f_empty_like()?;
            tch::no_grad(|| own.f_copy_(tensor))?;
            Ok((name.clone(), own))
        };
        Ok(Self { spec: spec.clone(), shadow: state.iter().map(copy).collect::<Result<_>>()?, updates: 0 })
    }

    /// shadow ← decay·shadow + (1 − decay)·state. `state` has the tensors of [`Ema::new`], in the same order.
    /// Where `gate`, 0-dim float32 on the device, holds 1, nothing changes but the count of updates: see
    /// [`uncount`](Self::uncount).
    pub fn update(&mut self, state: &[(String, Tensor)], gate: Option<&Tensor>) -> Result<()> {
        self.blended(state, gate, Scalar::gated(self.weight(), 0.0, gate)?)?;
        self.count();
        Ok(())
    }

    /// What the next update gives the new weights: 1 − decay.
    pub fn weight(&self) -> f64 {
        let n = self.updates as f64;
        1.0 - if self.spec.warmup { self.spec.decay.min((1.0 + n) / (10.0 + n)) } else { self.spec.decay }
    }

    /// The same as [`update`](Self::update) without its count, by a `weight` that is read on the device.
    pub fn blend(&self, state: &[(String, Tensor)], gate: Option<&Tensor>, weight: &Tensor) -> Result<()> {
        self.blended(state, gate, Scalar::Device(weight.shallow_clone()).unless(gate, 0.0)?)
    }

    /// Counts one update that [`blend`](Self::blend) recorded.
    pub fn count(&mut self) {
        self.updates += 1;
    }

    fn blended(&self, state: &[(String, Tensor)], gate: Option<&Tensor>, weight: Scalar) -> Result<()> {
        if !state.iter().map(|(name, _)| name).eq(self.shadow.iter().map(|(name, _)| name)) {
            bail!("the averaged weights and the network do not have the same tensors");
        }
        let (mut averages, mut news) = (Vec::new(), Vec::new());
        for ((_, own), (_, tensor)) in self.shadow.iter().zip(state) {
            if matches!(own.kind(), Kind::Float | Kind::Double) {
                averages.push(own);
                news.push(tensor);
            } else {
                let kept = gate.map(|gate| tensor.f_where_self(&gate.f_eq(0.0)?, own)).transpose()?;
                tch::no_grad(|| own.shallow_clone().f_copy_(kept.as_ref().unwrap_or(tensor)))?;
            }
        }
        weight.lerp(&averages, &news)
    }

    /// Takes back one update that a gate kept from changing anything.
    pub fn uncount(&mut self) {
        self.updates = self.updates.saturating_sub(1);
    }

    /// The averaged tensors by the network's names, for `Network::load_state`; shallow clones.
    pub fn weights(&self) -> BTreeMap<String, Tensor> {
        self.shadow.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect()
    }

    /// Everything to be saved: the averaged tensors and `n_averaged`.
    pub fn state(&self) -> Vec<(String, Tensor)> {
        let mut state: Vec<_> =
            self.shadow.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect();
        state.push((UPDATES.into(), Tensor::from(self.updates as i64)));
        state
    }

    /// Copies in what [`state`](Self::state) gave. Nothing changes unless all of it fits; exit 4 lists what
    /// does not.
    pub fn load_state(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        let mut mistakes = Vec::new();
        for (name, own) in &self.shadow {
            match state.get(name) {
                None => mistakes.push(format!("{name} is missing")),
                Some(tensor) if tensor.size() != own.size() => {
                    mistakes.push(format!("{name} is {:?}, expected {:?}", tensor.size(), own.size()));
                }
                Some(_) => {}
            }
        }
        let updates = state.get(UPDATES).and_then(|tensor| i64::try_from(tensor).ok());
        if updates.is_none() {
            mistakes.push(format!("{UPDATES} is missing"));
        }
        let own = |key: &str| key == UPDATES || self.shadow.iter().any(|(name, _)| name == key);
        mistakes.extend(state.keys().filter(|key| !own(key)).map(|key| format!("{key} is unexpected")));
        refuse(&mistakes, "the averaged weights do not fit; resume with the model that saved them")?;
        for (name, own) in &mut self.shadow {
            if let Some(tensor) = state.get(name) {
                tch::no_grad(|| own.f_copy_(tensor))?;
            }
        }
        self.updates = updates.unwrap_or(0).max(0) as u64;
        Ok(())
    }
}
