//! Peak signal-to-noise ratio of images in [0, 1]: the mean of the per-image values, as the field reports it.

use tch::{Kind, Tensor};

use super::{Meter, Scores};

/// PSNR in dB of the restored image, and of the degraded one that it was made from.
#[derive(Debug, Default)]
pub struct PsnrMeter {
    restored: Option<Tensor>,
    degraded: Option<Tensor>,
    count: i64,
}

/// PSNR in dB of each image `[N, C, H, W]` after clamping to [0, 1]; `[N]`, float64.
pub fn psnr(images: &Tensor, reference: &Tensor) -> Tensor {
    let error = (images.clamp(0.0, 1.0) - reference).to_kind(Kind::Double).square();
    let mse = error.flatten(1, -1).mean_dim(&[1i64][..], false, Kind::Double);
    mse.log10() * -10.0
}

impl Meter for PsnrMeter {
    fn add(&mut self, xs: &Tensor, outputs: &Tensor, ys: &Tensor) {
        let more = |sum: &mut Option<Tensor>, images: &Tensor| {
            let value = psnr(images, ys).sum(Kind::Double);
            *sum = Some(match sum.take() {
                Some(sum) => sum + value,
                None => value,
            });
        };
        more(&mut self.restored, outputs);
        // An autoencoder's input is its target: nothing was degraded.
        if xs.size() == ys.size() && !std::ptr::eq(xs.data_ptr(), ys.data_ptr()) {
            more(&mut self.degraded, xs);
        }
        self.count += ys.size()[0];
    }

    fn scores(&self) -> Scores {
        let mean = |sum: &Tensor| sum.double_value(&[]) / self.count as f64;
        let named = [("psnr", &self.restored), ("psnr_degraded", &self.degraded)];
        let values = named.iter().filter_map(|(name, sum)| Some(((*name).to_owned(), mean(sum.as_ref()?))));
        Scores { values: values.collect(), report: None }
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
        let mut meter = PsnrMeter::default();
        meter.add(&ys, &outputs, &ys);
        assert!((meter.scores().get("psnr").unwrap() - 30.0).abs() < 1e-9);
    }
}
