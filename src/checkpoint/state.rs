//! What a run has to remember beside its tensors: `state.json`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::optim::ScalingState;
use crate::penalty::Tuned;

/// The version of this layout; a newer one is refused.
pub(super) const FORMAT: u32 = 1;

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
    /// The goal metric on the validation set at this point, where it was measured.
    pub score: Option<f64>,
    pub best: Option<Best>,
    /// The last validation result that early stopping counts as a gain.
    #[serde(default)]
    pub gain: Option<Best>,
    /// State of the learning-rate schedule that looks at the metric.
    pub plateau: serde_json::Value,
    /// The λs that the validation set tunes, and how they move.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tuned: Vec<Tuned>,
    /// By penalty group, what `decoupled_mode: accumulated` leaves of a weight and has not applied yet; empty where that is all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub decay: Vec<f64>,
    /// Steps of [`step`](Self::step) that changed nothing, because their float16 gradients overflowed.
    #[serde(default)]
    pub skipped: u64,
    /// The loss scale of `amp: fp16`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scaling: Option<ScalingState>,
    /// What the data was, so that a resume on other data is refused.
    pub data_fingerprint: String,
    /// The parameters under a soft threshold, whose averages have the zeros of the weights; empty without an average.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sparse: Vec<String>,
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
    pub value: f64,
    pub epoch: u64,
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
            best: None,
            gain: None,
            plateau: serde_json::Value::Null,
            tuned: Vec::new(),
            decay: Vec::new(),
            skipped: 0,
            scaling: None,
            data_fingerprint,
            sparse: Vec::new(),
            classes: Vec::new(),
            features: Vec::new(),
            config: serde_json::Value::Null,
            files: BTreeMap::new(),
            pieces: BTreeMap::new(),
        }
    }
}
