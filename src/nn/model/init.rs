//! `init:` of a model file: initial weights other than PyTorch's default, as in the reference code of a
//! network.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};
use tch::{Kind, Tensor};
use wildmatch::WildMatch;

use super::scope::{Scope, fill};
use super::tree::{Node, join};
use crate::nn::layers::init::{fans, fill as draw, normal, uniform};
use crate::nn::layers::{Param, ParamKind};
use crate::util::yaml::{self, Invalid, nearest};

/// The layer types that `init:` accepts.
const KINDS: [&str; 3] = ["conv2d", "conv_transpose2d", "linear"];

/// A distribution of initial weights, named as in `torch.nn.init`; the gain of the Kaiming family is ReLU's.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Init {
    KaimingNormal,
    KaimingNormalFanOut,
    KaimingUniform,
    KaimingUniformFanOut,
    XavierNormal,
    XavierUniform,
    Normal {
        #[serde(default)]
        mean: f64,
        std: f64,
    },
    /// A normal distribution without what is outside [a, b].
    TruncNormal {
        #[serde(default)]
        mean: f64,
        std: f64,
        #[serde(default = "minus_two")]
        a: f64,
        #[serde(default = "two")]
        b: f64,
    },
    /// Between `a` and `b`.
    Uniform {
        a: f64,
        b: f64,
    },
    /// One where a channel goes to itself, in the middle of the kernel: a convolution that changes nothing.
    Dirac,
    /// These.
    Values(Vec<f64>),
    Zeros,
}

fn minus_two() -> f64 {
    -2.0
}

fn two() -> f64 {
    2.0
}

/// What gets a distribution.
#[derive(Debug)]
enum Target {
    /// The weights of a type of layer.
    Kind(String),
    /// Tensors by a pattern of their names.
    Names(WildMatch),
}

/// The distributions, in the order of the file.
#[derive(Debug, Default)]
pub(super) struct Inits(Vec<(Target, Init)>);

impl Inits {
    /// Reads `init:`, whose values may be formulas. A key with `.` or `*` is a pattern of tensor names, any
    /// other a type of layer.
    pub fn decode(map: &Map<String, Value>, scope: &Scope, params: &[Param]) -> Result<Self, Invalid> {
        let one = |(key, value): (&String, &Value)| {
            let path = format!("init.{key}");
            let init: Init =
                yaml::decode(&fill(value, scope, &path)?).map_err(|invalid| invalid.under(&path))?;
            if let Some(message) = init.refused() {
                return Err(Invalid::new(path, message));
            }
            if key.contains(['.', '*']) {
                let pattern = WildMatch::new(key);
                let misfit = params.iter().find(|param| pattern.matches(&param.name) && !init.fits(param));
                if let Some(param) = misfit {
                    let message = format!("does not fit `{}`, whose shape is {:?}", param.name, param.shape);
                    return Err(Invalid::new(path, message));
                }
                let names = params.iter().filter(|param| param.kind != ParamKind::Buffer);
                let mut names = names.map(|param| param.name.as_str());
                if names.clone().any(|name| pattern.matches(name)) {
                    return Ok((Target::Names(pattern), init));
                }
                let hint = match nearest(key, &mut names) {
                    Some(near) => format!("; did you mean `{near}`?"),
                    None => String::new(),
                };
                return Err(Invalid::new(path, format!("`{key}` matches no parameter{hint}")));
            }
            if matches!(init, Init::Values(_)) {
                return Err(Invalid::new(path, "values belong to one tensor: write its name"));
            }
            if KINDS.contains(&key.as_str()) {
                return Ok((Target::Kind(key.clone()), init));
            }
            let hint = match nearest(key, KINDS.into_iter()) {
                Some(near) => format!("; did you mean `{near}`?"),
                None => String::new(),
            };
            let known = format!("expected {}, or a pattern of names such as `*.bias`", KINDS.join(", "));
            Err(Invalid::new(path, format!("unknown key{hint} ({known})")))
        };
        map.iter().map(one).collect::<Result<_, _>>().map(Self)
    }

    /// Whether an entry is for the type of layer inside `leaf`, whose weight is no tensor of its own.
    pub fn misses(&self, leaf: &Node) -> bool {
        let has_weight = || leaf.params().iter().any(|param| param.name == join(&leaf.path, "weight"));
        let is_meant = |kind: &str| {
            self.0.iter().any(|(target, _)| matches!(target, Target::Kind(known) if known == kind))
        };
        leaf.wraps().is_some_and(is_meant) && !has_weight()
    }

    /// The distribution of the parameter `name`, `kind` being the layer's type: the last pattern that fits its
    /// name, or else that of the layer type if it is the weight.
    pub fn of(&self, name: &str, kind: &str) -> Option<&Init> {
        let named = |target: &Target| matches!(target, Target::Names(pattern) if pattern.matches(name));
        let typed = |target: &Target| {
            matches!(target, Target::Kind(known) if known == kind)
                && name.rsplit('.').next() == Some("weight")
        };
        let last = |fits: &dyn Fn(&Target) -> bool| {
            self.0.iter().rev().find(|(target, _)| fits(target)).map(|(_, init)| init)
        };
        last(&named).or_else(|| last(&typed))
    }
}

impl Init {
    /// Why its numbers cannot be.
    fn refused(&self) -> Option<&'static str> {
        match *self {
            Self::Normal { mean, std } if !(mean.is_finite() && std.is_finite() && std >= 0.0) => {
                Some("normal wants a finite mean and a finite std from 0 up")
            }
            Self::TruncNormal { mean, std, a, b }
                if !(mean.is_finite() && std.is_finite() && std > 0.0 && a < b && (b - a).is_finite()) =>
            {
                Some("trunc_normal wants a finite mean, a finite std above 0, and a below b")
            }
            Self::Uniform { a, b } if !(a <= b && (b - a).is_finite()) => {
                Some("uniform wants finite bounds, a not above b")
            }
            _ => None,
        }
    }

    /// Whether it can be what `param` begins with.
    fn fits(&self, param: &Param) -> bool {
        match self {
            Self::Values(values) => values.len() as i64 == param.count(),
            Self::Dirac => param.shape.len() == 4,
            _ => true,
        }
    }

    /// Overwrites `weight` with a draw.
    pub fn apply(&self, weight: &Tensor) {
        let (fan_in, fan_out) = fans(weight);
        // The operations and their order are those of torch.nn.init: the draws agree to the last bit.
        let relu = |fan: f64| 2f64.sqrt() / fan.sqrt();
        let xavier = (2.0 / (fan_in + fan_out)).sqrt();
        match *self {
            Self::KaimingNormal => normal(weight, 0.0, relu(fan_in)),
            Self::KaimingNormalFanOut => normal(weight, 0.0, relu(fan_out)),
            Self::KaimingUniform => uniform(weight, 3f64.sqrt() * relu(fan_in)),
            Self::KaimingUniformFanOut => uniform(weight, 3f64.sqrt() * relu(fan_out)),
            Self::XavierNormal => normal(weight, 0.0, xavier),
            Self::XavierUniform => uniform(weight, 3f64.sqrt() * xavier),
            Self::Normal { mean, std } => normal(weight, mean, std),
            Self::TruncNormal { mean, std, a, b } => {
                let (low, high) = (cdf((a - mean) / std), cdf((b - mean) / std));
                draw(weight, |drawn| {
                    let _ = drawn.uniform_(2.0 * low - 1.0, 2.0 * high - 1.0).erfinv_();
                    let _ = drawn.g_mul_scalar_(std * 2f64.sqrt()).g_add_scalar_(mean).clamp_(a, b);
                });
            }
            Self::Uniform { a, b } => draw(weight, |drawn| {
                let _ = drawn.uniform_(a, b);
            }),
            Self::Dirac => draw(weight, |drawn| {
                let _ = drawn.zero_();
                let size = drawn.size();
                if let [out, into, height, width] = size[..] {
                    let middle = drawn.select(3, width / 2).select(2, height / 2);
                    let _ = middle.slice(0, 0, out.min(into), 1).diagonal(0, 0, 1).fill_(1.0);
                }
            }),
            Self::Values(ref values) => draw(weight, |drawn| {
                drawn.copy_(&Tensor::from_slice(values).view_as(drawn));
            }),
            Self::Zeros => {
                tch::no_grad(|| {
                    let _ = weight.shallow_clone().zero_();
                });
            }
        }
    }
}

/// The share of a standard normal distribution below `x`.
fn cdf(x: f64) -> f64 {
    let erf = Tensor::from(x / 2f64.sqrt()).to_kind(Kind::Double).erf();
    (1.0 + erf.double_value(&[])) / 2.0
}
