//! Random views from the side: torchvision's `RandomPerspective`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::values::{chance, half, probability};
use super::warp::{Interpolation, Places};
use super::{Augmentation, ChangesLevels, Levels};
use crate::util::rng::CounterRng;
use crate::util::yaml::Invalid;

/// Pulls the corners inwards, each by up to `distortion_scale` of half a side; masks and images that are
/// targets move with the image.
#[derive(Deserialize, Serialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Perspective {
    /// The largest move of a corner, as a share of half the side.
    #[serde(default = "half")]
    #[schemars(range(min = 0, max = 1))]
    pub distortion_scale: f64,
    #[serde(default = "Interpolation::bilinear")]
    pub interpolation: Interpolation,
    /// The grey level of what comes into view; ignored in masks.
    #[serde(default)]
    pub fill: u8,
    /// Probability.
    #[serde(default = "half")]
    #[schemars(range(min = 0, max = 1))]
    pub p: f64,
}

impl Augmentation for Perspective {
    fn validate(&self) -> Result<(), Invalid> {
        probability("distortion_scale", self.distortion_scale)?;
        probability("p", self.p)
    }

    fn num_params(&self) -> usize {
        9
    }

    /// Whether it happens, then x and y of where the corners go: upper left, upper right, lower right, lower
    /// left.
    fn sample(&self, [height, width]: [usize; 2], rng: &mut CounterRng, params: &mut Vec<f64>) {
        params.push(chance(self.p, rng));
        let most = |side: usize| (self.distortion_scale * (side / 2) as f64) as u64 + 1;
        let mut near = |side: usize| rng.below(most(side)) as f64;
        let far = |side: usize, inwards: f64| side as f64 - 1.0 - inwards;
        let upper_left = [near(width), near(height)];
        let upper_right = [far(width, near(width)), near(height)];
        let lower_right = [far(width, near(width)), far(height, near(height))];
        let lower_left = [near(width), far(height, near(height))];
        params.extend([upper_left, upper_right, lower_right, lower_left].as_flattened());
    }
}

impl ChangesLevels for Perspective {
    fn apply(&self, levels: &mut Levels, params: &[f64]) {
        let Some((&happens, corners)) = params.split_first() else { return };
        let (right, bottom) = (levels.width as f64 - 1.0, levels.height as f64 - 1.0);
        let from = [[0.0, 0.0], [right, 0.0], [right, bottom], [0.0, bottom]];
        if happens > 0.5
            && let Some(coefficients) = coefficients(from, corners)
        {
            let places = Places::perspective(coefficients, [levels.height, levels.width]);
            places.warp(levels, self.interpolation, self.fill);
        }
    }
}

/// The map that takes each of the corners `to`, x and y of four points, back to `from`: torchvision's
/// `_get_perspective_coeffs`, by elimination with pivots. None where the corners make no quadrangle.
fn coefficients(from: [[f64; 2]; 4], to: &[f64]) -> Option<[f64; 8]> {
    let mut rows = [[0.0; 9]; 8];
    for ((&[u, v], to), rows) in from.iter().zip(to.as_chunks::<2>().0).zip(rows.as_chunks_mut::<2>().0) {
        let &[x, y] = to;
        rows[0] = [x, y, 1.0, 0.0, 0.0, 0.0, -u * x, -u * y, u];
        rows[1] = [0.0, 0.0, 0.0, x, y, 1.0, -v * x, -v * y, v];
    }
    for column in 0..8 {
        let pivot = (column..8).max_by(|&a, &b| rows[a][column].abs().total_cmp(&rows[b][column].abs()))?;
        rows.swap(column, pivot);
        let top = rows[column];
        if top[column].abs() < 1e-12 {
            return None;
        }
        for (_, row) in rows.iter_mut().enumerate().filter(|(at, _)| *at != column) {
            let factor = row[column] / top[column];
            for (value, above) in row.iter_mut().zip(top) {
                *value -= factor * above;
            }
        }
    }
    Some(std::array::from_fn(|n| rows[n][8] / rows[n][n]))
}
