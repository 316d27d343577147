//! The `data:` section of a run config.

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::Sets;
use super::augment::Augment;
use super::normalize::NormalizeSpec;
use super::smooth::SmoothSpec;
use crate::exit::{Exit, fail};
use crate::yaml::Invalid;

/// The `data:` section: where the samples come from and how they are prepared.
#[derive(Deserialize, Serialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct DataSpec {
    pub train: SourceSpec,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation: Option<ValidationSpec>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test: Option<SourceSpec>,
    #[serde(default = "default_batch_size")]
    pub batch_size: usize,
    #[serde(default)]
    pub normalize: NormalizeSpec,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub smooth: Option<SmoothSpec>,
    #[serde(default)]
    pub augment: Vec<Augment>,
    /// Threads that decode and augment while the network computes.
    #[serde(default = "default_workers")]
    pub workers: usize,
    /// A folder whose decoded images need no more than this is decoded once and kept in memory.
    #[serde(default = "default_memory_gib")]
    pub memory_gib: f64,
    /// The share of a folder's files that may be undecodable, in [0, 1]. One file is always forgiven where
    /// this is above 0.
    #[serde(default = "default_max_skipped")]
    pub max_skipped: f64,
}

fn default_batch_size() -> usize {
    128
}

fn default_workers() -> usize {
    2
}

fn default_memory_gib() -> f64 {
    2.0
}

fn default_max_skipped() -> f64 {
    0.01
}

/// Where the samples of one set come from.
#[derive(Deserialize, Serialize, Clone, Debug)]
#[serde(rename_all = "snake_case")]
pub enum SourceSpec {}

/// Where the validation set comes from: a share of the training set, or a source of its own.
#[derive(Deserialize, Serialize, Clone, Debug)]
#[serde(rename_all = "snake_case")]
pub enum ValidationSpec {
    /// This share of the training samples, in (0, 1), drawn by the seed, class by class.
    Fraction(f64),
}

impl DataSpec {
    /// Checks values and that the declared files exist.
    pub fn validate(&self) -> Result<(), Invalid> {
        Ok(())
    }

    /// Reads the sets. `seed` decides the split and the generated samples.
    pub fn open(&self, _seed: u64) -> Result<Sets> {
        Err(fail(Exit::Data, "sources are not there yet"))
    }
}
