//! Segmentation: a class for every pixel; cross-entropy and soft Dice of logits (Ronneberger et al. 2015,
//! Milletari et al. 2016).

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::{ModelArgs, ModelOutput, Panel, Task};
use crate::data::mask::{IGNORED, tint};
use crate::data::{Dataset, Targets};
use crate::functional::loss;
use crate::libtorch::constant::constant;
use crate::metrics::MetricArgs;
use crate::nn::model::Model;
use crate::schedule::ScheduleStep;
use crate::util::exit_code::{ExitCode, fail};
use crate::util::yaml::Invalid;

/// One class per pixel. The loss is `cross_entropy`·CE + `dice`·(1 − mean soft Dice).
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Segmentation {
    /// Weight of the cross-entropy.
    #[schemars(range(min = 0))]
    pub cross_entropy: f64,
    /// Weight of the Dice loss.
    #[schemars(range(min = 0))]
    pub dice: f64,
    /// Weight of each class in the cross-entropy, for classes that are rare, as `weight` of
    /// `torch.nn.CrossEntropyLoss`; 1 each when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class_weights: Option<Vec<f64>>,
}

impl Default for Segmentation {
    fn default() -> Self {
        Self { cross_entropy: 1.0, dice: 1.0, class_weights: None }
    }
}

impl Segmentation {
    fn weights(&self, kind: Kind, device: Device) -> Option<Tensor> {
        let weights = self.class_weights.as_ref();
        weights.map(|weights| constant(weights, &[weights.len() as i64], (kind, device)))
    }

    /// Σ of the weights of the pixels that count, float64: what the cross-entropy is divided by.
    fn weight_sum(&self, ys: &Tensor) -> Tensor {
        let counted = ys.ge(0);
        match self.weights(Kind::Double, ys.device()) {
            None => counted.sum(Kind::Double),
            Some(weights) => {
                let each = weights.index_select(0, &ys.clamp_min(0).flatten(0, -1)).view_as(ys);
                (each * counted).sum(Kind::Double)
            }
        }
    }
}

/// The classes that logits of `channels` channels distinguish: two by one channel.
fn classes(channels: i64) -> i64 {
    channels.max(2)
}

impl Task for Segmentation {
    fn validate(&self) -> Result<(), Invalid> {
        let weight = |key: &str, value: f64| match value >= 0.0 && value.is_finite() {
            true => Ok(()),
            false => Err(Invalid::new(key, format!("{value} is not a weight, 0 or more"))),
        };
        weight("cross_entropy", self.cross_entropy)?;
        weight("dice", self.dice)?;
        if self.cross_entropy + self.dice == 0.0 {
            return Err(Invalid::new("", "`cross_entropy` and `dice` are both 0: nothing would be learnt"));
        }
        let mut weights = self.class_weights.iter().flatten().enumerate();
        weights.try_for_each(|(class, value)| weight(&format!("class_weights.{class}"), *value))
    }

    fn model_args(&self, channels: i64, classes: Option<usize>) -> ModelArgs {
        ModelArgs { channels, classes, is_sized: false }
    }

    fn shows_input(&self) -> bool {
        true
    }

    /// One channel alone, a logit against 0, has no softmax.
    fn answers_logits(&self, output: &[i64]) -> bool {
        output.first().is_some_and(|&channels| channels > 1)
    }

    fn check(&self, model: &Model, set: &Dataset) -> Result<()> {
        let output = model.output();
        let refuse = |message: String| Err(fail(ExitCode::Usage, message));
        let Targets::Masks(_) = &set.targets else {
            return refuse(
                "segmentation wants masks; say `images: {root: …, mask: {root: …, classes: […]}}`".into(),
            );
        };
        let &[channels, _, _] = output else {
            return refuse(format!(
                "segmentation wants one logit per class and pixel [K, H, W], and the network gives {output:?}"
            ));
        };
        let wanted = set.classes.len() as i64;
        if wanted > classes(channels) {
            return refuse(format!(
                "the masks have {wanted} classes and the network tells {} apart; give it `args: {{classes: {wanted}}}`",
                classes(channels)
            ));
        }
        match &self.class_weights {
            Some(weights) if weights.len() as i64 != classes(channels) => refuse(format!(
                "task.segmentation.class_weights has {} weights for {} classes",
                weights.len(),
                classes(channels)
            )),
            _ => Ok(()),
        }
    }

    fn takes_auxiliary(&self) -> bool {
        true
    }

    /// One channel is the logit of class 1 against class 0.
    fn answer(&self, logits: Tensor) -> ModelOutput {
        let is_single = logits.size()[1] == 1;
        if is_single { Tensor::cat(&[logits.zeros_like(), logits], 1) } else { logits }.into()
    }

    fn loss(&self, answer: &ModelOutput, ys: &Tensor, _clock: Option<ScheduleStep>) -> Tensor {
        let logits = &answer.outputs;
        let mut loss = Tensor::zeros([], (logits.kind(), logits.device()));
        if self.cross_entropy > 0.0 {
            let weights = self.weights(logits.kind(), logits.device());
            loss += loss::pixel_cross_entropy(logits, ys, weights.as_ref()) * self.cross_entropy;
        }
        if self.dice > 0.0 {
            loss += loss::dice(logits, ys) * self.dice;
        }
        loss
    }

    /// Σ of the weighted cross-entropy, Σ of the weights, then per class 2·Σpt and Σ(p + t).
    fn sums(&self, answer: &ModelOutput, ys: &Tensor) -> Option<Tensor> {
        let logits = match answer.outputs.kind() {
            Kind::Double => answer.outputs.shallow_clone(),
            _ => answer.outputs.to_kind(Kind::Float),
        };
        let weights = self.weights(logits.kind(), logits.device());
        let total = loss::pixel_cross_entropy_sum(&logits, ys, weights.as_ref()).to_kind(Kind::Double);
        let [common, either] = loss::dice_sums(&logits, ys).map(|sums| sums.to_kind(Kind::Double));
        Some(Tensor::cat(&[Tensor::stack(&[total, self.weight_sum(ys)], 0), common, either], 0))
    }

    fn joint_loss(&self, sums: &Tensor) -> Tensor {
        let classes = (sums.size()[0] - 2) / 2;
        let (common, either) = (sums.narrow(0, 2, classes), sums.narrow(0, 2 + classes, classes));
        let mut loss = loss::dice_of(&common, &either) * self.dice;
        if self.cross_entropy > 0.0 {
            loss += sums.get(0) / sums.get(1) * self.cross_entropy;
        }
        loss
    }

    fn weight(&self, ys: &Tensor) -> Option<Tensor> {
        Some(self.weight_sum(ys))
    }

    fn is_joint(&self) -> bool {
        self.dice > 0.0
    }

    fn metric_args(&self, output: &[i64]) -> MetricArgs {
        let classes = classes(output.first().copied().unwrap_or(1)) as usize;
        MetricArgs { classes, ..MetricArgs::default() }
    }

    fn default_monitor(&self) -> &'static str {
        "mean_dice"
    }

    fn panels(&self, xs: &Tensor, outputs: &Tensor, ys: &Tensor) -> Vec<Panel> {
        let found = outputs.argmax(1, false);
        // Pixels of no class are negative.
        let (right, counted) = (found.eq_tensor(ys), ys.ge(0));
        let share = right.logical_and(&counted).sum(Kind::Double) / counted.sum(Kind::Double);
        let caption = format!("found {:.1} % right", share.double_value(&[]) * 100.0);
        vec![
            Panel::new("given", xs),
            Panel::new(caption, &tinted(xs, &found)),
            Panel::new("target", &tinted(xs, ys)),
        ]
    }

    fn seen(&self, xs: &Tensor, ys: &Tensor) -> Vec<Panel> {
        vec![Panel::new("", &tinted(xs, ys))]
    }
}

/// The image `[1, C, H, W]` in [0, 1] tinted by the classes `[1, H, W]`, pixels that are ignored in the
/// colour of Pascal VOC's borders; `[1, 3, H, W]`. Panics as tch does.
fn tinted(xs: &Tensor, classes: &Tensor) -> Tensor {
    let image = if xs.size()[1] == 3 { xs.shallow_clone() } else { xs.narrow(1, 0, 1).repeat([1, 3, 1, 1]) };
    let bytes = |tensor: &Tensor| {
        let flat = tensor.to_kind(Kind::Uint8).to_device(Device::Cpu).contiguous().view([-1]);
        Vec::<u8>::try_from(flat).unwrap_or_default()
    };
    let mut pixels = bytes(&(image.permute([0, 2, 3, 1]).clamp(0.0, 1.0) * 255.0).round());
    tint(&mut pixels, &bytes(&classes.masked_fill(&classes.lt(0), i64::from(IGNORED))));
    let [_, height, width] = classes.size()[..] else { return image };
    Tensor::from_slice(&pixels).view([1, height, width, 3]).permute([0, 3, 1, 2]) / 255.0
}
