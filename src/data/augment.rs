//! Augmentation: random changes to training images.

use serde::{Deserialize, Serialize};

/// One step of the augmentation.
#[derive(Deserialize, Serialize, Clone, Debug)]
#[serde(rename_all = "snake_case")]
pub enum Augment {}

impl Augment {
    /// Whether the step crops the image as it was before it was resized, so that the files must be kept.
    pub fn needs_original(&self) -> bool {
        match *self {}
    }
}
