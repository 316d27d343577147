//! Images whose pixels come from computed places: torchvision's grids, sampled as by
//! `torch.nn.functional.grid_sample` with zeros outside, in the same float32 arithmetic.

use multiversion::multiversion;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::levels::{Levels, OwnTarget};
use crate::data::mask::IGNORED;

/// How a pixel is read between four. Masks are always read by `nearest`.
#[derive(Deserialize, Serialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "WarpInterpolation")]
pub enum Interpolation {
    #[default]
    Nearest,
    Bilinear,
}

impl Interpolation {
    pub fn bilinear() -> Self {
        Self::Bilinear
    }
}

/// Where the pixels of a warped image come from, in pixels from the middle of the first one.
pub(super) struct Places {
    x: Vec<f32>,
    y: Vec<f32>,
}

/// The inverse of an affine map about the centre of the image: torchvision's `_get_inverse_affine_matrix`.
/// Angles in degrees; `centre` and `translate` in pixels, x first, the former from the middle of the image.
pub(super) fn inverse_affine(
    centre: [f64; 2],
    angle: f64,
    translate: [f64; 2],
    scale: f64,
    shear: [f64; 2],
) -> [f64; 6] {
    let (rotation, sx, sy) = (angle.to_radians(), shear[0].to_radians(), shear[1].to_radians());
    let (a, c) = ((rotation - sy).cos() / sy.cos(), (rotation - sy).sin() / sy.cos());
    let b = -(a * sx.tan() + rotation.sin());
    let d = rotation.cos() - c * sx.tan();
    let [cx, cy] = centre;
    let (to_x, to_y) = (cx + translate[0], cy + translate[1]);
    let (m0, m1, m3, m4) = (d / scale, -b / scale, -c / scale, a / scale);
    [m0, m1, cx - m0 * to_x - m1 * to_y, m3, m4, cy - m3 * to_x - m4 * to_y]
}

impl Places {
    /// By the inverse map `matrix`, in pixels from the middle of the image.
    pub fn affine(matrix: [f64; 6], [height, width]: [usize; 2]) -> Self {
        let half = [0.5 * width as f64, 0.5 * height as f64].map(|half| half as f32);
        let theta = |row: usize| [0, 1, 2].map(|column| matrix[3 * row + column] as f32 / half[row]);
        let start = [(1.0 - width as f64) * 0.5, (1.0 - height as f64) * 0.5].map(|start| start as f32);
        let axis = |row| line(theta(row), start, [height, width], half[row]);
        Self { x: axis(0), y: axis(1) }
    }

    /// By the eight coefficients of a perspective map, in pixels from the upper left corner.
    pub fn perspective(coefficients: [f64; 8], [height, width]: [usize; 2]) -> Self {
        let c = coefficients.map(|coefficient| coefficient as f32);
        let half = [0.5 * width as f64, 0.5 * height as f64].map(|half| half as f32);
        let axis = |row: usize| {
            let theta = [0, 1, 2].map(|column| c[3 * row + column] / half[row]);
            let mut places = Vec::with_capacity(height * width);
            for y in (0..height).map(|y| y as f32 + 0.5) {
                places.extend((0..width).map(|x| {
                    let x = x as f32 + 0.5;
                    let above = x * theta[0] + y * theta[1] + theta[2];
                    let below = x * c[6] + y * c[7] + 1.0;
                    (above / below - 1.0 + 1.0) * half[row] - 0.5
                }));
            }
            places
        };
        Self { x: axis(0), y: axis(1) }
    }

    /// Moves the image and its target: outside of the image there is `fill`; outside of a mask, what is ignored.
    pub fn warp(&self, levels: &mut Levels, interpolation: Interpolation, fill: u8) {
        let (sides, plane) = ([levels.height, levels.width], (levels.height * levels.width).max(1));
        let last = (levels.data.len() / plane).saturating_sub(1);
        let is_mask = levels.target == OwnTarget::Mask;
        let nearest = (is_mask || interpolation == Interpolation::Nearest).then(|| self.nearest(sides));
        let mut out = vec![0; levels.data.len()];
        let planes = levels.data.chunks_exact(plane).zip(out.chunks_exact_mut(plane)).enumerate();
        for (channel, (from, to)) in planes {
            let of_mask = is_mask && channel == last;
            match &nearest {
                Some(nearest) if of_mask || interpolation == Interpolation::Nearest => {
                    let fill = if of_mask { IGNORED } else { fill };
                    for (&at, to) in nearest.iter().zip(to) {
                        *to = from.get(at as usize).copied().unwrap_or(fill);
                    }
                }
                _ => bilinear(&self.x, &self.y, from, to, sides, f32::from(fill)),
            }
        }
        levels.data = out;
    }

    /// The index of each pixel's source in its plane; outside of the image one beyond any plane.
    fn nearest(&self, [height, width]: [usize; 2]) -> Vec<u32> {
        let inside = |at: f32, len: usize| at >= 0.0 && at < len as f32;
        let index = |(&x, &y): (&f32, &f32)| {
            let (x, y) = (x.round_ties_even(), y.round_ties_even());
            if inside(x, width) && inside(y, height) {
                (y as usize * width + x as usize) as u32
            } else {
                u32::MAX
            }
        };
        self.x.iter().zip(&self.y).map(index).collect()
    }
}

/// One coordinate of every pixel's source, in torchvision's order of operations: from the normalised
/// coordinate of the grid to pixels.
#[multiversion(targets("x86_64+avx2"))]
fn line(theta: [f32; 3], start: [f32; 2], sides: [usize; 2], half: f32) -> Vec<f32> {
    let [height, width] = sides;
    let mut places = Vec::with_capacity(height * width);
    for y in 0..height {
        let y = (start[1] + y as f32) * theta[1];
        places.extend((0..width).map(|x| {
            let at = (start[0] + x as f32) * theta[0] + y + theta[2];
            (at + 1.0) * half - 0.5
        }));
    }
    places
}

fn bilinear(xs: &[f32], ys: &[f32], from: &[u8], to: &mut [u8], [height, width]: [usize; 2], fill: f32) {
    for ((&x, &y), to) in xs.iter().zip(ys).zip(to) {
        let (left, top) = (x.floor(), y.floor());
        let (east, south) = (x - left, y - top);
        let (west, north) = (1.0 - east, 1.0 - south);
        let (mut value, mut weight) = (0.0, 0.0);
        let corners = [
            (left, top, north * west),
            (left + 1.0, top, north * east),
            (left, top + 1.0, south * west),
            (left + 1.0, top + 1.0, south * east),
        ];
        for (x, y, share) in corners {
            if x >= 0.0 && y >= 0.0 && x < width as f32 && y < height as f32 {
                value += f32::from(from[y as usize * width + x as usize]) * share;
                weight += share;
            }
        }
        // torchvision weighs the border twice.
        *to = ((value - fill) * weight + fill).round_ties_even().clamp(0.0, 255.0) as u8;
    }
}
