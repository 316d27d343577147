//! Reconstruction: the image back from a degraded copy, made on the fly, on the device, or from a second
//! folder.
//!
//! Residual learning as in DnCNN (Zhang et al. 2017): the network answers the noise, the image is the rest.

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::degrade::{ANY_SIZE, Chain};
use super::{ModelArgs, ModelOutput, Panel, Task};
use crate::data::{Dataset, Targets};
use crate::functional::loss::RegressionLoss;
use crate::functional::ssim::WINDOW;
use crate::functional::{bicubic, luma};
use crate::metrics::{ImageRules, MetricArgs};
use crate::nn::model::{Model, Network};
use crate::schedule::ScheduleStep;
use crate::util::exit_code::{ExitCode, fail};
use crate::util::yaml::Invalid;

/// A clean image from its degraded version: denoising, super-resolution, inpainting, deblurring.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Reconstruction {
    /// What is done to an image before the network sees it: one degradation, or a list that is applied in
    /// order. `none` where the data are pairs of a degraded image and its target.
    #[serde(default)]
    pub degrade: Chain,
    /// The loss between output and clean image.
    #[serde(default)]
    pub loss: RegressionLoss,
    /// Whether the network outputs what is to be subtracted from its input (residual learning, Zhang et al.
    /// 2017).
    #[serde(default)]
    pub residual: bool,
    /// Whether the network works on the Y of RGB images (BT.601, rounded to 8 bits, as MATLAB's `rgb2ycbcr`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub luma: bool,
    #[serde(default, skip_serializing_if = "MetricSpec::is_default")]
    pub metric: MetricSpec,
}

/// What PSNR and SSIM are computed on. By default the whole image; for super-resolution the Y of RGB images,
/// without a border as wide as the scale.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MetricSpec {
    /// Compute PSNR and SSIM on the Y of YCbCr (BT.601, as MATLAB's `rgb2ycbcr`) instead of the channels of
    /// RGB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub y: Option<bool>,
    /// Pixels at each border that do not count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shave: Option<u16>,
}

impl MetricSpec {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl Reconstruction {
    /// The image itself, as the network is to answer it.
    fn target(&self, images: &Tensor) -> Tensor {
        self.known(bicubic::crop_to_multiple(images, self.degrade.scale()))
    }

    /// What the network knows of an image: all of it, or its Y.
    fn known(&self, images: Tensor) -> Tensor {
        if self.luma && images.size()[1] == 3 { (luma(&images) * 255.0).round() / 255.0 } else { images }
    }

    fn rules(&self) -> ImageRules {
        let scale = self.degrade.scale();
        let MetricSpec { y, shave } = self.metric;
        let border = if scale > 1 { scale } else { 0 };
        ImageRules {
            y: y.unwrap_or(scale > 1),
            shave: shave.map_or(border, i64::from),
            clamp_degraded: scale > 1,
        }
    }

    /// The shape of an image of the data as the network is to answer it.
    fn target_shape(&self, [channels, height, width]: [i64; 3]) -> [i64; 3] {
        let scale = self.degrade.scale();
        let channels = if self.luma && channels == 3 { 1 } else { channels };
        [channels, height - height % scale, width - width % scale]
    }
}

impl Task for Reconstruction {
    fn validate(&self) -> Result<(), Invalid> {
        if self.residual && self.degrade.shrinks() {
            let message = "needs an input as large as the image; say `input: upscaled`";
            return Err(Invalid::new("residual", message));
        }
        self.degrade.validate().map_err(|invalid| invalid.under("degrade"))?;
        self.loss.validate().map_err(|invalid| invalid.under("loss"))
    }

    fn model_args(&self, channels: i64, _classes: Option<usize>) -> ModelArgs {
        let channels = if self.luma && channels == 3 { 1 } else { channels };
        ModelArgs { channels, classes: None, is_sized: false }
    }

    fn scores_images(&self) -> bool {
        true
    }

    fn answers_residual(&self) -> bool {
        self.residual
    }

    fn input(&self, sample: &[i64]) -> Vec<i64> {
        match *sample {
            [channels, height, width] => {
                self.degrade.output(self.target_shape([channels, height, width])).into()
            }
            _ => sample.to_vec(),
        }
    }

    fn check(&self, model: &Model, set: &Dataset) -> Result<()> {
        let output = model.output();
        let refuse = |message: String| Err(fail(ExitCode::Usage, message));
        let [channels, height, width] = set.shape[..] else {
            return refuse(format!(
                "reconstruction wants images [C, H, W], and the data has {:?}",
                set.shape
            ));
        };
        // Of images of any size, one that is too small for the degradation is an error when it is loaded.
        let [height, width] = [height, width].map(|side| if side == 0 { ANY_SIZE } else { side });
        let channels = match set.targets {
            Targets::Images { .. } if !self.degrade.is_none() => {
                return refuse("the data are pairs of images, degraded already; say `degrade: none`".into());
            }
            Targets::Images { channels, scale } => {
                if self.residual && (scale > 1 || channels as i64 != set.shape[0]) {
                    return refuse(
                        "`residual` answers the difference to the picture, and the targets have other sizes or channels; \
                         leave it out"
                            .into(),
                    );
                }
                let (given, answered) = (model.input(), output);
                if let ([_, height, _], [_, high, _]) = (given, answered)
                    && scale > 1
                    && height * scale as i64 != *high
                {
                    return refuse(format!(
                        "the targets are {scale} times as large as the pictures, and the network answers {answered:?} to \
                         {given:?}"
                    ));
                }
                channels as i64
            }
            _ => channels,
        };
        let target = self.target_shape([channels, height, width]);
        if output.len() != 3 || output[0] != target[0] {
            return refuse(format!(
                "the images have {} channels and the network gives {output:?}; its output must be such images",
                target[0]
            ));
        }
        if matches!(self.loss, RegressionLoss::Ssim { .. }) && target[1].min(target[2]) < WINDOW {
            return refuse(format!(
                "the loss `ssim` wants images of {WINDOW} pixels and more, and these are {target:?}"
            ));
        }
        self.degrade.check(target)
    }

    fn make_batch(&self, xs: Tensor, ys: Tensor, train: bool) -> Result<(Tensor, Tensor)> {
        if ys.dim() == 4 {
            return Ok((self.known(xs), self.target(&ys)));
        }
        let target = self.target(&xs);
        Ok((self.degrade.apply(&target, train)?, target))
    }

    fn make_inference_input(&self, xs: Tensor) -> Tensor {
        // Nothing is cut: what is to be restored may have any size, the scale need not divide it.
        self.degrade.present(self.known(xs))
    }

    fn forward(&self, network: &Network, xs: &Tensor, train: bool) -> Result<ModelOutput> {
        let outputs = network.forward(xs, train);
        // A noise map follows the image's own channels.
        let image = if self.residual { xs.narrow(1, 0, outputs.size()[1]) - outputs } else { outputs };
        Ok(image.into())
    }

    fn loss(&self, answer: &ModelOutput, ys: &Tensor, _clock: Option<ScheduleStep>) -> Tensor {
        self.loss.of(&answer.outputs, ys)
    }

    fn metric_args(&self, _output: &[i64]) -> MetricArgs {
        MetricArgs { image: self.rules(), ..MetricArgs::default() }
    }

    fn panels(&self, xs: &Tensor, outputs: &Tensor, ys: &Tensor) -> Vec<Panel> {
        let rules = self.rules();
        let caption =
            |what: &str, image: &Tensor| format!("{what} {:.2} dB", rules.psnr(image, ys).double_value(&[0]));
        let restored = outputs.clamp(0.0, 1.0);
        let degraded = rules.degraded(xs, ys).map(|image| Panel::new(caption("given", &image), &image));
        let rest = [Panel::new(caption("restored", &restored), &restored), Panel::new("target", ys)];
        degraded.into_iter().chain(rest).collect()
    }

    fn default_monitor(&self) -> &'static str {
        "psnr"
    }
}
