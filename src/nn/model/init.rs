//! `init:` of a model file: initial weights other than PyTorch's default, as in the reference code of a
//! network.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};
use tch::Tensor;

use crate::nn::layers::init::{fans, normal, uniform};
use crate::util::yaml::{self, Invalid};

/// The layer types that `init:` accepts.
const KINDS: [&str; 3] = ["conv2d", "conv_transpose2d", "linear"];

/// A distribution of initial weights, named as in `torch.nn.init`; the gain of the Kaiming family is ReLU's.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
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
    Zeros,
}

/// The distributions by layer type.
pub(super) fn decode(map: &Map<String, Value>) -> Result<Vec<(String, Init)>, Invalid> {
    map.iter()
        .map(|(kind, value)| {
            let path = format!("init.{kind}");
            if !KINDS.contains(&kind.as_str()) {
                let hint = match yaml::nearest(kind, KINDS.into_iter()) {
                    Some(near) => format!("; did you mean `{near}`?"),
                    None => String::new(),
                };
                return Err(Invalid::new(path, format!("unknown key{hint} (expected {})", KINDS.join(", "))));
            }
            let init: Init = yaml::decode(value).map_err(|invalid| invalid.under(&path))?;
            if let Init::Normal { mean, std } = init
                && !(mean.is_finite() && std.is_finite() && std >= 0.0)
            {
                return Err(Invalid::new(path, "normal wants a finite mean and a finite std from 0 up"));
            }
            Ok((kind.clone(), init))
        })
        .collect()
}

impl Init {
    /// Overwrites `weight` with a draw.
    pub fn apply(self, weight: &Tensor) {
        let (fan_in, fan_out) = fans(weight);
        // The operations and their order are those of torch.nn.init: the draws agree to the last bit.
        let relu = |fan: f64| 2f64.sqrt() / fan.sqrt();
        let xavier = (2.0 / (fan_in + fan_out)).sqrt();
        match self {
            Self::KaimingNormal => normal(weight, 0.0, relu(fan_in)),
            Self::KaimingNormalFanOut => normal(weight, 0.0, relu(fan_out)),
            Self::KaimingUniform => uniform(weight, 3f64.sqrt() * relu(fan_in)),
            Self::KaimingUniformFanOut => uniform(weight, 3f64.sqrt() * relu(fan_out)),
            Self::XavierNormal => normal(weight, 0.0, xavier),
            Self::XavierUniform => uniform(weight, 3f64.sqrt() * xavier),
            Self::Normal { mean, std } => normal(weight, mean, std),
            Self::Zeros => {
                tch::no_grad(|| {
                    let _ = weight.shallow_clone().zero_();
                });
            }
        }
    }
}
