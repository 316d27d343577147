//! Compression: an autoencoder whose code is whole numbers, after Ballé et al. 2017.
//!
//! The model has two top-level layers called `encoder` and `decoder` (or `_encoder`, `_decoder`), and
//! `quantize` between them. The task runs the two parts itself: noise of ±½ replaces rounding in training,
//! evaluation rounds and counts the bits that the code needs.

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Kind;
use tch::Tensor;

use super::{ModelOutput, Panel, Task, autoencoder_panels, code_shape, part};
use crate::data::Dataset;
use crate::functional::loss::RegressionLoss;
use crate::libtorch::device::upload;
use crate::nn::layers::quantize::quantize;
use crate::nn::model::{Model, Network};
use crate::schedule::ScheduleStep;
use crate::util::exit_code::{ExitCode, fail};
use crate::util::yaml::Invalid;

/// An autoencoder with a compressed code. The loss is `loss` + `rate` · bits per pixel.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Compression {
    /// The loss between image and reconstruction.
    pub loss: RegressionLoss,
    /// The cost of one bit per pixel; with 0 only the bottleneck's width limits the rate. In training the
    /// bits are those of a normal distribution per channel with the batch's variance, which no code of that
    /// variance exceeds.
    #[schemars(range(min = 0))]
    pub rate: f64,
}

impl Compression {
    /// The shape of the code of an image as large as the model's input. Exit 2 where the model is no such
    /// autoencoder.
    pub fn code(model: &Model) -> Result<&[i64]> {
        code_shape(model, 1, "compression")
    }

    /// The code `[N, K, …]` of images `[N, C, H, W]`: whole numbers from −128 to 127.
    pub fn encode(network: &Network, xs: &Tensor) -> Result<Tensor> {
        Ok(quantize(&part(network, "encoder", "compression")?.forward_t(xs, false), false))
    }

    /// The images of codes: those that evaluation judges. `size` is that of `[N, C, H, W]`.
    pub fn decode(network: &Network, code: &Tensor, size: &[i64]) -> Result<Tensor> {
        Ok(cut(&part(network, "decoder", "compression")?.forward_t(code, false), size))
    }
}

/// Sides that the encoder's steps do not divide come back rounded up.
fn cut(outputs: &Tensor, size: &[i64]) -> Tensor {
    outputs.narrow(2, 0, size[2]).narrow(3, 0, size[3])
}

/// An upper bound of the code's entropy, `[N, C, …]`, in bits; 0-dim, differentiable.
fn bits(code: &Tensor) -> Tensor {
    let per_channel = code.transpose(0, 1).flatten(1, -1);
    let variance = per_channel.var_dim(&[1i64][..], false, false);
    bits_per_value(&variance) * per_channel.size()[1] as f64
}

/// The bound for one value of each channel, whose variances these are.
fn bits_per_value(variance: &Tensor) -> Tensor {
    // The variance of rounding is 1/12; a normal distribution has the most entropy of all with its variance.
    let normal = ((variance + 1.0 / 12.0) * (std::f64::consts::TAU * std::f64::consts::E)).log2() * 0.5;
    normal.clamp_min(0.0).sum(None::<Kind>)
}

impl Task for Compression {
    fn validate(&self) -> Result<(), Invalid> {
        if !(self.rate >= 0.0 && self.rate.is_finite()) {
            return Err(Invalid::new("rate", format!("{} is not a number, 0 or more", self.rate)));
        }
        self.loss.validate().map_err(|invalid| invalid.under("loss"))
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
        if set.shape.len() != 3 || output.len() != 3 || output[0] != set.shape[0] {
            let message = format!(
                "compression wants images [C, H, W] and a network that gives the same, and they are {:?} and {output:?}",
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
        let code = quantize(&part(network, "encoder", "compression")?.forward_t(xs, train), train);
        let decoder = part(network, "decoder", "compression")?;
        let outputs = cut(&decoder.forward_t(&code, train), &xs.size());
        Ok(ModelOutput { outputs, latent: Some(code) })
    }

    fn loss(&self, answer: &ModelOutput, ys: &Tensor, _clock: Option<ScheduleStep>) -> Tensor {
        let distortion = self.loss.of(&answer.outputs, ys);
        match &answer.latent {
            Some(code) if self.rate > 0.0 => {
                let size = ys.size();
                let pixels = size[0] * size[2..].iter().product::<i64>();
                distortion + bits(code) * (self.rate / pixels as f64)
            }
            _ => distortion,
        }
    }

    /// Σ of the distortions, samples, pixels, values per channel, then Σ and Σ of squares of each channel of
    /// the code.
    fn sums(&self, answer: &ModelOutput, ys: &Tensor) -> Option<Tensor> {
        let code = answer.latent.as_ref().filter(|_| self.rate > 0.0)?;
        let size = ys.size();
        let pixels = size[0] * size[2..].iter().product::<i64>();
        let code = code.to_kind(Kind::Double).transpose(0, 1).flatten(1, -1);
        let distortion = self.loss.of(&answer.outputs, ys).to_kind(Kind::Double) * size[0];
        let counts = [size[0] as f64, pixels as f64, code.size()[1] as f64];
        let counts = upload(&Tensor::from_slice(&counts), code.device());
        let over = |values: &Tensor| values.sum_dim_intlist(&[1i64][..], false, Kind::Double);
        Some(Tensor::cat(&[distortion.unsqueeze(0), counts, over(&code), over(&code.square())], 0))
    }

    fn joint_loss(&self, sums: &Tensor) -> Tensor {
        let channels = (sums.size()[0] - 4) / 2;
        let values = sums.get(3);
        let mean = sums.narrow(0, 4, channels) / &values;
        let variance = sums.narrow(0, 4 + channels, channels) / &values - mean.square();
        let bits = bits_per_value(&variance.clamp_min(0.0)) * values;
        sums.get(0) / sums.get(1) + bits * self.rate / sums.get(2)
    }

    fn is_joint(&self) -> bool {
        self.rate > 0.0
    }

    fn default_monitor(&self) -> &'static str {
        "psnr"
    }

    fn panels(&self, _xs: &Tensor, outputs: &Tensor, ys: &Tensor) -> Vec<Panel> {
        autoencoder_panels(outputs, ys)
    }
}
