//! What the user should know of a run's arithmetic before it starts: settings that do less, or other things,
//! than they seem to.

use std::collections::BTreeMap;

use anyhow::Result;
use tch::{Kind, Tensor};

use super::Trainer;
use crate::penalty::{ParamGroup, TorchDecay};

impl Trainer<'_> {
    pub fn notes(&self) -> Result<Vec<String>> {
        let own = [self.undecayed(), self.plain_threshold(), self.long_memory(), self.frozen_penalty()?];
        Ok(own.into_iter().flatten().chain(self.rounded_decay()).chain(self.frozen_groups()).collect())
    }

    /// `adamw` is taken for the decay that its name promises.
    fn undecayed(&self) -> Option<String> {
        let is_adamw = self.session.config.spec.optimizer.refuses(TorchDecay::L2);
        let mut forms = self.session.groups.iter().flat_map(ParamGroup::active);
        let decays = forms.any(|term| term.form.torch() == Some(TorchDecay::Decoupled));
        (is_adamw && !decays).then(|| {
            "adamw: no weight decays, for `penalty` has no `decoupled`; PyTorch's default is `penalty: {decoupled: 0.01}`".into()
        })
    }

    /// A threshold that has no minimum to go to.
    fn plain_threshold(&self) -> Option<String> {
        let optimizer = &self.session.config.spec.optimizer;
        if optimizer.is_linear() {
            return None;
        }
        let mut forms = self.session.groups.iter().flat_map(ParamGroup::active);
        forms.find_map(|term| term.form.adaptive_note(optimizer.torch_class().name))
    }

    /// Decay that float32 cannot tell from none.
    fn rounded_decay(&self) -> Option<String> {
        /// Sixteen times the half step of numbers below 1: from here on 1 − η·λ is within some percent of
        /// what is meant.
        const COARSE: f64 = 16.0 / 16_777_216.0;
        let total = self.total_steps();
        let stride = (total / 10_000).max(1);
        let one = |(at, group): (usize, &ParamGroup)| {
            let mut forms = group.active();
            let decays = forms
                .any(|term| term.form.torch() == Some(TorchDecay::Decoupled) && !term.form.accumulates());
            if !decays || self.session.kind == Kind::Double || group.tuned().is_some() {
                return None;
            }
            let share = |step| self.optimizer.share(self.lr_at(step), at, &self.lambdas_at(step)[at]);
            let shares: Vec<f64> = (0..total).step_by(stride as usize).map(share).collect();
            let most = shares.iter().copied().fold(0.0, f64::max);
            let over_the_run = 1.0 - (-shares.iter().sum::<f64>() * stride as f64).exp();
            (most > 0.0 && most < COARSE).then(|| (most, over_the_run, group.label.clone()))
        };
        let mut rounded: Vec<_> = self.session.groups.iter().enumerate().filter_map(one).collect();
        rounded.sort_by(|a, b| b.0.total_cmp(&a.0));
        let (most, over_the_run, label) = rounded.first()?;
        // Groups with layer-wise rates are many.
        let others = match rounded.len() - 1 {
            0 => String::new(),
            1 => " and another group".into(),
            more => format!(" and {more} other groups"),
        };
        Some(format!(
            "decoupled decay of `{label}`{others}: η·λ is {most:.1e} at most, {:.3} % of a weight in the whole run, and float32 knows \
             1 − η·λ in steps of 6e-8: weights shrink by up to three times that, or not at all. Take a larger λ, or \
             `decoupled_mode: accumulated`",
            100.0 * over_the_run
        ))
    }

    /// An average that the run is too short for.
    fn long_memory(&self) -> Option<String> {
        let ema = self.session.config.spec.train.ema.as_ref().filter(|ema| !ema.warmup)?;
        let kept = ema.decay.powf(self.total_steps() as f64);
        (kept > 0.1).then(|| {
            format!(
                "train.ema: without `warmup` the averaged weights, which are judged and handed out, hold {:.0} % of the weights that the \
                 run began with: a decay of {} is too long for {} steps",
                100.0 * kept,
                ema.decay,
                self.total_steps()
            )
        })
    }

    /// The constant part that the log leaves out.
    fn frozen_penalty(&self) -> Result<Option<String>> {
        let (params, groups) = self.session.groups_with_frozen()?;
        let state: BTreeMap<String, Tensor> = self.network.state().into_iter().collect();
        let (mut count, mut part) = (0, 0.0);
        for group in groups {
            let lambdas = group.lambdas(self.clock());
            let frozen =
                group.param_indices.iter().map(|&member| params[member]).filter(|param| param.frozen);
            let ws: Vec<&Tensor> = frozen.filter_map(|param| state.get(&param.name)).collect();
            if group.is_active() {
                count += ws.len();
                part += lambdas.value(&ws, self.peak() * group.lr)?.double_value(&[]);
            }
        }
        Ok((count > 0).then(|| {
            format!(
                "penalty: the part of {count} frozen tensors, {part:.4}, is constant and left out of the log"
            )
        }))
    }
}
