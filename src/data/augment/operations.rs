//! The operations that `rand_augment` and `trivial_augment_wide` draw from, in torchvision's order and with its
//! magnitudes.

use super::Levels;
use super::adjust_sharpness::adjust_sharpness;
use super::autocontrast::autocontrast;
use super::equalize::equalize;
use super::levels::{blend, luma};
use super::posterize::posterize;
use super::solarize::solarize;
use super::warp::{Interpolation, Places, inverse_affine};
use crate::util::rng::CounterRng;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Identity,
    ShearX,
    ShearY,
    TranslateX,
    TranslateY,
    Rotate,
    Brightness,
    Color,
    Contrast,
    Sharpness,
    Posterize,
    Solarize,
    AutoContrast,
    Equalize,
}

use Operation::{
    AutoContrast, Brightness, Color, Contrast, Equalize, Identity, Posterize, Rotate, Sharpness, ShearX,
    ShearY, Solarize, TranslateX, TranslateY,
};

pub(super) const SPACE: [Operation; 14] = [
    Identity,
    ShearX,
    ShearY,
    TranslateX,
    TranslateY,
    Rotate,
    Brightness,
    Color,
    Contrast,
    Sharpness,
    Posterize,
    Solarize,
    AutoContrast,
    Equalize,
];

/// The largest magnitude of each kind.
pub(super) struct Magnitudes {
    /// Tangent of the angle.
    pub shear: f64,
    /// Pixels across and down.
    pub shift: [f64; 2],
    /// Degrees.
    pub rotate: f64,
    /// Change of a factor of brightness, colour, contrast and sharpness.
    pub colour: f64,
    /// Bits that are lost.
    pub posterize: f64,
}

/// A place on the scale from 0 to the largest magnitude: bin `bin` of `bins`.
#[derive(Clone, Copy)]
pub(super) struct Place {
    bin: usize,
    bins: usize,
}

pub(super) fn linspace(bin: usize, bins: usize) -> Place {
    Place { bin, bins }
}

impl Place {
    /// `torch.linspace(start, end, bins)[bin]`, in float32 from whichever end is nearer.
    fn between(self, start: f64, end: f64) -> f64 {
        let Self { bin, bins } = self;
        let (start, end) = (start as f32, end as f32);
        let step = (end - start) / (bins - 1) as f32;
        let at =
            if bin < bins / 2 { start + step * bin as f32 } else { end - step * (bins - 1 - bin) as f32 };
        at.into()
    }
}

/// The magnitude of `operation` at `place`; a direction is drawn where it has two. One random number in any
/// case, so that an operation changes no draw but its own.
pub(super) fn sampled(operation: Operation, most: &Magnitudes, place: Place, rng: &mut CounterRng) -> f64 {
    let sign = if rng.uniform() < 0.5 { -1.0 } else { 1.0 };
    match operation {
        Identity | AutoContrast | Equalize => 0.0,
        ShearX | ShearY => sign * place.between(0.0, most.shear),
        TranslateX => sign * place.between(0.0, most.shift[0]),
        TranslateY => sign * place.between(0.0, most.shift[1]),
        Rotate => sign * place.between(0.0, most.rotate),
        Brightness | Color | Contrast | Sharpness => sign * place.between(0.0, most.colour),
        Posterize => {
            let lost = place.bin as f32 / ((place.bins - 1) as f64 / most.posterize) as f32;
            f64::from(8.0 - lost).round_ties_even()
        }
        Solarize => place.between(1.0, 0.0),
    }
}

/// Refuses samples that torchvision's operations on colours do not know.
pub(super) fn check_channels(input: &[i64]) -> Result<Vec<i64>, String> {
    match input[0] {
        1 | 3 => Ok(input.to_vec()),
        channels => {
            Err(format!("its operations know grey and RGB images, not {channels} channels; remove it"))
        }
    }
}

impl Operation {
    /// The operation that a drawn number stands for.
    pub fn numbered(number: f64) -> Self {
        SPACE.get(number as usize).copied().unwrap_or(Identity)
    }

    pub fn apply(self, levels: &mut Levels, magnitude: f64, interpolation: Interpolation, fill: u8) {
        let sides = [levels.height, levels.width];
        let mut affine = |matrix| Places::affine(matrix, sides).warp(levels, interpolation, fill);
        let degrees = magnitude.atan().to_degrees();
        // Shears keep the upper left corner, and centres count from the middle.
        let corner = [sides[1], sides[0]].map(|side| -0.5 * side as f64);
        let whole = magnitude.trunc();
        match self {
            Identity => {}
            ShearX => affine(inverse_affine(corner, 0.0, [0.0; 2], 1.0, [degrees, 0.0])),
            ShearY => affine(inverse_affine(corner, 0.0, [0.0; 2], 1.0, [0.0, degrees])),
            TranslateX => affine(inverse_affine([0.0; 2], 0.0, [whole, 0.0], 1.0, [0.0; 2])),
            TranslateY => affine(inverse_affine([0.0; 2], 0.0, [0.0, whole], 1.0, [0.0; 2])),
            Rotate => affine(inverse_affine([0.0; 2], -magnitude.rem_euclid(360.0), [0.0; 2], 1.0, [0.0; 2])),
            Brightness => brightness(levels, 1.0 + magnitude),
            Color => saturation(levels, 1.0 + magnitude),
            Contrast => contrast(levels, 1.0 + magnitude),
            Sharpness => adjust_sharpness(levels, 1.0 + magnitude),
            Posterize => posterize(levels, whole as u32),
            Solarize => solarize(levels, (255.0 * magnitude) as f32),
            AutoContrast => autocontrast(levels),
            Equalize => equalize(levels),
        }
    }
}

fn brightness(levels: &mut Levels, factor: f64) {
    let factor = factor as f32;
    levels.look_up(&std::array::from_fn(|level| (level as f32 * factor).clamp(0.0, 255.0) as u8));
}

fn saturation(levels: &mut Levels, factor: f64) {
    let factor = factor as f32;
    let Some([red, green, blue]) = levels.rgb() else { return };
    for ((red, green), blue) in red.iter_mut().zip(green).zip(blue) {
        let grey = luma(*red, *green, *blue).floor();
        for level in [red, green, blue] {
            *level = blend(*level, grey, factor);
        }
    }
}

fn contrast(levels: &mut Levels, factor: f64) {
    let pixels = (levels.height * levels.width).max(1) as f64;
    let sum: f64 = match levels.rgb() {
        Some([red, green, blue]) => {
            let pixels = red.iter().zip(&*green).zip(&*blue);
            pixels.map(|((&red, &green), &blue)| f64::from(luma(red, green, blue).floor())).sum()
        }
        None => levels.image().iter().map(|&level| f64::from(level)).sum(),
    };
    let (mean, factor) = ((sum / pixels) as f32, factor as f32);
    levels.look_up(&std::array::from_fn(|level| blend(level as u8, mean, factor)));
}
