//! Random erasing: Zhong et al. 2020, "Random erasing data augmentation"; torchvision's `RandomErasing`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::values::{half, ordered, probability};
use super::{Augmentation, Erased, Erases, Fill};
use crate::util::rng::CounterRng;
use crate::util::yaml::Invalid;

/// Blanks a rectangle of random area and proportions within the picture, with probability `p`. It works on
/// normalised pictures, so that 0 is the mean colour.
#[derive(Deserialize, Serialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RandomErasing {
    /// Probability.
    #[serde(default = "half")]
    #[schemars(range(min = 0, max = 1))]
    pub p: f64,
    /// Smallest and largest share of the picture's area.
    #[serde(default = "default_scale")]
    pub scale: [f64; 2],
    /// Smallest and largest height/width.
    #[serde(default = "default_ratio")]
    pub ratio: [f64; 2],
    /// What the rectangle shows, as a normalised value; `random` for standard normal noise (timm's `pixel`).
    #[serde(default)]
    pub value: EraseValue,
}

/// A number, or noise.
#[derive(Deserialize, Serialize, Clone, Copy, Debug, PartialEq, JsonSchema)]
#[serde(untagged, expecting = "expected a number or `random`")]
pub enum EraseValue {
    Number(f64),
    Noise(Noise),
}

#[derive(Deserialize, Serialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Noise {
    Random,
}

impl Default for EraseValue {
    fn default() -> Self {
        Self::Number(0.0)
    }
}

fn default_scale() -> [f64; 2] {
    [0.02, 0.33]
}

fn default_ratio() -> [f64; 2] {
    [0.3, 3.3]
}

impl Augmentation for RandomErasing {
    fn validate(&self) -> Result<(), Invalid> {
        ordered("scale", self.scale, 0.0, 1.0)?;
        ordered("ratio", self.ratio, f64::MIN_POSITIVE, f64::MAX)?;
        if let EraseValue::Number(value) = self.value
            && !value.is_finite()
        {
            return Err(Invalid::new("value", format!("{value} is no number of a picture")));
        }
        probability("p", self.p)
    }

    fn num_params(&self) -> usize {
        5
    }

    /// First and last + 1 of the rows, then of the columns, an empty rectangle where nothing is blanked; and a
    /// seed for the noise.
    fn sample(&self, sides: [usize; 2], rng: &mut CounterRng, params: &mut Vec<f64>) {
        let happens = rng.uniform() < self.p;
        let rectangle = self.rectangle_in(sides, rng).filter(|_| happens).unwrap_or_default();
        params.extend(rectangle.map(|edge| edge as f64));
        params.push((rng.bits() >> 12) as f64);
    }
}

impl RandomErasing {
    /// Ten tries, as torchvision's.
    fn rectangle_in(&self, [height, width]: [usize; 2], rng: &mut CounterRng) -> Option<[usize; 4]> {
        let (tall, wide) = (height as f64, width as f64);
        for _ in 0..10 {
            let area = tall * wide * rng.between(self.scale[0], self.scale[1]);
            let ratio = rng.between(self.ratio[0].ln(), self.ratio[1].ln()).exp();
            let (h, w) = ((area * ratio).sqrt().round_ties_even(), (area / ratio).sqrt().round_ties_even());
            if h < tall && w < wide {
                let (h, w) = (h as usize, w as usize);
                let top = rng.below((height - h) as u64 + 1) as usize;
                let left = rng.below((width - w) as u64 + 1) as usize;
                return Some([top, top + h, left, left + w]);
            }
        }
        None
    }
}

impl Erases for RandomErasing {
    fn erased(&self, params: &[f64]) -> Erased {
        let rectangle = [params[0], params[1], params[2], params[3]].map(|edge| edge as usize);
        let fill = match self.value {
            EraseValue::Number(value) => Fill::Value(value),
            EraseValue::Noise(Noise::Random) => Fill::Normal(params[4] as u64),
        };
        Erased { rectangle, fill }
    }
}
