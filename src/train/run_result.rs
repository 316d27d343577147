//! What a finished run has to show: the scores of its last weights and of its best.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use anyhow::Result;
use serde::Serialize;
use serde_json::{Value, json};

use crate::data::{Skipped, Split};
use crate::metrics::Scores;
use crate::train::coefficients::Coefficients;
use crate::train::evaluate::{Judging, evaluate};
use crate::train::sample_images::SampleImages;
use crate::train::session::Session;
use crate::train::trainer::Trainer;
use crate::train::training_loop::StopReason;

/// `result.json`.
#[derive(Clone, Debug, Serialize)]
pub struct RunResult {
    pub folder: PathBuf,
    pub epochs: u64,
    pub steps: u64,
    /// Training time, evaluation and pauses apart.
    pub seconds: f64,
    pub stopped_early: bool,
    /// Whether the weights that are judged are averaged ones.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub averaged: bool,
    pub last: Weights,
    /// Where a validation set chose them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub best: Option<Weights>,
    /// Of a linear model; they have a file of their own.
    #[serde(skip)]
    pub coefficients: Option<Coefficients>,
    /// The samples that could not be read and were left out, by the set that they are missing in.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub skipped: BTreeMap<&'static str, Vec<Skipped>>,
}

/// One set of weights and how it does.
#[derive(Clone, Debug, Serialize)]
pub struct Weights {
    /// Epochs that were over.
    pub epoch: u64,
    /// The step, where that is within the epoch after.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation: Option<Scores>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test: Option<Scores>,
}

/// Evaluates the last weights, and the best where there was a validation set to choose by.
pub fn final_evaluation(session: &Session, run: &Trainer, ended: StopReason) -> Result<RunResult> {
    let (state, seconds) = (run.state(), run.seconds());
    let last = Weights {
        epoch: state.epoch,
        step: (state.batch > 0).then_some(state.step),
        validation: run.scores(Split::Validation)?,
        test: run.scores(Split::Test)?,
    };
    let best = match &state.best {
        Some(best) if best.is_at(state) => Some(last.clone()),
        Some(best) => {
            let loaded = session.checkpoints().named("best")?;
            let network = session.trained(&loaded)?;
            let judging = Judging::new(&session.wanted, &loaded.state.thresholds);
            let score = |split| -> Result<Option<Scores>> {
                let Some(set) = session.split(split) else { return Ok(None) };
                let loader = session.loader(set, false)?;
                let mut none = SampleImages::default();
                let output = session.model.output();
                evaluate(&network, &*session.task, output, &loader, &mut none, &judging).map(Some)
            };
            let (validation, test) = (score(Split::Validation)?, score(Split::Test)?);
            Some(Weights { epoch: best.epoch, step: best.within, validation, test })
        }
        None => None,
    };
    Ok(RunResult {
        folder: session.config.spec.output.clone(),
        epochs: state.epoch,
        steps: state.step,
        seconds,
        stopped_early: ended == StopReason::EarlyStopped,
        averaged: session.config.spec.train.ema.is_some() || session.config.spec.optimizer.averages(),
        last,
        best,
        coefficients: None,
        skipped: session.left_out().into_iter().filter(|(_, left_out)| !left_out.is_empty()).collect(),
    })
}

impl RunResult {
    /// `confusion.json`: which class is taken for which, by the last weights and the best. None without
    /// classes.
    pub fn confusion(&self, classes: &[String]) -> Option<Value> {
        let report = |scores: &Option<Scores>| scores.as_ref()?.report.clone();
        let of = |weights: &Weights| {
            let (validation, test) = (report(&weights.validation), report(&weights.test));
            (validation.is_some() || test.is_some())
                .then(|| json!({"epoch": weights.epoch, "validation": validation, "test": test}))
        };
        let last = of(&self.last)?;
        Some(json!({"classes": classes, "last": last, "best": self.best.as_ref().and_then(of)}))
    }
}

impl fmt::Display for RunResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = if self.stopped_early { ", stopped early" } else { "" };
        let counted = |count: u64, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
        let (epochs, steps) = (counted(self.epochs, "epoch"), counted(self.steps, "step"));
        writeln!(f, "{epochs}, {steps}, {:.1} s of training{how}", self.seconds)?;
        for (name, weights) in [("last", Some(&self.last)), ("best", self.best.as_ref())] {
            let Some(weights) = weights else { continue };
            for (split, scores) in [("validation", &weights.validation), ("test", &weights.test)] {
                let Some(scores) = scores else { continue };
                let shown: Vec<_> =
                    scores.named().map(|(name, value)| format!("{name} {value:.4}")).collect();
                let averaged = if self.averaged { ", averaged weights" } else { "" };
                let when = weights
                    .step
                    .map_or_else(|| format!("epoch {}", weights.epoch), |step| format!("step {step}"));
                writeln!(f, "{name} ({when}{averaged}) {split}: {}", shown.join(", "))?;
            }
        }
        if let Some(coefficients) = &self.coefficients {
            write!(f, "{coefficients}")?;
        }
        for (split, skipped) in &self.skipped {
            writeln!(
                f,
                "{split}: {} left out, as log.txt and result.json name them",
                counted(skipped.len() as u64, "file")
            )?;
        }
        write!(f, "saved in {}", self.folder.display())
    }
}
