//! The forms that a learning rate can take over a run.

use serde::de::{Deserializer, Error};
use serde::{Deserialize, Serialize};

use super::{Plateau, PlateauSpec, ScheduleStep, Unit, anneal, check, progress};
use crate::util::tagged_enum::{self, Tagged};
use crate::util::yaml::Invalid;

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

pub(super) fn tenth() -> f64 {
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

    pub(super) fn lr(&self, base: f64, clock: ScheduleStep, plateau: &Plateau) -> f64 {
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
            Self::Plateau(spec) => spec.lr(base, plateau),
        }
    }

    /// η₀ but for the curves that rise above it.
    pub(super) fn peak(&self, base: f64) -> f64 {
        match self {
            Self::OneCycle(spec) => spec.max_lr.unwrap_or(base),
            Self::Linear(spec) => base * spec.start_factor.max(spec.end_factor),
            _ => base,
        }
    }

    pub(super) fn validate(&self) -> Result<(), Invalid> {
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
            Self::Plateau(spec) => spec.validate(),
        }
    }
}

impl OneCycle {
    fn lr(&self, base: f64, clock: ScheduleStep) -> f64 {
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

fn power(base: f64, exponent: u64) -> f64 {
    base.powf(exponent as f64)
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
            "constant" => Self::Constant(tagged_enum::spec(body)?),
            "step" => Self::Step(tagged_enum::spec(body)?),
            "multistep" => Self::Multistep(tagged_enum::spec(body)?),
            "exponential" => Self::Exponential(tagged_enum::spec(body)?),
            "inverse_sqrt" => Self::InverseSqrt(tagged_enum::spec(body)?),
            "cosine" => Self::Cosine(tagged_enum::spec(body)?),
            "linear" => Self::Linear(tagged_enum::spec(body)?),
            "one_cycle" => Self::OneCycle(tagged_enum::spec(body)?),
            "plateau" => Self::Plateau(tagged_enum::spec(body)?),
            _ => return Err(D::Error::unknown_variant(name, Self::NAMES)),
        })
    }
}
