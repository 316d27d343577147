//! Regression: numbers from tables or images.

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::{ModelOutput, Prediction, Task};
use crate::data::{Dataset, Targets};
use crate::functional::loss::RegressionLoss;
use crate::nn::model::Model;
use crate::schedule::ScheduleStep;
use crate::util::exit_code::{ExitCode, fail};
use crate::util::yaml::Invalid;

/// One or more numbers per sample.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Regression {
    /// The loss.
    pub loss: RegressionLoss,
}

impl Task for Regression {
    fn validate(&self) -> Result<(), Invalid> {
        if let RegressionLoss::Ssim { .. } = self.loss {
            return Err(Invalid::new("loss", "`ssim` compares images; use `task: reconstruction`"));
        }
        self.loss.validate().map_err(|invalid| invalid.under("loss"))
    }

    fn check(&self, model: &Model, set: &Dataset) -> Result<()> {
        let output = model.output();
        let Targets::Values(values) = &set.targets else {
            let message =
                "the data has classes as targets, and regression wants numbers; use `task: classification`";
            return Err(fail(ExitCode::Usage, message));
        };
        let wanted = &values.size()[1..];
        if wanted != output {
            let message = format!(
                "the data has targets of shape {wanted:?} and the network gives {output:?} per sample; \
                 give its last layer {} outputs",
                wanted.iter().product::<i64>()
            );
            return Err(fail(ExitCode::Usage, message));
        }
        Ok(())
    }

    fn takes_auxiliary(&self) -> bool {
        true
    }

    fn loss(&self, answer: &ModelOutput, ys: &Tensor, _clock: Option<ScheduleStep>) -> Tensor {
        self.loss.of(&answer.outputs, ys)
    }

    fn default_monitor(&self) -> &'static str {
        "mse"
    }

    fn predictions(&self, outputs: &Tensor) -> Result<Vec<Prediction>> {
        let rows = outputs.flatten(1, -1).to_kind(Kind::Double);
        Ok(Vec::<Vec<f64>>::try_from(rows)?.into_iter().map(Prediction::Values).collect())
    }
}
