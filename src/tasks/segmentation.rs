//! Segmentation: a class for every pixel; cross-entropy and soft Dice of logits (Ronneberger et al. 2015, Milletari et
//! al. 2016).

use anyhow::Result;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::{Answer, Goal, Panel, Task};
use crate::data::{Dataset, Targets};
use crate::exit::{Exit, fail};
use crate::loss;
use crate::metrics::{Meter, SegmentationMeter};
use crate::model::{Model, Network};
use crate::schedule::Clock;
use crate::yaml::Invalid;

/// The loss is `cross_entropy`·CE + `dice`·(1 − mean soft Dice).
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Segmentation {
    pub cross_entropy: f64,
    pub dice: f64,
    /// How much a pixel of each class counts in the cross-entropy, for classes that are rare; 1 each where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class_weights: Option<Vec<f64>>,
}

impl Default for Segmentation {
    fn default() -> Self {
        Self { cross_entropy: 1.0, dice: 1.0, class_weights: None }
    }
}

impl Segmentation {
    pub fn validate(&self) -> Result<(), Invalid> {
        let weight = |key: &str, value: f64| match value >= 0.0 && value.is_finite() {
            true => Ok(()),
            false => Err(Invalid::new(
                format!("segmentation.{key}"),
                format!("{value} is not a weight, 0 or more"),
            )),
        };
        weight("cross_entropy", self.cross_entropy)?;
        weight("dice", self.dice)?;
        if self.cross_entropy + self.dice == 0.0 {
            return Err(Invalid::new(
                "segmentation",
                "`cross_entropy` and `dice` are both 0: nothing would be learnt",
            ));
        }
        let mut weights = self.class_weights.iter().flatten().enumerate();
        weights.try_for_each(|(class, value)| weight(&format!("class_weights.{class}"), *value))
    }
}

/// The classes that logits of `channels` channels tell apart: one channel stands for two.
fn classes(channels: i64) -> i64 {
    channels.max(2)
}

impl Task for Segmentation {
    fn check(&self, model: &Model, set: &Dataset) -> Result<()> {
        let output = model.output();
        let refuse = |message: String| Err(fail(Exit::Usage, message));
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

    fn answer(&self, network: &Network, xs: &Tensor, train: bool) -> Result<Answer> {
        let logits = network.forward(xs, train);
        // One channel is the logit of class 1 against class 0.
        let logits =
            if logits.size()[1] == 1 { Tensor::cat(&[logits.zeros_like(), logits], 1) } else { logits };
        Ok(logits.into())
    }

    fn loss(&self, answer: &Answer, ys: &Tensor, _clock: Option<Clock>) -> Tensor {
        let logits = &answer.outputs;
        let mut loss = Tensor::zeros([], (logits.kind(), logits.device()));
        if self.cross_entropy > 0.0 {
            let weights = self.class_weights.as_ref();
            let weights =
                weights.map(|w| Tensor::from_slice(w).to_kind(logits.kind()).to_device(logits.device()));
            loss += loss::pixel_cross_entropy(logits, ys, weights.as_ref()) * self.cross_entropy;
        }
        if self.dice > 0.0 {
            loss += loss::dice(logits, ys) * self.dice;
        }
        loss
    }

    fn meter(&self, output: &[i64]) -> Box<dyn Meter> {
        Box::new(SegmentationMeter::new(classes(output.first().copied().unwrap_or(1)) as usize))
    }

    fn goal(&self) -> Goal {
        Goal { metric: "mean_dice", higher_is_better: true }
    }

    fn panels(&self, xs: &Tensor, outputs: &Tensor, ys: &Tensor) -> Vec<Panel> {
        let brightest = (outputs.size()[1] - 1).max(1) as f64;
        let grey = |classes: &Tensor| classes.unsqueeze(1).to_kind(Kind::Float) / brightest;
        let found = outputs.argmax(1, false);
        // Pixels of no class are negative.
        let (right, counted) = (found.eq_tensor(ys), ys.ge(0));
        let share = right.logical_and(&counted).sum(Kind::Double) / counted.sum(Kind::Double);
        let found =
            Panel::new(format!("found {:.1} % right", share.double_value(&[]) * 100.0), &grey(&found));
        vec![Panel::new("given", xs), found, Panel::new("target", &grey(ys))]
    }
}
