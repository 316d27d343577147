//! `freeze_until`: groups of parameters that the first epochs or steps leave as they are. Whether a group is frozen
//! is a function of the epoch and the step.

use super::Trainer;
use super::cuda_graph::GraphState;

impl Trainer<'_> {
    /// Freezes what is to be frozen in the step to come, and trains what is not any more.
    pub(super) fn freeze_and_thaw(&mut self) {
        let (epoch, step) = (self.state.epoch, self.state.step);
        let groups = &self.session.groups;
        let now = groups.iter().map(|group| group.freeze_until.is_some_and(|until| until.holds(epoch, step)));
        let now: Vec<bool> = now.collect();
        if now == self.frozen {
            return;
        }
        let penalty = self.session.config.spec.penalty();
        self.network.freeze(|name| penalty.freeze_until(name).is_some_and(|until| until.holds(epoch, step)));
        let thawed = groups.iter().zip(self.frozen.iter().zip(&now)).filter(|(_, (was, is))| **was && !**is);
        let thawed: Vec<_> = thawed.map(|(group, _)| format!("`{}`", group.label)).collect();
        if !thawed.is_empty() {
            let note =
                format!("epoch {}, step {step}: from here on {} train too", epoch + 1, thawed.join(", "));
            self.note =
                Some(self.note.take().map_or_else(|| note.clone(), |first| format!("{first}\n{note}")));
        }
        self.frozen = now;
        // Other tensors have gradients to share.
        self.reducer = None;
        // Another backward pass, and parameters without a state of the optimiser yet.
        if !matches!(self.graph_state, GraphState::Off) {
            self.graph_state = GraphState::Warmup(0);
        }
    }

    /// What is frozen at the start, and until when.
    pub(super) fn frozen_groups(&self) -> Vec<String> {
        let groups = self.session.groups.iter().zip(&self.frozen).filter(|(_, frozen)| **frozen);
        let note = |group: &crate::penalty::ParamGroup| {
            let until = group.freeze_until?;
            let tensors = group.param_indices.len();
            Some(format!(
                "group `{}`: {tensors} tensors are frozen until {until}, and the running statistics of their layers",
                group.label
            ))
        };
        groups.filter_map(|(group, _)| note(group)).collect()
    }
}
