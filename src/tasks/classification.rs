//! Classification: cross-entropy of logits, with label smoothing (Szegedy et al. 2016), or the focal loss (Lin et
//! al. 2017); weights of the classes, and logit adjustment (Menon et al. 2021).

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

/// One class per sample, by cross-entropy.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Classification {
    /// Share of the target that is spread over all classes, as in `torch.nn.CrossEntropyLoss`.
    #[schemars(range(min = 0), extend("exclusiveMaximum" = 1))]
    pub label_smoothing: f64,
    /// Focal loss in training: (1 - p)^γ times the cross-entropy of the class whose probability is p, so that what
    /// is known well counts less. Off when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub focal: Option<Focal>,
    /// Of `balance`, in training.
    #[serde(skip)]
    balanced: Balanced,
}

/// A hint where labels do not count classes from 0.
fn label_hint(labels: &[i64]) -> Option<String> {
    let mut found = labels.to_vec();
    found.sort_unstable();
    found.dedup();
    match found.as_slice() {
        [.., before, 255] if *before < 254 => Some(format!(
            "the labels are up to {before}, and 255: if that means unknown, leave those samples out"
        )),
        [1, .., last] if found.len() as i64 == *last => {
            Some(format!("the labels begin at 1 and classes count from 0: make them 0 to {}", last - 1))
        }
        _ => None,
    }
}

impl Task for Classification {
    fn validate(&self) -> Result<(), Invalid> {
        if !(0.0..1.0).contains(&self.label_smoothing) {
            return Err(Invalid::new("label_smoothing", format!("{} is not in 0..1", self.label_smoothing)));
        }
        if self.focal.is_some_and(|focal| focal.alpha.is_some()) {
            let message = "is for `task: multi_label`; give the classes weights by `balance: {loss: […]}`";
            return Err(Invalid::new("focal.alpha", message));
        }
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
        let output = model.output();
        let Targets::Classes(labels) = &set.targets else {
            let message = match &set.targets {
                Targets::MultiLabel(_) => {
                    "the samples have any number of classes each, and classification wants one of them; use `task: multi_label`"
                }
                _ => {
                    "the data has numbers as targets, and classification wants classes; use `task: regression`, or \
                     in a csv whose target names classes `classes: true`"
                }
            };
            return Err(fail(ExitCode::Usage, message));
        };
        let &[outputs] = output else {
            let message = format!(
                "classification wants one logit per class, and the network gives {output:?} per sample; \
                 end it with `flatten` and `linear`"
            );
            return Err(fail(ExitCode::Usage, message));
        };
        let classes = set.classes.len() as i64;
        let largest = labels.iter().copied().max().unwrap_or(0);
        if classes > outputs || largest >= outputs {
            let wanted = classes.max(largest + 1);
            let remedy = label_hint(labels).unwrap_or_else(|| {
                format!(
                    "give its last layer {wanted}, with most shipped models by `args: {{classes: {wanted}}}`"
                )
            });
            let message =
                format!("the data has {wanted} classes and the network {outputs} outputs; {remedy}");
            return Err(fail(ExitCode::Usage, message));
        }
        Ok(())
    }

    fn takes_auxiliary(&self) -> bool {
        true
    }

    fn loss(&self, answer: &ModelOutput, ys: &Tensor, clock: Option<ScheduleStep>) -> Tensor {
        if clock.is_none() {
            return loss::cross_entropy(&answer.outputs, ys, 0.0, None);
        }
        let logits = self.balanced.adjusted(&answer.outputs);
        let (smoothing, weights) = (self.label_smoothing, self.balanced.weights());
        match self.focal {
            Some(focal) => focal.cross_entropy(&logits, ys, smoothing, weights),
            None => loss::cross_entropy(&logits, ys, smoothing, weights),
        }
    }

    /// As PyTorch does, classes divide by their weights, and shares of classes by the number of samples.
    fn weight(&self, ys: &Tensor) -> Option<Tensor> {
        let weights = self.balanced.weights().filter(|_| ys.kind() == Kind::Int64)?;
        Some(weights.index_select(0, ys).sum(Kind::Double))
    }

    fn answers_logits(&self, _output: &[i64]) -> bool {
        true
    }

    fn metric_args(&self, output: &[i64]) -> MetricArgs {
        MetricArgs { classes: output.iter().product::<i64>() as usize, ..MetricArgs::default() }
    }

    fn default_monitor(&self) -> &'static str {
        "accuracy"
    }

    fn predictions(&self, outputs: &Tensor) -> Result<Vec<Prediction>> {
        if outputs.dim() != 2 {
            bail!("the network gave {:?}, not one row of logits per sample", outputs.size());
        }
        let (values, order) = outputs.softmax(1, Kind::Double).sort(1, true);
        let (values, order) = (Vec::<Vec<f64>>::try_from(values)?, Vec::<Vec<i64>>::try_from(order)?);
        let rows = values.into_iter().zip(order);
        Ok(rows
            .map(|(values, order)| {
                Prediction::Classes(order.into_iter().map(|class| class as usize).zip(values).collect())
            })
            .collect())
    }
}
