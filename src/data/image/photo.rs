//! One image file as it is, to be restored and written back: its own bit depth, its alpha apart.

use std::io::Cursor;
use std::path::Path;

use anyhow::{Context, Result, bail};
use image::{ColorType, ExtendedColorType, ImageFormat};
use tch::{Device, Kind, Tensor};

use super::picture::decode_as_is;

/// Grey or RGB, 8 or 16 bits, upright.
#[derive(Clone, Debug)]
pub struct Photo {
    pub width: usize,
    pub height: usize,
    /// 1 or 3.
    pub channels: usize,
    levels: Levels,
    /// One value per pixel, of the same depth.
    alpha: Option<Levels>,
}

/// Pixels row by row, channels innermost.
#[derive(Clone, Debug)]
enum Levels {
    Eight(Vec<u8>),
    Sixteen(Vec<u16>),
}

impl Levels {
    fn zeros(len: usize, like: &Levels) -> Self {
        match like {
            Levels::Eight(_) => Levels::Eight(vec![0; len]),
            Levels::Sixteen(_) => Levels::Sixteen(vec![0; len]),
        }
    }

    fn white(&self) -> f64 {
        match self {
            Levels::Eight(_) => 255.0,
            Levels::Sixteen(_) => 65535.0,
        }
    }
}

impl Photo {
    /// Reads a picture of any format that the program decodes. The error says why it cannot.
    pub fn read(path: &Path) -> Result<Self> {
        let image = decode_as_is(path)?;
        let (width, height) = (image.width() as usize, image.height() as usize);
        let color = image.color();
        let sixteen =
            matches!(color, ColorType::L16 | ColorType::La16 | ColorType::Rgb16 | ColorType::Rgba16);
        let levels = match (color.has_color(), sixteen) {
            (false, false) => Levels::Eight(image.to_luma8().into_raw()),
            (false, true) => Levels::Sixteen(image.to_luma16().into_raw()),
            (true, false) => Levels::Eight(image.to_rgb8().into_raw()),
            (true, true) => Levels::Sixteen(image.to_rgb16().into_raw()),
        };
        let alpha = color.has_alpha().then(|| match sixteen {
            false => Levels::Eight(image.to_rgba8().pixels().map(|pixel| pixel[3]).collect()),
            true => Levels::Sixteen(image.to_rgba16().pixels().map(|pixel| pixel[3]).collect()),
        });
        Ok(Self { width, height, channels: if color.has_color() { 3 } else { 1 }, levels, alpha })
    }

    /// A black one of 8 bits, without alpha; `channels` is 1 or 3.
    pub fn black(width: usize, height: usize, channels: usize) -> Self {
        let levels = Levels::Eight(vec![0; width * height * channels]);
        Self { width, height, channels, levels, alpha: None }
    }

    /// A black one `scale` times as large, of the same depth; the alpha enlarged by repetition.
    pub fn enlarged(&self, scale: usize) -> Self {
        let (width, height) = (self.width * scale, self.height * scale);
        let repeat = |alpha: &Levels| -> Levels {
            let from = |at: usize| at / width / scale * self.width + at % width / scale;
            match alpha {
                Levels::Eight(values) => {
                    Levels::Eight((0..width * height).map(|at| values[from(at)]).collect())
                }
                Levels::Sixteen(values) => {
                    Levels::Sixteen((0..width * height).map(|at| values[from(at)]).collect())
                }
            }
        };
        Self {
            width,
            height,
            channels: self.channels,
            levels: Levels::zeros(width * height * self.channels, &self.levels),
            alpha: self.alpha.as_ref().map(repeat),
        }
    }

    /// A rectangle as float32 `[1, C, H, W]` in [0, 1] on the CPU.
    pub fn part(&self, top: usize, left: usize, height: usize, width: usize) -> Result<Tensor> {
        fn rows<T: Copy + Into<f32>>(photo: &Photo, levels: &[T], area: [usize; 4], white: f32) -> Vec<f32> {
            let [top, left, height, width] = area;
            let mut values = Vec::with_capacity(height * width * photo.channels);
            for row in top..top + height {
                let first = (row * photo.width + left) * photo.channels;
                let line = &levels[first..first + width * photo.channels];
                values.extend(line.iter().map(|&level| level.into() / white));
            }
            values
        }
        let area = [top, left, height, width];
        let values = match &self.levels {
            Levels::Eight(levels) => rows(self, levels, area, 255.0),
            Levels::Sixteen(levels) => rows(self, levels, area, 65535.0),
        };
        let size = [1, height as i64, width as i64, self.channels as i64];
        Ok(Tensor::f_from_slice(&values)?.f_view(size)?.f_permute([0, 3, 1, 2])?.f_contiguous()?)
    }

    /// Writes `[1, C, H, W]`, clamped to [0, 1] and rounded, where its upper left corner is (`top`, `left`).
    pub fn put(&mut self, part: &Tensor, top: usize, left: usize) -> Result<()> {
        let &[1, channels, height, width] = part.size().as_slice() else {
            bail!("a part of {:?} is no image", part.size());
        };
        let (height, width) = (height as usize, width as usize);
        if channels as usize != self.channels || top + height > self.height || left + width > self.width {
            bail!(
                "a part of {:?} does not fit {}x{}x{}",
                part.size(),
                self.channels,
                self.height,
                self.width
            );
        }
        let levels =
            (part.f_clamp(0.0, 1.0)?.f_nan_to_num(0.0, None, None)? * self.levels.white()).f_round()?;
        let flat = levels.f_permute([0, 2, 3, 1])?.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?;
        let flat = Vec::<f32>::try_from(flat.f_contiguous()?.f_view([-1])?)?;
        for (row, line) in flat.chunks_exact((width * self.channels).max(1)).enumerate() {
            let first = ((top + row) * self.width + left) * self.channels;
            match &mut self.levels {
                Levels::Eight(all) => {
                    all[first..first + line.len()]
                        .iter_mut()
                        .zip(line)
                        .for_each(|(to, &from)| *to = from as u8);
                }
                Levels::Sixteen(all) => {
                    all[first..first + line.len()]
                        .iter_mut()
                        .zip(line)
                        .for_each(|(to, &from)| *to = from as u16);
                }
            }
        }
        Ok(())
    }

    /// The bytes of a file. A format that cannot hold the depth or the alpha is refused.
    pub fn encode(&self, format: ImageFormat) -> Result<Vec<u8>> {
        use ExtendedColorType as Color;
        let (width, height) = (self.width as u32, self.height as u32);
        let color = match (&self.levels, self.channels, self.alpha.is_some()) {
            (Levels::Eight(_), 1, false) => Color::L8,
            (Levels::Eight(_), 1, true) => Color::La8,
            (Levels::Eight(_), _, false) => Color::Rgb8,
            (Levels::Eight(_), _, true) => Color::Rgba8,
            (Levels::Sixteen(_), 1, false) => Color::L16,
            (Levels::Sixteen(_), 1, true) => Color::La16,
            (Levels::Sixteen(_), _, false) => Color::Rgb16,
            (Levels::Sixteen(_), _, true) => Color::Rgba16,
        };
        let bytes = match (&self.levels, &self.alpha) {
            (Levels::Eight(levels), None) => std::borrow::Cow::Borrowed(levels.as_slice()),
            (Levels::Eight(levels), Some(Levels::Eight(alpha))) => {
                interleave(levels, alpha, self.channels).into()
            }
            (Levels::Sixteen(levels), Some(Levels::Sixteen(alpha))) => {
                interleave(levels, alpha, self.channels).into_iter().flat_map(u16::to_ne_bytes).collect()
            }
            (Levels::Sixteen(levels), _) => levels.iter().flat_map(|level| level.to_ne_bytes()).collect(),
            (Levels::Eight(_), Some(Levels::Sixteen(_))) => bail!("the alpha has another depth"),
        };
        let mut file = Cursor::new(Vec::new());
        image::write_buffer_with_format(&mut file, &bytes, width, height, color, format)
            .with_context(|| format!("{format:?} cannot hold it; write a .png"))?;
        Ok(file.into_inner())
    }
}

fn interleave<T: Copy>(levels: &[T], alpha: &[T], channels: usize) -> Vec<T> {
    let pixels = levels.chunks_exact(channels).zip(alpha);
    pixels.flat_map(|(pixel, alpha)| pixel.iter().chain(std::iter::once(alpha)).copied()).collect()
}
