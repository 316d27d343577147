//! Normalisation: pixel values to zero mean and unit deviation per channel.

use serde::{Deserialize, Serialize};

/// How samples are normalised.
#[derive(Deserialize, Serialize, Clone, Debug, Default)]
#[serde(rename_all = "snake_case")]
pub enum NormalizeSpec {
    #[default]
    Auto,
    None,
}
