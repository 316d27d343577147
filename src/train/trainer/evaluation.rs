//! What a run knows of its evaluation sets: the scores of its weights, and what they say about going on.

use anyhow::Result;

use super::Trainer;
use crate::config::EvalEvery;
use crate::data::Split;
use crate::libtorch::device;
use crate::metrics::{Scores, Thresholds};
use crate::nn::model::Network;
use crate::optim::keep_zeros;
use crate::train::early_stopping;
use crate::train::evaluate::{Judging, evaluate};
use crate::train::sample_images::SampleImages;
use crate::util::exit_code::{self, ExitCode, fail};

impl Trainer<'_> {
    /// The scores of the weights that the run would hand out: the averaged ones where there are any.
    pub fn scores(&self, split: Split) -> Result<Option<Scores>> {
        let known = match (&self.latest, split) {
            (Some([validation, _]), Split::Validation) => validation.clone(),
            (Some([_, test]), Split::Test) => test.clone(),
            _ => None,
        };
        if known.is_some() {
            return Ok(known);
        }
        if self.session.split(split).is_none() {
            return Ok(None);
        }
        let Some(ranks) = self.ranks() else { return self.evaluate(split) };
        // Rank 0 judges, so that all decide by the same numbers. JSON has neither NaN nor infinity.
        let mut own = None;
        let values = ranks.first(|| {
            own = self.evaluate(split)?;
            let values = own.iter().flat_map(|scores| &scores.values);
            Ok(values.map(|(name, value)| (name.clone(), value.to_bits())).collect::<Vec<_>>())
        })?;
        let values = values.into_iter().map(|(name, bits)| (name, f64::from_bits(bits))).collect();
        Ok(own.or(Some(Scores { values, ..Scores::default() })))
    }

    fn evaluate(&self, split: Split) -> Result<Option<Scores>> {
        let Some(set) = self.session.split(split) else { return Ok(None) };
        let network = self.judged()?;
        let loader = self.session.loader(set, false)?;
        let is_watched = split == Split::Validation || self.session.split(Split::Validation).is_none();
        let spec = &self.session.config.spec;
        let mut gallery = SampleImages::of(if is_watched { spec.train.pictures } else { 0 }).showing(spec);
        // Images of any size would be tried and timed one by one.
        device::autotune(false);
        let mut judging = Judging::new(&self.session.wanted, &self.state.thresholds);
        if split == Split::Validation {
            judging.thresholds = Thresholds::Best;
        }
        let output = self.session.model.output();
        let scores = evaluate(network, &*self.session.task, output, &loader, &mut gallery, &judging);
        device::autotune(self.session.config.spec.train.is_benchmarked());
        let scores = scores.map_err(|error| match exit_code::code(&error) == ExitCode::Numeric as u8 {
            true => {
                let name = format!("{split:?}").to_lowercase();
                let message = format!("{name} set, epoch {}: {error:#}; {}", self.state.epoch, self.remedy());
                fail(ExitCode::Numeric, message)
            }
            false => error,
        })?;
        let when = match spec.train.eval_every {
            EvalEvery::Steps(_) => format!("step-{:08}", self.state.step),
            EvalEvery::Epochs(_) => format!("epoch-{:04}", self.state.epoch),
        };
        gallery.save(&self.folder.path().join("pictures"), &when)?;
        Ok(Some(scores))
    }

    /// The scores (validation, test) of this moment where it is `due`, and the thresholds that the validation
    /// set chose.
    pub(super) fn judge(&mut self, due: bool) -> Result<[Option<Scores>; 2]> {
        self.state.thresholds.clear();
        let validation = if due { self.scores(Split::Validation)? } else { None };
        if let Some(scores) = &validation {
            self.state.thresholds.clone_from(&scores.thresholds);
        }
        // The test set is looked at on the way only where nothing is decided by looking.
        let test_due = due && (validation.is_none() || self.is_over());
        Ok([validation, if test_due { self.scores(Split::Test)? } else { None }])
    }

    /// The network with the weights that the run would hand out.
    pub(super) fn judged(&self) -> Result<&Network> {
        let Some((ema, network)) = &self.averaged else { return Ok(&self.network) };
        let mut weights = ema.weights();
        keep_zeros(&mut weights, &self.state.sparse, |name| {
            self.network.parameters().iter().find(|own| own.name == name).map(|own| &own.tensor)
        });
        network.load_state(&weights)?;
        Ok(network)
    }

    /// The scores on the validation set, between two epochs of which the first has ended with an evaluation.
    pub fn latest_validation(&self) -> Result<Option<Scores>> {
        if self.state.score.is_some() { self.scores(Split::Validation) } else { Ok(None) }
    }

    pub fn should_stop(&self) -> bool {
        early_stopping::should_stop(&self.state, &self.session.config.spec.train)
    }
}
