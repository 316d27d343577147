//! Learning rates as pure functions of the step (reduce-on-plateau: of the step and a small serialisable
//! state).
//!
//! In a config `schedule: cosine`, or with values and a warm-up beside the curve: `schedule: {cosine:
//! {min_lr: 1e-5}, warmup: {epochs: 2}}`. Each curve starts from the optimiser's `lr`, written η₀ in the
//! files, and equals PyTorch's scheduler of that name; `t` is the number of finished epochs or optimiser
//! steps since the warm-up, `T` their total. A new schedule is one file and one row of the table.

mod constant;
mod cosine;
mod cosine_warm_restarts;
mod exponential;
mod inverse_sqrt;
mod linear;
mod multistep;
mod one_cycle;
mod plateau;
mod polynomial;
mod step;
mod wsd;

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::{Deserializer, Error, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::util::tagged_enum::{self, Body, Tagged};
use crate::util::yaml::Invalid;
pub use plateau::{Mode, Plateau};

/// One form of the learning rate over a run.
trait Schedule {
    /// The rate at `now`, from the optimiser's rate `base`.
    fn lr(&self, base: f64, now: ScheduleStep, plateau: &Plateau) -> f64;

    /// The highest rate that it means to reach.
    fn peak(&self, base: f64) -> f64 {
        base
    }

    /// Refuses values out of range; paths are relative to the schedule.
    fn validate(&self) -> Result<(), Invalid> {
        Ok(())
    }

    /// The step, of `total_steps`, at which the rate leaves its plateau for the end of the run, where it does so by
    /// the length of the run alone: until there a longer run is the same.
    fn decay_start(&self, _total_steps: u64) -> Option<u64> {
        None
    }

    /// Which way a metric is better that [`observe`](Self::observe) needs after each epoch.
    fn monitors(&self) -> Option<Mode> {
        None
    }

    /// Takes the metric of a finished epoch into `plateau`.
    fn observe(&self, _metric: f64, _plateau: &mut Plateau) {}
}

macro_rules! schedules {
    ($($(#[$doc:meta])* $name:literal => $variant:ident($spec:ty),)*) => {
        /// The form of the learning rate, as declared.
        #[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
        pub enum Curve {
            $($(#[$doc])* #[serde(rename = $name)] $variant($spec),)*
        }

        impl Curve {
            fn name(&self) -> &'static str {
                match self {
                    $(Self::$variant(_) => $name,)*
                }
            }

            fn schedule(&self) -> &dyn Schedule {
                match self {
                    $(Self::$variant(spec) => spec,)*
                }
            }
        }

        impl Tagged for Curve {
            const WHAT: &'static str = "a schedule";
            const NAMES: &'static [&'static str] = &[$($name),*];

            fn body<'de, D: Deserializer<'de>>(name: &str, body: D) -> Result<Self, D::Error> {
                match name {
                    $($name => tagged_enum::spec(body).map(Self::$variant),)*
                    _ => Err(D::Error::unknown_variant(name, Self::NAMES)),
                }
            }
        }
    };
}

schedules! {
    /// η₀
    "constant" => Constant(constant::Constant),
    /// η₀·gamma^⌊t/step_size⌋ (`StepLR`)
    "step" => Step(step::StepDecay),
    /// η₀·gamma^(milestones passed) (`MultiStepLR`)
    "multistep" => Multistep(multistep::Multistep),
    /// η₀·gamma^t (`ExponentialLR`); a decay of d per epoch is gamma = 1 − d
    "exponential" => Exponential(exponential::Exponential),
    /// η₀/√(1 + gamma²·t)
    "inverse_sqrt" => InverseSqrt(inverse_sqrt::InverseSqrt),
    /// min_lr + (η₀ − min_lr)·(1 + cos(πt/T))/2 (`CosineAnnealingLR`; Loshchilov and Hutter 2017)
    "cosine" => Cosine(cosine::Cosine),
    /// Cosines one after the other, from η₀ to min_lr, each t_mult times as long as the one before
    /// (`CosineAnnealingWarmRestarts`)
    "cosine_warm_restarts" => CosineWarmRestarts(cosine_warm_restarts::CosineWarmRestarts),
    /// η₀·(1 − t/T)^power (`PolynomialLR`)
    "polynomial" => Polynomial(polynomial::Polynomial),
    /// η₀, and a decay to min_lr in the last share of the run; a longer resume goes on from before the decay
    /// (Hu et al. 2024)
    "wsd" => Wsd(wsd::Wsd),
    /// η₀·(start_factor + (end_factor − start_factor)·t/T) (`LinearLR`)
    "linear" => Linear(linear::Linear),
    /// Cosine rise from max_lr/div_factor to max_lr, cosine fall to max_lr/(div_factor·final_div_factor)
    /// (`OneCycleLR` with cycle_momentum=False; Smith and Topin 2019)
    "one_cycle" => OneCycle(one_cycle::OneCycle),
    /// η₀·factor^(number of reductions), one whenever the metric stops improving (`ReduceLROnPlateau`)
    "plateau" => Plateau(plateau::PlateauSpec),
}

impl Default for Curve {
    fn default() -> Self {
        Self::Constant(constant::Constant {})
    }
}

/// A moment of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScheduleStep {
    /// Optimiser steps made so far: 0 during the first.
    pub step: u64,
    pub steps_per_epoch: u64,
    /// Steps of the whole run.
    pub total_steps: u64,
}

impl ScheduleStep {
    /// The same moment counted in `unit`s: (finished ones, all of the run's).
    pub fn count(&self, unit: Unit) -> (u64, u64) {
        match unit {
            Unit::Step => (self.step, self.total_steps),
            Unit::Epoch => {
                let per_epoch = self.steps_per_epoch.max(1);
                (self.step / per_epoch, self.total_steps.div_ceil(per_epoch))
            }
        }
    }

    /// The same moment in a run that began `steps` later.
    fn since(&self, steps: u64) -> Self {
        Self {
            step: self.step.saturating_sub(steps),
            total_steps: self.total_steps.saturating_sub(steps),
            ..*self
        }
    }
}

/// Steps of a run `share` of which `step` steps have taken.
pub fn total_of_share(step: u64, share: f64) -> u64 {
    const LONG: f64 = 1e15;
    let total = step as f64 / share.clamp(f64::MIN_POSITIVE, 1.0);
    if step == 0 { LONG as u64 } else { total.min(LONG).round() as u64 }
}

/// How often a rate changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// A staircase: constant within an epoch.
    Epoch,
    Step,
}

impl Unit {
    fn epoch() -> Self {
        Self::Epoch
    }

    fn step() -> Self {
        Self::Step
    }
}

/// The learning rate over a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ScheduleSpec {
    #[serde(flatten)]
    pub curve: Curve,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup: Option<Warmup>,
}

/// A linear rise from `start_factor`·η₀ to η₀; the curve follows with what is left of the run, as PyTorch's
/// `SequentialLR([LinearLR, curve])` does. Milestones therefore count from the end of the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Warmup {
    /// Length in epochs; give this or `steps`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub epochs: Option<f64>,
    /// Length in optimiser steps; give this or `epochs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    /// The first learning rate as a share of η₀.
    #[serde(default = "third")]
    #[schemars(range(max = 1), extend("exclusiveMinimum" = 0))]
    pub start_factor: f64,
}

fn third() -> f64 {
    1.0 / 3.0
}

impl Warmup {
    fn length(&self, now: ScheduleStep) -> u64 {
        let epochs = self.epochs.map(|epochs| (epochs * now.steps_per_epoch as f64).round() as u64);
        self.steps.or(epochs).unwrap_or(0)
    }

    fn validate(&self) -> Result<(), Invalid> {
        if self.epochs.is_some() == self.steps.is_some() {
            return Err(Invalid::new("", "give the length as `epochs` or as `steps`, one of them"));
        }
        if let Some(epochs) = self.epochs {
            check("epochs", epochs, epochs >= 0.0, "at least 0")?;
        }
        check(
            "start_factor",
            self.start_factor,
            self.start_factor > 0.0 && self.start_factor <= 1.0,
            "in (0, 1]",
        )
    }
}

impl ScheduleSpec {
    /// The learning rate of the step `now`, from the optimiser's rate `base`.
    pub fn lr(&self, base: f64, now: ScheduleStep, plateau: &Plateau) -> f64 {
        let Some(warmup) = self.warmup else {
            return self.curve.schedule().lr(base, now, plateau);
        };
        let length = warmup.length(now);
        if now.step < length {
            let share = now.step as f64 / length as f64;
            return base * (warmup.start_factor + (1.0 - warmup.start_factor) * share);
        }
        self.curve.schedule().lr(base, now.since(length), plateau)
    }

    /// The step of the run at which the rate begins to fall for its end, where the schedule has such a
    /// step.
    pub fn decay_start(&self, run: ScheduleStep) -> Option<u64> {
        let warmup = self.warmup.map_or(0, |warmup| warmup.length(run));
        let start = self.curve.schedule().decay_start(run.since(warmup).total_steps)?;
        Some(start + warmup)
    }

    /// The highest rate that the curve means to reach, from the optimiser's rate `base`.
    pub fn peak(&self, base: f64) -> f64 {
        self.curve.schedule().peak(base)
    }

    /// Feeds the metric of a finished epoch to `plateau`. Does nothing unless the curve is `plateau`.
    pub fn observe(&self, metric: f64, plateau: &mut Plateau) {
        self.curve.schedule().observe(metric, plateau);
    }

    /// Whether [`observe`](Self::observe) must be fed a metric each epoch, and which way is better.
    pub fn watches(&self) -> Option<Mode> {
        self.curve.schedule().monitors()
    }

    /// The mode of a plateau that has none of its own.
    pub fn complete_mode(&mut self, mode: Mode) {
        if let Curve::Plateau(spec) = &mut self.curve {
            spec.mode.get_or_insert(mode);
        }
    }

    /// Refuses what no schedule can mean; paths are relative to `schedule`.
    pub fn validate(&self) -> Result<(), Invalid> {
        if let Some(warmup) = &self.warmup {
            warmup.validate().map_err(|invalid| invalid.under("warmup"))?;
        }
        self.curve.schedule().validate().map_err(|invalid| invalid.under(self.curve.name()))
    }
}

/// Half a cosine from `from` (share 0) to `to` (share 1).
pub(crate) fn anneal(from: f64, to: f64, share: f64) -> f64 {
    to + (from - to) * (1.0 + (std::f64::consts::PI * share).cos()) / 2.0
}

/// t/T, held at 1 behind the end.
pub(crate) fn progress((t, total): (u64, u64)) -> f64 {
    if total == 0 { 1.0 } else { t.min(total) as f64 / total as f64 }
}

fn power(base: f64, exponent: u64) -> f64 {
    base.powf(exponent as f64)
}

fn default_gamma() -> f64 {
    0.1
}

fn check_gamma(gamma: f64) -> Result<(), Invalid> {
    check("gamma", gamma, gamma > 0.0, "above 0")
}

/// Refuses a value for which `range` does not hold, NaN and infinity always.
pub(crate) fn check(path: &str, value: f64, holds: bool, range: &str) -> Result<(), Invalid> {
    if holds && value.is_finite() {
        return Ok(());
    }
    Err(Invalid::new(path, format!("{value} is out of range: {range}")))
}

impl JsonSchema for ScheduleSpec {
    fn schema_name() -> Cow<'static, str> {
        "ScheduleSpec".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut schema = Curve::json_schema(generator);
        let warmup = generator.subschema_for::<Option<Warmup>>();
        let alone =
            json!({"type": "object", "properties": {"warmup": warmup}, "additionalProperties": false});
        if let Some(Value::Array(curves)) = schema.get_mut("oneOf") {
            for curve in &mut *curves {
                curve["properties"]["warmup"] = warmup.clone().to_value();
            }
            curves.push(alone);
        }
        schema.insert("description".into(), "One curve, and a warm-up before it.".into());
        schema
    }
}

impl<'de> Deserialize<'de> for ScheduleSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct CurveAndWarmup;

        impl<'de> Visitor<'de> for CurveAndWarmup {
            type Value = ScheduleSpec;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                write!(f, "a schedule: `cosine`, or `{{cosine: {{…}}, warmup: {{…}}}}`")
            }

            fn visit_str<E: Error>(self, name: &str) -> Result<ScheduleSpec, E> {
                Ok(ScheduleSpec { curve: tagged_enum::from_name(name)?, warmup: None })
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<ScheduleSpec, A::Error> {
                let (mut curve, mut warmup) = (None::<Curve>, None);
                while let Some(key) = map.next_key::<String>()? {
                    if key == "warmup" {
                        warmup = map.next_value()?;
                    } else if !Curve::NAMES.contains(&key.as_str()) {
                        return Err(A::Error::unknown_field(&key, &KEYS));
                    } else if let Some(first) = &curve {
                        let first = first.name();
                        return Err(A::Error::custom(format!(
                            "`{first}` and `{key}` at once: choose one schedule"
                        )));
                    } else {
                        curve = Some(map.next_value_seed(Body(&key, PhantomData))?);
                    }
                }
                Ok(ScheduleSpec { curve: curve.unwrap_or_default(), warmup })
            }
        }

        deserializer.deserialize_any(CurveAndWarmup)
    }
}

/// The curves, and the key beside them.
const KEYS: [&str; Curve::NAMES.len() + 1] = {
    let mut keys = ["warmup"; Curve::NAMES.len() + 1];
    let (names, _) = keys.split_at_mut(Curve::NAMES.len());
    names.copy_from_slice(Curve::NAMES);
    keys
};
