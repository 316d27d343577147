//! A λ over time.

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

use crate::schedule::{Clock, anneal, check, progress};
use crate::yaml::Invalid;

/// A λ, constant or over time: `1e-4`, or `{start: 0, end: 1e-4, epochs: 5}`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Lambda {
    Constant(f64),
    Ramp(Ramp),
}

/// A λ that goes from `start` at the first step to `end` and stays there.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Ramp {
    pub start: f64,
    pub end: f64,
    /// Length; the whole run when neither this nor `steps` is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epochs: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    #[serde(default)]
    pub curve: RampCurve,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RampCurve {
    #[default]
    Linear,
    /// Half a cosine: gentle at both ends.
    Cosine,
    /// Geometric; `start` and `end` above 0.
    Exponential,
}

impl Default for Lambda {
    fn default() -> Self {
        Self::Constant(0.0)
    }
}

impl Lambda {
    /// λ at `clock`.
    pub fn at(&self, clock: Clock) -> f64 {
        match self {
            Self::Constant(lambda) => *lambda,
            Self::Ramp(ramp) => ramp.at(clock),
        }
    }

    /// Whether it is ever above 0.
    pub fn is_active(&self) -> bool {
        match self {
            Self::Constant(lambda) => *lambda > 0.0,
            Self::Ramp(ramp) => ramp.start > 0.0 || ramp.end > 0.0,
        }
    }

    pub(super) fn validate(&self) -> Result<(), Invalid> {
        let range = "a λ is a number of at least 0";
        match self {
            Self::Constant(lambda) => check("", *lambda, *lambda >= 0.0, range),
            Self::Ramp(ramp) => {
                check("start", ramp.start, ramp.start >= 0.0, range)?;
                check("end", ramp.end, ramp.end >= 0.0, range)?;
                if ramp.curve == RampCurve::Exponential && (ramp.start == 0.0 || ramp.end == 0.0) {
                    let message = "an exponential never leaves or reaches 0: use linear or cosine";
                    return Err(Invalid::new("curve", message));
                }
                if ramp.epochs.is_some() && ramp.steps.is_some() {
                    return Err(Invalid::new("", "give the length as `epochs` or as `steps`, not both"));
                }
                ramp.epochs.map_or(Ok(()), |epochs| check("epochs", epochs, epochs >= 0.0, "at least 0"))
            }
        }
    }
}

impl Ramp {
    fn at(&self, clock: Clock) -> f64 {
        let epochs = self.epochs.map(|epochs| (epochs * clock.steps_per_epoch as f64).round() as u64);
        let share = progress((clock.step, self.steps.or(epochs).unwrap_or(clock.total_steps)));
        match self.curve {
            RampCurve::Linear => self.start + (self.end - self.start) * share,
            RampCurve::Cosine => anneal(self.start, self.end, share),
            RampCurve::Exponential => self.start * (self.end / self.start).powf(share),
        }
    }
}

impl<'de> Deserialize<'de> for Lambda {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NumberOrRamp;

        impl<'de> Visitor<'de> for NumberOrRamp {
            type Value = Lambda;

            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                write!(f, "a number of at least 0, or {{start: 0, end: 1e-4, epochs: 5}}")
            }

            fn visit_f64<E: Error>(self, lambda: f64) -> Result<Lambda, E> {
                Ok(Lambda::Constant(lambda))
            }

            fn visit_u64<E: Error>(self, lambda: u64) -> Result<Lambda, E> {
                Ok(Lambda::Constant(lambda as f64))
            }

            fn visit_i64<E: Error>(self, lambda: i64) -> Result<Lambda, E> {
                Ok(Lambda::Constant(lambda as f64))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Lambda, A::Error> {
                Ramp::deserialize(MapAccessDeserializer::new(map)).map(Lambda::Ramp)
            }
        }

        deserializer.deserialize_any(NumberOrRamp)
    }
}
