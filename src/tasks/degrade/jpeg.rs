//! JPEG artefacts: a real encoder and decoder, on the CPU, image beside image.
//!
//! Pixels are clamped and rounded to 8 bits first. Baseline JPEG with libjpeg's tables at the given quality;
//! grey, or YCbCr with chroma at full resolution (4:4:4).

use std::io::Cursor;

use anyhow::{Context, Result, bail};
use image::codecs::jpeg::{JpegDecoder, JpegEncoder};
use image::{ExtendedColorType, ImageDecoder};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::Degradation;
use super::level::Level;
use crate::libtorch::device::{cores, upload};
use crate::util::exit_code::{ExitCode, fail};
use crate::util::threads;
use crate::util::yaml::Invalid;

/// JPEG compression and decompression.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Jpeg {
    /// JPEG quality from 1 to 100, rounded to a whole number.
    pub quality: Level,
}

impl Default for Jpeg {
    fn default() -> Self {
        Self { quality: Level::fixed(10.0) }
    }
}

/// One image on its way through the encoder: `height × width × channels` bytes, channels innermost.
struct Job<'a> {
    pixels: &'a mut [u8],
    quality: u8,
}

impl Job<'_> {
    fn run(&mut self, [channels, height, width]: [i64; 3]) -> Result<()> {
        let color = if channels == 1 { ExtendedColorType::L8 } else { ExtendedColorType::Rgb8 };
        let mut file = Vec::new();
        let mut encoder = JpegEncoder::new_with_quality(&mut file, self.quality);
        encoder.encode(self.pixels, width as u32, height as u32, color)?;
        let decoder = JpegDecoder::new(Cursor::new(file))?;
        if decoder.total_bytes() != self.pixels.len() as u64 {
            bail!("the decoder makes {} bytes of {}", decoder.total_bytes(), self.pixels.len());
        }
        Ok(decoder.read_image(self.pixels)?)
    }
}

impl Degradation for Jpeg {
    fn validate(&self) -> Result<(), Invalid> {
        self.quality.validate("quality", 1.0, 100.0)
    }

    fn check(&self, [channels, height, width]: [i64; 3]) -> Result<()> {
        if ![1, 3].contains(&channels) || height.max(width) > u16::MAX.into() {
            let message = format!(
                "jpeg takes grey and RGB images of sides up to 65535, and these are [{channels}, {height}, {width}]; \
                 use another degradation"
            );
            return Err(fail(ExitCode::Usage, message));
        }
        Ok(())
    }

    fn apply(&self, images: &Tensor, train: bool) -> Result<Tensor> {
        let size = images.size();
        let [n, channels, height, width] = size[..] else { bail!("images are [N, C, H, W], not {size:?}") };
        let quality = Vec::<f64>::try_from(
            self.quality.per_image(images, train).round().view(-1).to_kind(Kind::Double),
        )?;
        let levels = (images.clamp(0.0, 1.0) * 255.0).round().to_kind(Kind::Uint8);
        let levels = levels.permute([0, 2, 3, 1]).to_device(Device::Cpu).contiguous();
        let mut pixels = vec![0u8; levels.numel()];
        levels.f_copy_data(&mut pixels, levels.numel())?;
        let image = (channels * height * width) as usize;
        let mut jobs: Vec<_> = pixels
            .chunks_mut(image)
            .zip(&quality)
            .map(|(pixels, quality)| Job { pixels, quality: *quality as u8 })
            .collect();
        let share = jobs.len().div_ceil(cores()).max(1);
        let encoded = threads::each(cores(), jobs.chunks_mut(share).collect(), |jobs| {
            jobs.iter_mut().try_for_each(|job| job.run([channels, height, width]))
        });
        encoded.into_iter().collect::<Result<()>>().context("the JPEG degradation")?;
        let images_back =
            Tensor::f_from_slice(&pixels)?.view([n, height, width, channels]).permute([0, 3, 1, 2]);
        Ok(upload(&images_back, images.device()).to_kind(images.kind()).contiguous() / 255.0)
    }
}
