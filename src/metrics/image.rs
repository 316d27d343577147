//! PSNR and SSIM of images in [0, 1]: the means of the per-image values, as the field reports them.
//!
//! The restored image is clamped to [0, 1] first. The degraded one is measured as it is, because the field
//! counts noise unclipped (σ = 25 is 20.17 dB); an image that super-resolution made small is enlarged by
//! bicubic and clamped.

use tch::{Device, Kind, Tensor};

use super::answers::{Answers, Counts, count};
use super::{Metric, MetricArgs, ModelOutput, Score, Scores};
use crate::functional::ssim::WINDOW;
use crate::functional::{bicubic, luma, ssim};

/// PSNR in dB and SSIM of the restored image, and of the degraded one that it was made from.
#[derive(Debug, Default)]
pub struct ImageMetric {
    rules: ImageRules,
    restored: PerImage,
    degraded: PerImage,
}

/// What of an image is measured.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ImageRules {
    /// The Y of YCbCr of RGB images instead of their channels.
    pub y: bool,
    /// Pixels at each border that do not count.
    pub shave: i64,
    /// Whether the degraded image is clamped to [0, 1] too, as 8-bit files of it would be.
    pub clamp_degraded: bool,
}

/// Per-image values.
#[derive(Debug, Default)]
struct PerImage {
    psnr: Values,
    ssim: Values,
}

/// Per-image values, float64 on the device, batch after batch.
#[derive(Debug, Default)]
struct Values(Vec<Tensor>);

/// PSNR in dB of each image `[N, C, H, W]`; `[N]`, float64.
pub fn psnr(images: &Tensor, reference: &Tensor) -> Tensor {
    let error = (images - reference).to_kind(Kind::Double).square();
    let mse = error.flatten(1, -1).mean_dim(&[1i64][..], false, Kind::Double);
    mse.log10() * -10.0
}

impl ImageRules {
    /// The part of images that counts.
    fn view(&self, images: &Tensor) -> Tensor {
        let images = if self.y { luma(images) } else { images.shallow_clone() };
        match images.size()[..] {
            [.., height, width] if self.shave > 0 && height.min(width) > 2 * self.shave => {
                let inside = images.narrow(2, self.shave, height - 2 * self.shave);
                inside.narrow(3, self.shave, width - 2 * self.shave)
            }
            _ => images,
        }
    }

    /// The degraded images as they are measured, `[N, C, H, W]` like `ys`, among what the network saw; None
    /// where nothing was degraded.
    pub fn degraded(&self, xs: &Tensor, ys: &Tensor) -> Option<Tensor> {
        // An autoencoder's input is its target.
        if std::ptr::eq(xs.data_ptr(), ys.data_ptr()) || xs.size()[1] < ys.size()[1] {
            return None;
        }
        // The channels after the image's own describe the degradation.
        let degraded = xs.narrow(1, 0, ys.size()[1]);
        let (given, wanted) = (degraded.size(), ys.size());
        let degraded = match bicubic::factor(&given, &wanted)? {
            1 => degraded,
            _ => bicubic::resize(&degraded, wanted[2], wanted[3]),
        };
        Some(if self.clamp_degraded { degraded.clamp(0.0, 1.0) } else { degraded })
    }

    /// PSNR in dB of each image, over what counts of it; `[N]`, float64.
    pub fn psnr(&self, images: &Tensor, ys: &Tensor) -> Tensor {
        psnr(&self.view(images), &self.view(ys))
    }
}

impl PerImage {
    fn add(&mut self, images: &Tensor, reference: &Tensor) {
        self.psnr.add(&psnr(images, reference));
        if reference.size()[2..].iter().all(|&side| side >= WINDOW) {
            // In float64: variances are small differences of large sums.
            self.ssim.add(&ssim(&images.to_kind(Kind::Double), &reference.to_kind(Kind::Double)));
        }
    }
}

impl Values {
    fn add(&mut self, values: &Tensor) {
        self.0.push(values.detach().to_kind(Kind::Double));
    }

    fn read(&self) -> Vec<f64> {
        if self.0.is_empty() {
            return Vec::new();
        }
        Vec::<f64>::try_from(Tensor::cat(&self.0, 0).to_device(Device::Cpu)).unwrap_or_default()
    }
}

impl Metric for ImageMetric {
    fn scores() -> &'static [Score] {
        const {
            &[
                Score::higher("psnr"),
                Score::higher("psnr_degraded"),
                Score::higher("ssim"),
                Score::higher("ssim_degraded"),
            ]
        }
    }

    fn tasks() -> &'static [&'static str] {
        &["reconstruction", "compression"]
    }

    fn new(args: &MetricArgs) -> Self {
        Self { rules: args.image, ..Self::default() }
    }

    fn update(&mut self, xs: &Tensor, answer: &ModelOutput, ys: &Tensor) {
        let reference = self.rules.view(ys);
        self.restored.add(&self.rules.view(&answer.outputs.clamp(0.0, 1.0)), &reference);
        if let Some(degraded) = self.rules.degraded(xs, ys) {
            self.degraded.add(&self.rules.view(&degraded), &reference);
        }
    }

    fn compute(&self) -> Scores {
        let Self { restored, degraded, .. } = self;
        let named = [
            ("psnr", &restored.psnr),
            ("psnr_degraded", &degraded.psnr),
            ("ssim", &restored.ssim),
            ("ssim_degraded", &degraded.ssim),
        ];
        let each = named.into_iter().map(|(name, values)| (name.to_owned(), values.read()));
        let each: Vec<_> = each.filter(|(_, values)| !values.is_empty()).collect();
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let values = each.iter().map(|(name, values)| (name.clone(), mean(values))).collect();
        Scores { values, each, ..Scores::default() }
    }

    fn resampled(answers: &Answers, counts: Counts) -> Vec<(String, f64)> {
        let Answers::Each(scores) = answers else { return Vec::new() };
        let mean = |values: &[f64]| {
            let (mut sum, mut all) = (0.0, 0);
            for (at, value) in values.iter().enumerate() {
                let number = count(counts, at);
                // A perfect image has an infinite PSNR, which is no part of a mean without it.
                sum += if number > 0 { value * number as f64 } else { 0.0 };
                all += number;
            }
            sum / all as f64
        };
        scores.iter().map(|(name, values)| (name.clone(), mean(values))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn psnr_is_the_mean_over_images_not_over_pixels() {
        // Errors of 0.1 and 0.01 everywhere: 20 dB and 40 dB, so 30 dB.
        let ys = Tensor::full([2, 1, 4, 4], 0.5, tch::kind::DOUBLE_CPU);
        let outputs = &ys + Tensor::from_slice(&[0.1, 0.01]).view([2, 1, 1, 1]);
        let mut meter = ImageMetric::default();
        meter.update(&ys, &outputs.into(), &ys);
        assert!((meter.compute().get("psnr").unwrap() - 30.0).abs() < 1e-9);
    }
}
