//! Learning rates as pure functions of the step (reduce-on-plateau: of the step and a small serialisable state).
//!
//! In a config `schedule: cosine`, or with values and a warm-up beside the curve:
//! `schedule: {cosine: {min_lr: 1e-5}, warmup: {epochs: 2}}`. Each curve starts from the optimiser's `lr`, written η₀
//! below, and equals PyTorch's scheduler of that name; `t` is the number of finished epochs or optimiser steps
//! since the warm-up, `T` their total.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserializer, Error, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

use crate::tagged::{self, Body, Tagged};
use crate::yaml::Invalid;

/// Where a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    /// Optimiser steps made so far: 0 during the first.
    pub step: u64,
    pub steps_per_epoch: u64,
    /// Steps of the whole run.
    pub total_steps: u64,
}

impl Clock {
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

    /// The clock of a run that began `steps` later.
    fn since(&self, steps: u64) -> Self {
        Self {
            step: self.step.saturating_sub(steps),
            total_steps: self.total_steps.saturating_sub(steps),
            ..*self
        }
    }
}

/// How often a rate changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// A staircase: constant within an epoch.
    Epoch,
    Step,
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
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Warmup {
    /// Length; give this or `steps`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epochs: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    /// In (0, 1].
    #[serde(default = "third")]
    pub start_factor: f64,
}

fn third() -> f64 {
    1.0 / 3.0
}

impl Warmup {
    fn length(&self, clock: Clock) -> u64 {
        let epochs = self.epochs.map(|epochs| (epochs * clock.steps_per_epoch as f64).round() as u64);
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

/// The form of the curve.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Curve {
    /// η₀
    Constant(Constant),
    /// η₀·gamma^⌊t/step_size⌋ (`StepLR`)
    Step(StepDecay),
    /// η₀·gamma^(milestones passed) (`MultiStepLR`)
    Multistep(Multistep),
    /// η₀·gamma^t (`ExponentialLR`); a decay of d per epoch is gamma = 1 − d
    Exponential(Exponential),
    /// η₀/√(1 + gamma²·t)
    InverseSqrt(InverseSqrt),
    /// min_lr + (η₀ − min_lr)·(1 + cos(πt/T))/2 (`CosineAnnealingLR`; Loshchilov and Hutter 2017)
    Cosine(Cosine),
    /// η₀·(start_factor + (end_factor − start_factor)·t/T) (`LinearLR`)
    Linear(Linear),
    /// Cosine rise from max_lr/div_factor to max_lr, cosine fall to max_lr/(div_factor·final_div_factor)
    /// (`OneCycleLR` with cycle_momentum=False; Smith and Topin 2019)
    OneCycle(OneCycle),
    /// η₀·factor^(times that the metric stood still) (`ReduceLROnPlateau`)
    Plateau(PlateauSpec),
}

impl Default for Curve {
    fn default() -> Self {
        Self::Constant(Constant {})
    }
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Constant {}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct StepDecay {
    /// In epochs, or steps with `by: step`.
    pub step_size: u64,
    #[serde(default = "tenth")]
    pub gamma: f64,
    #[serde(default = "epoch")]
    pub by: Unit,
}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Multistep {
    /// In epochs, or steps with `by: step`; ascending.
    pub milestones: Vec<u64>,
    #[serde(default = "tenth")]
    pub gamma: f64,
    #[serde(default = "epoch")]
    pub by: Unit,
}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Exponential {
    pub gamma: f64,
    #[serde(default = "epoch")]
    pub by: Unit,
}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct InverseSqrt {
    pub gamma: f64,
    #[serde(default = "step")]
    pub by: Unit,
}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Cosine {
    /// Where the curve ends.
    #[serde(default)]
    pub min_lr: f64,
    #[serde(default = "step")]
    pub by: Unit,
}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Linear {
    #[serde(default = "one")]
    pub start_factor: f64,
    #[serde(default)]
    pub end_factor: f64,
    #[serde(default = "step")]
    pub by: Unit,
}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct OneCycle {
    /// The peak; the optimiser's `lr` when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_lr: Option<f64>,
    /// Share of the run in which the rate rises, in (0, 1).
    #[serde(default = "pct_start")]
    pub pct_start: f64,
    #[serde(default = "div_factor")]
    pub div_factor: f64,
    #[serde(default = "final_div_factor")]
    pub final_div_factor: f64,
    #[serde(default = "step")]
    pub by: Unit,
}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PlateauSpec {
    /// In (0, 1).
    #[serde(default = "tenth")]
    pub factor: f64,
    /// Epochs without an improvement that are borne.
    #[serde(default = "patience")]
    pub patience: u64,
    /// An improvement counts when it is larger than this.
    #[serde(default = "threshold")]
    pub threshold: f64,
    #[serde(default)]
    pub threshold_mode: ThresholdMode,
    /// Epochs after a reduction in which nothing is counted.
    #[serde(default)]
    pub cooldown: u64,
    #[serde(default)]
    pub min_lr: f64,
    #[serde(default)]
    pub mode: Mode,
}

/// Whether a small metric is good (a loss) or a large one (an accuracy).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    #[default]
    Min,
    Max,
}

/// Whether `threshold` is a share of the best metric or a difference to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ThresholdMode {
    #[default]
    Rel,
    Abs,
}

fn tenth() -> f64 {
    0.1
}
fn one() -> f64 {
    1.0
}
fn epoch() -> Unit {
    Unit::Epoch
}
fn step() -> Unit {
    Unit::Step
}
fn pct_start() -> f64 {
    0.3
}
fn div_factor() -> f64 {
    25.0
}
fn final_div_factor() -> f64 {
    1e4
}
fn patience() -> u64 {
    10
}
fn threshold() -> f64 {
    1e-4
}

/// What reduce-on-plateau remembers; nothing for the other curves.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Plateau {
    pub best: Option<f64>,
    pub bad_epochs: u64,
    pub cooldown_left: u64,
    pub reductions: u64,
}

impl ScheduleSpec {
    /// The learning rate of the step at `clock`, from the optimiser's rate `base`.
    pub fn lr(&self, base: f64, clock: Clock, plateau: &Plateau) -> f64 {
        let Some(warmup) = self.warmup else {
            return self.curve.lr(base, clock, plateau);
        };
        let length = warmup.length(clock);
        if clock.step < length {
            let share = clock.step as f64 / length as f64;
            return base * (warmup.start_factor + (1.0 - warmup.start_factor) * share);
        }
        self.curve.lr(base, clock.since(length), plateau)
    }

    /// Feeds the metric of a finished epoch to `plateau`. Does nothing unless the curve is `plateau`.
    pub fn observe(&self, metric: f64, plateau: &mut Plateau) {
        if let Curve::Plateau(spec) = &self.curve {
            spec.observe(metric, plateau);
        }
    }

    /// Whether [`observe`](Self::observe) must be fed a metric each epoch, and which way is better.
    pub fn watches(&self) -> Option<Mode> {
        match &self.curve {
            Curve::Plateau(spec) => Some(spec.mode),
            _ => None,
        }
    }

    /// Refuses what no schedule can mean; paths are relative to `schedule`.
    pub fn validate(&self) -> Result<(), Invalid> {
        if let Some(warmup) = &self.warmup {
            warmup.validate().map_err(|invalid| invalid.under("warmup"))?;
        }
        self.curve.validate().map_err(|invalid| invalid.under(self.curve.name()))
    }
}

impl Curve {
    pub fn name(&self) -> &'static str {
        match self {
            Self::Constant(_) => "constant",
            Self::Step(_) => "step",
            Self::Multistep(_) => "multistep",
            Self::Exponential(_) => "exponential",
            Self::InverseSqrt(_) => "inverse_sqrt",
            Self::Cosine(_) => "cosine",
            Self::Linear(_) => "linear",
            Self::OneCycle(_) => "one_cycle",
            Self::Plateau(_) => "plateau",
        }
    }

    fn lr(&self, base: f64, clock: Clock, plateau: &Plateau) -> f64 {
        match self {
            Self::Constant(_) => base,
            Self::Step(spec) => base * power(spec.gamma, clock.count(spec.by).0 / spec.step_size.max(1)),
            Self::Multistep(spec) => {
                let (t, _) = clock.count(spec.by);
                let passed = spec.milestones.iter().filter(|&&milestone| milestone <= t).count();
                base * power(spec.gamma, passed as u64)
            }
            Self::Exponential(spec) => base * power(spec.gamma, clock.count(spec.by).0),
            Self::InverseSqrt(spec) => {
                let (t, _) = clock.count(spec.by);
                base / (1.0 + spec.gamma * spec.gamma * t as f64).sqrt()
            }
            Self::Cosine(spec) => anneal(base, spec.min_lr, progress(clock.count(spec.by))),
            Self::Linear(spec) => {
                let share = progress(clock.count(spec.by));
                base * (spec.start_factor + (spec.end_factor - spec.start_factor) * share)
            }
            Self::OneCycle(spec) => spec.lr(base, clock),
            Self::Plateau(spec) => {
                let floor = spec.min_lr.min(base);
                (0..plateau.reductions).fold(base, |lr, _| (lr * spec.factor).max(floor))
            }
        }
    }

    fn validate(&self) -> Result<(), Invalid> {
        let gamma = |gamma: f64| check("gamma", gamma, gamma > 0.0, "above 0");
        let min_lr = |lr: f64| check("min_lr", lr, lr >= 0.0, "at least 0");
        match self {
            Self::Constant(_) => Ok(()),
            Self::Step(spec) if spec.step_size == 0 => {
                Err(Invalid::new("step_size", "0 is too small: at least 1"))
            }
            Self::Step(spec) => gamma(spec.gamma),
            Self::Multistep(spec) => {
                if !spec.milestones.is_sorted_by(|a, b| a < b) {
                    return Err(Invalid::new("milestones", "must ascend, each once"));
                }
                gamma(spec.gamma)
            }
            Self::Exponential(spec) => gamma(spec.gamma),
            Self::InverseSqrt(spec) => check("gamma", spec.gamma, spec.gamma >= 0.0, "at least 0"),
            Self::Cosine(spec) => min_lr(spec.min_lr),
            Self::Linear(spec) => {
                check("start_factor", spec.start_factor, spec.start_factor >= 0.0, "at least 0")?;
                check("end_factor", spec.end_factor, spec.end_factor >= 0.0, "at least 0")
            }
            Self::OneCycle(spec) => {
                if let Some(lr) = spec.max_lr {
                    check("max_lr", lr, lr > 0.0, "above 0")?;
                }
                check(
                    "pct_start",
                    spec.pct_start,
                    spec.pct_start > 0.0 && spec.pct_start < 1.0,
                    "in (0, 1)",
                )?;
                check("div_factor", spec.div_factor, spec.div_factor > 0.0, "above 0")?;
                check("final_div_factor", spec.final_div_factor, spec.final_div_factor > 0.0, "above 0")
            }
            Self::Plateau(spec) => {
                check("factor", spec.factor, spec.factor > 0.0 && spec.factor < 1.0, "in (0, 1)")?;
                check("threshold", spec.threshold, spec.threshold >= 0.0, "at least 0")?;
                min_lr(spec.min_lr)
            }
        }
    }
}

impl OneCycle {
    fn lr(&self, base: f64, clock: Clock) -> f64 {
        let (t, total) = clock.count(self.by);
        let (t, total) = (t as f64, total as f64);
        let peak = self.max_lr.unwrap_or(base);
        let start = peak / self.div_factor;
        // PyTorch's phases: the rise ends at pct_start·T − 1, the fall at T − 1.
        let (top, end) = (self.pct_start * total - 1.0, total - 1.0);
        if t <= top {
            return anneal(start, peak, if top > 0.0 { t / top } else { 1.0 });
        }
        anneal(peak, start / self.final_div_factor, ((t - top) / (end - top)).clamp(0.0, 1.0))
    }
}

impl PlateauSpec {
    fn observe(&self, metric: f64, state: &mut Plateau) {
        let better = state.best.is_none_or(|best| {
            let margin = match self.threshold_mode {
                // PyTorch scales by the best value, sign included.
                ThresholdMode::Rel => best * self.threshold,
                ThresholdMode::Abs => self.threshold,
            };
            match self.mode {
                Mode::Min => metric < best - margin,
                Mode::Max => metric > best + margin,
            }
        });
        if better && !metric.is_nan() {
            state.best = Some(metric);
            state.bad_epochs = 0;
        } else {
            state.bad_epochs += 1;
        }
        if state.cooldown_left > 0 {
            state.cooldown_left -= 1;
            state.bad_epochs = 0;
        }
        if state.bad_epochs > self.patience {
            state.reductions += 1;
            state.cooldown_left = self.cooldown;
            state.bad_epochs = 0;
        }
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

/// Refuses a value for which `range` does not hold, NaN and infinity always.
pub(crate) fn check(path: &str, value: f64, holds: bool, range: &str) -> Result<(), Invalid> {
    if holds && value.is_finite() {
        return Ok(());
    }
    Err(Invalid::new(path, format!("{value} is out of range: {range}")))
}

impl Tagged for Curve {
    const WHAT: &'static str = "a schedule";
    const NAMES: &'static [&'static str] = &[
        "constant",
        "step",
        "multistep",
        "exponential",
        "inverse_sqrt",
        "cosine",
        "linear",
        "one_cycle",
        "plateau",
    ];

    fn body<'de, D: Deserializer<'de>>(name: &str, body: D) -> Result<Self, D::Error> {
        Ok(match name {
            "constant" => Self::Constant(tagged::spec(body)?),
            "step" => Self::Step(tagged::spec(body)?),
            "multistep" => Self::Multistep(tagged::spec(body)?),
            "exponential" => Self::Exponential(tagged::spec(body)?),
            "inverse_sqrt" => Self::InverseSqrt(tagged::spec(body)?),
            "cosine" => Self::Cosine(tagged::spec(body)?),
            "linear" => Self::Linear(tagged::spec(body)?),
            "one_cycle" => Self::OneCycle(tagged::spec(body)?),
            "plateau" => Self::Plateau(tagged::spec(body)?),
            _ => return Err(D::Error::unknown_variant(name, Self::NAMES)),
        })
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
                Ok(ScheduleSpec { curve: tagged::from_name(name)?, warmup: None })
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<ScheduleSpec, A::Error> {
                let (mut curve, mut warmup) = (None::<Curve>, None);
                while let Some(key) = map.next_key::<String>()? {
                    if key == "warmup" {
                        warmup = map.next_value()?;
                    } else if !Curve::NAMES.contains(&key.as_str()) {
                        return Err(A::Error::unknown_field(&key, KEYS));
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

const KEYS: &[&str] = &[
    "constant",
    "step",
    "multistep",
    "exponential",
    "inverse_sqrt",
    "cosine",
    "linear",
    "one_cycle",
    "plateau",
    "warmup",
];
