//! Smoothing of images before training: Gaussian, box or median.

use serde::{Deserialize, Serialize};

/// A filter that every image of every set passes through once, at its final size.
#[derive(Deserialize, Serialize, Clone, Copy, Debug, PartialEq)]
#[serde(rename_all = "snake_case")]
pub enum SmoothSpec {
    Gaussian(Gaussian),
    Box(Window),
    Median(Window),
}

/// A Gaussian of standard deviation `sigma` pixels.
#[derive(Deserialize, Serialize, Clone, Copy, Debug, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Gaussian {
    pub sigma: f64,
}

/// A window of `size × size` pixels, `size` odd.
#[derive(Deserialize, Serialize, Clone, Copy, Debug, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Window {
    pub size: usize,
}
