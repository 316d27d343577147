//! How strong a degradation is: one value, or a range of which every image draws its own.

use schemars::JsonSchema;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use tch::Tensor;

use crate::util::json_schema::Either;
use crate::util::yaml::Invalid;

/// `25`, or `[0, 55]`: while training, each image draws its own, uniformly.
#[derive(Clone, Copy, Debug, PartialEq, JsonSchema)]
#[schemars(with = "Either<f64, [f64; 2]>")]
pub struct Level {
    low: f64,
    high: f64,
}

impl Level {
    pub const fn fixed(value: f64) -> Self {
        Self { low: value, high: value }
    }

    /// Refuses what does not lie in `least..=most`.
    pub fn validate(&self, key: &str, least: f64, most: f64) -> Result<(), Invalid> {
        let Self { low, high } = *self;
        if low > high {
            return Err(Invalid::new(
                key,
                format!("[{low}, {high}] is no range: its ends are the wrong way round"),
            ));
        }
        match [low, high].into_iter().find(|value| !((least..=most).contains(value) && value.is_finite())) {
            None => Ok(()),
            Some(value) if most.is_finite() => {
                Err(Invalid::new(key, format!("{value} is not in {least}..={most}")))
            }
            Some(value) => Err(Invalid::new(key, format!("{value} is not a number from {least} up"))),
        }
    }

    /// The value where it is the same for all images; in evaluation the middle of a range.
    pub fn shared(&self, train: bool) -> Option<f64> {
        (!train || self.low == self.high).then_some((self.low + self.high) / 2.0)
    }

    /// A value per image of `images`; `[N, 1, 1, 1]` in their kind, where they are.
    pub fn per_image(&self, images: &Tensor, train: bool) -> Tensor {
        let (shape, options) = ([images.size()[0], 1, 1, 1], (images.kind(), images.device()));
        match self.shared(train) {
            Some(value) => Tensor::full(shape, value, options),
            None => Tensor::rand(shape, options) * (self.high - self.low) + self.low,
        }
    }
}

impl<'de> Deserialize<'de> for Level {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let ends = match &value {
            Value::Array(list) => match list.as_slice() {
                [low, high] => low.as_f64().zip(high.as_f64()),
                _ => None,
            },
            value => value.as_f64().map(|value| (value, value)),
        };
        ends.map(|(low, high)| Self { low, high })
            .ok_or_else(|| D::Error::custom(format!("expected a number or [low, high], got {value}")))
    }
}

impl Serialize for Level {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.low == self.high {
            self.low.serialize(serializer)
        } else {
            [self.low, self.high].serialize(serializer)
        }
    }
}
