//! The state of an optimiser as named tensors.

use std::collections::BTreeMap;

use anyhow::Result;
use tch::Tensor;

use super::{Optimizer, clip};
use crate::libtorch::optim as kernels;
use crate::util::exit_code::{ExitCode, fail};

/// Of a parameter: what it was when training began, for a penalty that pulls it there.
const INITIAL: &str = "initial";

impl Optimizer {
    /// ‖g‖₂ as [`StepOutput::grad_norm`](super::StepOutput::grad_norm) would give it now, for a caller that wants to look before it steps.
    pub fn grad_norm(&self) -> Result<Tensor> {
        let grads = kernels::gradients(&self.params.iter().collect::<Vec<_>>())?;
        clip::total_norm(&grads.iter().flatten().collect::<Vec<_>>())
    }

    /// Forgets the gradients without a step.
    pub fn zero_grad(&mut self) -> Result<()> {
        kernels::forget_gradients(&self.params.iter().collect::<Vec<_>>())
    }

    /// The state as `<parameter>.<PyTorch's name>`, such as `conv1.weight.exp_avg`; shallow clones.
    /// Parameters that never made a step have none.
    pub fn state(&self) -> Vec<(String, Tensor)> {
        let mut all = Vec::new();
        for (i, ((name, state), initial)) in self.names.iter().zip(&self.state).zip(&self.initial).enumerate()
        {
            let slots = self.rule.part_state_spec(self.parts[i]);
            for (slot, tensor) in slots.iter().zip(state.iter().flatten()) {
                all.push((format!("{name}.{}", slot.name), tensor.shallow_clone()));
            }
            all.extend(initial.iter().map(|tensor| (format!("{name}.{INITIAL}"), tensor.shallow_clone())));
        }
        all
    }

    /// Replaces the whole state by copies of what [`state`](Self::state) gave. Nothing changes unless all of
    /// it fits; exit 4 lists everything that does not.
    pub fn load_state(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        let mut mistakes = Vec::new();
        let mut known = 0;
        let (mut loaded, mut begun) = (Vec::new(), Vec::new());
        for (i, (name, param)) in self.names.iter().zip(&self.params).enumerate() {
            let slots = self.rule.part_state_spec(self.parts[i]);
            let initial = state.get(&format!("{name}.{INITIAL}"));
            known += usize::from(initial.is_some());
            if let Some(initial) = initial.filter(|initial| initial.size() != param.size()) {
                let (found, wanted) = (initial.size(), param.size());
                mistakes.push(format!("{name}.{INITIAL} is {found:?}, expected {wanted:?}"));
            }
            let own = |initial: &Tensor| -> Result<Tensor> {
                Ok(initial.f_to_device(param.device())?.f_to_kind(param.kind())?)
            };
            begun.push(initial.map(own).transpose()?);
            let keys: Vec<_> = slots.iter().map(|slot| format!("{name}.{}", slot.name)).collect();
            let found: Vec<_> = keys.iter().filter_map(|key| state.get(key)).collect();
            known += found.len();
            if found.is_empty() {
                // A rule without state marks a parameter by an empty list; it makes no difference to it.
                loaded.push(None);
                continue;
            }
            mistakes.extend(
                keys.iter().filter(|key| !state.contains_key(*key)).map(|key| format!("{key} is missing")),
            );
            let mut tensors = Vec::new();
            for (slot, (key, tensor)) in
                slots.iter().zip(keys.iter().filter_map(|key| state.get_key_value(key)))
            {
                let mut own = slot.start(param)?;
                if own.size() == tensor.size() {
                    tch::no_grad(|| own.f_copy_(tensor))?;
                } else {
                    mistakes.push(format!("{key} is {:?}, expected {:?}", tensor.size(), own.size()));
                }
                tensors.push(own);
            }
            loaded.push(Some(tensors));
        }
        if known < state.len() {
            let expected = |key: &str| {
                self.names.iter().zip(&self.parts).any(|(name, &part)| {
                    let slots = self.rule.part_state_spec(part);
                    key.strip_prefix(name.as_str())
                        .and_then(|rest| rest.strip_prefix('.'))
                        .is_some_and(|rest| slots.iter().any(|slot| slot.name == rest))
                })
            };
            mistakes
                .extend(state.keys().filter(|key| !expected(key)).map(|key| format!("{key} is unexpected")));
        }
        refuse(&mistakes, "the optimiser's state does not fit; resume with the optimiser that saved it")?;
        (self.state, self.initial) = (loaded, begun);
        Ok(())
    }
}

/// An error of exit 4 that lists all mistakes, if there are any.
pub(super) fn refuse(mistakes: &[String], context: &str) -> Result<()> {
    if mistakes.is_empty() {
        return Ok(());
    }
    Err(fail(ExitCode::Checkpoint, format!("{context}:\n  {}", mistakes.join("\n  "))))
}
