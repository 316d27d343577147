//! What a group of parameters says beside its λs: its share of the learning rate, layer-wise decay of that rate
//! (Howard and Ruder 2018; timm's `layer_decay`), and how long it is frozen.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::assign::PenaltyParam;
use super::{GroupSpec, PenaltySpec};
use crate::schedule::check;
use crate::util::yaml::Invalid;

/// Until when parameters are not trained: `{epoch: 3}`, the first three epochs, or `{step: 500}`, the first
/// 500 steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct FreezeUntil {
    /// Frozen for so many epochs.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub epoch: Option<u64>,
    /// Frozen for so many optimiser steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub step: Option<u64>,
}

impl FreezeUntil {
    /// Whether it still holds after so many whole epochs and steps.
    pub fn holds(&self, epoch: u64, step: u64) -> bool {
        self.epoch.is_some_and(|until| epoch < until) || self.step.is_some_and(|until| step < until)
    }

    fn validate(&self) -> Result<(), Invalid> {
        match (self.epoch, self.step) {
            (Some(0), None) | (None, Some(0)) => {
                Err(Invalid::new("", "0 freezes nothing; leave it out, or say 1 or more"))
            }
            (Some(_), None) | (None, Some(_)) => Ok(()),
            _ => Err(Invalid::new("", "say `epoch` or `step`, one of the two")),
        }
    }
}

impl std::fmt::Display for FreezeUntil {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.epoch, self.step) {
            (Some(until), _) => write!(f, "epoch {until}"),
            (_, until) => write!(f, "step {}", until.unwrap_or_default()),
        }
    }
}

impl GroupSpec {
    /// Whether it says anything beside its λs.
    pub(super) fn states_training(&self) -> bool {
        self.lr.is_some() || self.lr_decay.is_some() || self.freeze_until.is_some()
    }

    pub(super) fn validate_training(&self) -> Result<(), Invalid> {
        if let Some(lr) = self.lr {
            check("lr", lr, lr > 0.0, "a factor above 0; `freeze_until` freezes")?;
        }
        if let Some(decay) = self.lr_decay {
            check("lr_decay", decay, decay > 0.0 && decay <= 1.0, "above 0 and at most 1")?;
        }
        let frozen = self.freeze_until.map_or(Ok(()), |until| until.validate());
        frozen.map_err(|invalid| invalid.under("freeze_until"))
    }
}

impl PenaltySpec {
    /// How long the tensor `name`, a parameter or a buffer, is frozen; None where it is not.
    pub fn freeze_until(&self, name: &str) -> Option<FreezeUntil> {
        self.groups.iter().find(|group| group.matcher().matches(name))?.freeze_until
    }
}

/// The blocks of a network, by whose order layer-wise decay counts: names, first to last, and each parameter's.
pub(super) struct Blocks {
    pub names: Vec<String>,
    of: Vec<usize>,
}

impl Blocks {
    /// The first segments of the names, in their order. One that holds more than half of all parameters, such
    /// as `features`, is opened: its children count. What has no weight of its own, such as a batch norm,
    /// belongs to the block before it.
    pub fn of(params: &[PenaltyParam]) -> Self {
        let modules = |name: &str| -> Vec<String> {
            let mut segments: Vec<String> = name.split('.').map(str::to_owned).collect();
            if segments.len() > 1 {
                segments.pop();
            }
            segments
        };
        let paths: Vec<Vec<String>> = params.iter().map(|param| modules(param.name)).collect();
        let mut lengths = vec![1; params.len()];
        loop {
            let keys: Vec<&[String]> = paths.iter().zip(&lengths).map(|(path, n)| &path[..*n]).collect();
            let members = |key: &[String]| -> Vec<usize> {
                (0..keys.len()).filter(|&i| keys[i] == key).collect::<Vec<_>>()
            };
            let large = keys.iter().map(|key| members(key)).find(|members| {
                2 * members.len() > params.len() && members.iter().any(|&i| paths[i].len() > lengths[i])
            });
            let Some(large) = large else { break };
            for i in large {
                lengths[i] = paths[i].len().min(lengths[i] + 1);
            }
        }
        let (mut names, mut of): (Vec<String>, Vec<usize>) = (Vec::new(), Vec::new());
        let keys: Vec<String> = paths.iter().zip(&lengths).map(|(path, n)| path[..*n].join(".")).collect();
        let has_weight =
            |key: &str| keys.iter().zip(params).any(|(own, param)| own == key && param.is_weight);
        let mut block_of = std::collections::HashMap::new();
        for key in &keys {
            let block = *block_of.entry(key.as_str()).or_insert_with(|| {
                if names.is_empty() || has_weight(key) {
                    names.push(key.clone());
                }
                names.len() - 1
            });
            of.push(block);
        }
        Self { names, of }
    }

    /// The block of parameter `i`.
    pub fn at(&self, i: usize) -> usize {
        self.of[i]
    }

    /// What is left of the rate in `block`: all of it in the last.
    pub fn factor(&self, decay: f64, block: usize) -> f64 {
        decay.powi((self.names.len() - 1 - block) as i32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(names: &[&str]) -> Vec<(String, Vec<String>)> {
        let params: Vec<_> = names
            .iter()
            .map(|name| PenaltyParam { name, is_weight: name.contains("conv") || name.contains("fc") })
            .collect();
        let blocks = Blocks::of(&params);
        let members = |block: usize| {
            let own = (0..names.len()).filter(|&i| blocks.at(i) == block);
            own.map(|i| names[i].to_owned()).collect::<Vec<_>>()
        };
        blocks.names.iter().cloned().enumerate().map(|(at, name)| (name, members(at))).collect()
    }

    #[test]
    fn a_block_is_a_top_level_layer_with_the_norm_after_it() {
        let names = [
            "conv1.weight",
            "bn1.weight",
            "bn1.bias",
            "layer1.0.conv.weight",
            "layer2.0.conv.weight",
            "fc.bias",
            "fc.weight",
        ];
        let found = blocks(&names);
        let labels: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(labels, ["conv1", "layer1", "layer2", "fc"]);
        assert_eq!(found[0].1, ["conv1.weight", "bn1.weight", "bn1.bias"]);
    }

    #[test]
    fn a_container_of_most_parameters_counts_by_its_children() {
        let names = [
            "features.0.conv.weight",
            "features.0.bn.weight",
            "features.1.conv.weight",
            "classifier.fc.weight",
        ];
        let labels: Vec<String> = blocks(&names).into_iter().map(|(name, _)| name).collect();
        assert_eq!(labels, ["features.0", "features.1", "classifier"]);
    }

    #[test]
    fn the_last_block_keeps_its_rate() {
        let params = ["a.conv", "b.conv", "c.fc"].map(|name| PenaltyParam { name, is_weight: true });
        let blocks = Blocks::of(&params);
        assert_eq!([0, 1, 2].map(|at| blocks.factor(0.5, at)), [0.25, 0.5, 1.0]);
    }
}
