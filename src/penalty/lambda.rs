//! A λ over time, or one that the validation set tunes.

use schemars::JsonSchema;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error, MapAccess, Unexpected, Visitor};
use serde::{Deserialize, Serialize};

use crate::schedule::{ScheduleStep, anneal, check, progress};
use crate::util::yaml::Invalid;

/// A number, a ramp over the run, or tuned on the validation set: `1e-4`, `{start: 0, end: 1e-4, epochs: 5}`,
/// or `auto`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(untagged)]
#[schemars(deny_unknown_fields)]
pub enum Lambda {
    Constant(#[schemars(range(min = 0))] f64),
    Ramp(Ramp),
    Auto { auto: Auto },
}

/// A λ that goes from `start` at the first step to `end` and stays there.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Ramp {
    /// λ of the first step.
    #[schemars(range(min = 0))]
    pub start: f64,
    /// λ at the end of the ramp, and from there on.
    #[schemars(range(min = 0))]
    pub end: f64,
    /// Length of the ramp in epochs; the whole run when neither this nor `steps` is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub epochs: Option<f64>,
    /// Length of the ramp in optimiser steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    /// The form of the ramp.
    #[serde(default)]
    pub curve: RampCurve,
}

/// A λ₂ that follows the gradient of the validation loss, one for each penalty group: `auto`, or
/// `{auto: {start: 1e-4, lr: 0.1, every: 5}}`.
// See `crate::train::hypergradient`.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Auto {
    /// λ of the first step.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub start: f64,
    /// The learning rate of log λ: about the largest change of log λ in one update.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub lr: f64,
    /// Optimiser steps between two updates of λ.
    #[schemars(range(min = 1))]
    pub every: u64,
}

impl Default for Auto {
    fn default() -> Self {
        Self { start: 1e-4, lr: 0.1, every: 5 }
    }
}

/// Everything that a mapping can say of a λ.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    auto: Option<Auto>,
    start: Option<f64>,
    end: Option<f64>,
    epochs: Option<f64>,
    steps: Option<u64>,
    curve: Option<RampCurve>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
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
    /// λ at `clock`; of one that is tuned, where it starts.
    pub fn at(&self, clock: ScheduleStep) -> f64 {
        match self {
            Self::Constant(lambda) => *lambda,
            Self::Ramp(ramp) => ramp.at(clock),
            Self::Auto { auto } => auto.start,
        }
    }

    /// How it is tuned, where it is.
    pub fn auto(&self) -> Option<Auto> {
        match self {
            Self::Auto { auto } => Some(*auto),
            _ => None,
        }
    }

    /// Whether it is ever above 0.
    pub fn is_active(&self) -> bool {
        match self {
            Self::Constant(lambda) => *lambda > 0.0,
            Self::Ramp(ramp) => ramp.start > 0.0 || ramp.end > 0.0,
            Self::Auto { .. } => true,
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
            Self::Auto { auto } => auto.validate().map_err(|invalid| invalid.under("auto")),
        }
    }
}

impl Auto {
    fn validate(&self) -> Result<(), Invalid> {
        check("start", self.start, self.start > 0.0, "its logarithm moves, so it starts above 0")?;
        check("lr", self.lr, self.lr > 0.0, "above 0")?;
        if self.every == 0 {
            return Err(Invalid::new("every", "must be 1 or more"));
        }
        Ok(())
    }
}

impl Written {
    fn lambda<E: Error>(self) -> Result<Lambda, E> {
        match self {
            Self { auto: Some(auto), start: None, end: None, epochs: None, steps: None, curve: None } => {
                Ok(Lambda::Auto { auto })
            }
            Self { auto: Some(_), .. } => {
                Err(E::custom("`auto` stands alone: a λ is tuned or follows a schedule; its keys go inside"))
            }
            Self { auto: None, start, end, epochs, steps, curve } => {
                let (Some(start), Some(end)) = (start, end) else {
                    return Err(E::missing_field(if start.is_none() { "start" } else { "end" }));
                };
                Ok(Lambda::Ramp(Ramp { start, end, epochs, steps, curve: curve.unwrap_or_default() }))
            }
        }
    }
}

impl Ramp {
    fn at(&self, clock: ScheduleStep) -> f64 {
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
        struct AnyForm;

        impl<'de> Visitor<'de> for AnyForm {
            type Value = Lambda;

            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                write!(f, "a number of at least 0, {{start: 0, end: 1e-4, epochs: 5}}, or auto")
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

            fn visit_str<E: Error>(self, word: &str) -> Result<Lambda, E> {
                match word {
                    "auto" => Ok(Lambda::Auto { auto: Auto::default() }),
                    _ => Err(E::invalid_value(Unexpected::Str(word), &self)),
                }
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Lambda, A::Error> {
                Written::deserialize(MapAccessDeserializer::new(map))?.lambda()
            }
        }

        deserializer.deserialize_any(AnyForm)
    }
}
