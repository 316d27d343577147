//! Generation by a variational autoencoder (Kingma & Welling 2014), with β (Higgins et al. 2017) and a
//! warm-up of the KL term (Bowman et al. 2016).
//!
//! The model has two top-level layers called `encoder` and `decoder` (or `_encoder`, `_decoder`, which keeps
//! the words out of the parameter names). The encoder ends with means and log-variances, one behind the
//! other; the decoder takes a code and ends with an image. Between them is `reparametrize`, which makes
//! the whole a network like any other; the task runs the two parts itself, draws the code in training and
//! evaluation, and generates with the decoder alone.

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Kind;
use tch::Tensor;

use super::{ModelArgs, ModelOutput, Panel, Task, autoencoder_panels, code_shape, part};
use crate::data::Dataset;
use crate::functional::loss::Likelihood;
use crate::metrics::{MetricArgs, nats};
use crate::nn::layers::reparametrize;
use crate::nn::model::{Model, Network};
use crate::schedule::ScheduleStep;
use crate::util::exit_code::{ExitCode, fail};
use crate::util::yaml::Invalid;

/// A variational autoencoder. The loss is −log p(image | code) + β·KL, in nats per image.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Generation {
    /// What the decoder outputs for a pixel.
    pub likelihood: Likelihood,
    /// Weight β of the Kullback-Leibler term (β-VAE).
    #[schemars(range(min = 0))]
    pub beta: f64,
    /// Optimiser steps over which the weight of the Kullback-Leibler term rises linearly from 0 to β.
    pub kl_warmup_steps: u64,
}

impl Default for Generation {
    fn default() -> Self {
        Self { likelihood: Likelihood::default(), beta: 1.0, kl_warmup_steps: 0 }
    }
}

impl Generation {
    /// The shape of one code. Exit 2 where the model is no such autoencoder.
    pub fn code(model: &Model) -> Result<&[i64]> {
        code_shape(model, 2, "generation")
    }

    /// The means of the codes of images `[N, C, H, W]`, in evaluation.
    pub fn means(network: &Network, xs: &Tensor) -> Result<Tensor> {
        Ok(reparametrize::moments(&part(network, "encoder", "generation")?.forward_t(xs, false)).0)
    }

    /// The images `[N, C, H, W]` of codes, in evaluation.
    pub fn images(network: &Network, codes: &Tensor) -> Result<Tensor> {
        Ok(part(network, "decoder", "generation")?.forward_t(codes, false))
    }

    /// The weight of KL in the step at `clock`; β in evaluation.
    fn weight(&self, clock: Option<ScheduleStep>) -> f64 {
        match clock {
            Some(clock) if clock.step < self.kl_warmup_steps => {
                self.beta * clock.step as f64 / self.kl_warmup_steps as f64
            }
            _ => self.beta,
        }
    }
}

impl Task for Generation {
    fn validate(&self) -> Result<(), Invalid> {
        if !(self.beta >= 0.0 && self.beta.is_finite()) {
            return Err(Invalid::new("beta", format!("{} is not a number, 0 or more", self.beta)));
        }
        match self.likelihood {
            Likelihood::Gaussian { sigma } if !(sigma > 0.0 && sigma.is_finite()) => {
                Err(Invalid::new("likelihood.gaussian.sigma", format!("{sigma} is not a positive number")))
            }
            _ => Ok(()),
        }
    }

    fn model_args(&self, channels: i64, _classes: Option<usize>) -> ModelArgs {
        ModelArgs { channels, classes: None, is_sized: true }
    }

    fn runs_parts(&self) -> bool {
        true
    }

    fn scores_images(&self) -> bool {
        true
    }

    fn check(&self, model: &Model, set: &Dataset) -> Result<()> {
        Self::code(model)?;
        let output = model.output();
        if set.shape.len() != 3 || output != set.shape {
            let message = format!(
                "generation wants images [C, H, W] and a network that gives the same, and they are {:?} and {output:?}",
                set.shape
            );
            return Err(fail(ExitCode::Usage, message));
        }
        Ok(())
    }

    fn make_batch(&self, xs: Tensor, _ys: Tensor, _train: bool) -> Result<(Tensor, Tensor)> {
        Ok((xs.shallow_clone(), xs))
    }

    fn forward(&self, network: &Network, xs: &Tensor, train: bool) -> Result<ModelOutput> {
        let moments = part(network, "encoder", "generation")?.forward_t(xs, train);
        let decoder = part(network, "decoder", "generation")?;
        let outputs = decoder.forward_t(&reparametrize::draw(&moments), train);
        Ok(ModelOutput { outputs, latent: Some(moments) })
    }

    fn loss(&self, answer: &ModelOutput, ys: &Tensor, clock: Option<ScheduleStep>) -> Tensor {
        let (reconstruction, kl) = nats(self.likelihood, answer, ys);
        (reconstruction + kl * self.weight(clock)).mean(None::<Kind>)
    }

    fn loss_number(&self, clock: ScheduleStep) -> Option<f64> {
        (self.kl_warmup_steps > 0).then(|| self.weight(Some(clock)))
    }

    fn loss_with(&self, answer: &ModelOutput, ys: &Tensor, weight: &Tensor, _clock: ScheduleStep) -> Tensor {
        let (reconstruction, kl) = nats(self.likelihood, answer, ys);
        (reconstruction + &kl * weight.to_kind(kl.kind())).mean(None::<Kind>)
    }

    fn metric_args(&self, _output: &[i64]) -> MetricArgs {
        MetricArgs { likelihood: self.likelihood, ..MetricArgs::default() }
    }

    fn default_monitor(&self) -> &'static str {
        "elbo"
    }

    fn panels(&self, _xs: &Tensor, outputs: &Tensor, ys: &Tensor) -> Vec<Panel> {
        autoencoder_panels(outputs, ys)
    }
}
