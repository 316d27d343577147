//! Any number of classes per sample: a logit for each, by binary cross-entropy, or the focal loss (Lin et al. 2017).

use anyhow::{Result, bail};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::balanced::Balanced;
use super::{ModelArgs, ModelOutput, Prediction, Task};
use crate::data::balance::ClassBalance;
use crate::data::{Dataset, Targets};
use crate::functional::loss::{self, Focal};
use crate::metrics::MetricArgs;
use crate::nn::model::Model;
use crate::schedule::ScheduleStep;
use crate::util::exit_code::{ExitCode, fail};
use crate::util::yaml::Invalid;

/// Any number of classes per sample, by binary cross-entropy (`torch.nn.BCEWithLogitsLoss`). A class is found where
/// its probability reaches its threshold: the one of the highest F1 on the validation set, 0.5 without one.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MultiLabel {
    /// Focal loss in training, as torchvision's `sigmoid_focal_loss`. Off when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub focal: Option<Focal>,
    /// Of `balance`, in training.
    #[serde(skip)]
    balanced: Balanced,
}

impl Task for MultiLabel {
    fn validate(&self) -> Result<(), Invalid> {
        self.focal.map_or(Ok(()), |focal| focal.validate().map_err(|invalid| invalid.under("focal")))
    }

    fn balance(&mut self, classes: &[ClassBalance], kind: Kind, device: Device) {
        self.balanced = Balanced::of(classes, kind, device);
    }

    fn takes_balance(&self) -> bool {
        true
    }

    fn model_args(&self, channels: i64, classes: Option<usize>) -> ModelArgs {
        ModelArgs { channels, classes, is_sized: true }
    }

    fn check(&self, model: &Model, set: &Dataset) -> Result<()> {
        let refuse = |message: String| Err(fail(ExitCode::Usage, message));
        let Targets::MultiLabel(_) = &set.targets else {
            return refuse(match &set.targets {
                Targets::Classes(_) => "the samples have one class each; use `task: classification`".into(),
                _ => "multi_label wants a 0 or a 1 for each class of a sample, such as `npy: {targets: multi_label}`".into(),
            });
        };
        let (classes, output) = (set.classes.len() as i64, model.output());
        if output != [classes] {
            return refuse(format!(
                "the data has {classes} classes, and the network gives {output:?} per sample; give its last layer \
                 {classes} outputs, with most shipped models by `args: {{classes: {classes}}}`"
            ));
        }
        Ok(())
    }

    fn takes_auxiliary(&self) -> bool {
        true
    }

    fn answers_labels(&self) -> bool {
        true
    }

    fn loss(&self, answer: &ModelOutput, ys: &Tensor, clock: Option<ScheduleStep>) -> Tensor {
        let logits = &answer.outputs;
        if clock.is_none() {
            return loss::binary_cross_entropy(logits, ys, None);
        }
        match self.focal {
            Some(focal) => focal.binary_cross_entropy(logits, ys, self.balanced.weights()),
            None => loss::binary_cross_entropy(logits, ys, self.balanced.weights()),
        }
    }

    fn metric_args(&self, output: &[i64]) -> MetricArgs {
        MetricArgs { classes: output.iter().product::<i64>() as usize, ..MetricArgs::default() }
    }

    fn default_monitor(&self) -> &'static str {
        "average_precision"
    }

    fn predictions(&self, outputs: &Tensor) -> Result<Vec<Prediction>> {
        if outputs.dim() != 2 {
            bail!("the network gave {:?}, not one row of logits per sample", outputs.size());
        }
        let rows = Vec::<Vec<f64>>::try_from(outputs.to_kind(Kind::Double).sigmoid())?;
        Ok(rows.into_iter().map(Prediction::Labels).collect())
    }
}
