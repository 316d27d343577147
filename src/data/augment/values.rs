//! Values that several augmentations take: a random range, a size.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::util::rng::CounterRng;
use crate::util::yaml::Invalid;

/// A number around a neutral value, or the range `[low, high]` itself, as torchvision's transforms take them.
#[derive(Deserialize, Serialize, Clone, Copy, Debug, PartialEq, JsonSchema)]
#[serde(untagged, expecting = "expected a number or a pair [low, high]")]
pub enum Range {
    Around(f64),
    Between([f64; 2]),
}

impl Range {
    /// The range itself, `neutral ± number` for a number.
    pub fn bounds(self, neutral: f64) -> [f64; 2] {
        match self {
            Range::Around(width) => [neutral - width, neutral + width],
            Range::Between(bounds) => bounds,
        }
    }

    pub fn sample(self, neutral: f64, rng: &mut CounterRng) -> f64 {
        let [low, high] = self.bounds(neutral);
        rng.between(low, high)
    }

    /// Refuses a negative width, a pair in the wrong order and bounds outside `limits`.
    pub fn validate(self, key: &str, neutral: f64, limits: [f64; 2]) -> Result<(), Invalid> {
        if let Range::Around(width) = self
            && (width.is_nan() || width < 0.0)
        {
            return Err(Invalid::new(
                key,
                format!("{width} is negative; give a number ≥ 0 or a pair [low, high]"),
            ));
        }
        let [low, high] = self.bounds(neutral);
        let [least, most] = limits;
        if !(low <= high && low >= least && high <= most) {
            let message =
                format!("the range {low} to {high} must be ordered and lie within {least} to {most}");
            return Err(Invalid::new(key, message));
        }
        Ok(())
    }
}

/// The height and width of a picture: one number for a square, or `[height, width]`.
#[derive(Deserialize, Serialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
#[serde(untagged, expecting = "expected a whole number or a pair [height, width]")]
pub enum Size {
    Square(usize),
    Sides([usize; 2]),
}

impl Size {
    pub fn sides(self) -> [usize; 2] {
        match self {
            Size::Square(side) => [side, side],
            Size::Sides(sides) => sides,
        }
    }

    pub fn validate(self, key: &str) -> Result<(), Invalid> {
        if self.sides().contains(&0) {
            return Err(Invalid::new(key, "a side of 0 pixels is no picture"));
        }
        Ok(())
    }
}

/// Refuses what is no probability.
pub fn probability(key: &str, p: f64) -> Result<(), Invalid> {
    if !(0.0..=1.0).contains(&p) {
        return Err(Invalid::new(key, format!("{p} is no probability: give a number from 0 to 1")));
    }
    Ok(())
}

/// Refuses a pair in the wrong order or outside `least` to `most`.
pub fn ordered(key: &str, [low, high]: [f64; 2], least: f64, most: f64) -> Result<(), Invalid> {
    if least <= low && low <= high && high <= most {
        return Ok(());
    }
    let floor = if least == f64::MIN_POSITIVE { "above 0".to_owned() } else { format!("at least {least}") };
    let top = if most < f64::MAX { format!(" and at most {most}") } else { String::new() };
    Err(Invalid::new(key, format!("expected [low, high], low ≤ high, {floor}{top}")))
}

/// 1 with probability `p`, else 0.
pub fn chance(p: f64, rng: &mut CounterRng) -> f64 {
    f64::from(rng.uniform() < p)
}

/// The same of an augmentation that drew nothing for it before it had a probability: with 1 it still does not.
pub fn happens(p: f64, rng: &mut CounterRng) -> bool {
    p >= 1.0 || rng.uniform() < p
}

pub fn half() -> f64 {
    0.5
}

pub fn tenth() -> f64 {
    0.1
}

pub fn one() -> f64 {
    1.0
}

pub fn is_one(p: &f64) -> bool {
    *p == 1.0
}
