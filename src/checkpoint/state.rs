//! What a run has to remember beside its tensors: `state.json`.
//!
//! Its first line holds the SHA-256 of the file without that line, so that a flipped bit is found there as in
//! the tensors.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::data::JPEG_PIXELS;
use crate::optim::ScalingState;
use crate::penalty::TunedLambda;
use crate::util::sha256;

/// The version of this layout; a newer one is refused. Since 2 state.json holds a sum of itself.
pub(super) const FORMAT: u32 = 2;

/// Everything that a run needs to go on, tensors apart.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct State {
    pub format: u32,
    /// The version of tikhonov that wrote it.
    pub version: String,
    /// Optimiser steps taken, the skipped ones included.
    pub step: u64,
    /// Epochs finished.
    pub epoch: u64,
    /// Batches of the unfinished epoch that are already learnt.
    pub batch: usize,
    /// Sums over the unfinished epoch: data loss × samples, and samples.
    pub loss_sum: f64,
    pub samples: u64,
    /// Seconds of training so far, pauses apart.
    pub seconds: f64,
    /// The monitored score on the validation set at this point, where it was measured.
    pub score: Option<f64>,
    /// By class, the probability from which on the class is found, as the validation set chose it; empty where it
    /// did not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub thresholds: Vec<f64>,
    pub best: Option<Best>,
    /// The last validation result that early stopping counts as a gain.
    #[serde(default)]
    pub gain: Option<Best>,
    /// State of the learning-rate schedule that looks at the metric.
    pub plateau: serde_json::Value,
    /// The λs that the validation set tunes, and how they move.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tuned: Vec<TunedLambda>,
    /// By penalty group, what `decoupled_mode: accumulated` leaves of a weight and has not applied yet; empty
    /// where that is all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub decay: Vec<f64>,
    /// Steps of [`step`](Self::step) that changed nothing, because their float16 gradients overflowed.
    #[serde(default)]
    pub skipped: u64,
    /// The loss scale of `amp: fp16`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scaling: Option<ScalingState>,
    /// What the training data was, so that a resume on other data is refused.
    pub data_fingerprint: String,
    /// The parameters under a soft threshold, whose averages have the zeros of the weights; empty without an
    /// average.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sparse: Vec<String>,
    /// The same of every set, by its key; empty in checkpoints of layout 1.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub fingerprints: BTreeMap<String, String>,
    /// [`JPEG_PIXELS`] of the program that wrote it; 0 in checkpoints from before that was counted.
    #[serde(default)]
    pub jpeg_pixels: u32,
    /// CPU threads of one operation: sums of another number of threads are added in another order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
    /// Processes that shared the run.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub ranks: usize,
    /// Names of the classes, empty for regression.
    pub classes: Vec<String>,
    /// Names of a table's columns, empty for images.
    #[serde(default)]
    pub features: Vec<String>,
    /// The resolved config.
    pub config: serde_json::Value,
    /// SHA-256 of each tensor file.
    #[serde(default)]
    pub files: BTreeMap<String, String>,
    /// SHA-256 of every 8 MiB of it, by which it is verified where they are there: all cores can.
    #[serde(default)]
    pub pieces: BTreeMap<String, Vec<String>>,
}

/// A validation result, and when it was reached.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Best {
    pub metric: String,
    /// Absent in checkpoints of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub higher_is_better: Option<bool>,
    pub value: f64,
    pub epoch: u64,
    /// The step, where that was within the epoch after `epoch`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub within: Option<u64>,
}

impl Best {
    /// The name of the checkpoint of that moment.
    pub fn checkpoint(&self) -> String {
        match self.within {
            None => format!("epoch-{:04}", self.epoch),
            Some(step) => format!("step-{step:08}"),
        }
    }

    /// Whether it was reached at the moment of `state`.
    pub fn is_at(&self, state: &State) -> bool {
        self.epoch == state.epoch && self.within == (state.batch > 0).then_some(state.step)
    }
}

fn one() -> usize {
    1
}

fn is_one(ranks: &usize) -> bool {
    *ranks == 1
}

impl State {
    /// The state before the first step.
    pub fn new(data_fingerprint: String) -> Self {
        Self {
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION").into(),
            step: 0,
            epoch: 0,
            batch: 0,
            loss_sum: 0.0,
            samples: 0,
            seconds: 0.0,
            score: None,
            thresholds: Vec::new(),
            best: None,
            gain: None,
            plateau: serde_json::Value::Null,
            tuned: Vec::new(),
            decay: Vec::new(),
            skipped: 0,
            scaling: None,
            data_fingerprint,
            sparse: Vec::new(),
            fingerprints: BTreeMap::new(),
            jpeg_pixels: JPEG_PIXELS,
            threads: None,
            ranks: 1,
            classes: Vec::new(),
            features: Vec::new(),
            config: serde_json::Value::Null,
            files: BTreeMap::new(),
            pieces: BTreeMap::new(),
        }
    }
}

/// The text before the digits of the sum, and after them.
const OPENING: &str = "{\n  \"sha256\": \"";
const CLOSING: &str = "\",\n";

/// A layout that only a newer version of the program knows.
#[derive(Debug)]
pub(super) struct Newer {
    format: u32,
    version: String,
    /// Whether it has a sum in the place where layout 2 has it, and another one.
    is_suspect: bool,
}

impl fmt::Display for Newer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { format, version, is_suspect } = self;
        write!(
            f,
            "it has layout {format} and this program, tikhonov {}, knows up to {FORMAT}; it was written by tikhonov \
             {version}, use that version or a newer one",
            env!("CARGO_PKG_VERSION")
        )?;
        if *is_suspect {
            f.write_str(
                ". Its SHA-256 is not the one in it: if no newer version wrote it, it is damaged; remove its folder to \
                 use the checkpoint before it",
            )?;
        }
        Ok(())
    }
}

impl std::error::Error for Newer {}

/// What every layout has.
#[derive(Deserialize)]
struct Head {
    format: u32,
    #[serde(default)]
    version: String,
}

impl State {
    /// `state.json` as it is written.
    pub(super) fn to_file(&self) -> Result<Vec<u8>> {
        let plain = serde_json::to_string_pretty(self)?;
        let rest = plain.strip_prefix("{\n").context("the state is no object")?;
        let sum = sha256::of_bytes(plain.as_bytes());
        Ok([OPENING, &sum, CLOSING, rest].concat().into_bytes())
    }

    /// The state of a `state.json`; refuses one of a newer layout ([`Newer`]), one whose sum is wrong, and
    /// numbers that cannot be.
    pub(super) fn of_file(bytes: &[u8]) -> Result<Self> {
        const DAMAGED: &str = "state.json is damaged";
        let head: Head = serde_json::from_slice(bytes).context(DAMAGED)?;
        let is_whole = summed(bytes).map(|(sum, plain)| sum == sha256::of_bytes(&plain));
        if head.format > FORMAT {
            let is_suspect = is_whole == Some(false);
            bail!(Newer { format: head.format, version: head.version, is_suspect });
        }
        match is_whole {
            Some(is_whole) => ensure!(is_whole, "{DAMAGED}: its SHA-256 is not the one in it"),
            None => ensure!(head.format == 1, "{DAMAGED}: layout {} has a SHA-256 of itself", head.format),
        }
        let state: Self = serde_json::from_slice(bytes).context(DAMAGED)?;
        state.is_possible().context(DAMAGED)?;
        Ok(state)
    }

    /// What holds for every state, whatever the config.
    fn is_possible(&self) -> Result<()> {
        let Self { step, epoch, skipped, .. } = self;
        ensure!(self.format >= 1, "there is no layout 0");
        ensure!(skipped <= step, "{skipped} of {step} steps were skipped");
        ensure!(epoch <= step, "{epoch} epochs in {step} steps");
        let epochs = self.config.pointer("/train/epochs").and_then(serde_json::Value::as_u64);
        ensure!(epochs.is_none_or(|epochs| *epoch <= epochs), "it is after epoch {epoch} of {epochs:?}");
        for best in [&self.best, &self.gain].into_iter().flatten() {
            ensure!(best.epoch <= *epoch, "the best epoch is {} of {epoch}", best.epoch);
        }
        Ok(())
    }

    /// Whether its numbers are covered by a sum.
    pub fn is_summed(&self) -> bool {
        self.format > 1
    }
}

/// The sum that a file tells, and the bytes that it is of; None where it tells none.
fn summed(bytes: &[u8]) -> Option<(&str, Vec<u8>)> {
    let after = bytes.strip_prefix(OPENING.as_bytes())?;
    let (sum, rest) = after.split_at_checked(64)?;
    let rest = rest.strip_prefix(CLOSING.as_bytes())?;
    Some((std::str::from_utf8(sum).ok()?, [b"{\n", rest].concat()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_of_a_state_is_found() {
        let mut state = State::new("data".into());
        (state.step, state.epoch, state.batch, state.loss_sum) = (12, 1, 4, 0.1);
        state.config = serde_json::json!({"train": {"epochs": 3}, "model": {"sha256": "x"}});
        let file = state.to_file().unwrap();
        assert_eq!(State::of_file(&file).unwrap().step, 12);
        for at in 0..8 * file.len() {
            let mut flipped = file.clone();
            flipped[at / 8] ^= 1 << (at % 8);
            assert!(State::of_file(&flipped).is_err(), "bit {at}");
        }
    }

    #[test]
    fn a_state_without_a_sum_is_of_layout_1_and_its_numbers_are_possible() {
        let mut state = State::new("data".into());
        (state.format, state.step, state.epoch) = (1, 12, 1);
        state.config = serde_json::json!({"train": {"epochs": 3}});
        let file = |state: &State| serde_json::to_vec_pretty(state).unwrap();
        assert!(!State::of_file(&file(&state)).unwrap().is_summed());
        let changes: [fn(&mut State); 6] = [
            |state| state.format = 0,
            |state| state.format = 2,
            |state| state.format = 3,
            |state| state.epoch = 4,
            |state| state.skipped = 1_000_000,
            |state| {
                state.best = Some(Best {
                    metric: "loss".into(),
                    higher_is_better: None,
                    value: 0.0,
                    epoch: 2,
                    within: None,
                })
            },
        ];
        for change in changes {
            let mut other = state.clone();
            change(&mut other);
            assert!(State::of_file(&file(&other)).is_err(), "{other:?}");
        }
    }
}
