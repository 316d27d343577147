//! A trained run at work on one of its sets, for the commands that judge it.

use std::path::Path;

use anyhow::Result;

use super::{MachineOptions, WeightOptions};
use crate::data::{Dataset, Split};
use crate::inference::calibration::at_temperature;
use crate::inference::loaded_model::{LoadedModel, Weights};
use crate::metrics::{Scores, Thresholds, Wanted};
use crate::tasks::tta::Tta;
use crate::train::evaluate::{Judging, evaluate};
use crate::train::sample_images::SampleImages;
use crate::train::session::Session;
use crate::util::console::print_err;
use crate::util::exit_code::{ExitCode, WithExitCode};

pub(super) struct Judged {
    pub session: Session,
    pub weights: Weights,
    pub split: Split,
    /// That logits were divided by.
    pub temperature: Option<f64>,
    /// All that the task has.
    pub scores: Scores,
    pub gallery: SampleImages,
}

/// Which set of a run, and which of its keys are others.
pub(super) struct Request<'a> {
    pub run: &'a Path,
    pub weights: &'a WeightOptions,
    pub set: &'a [String],
    pub machine: &'a MachineOptions,
    /// The test set, or where there is none the validation set, when absent.
    pub split: Option<Split>,
    /// Whether the temperature that `calibrate` found is applied.
    pub calibrated: bool,
    /// The views of an image whose answers are averaged.
    pub tta: Tta,
    /// Pictures to take on the way.
    pub pictures: usize,
}

impl Judged {
    pub fn of(request: &Request) -> Result<Self> {
        let &Request { run, weights, set, machine, .. } = request;
        let trained = LoadedModel::open(run, set, machine.overrides(), &weights.choice())?;
        let LoadedModel { config, device, plan, weights, temperature } = trained;
        let temperature = temperature.filter(|_| request.calibrated);
        let data = &config.spec.data;
        let split = request.split.unwrap_or(match (&data.test, &data.validation) {
            (None, Some(_)) => {
                print_err!(
                    "{} has no test set: the scores are of the validation set, which may have chosen the weights",
                    run.display()
                );
                Split::Validation
            }
            _ => Split::Test,
        });
        config.validate_data(&[split])?;
        let session = Session::open_only(config, plan, device, split, weights.classes())?;
        let network = session.network()?;
        weights.load_into(&network)?;
        let set = session.split(split).with_exit_code(ExitCode::Usage, || {
            let data = &session.config.spec.data;
            let others = [("test", data.test.is_some()), ("validation", data.validation.is_some())];
            let other = others.iter().find(|(_, is_there)| *is_there).map_or("train", |(name, _)| name);
            format!("{} has no {} set; try --split {other}", run.display(), split.key())
        })?;
        for note in session.mask_notes(split.key(), set) {
            print_err!("{note}");
        }
        let loader = session.loader(set, false)?;
        let mut gallery = SampleImages::of(request.pictures).showing(&session.config.spec);
        let thresholds = at_temperature(weights.thresholds(), temperature);
        request.tta.check(&*session.task, loader.shape())?;
        let judging = Judging {
            wanted: Wanted::All,
            thresholds: Thresholds::Given(&thresholds),
            temperature,
            tta: request.tta,
        };
        let (task, output) = (&*session.task, session.model.output());
        let scores = evaluate(&network, task, output, &loader, &mut gallery, &judging)?;
        for note in &set.notes {
            print_err!("{}: {note}", split.key());
        }
        for skipped in &set.left_out() {
            print_err!("{}: {skipped}", split.key());
        }
        Ok(Self { session, weights, split, temperature, scores, gallery })
    }

    pub fn data(&self) -> Result<&Dataset> {
        self.session.split(self.split).with_exit_code(ExitCode::Data, || "the set is not open")
    }

    /// The names of the samples that were judged; empty where they have none.
    pub fn names(&self) -> Result<Vec<String>> {
        let set = self.data()?;
        Ok(self.scores.indices.iter().filter_map(|&index| set.name(index as usize)).collect())
    }
}
