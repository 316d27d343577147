//! A mask file decoded to levels. Palettes give indices, grey files of 8 or 16 bits numbers, the rest colours;
//! alpha is no colour, and nothing is converted to grey.

use std::collections::{BTreeMap, HashMap};
use std::io::Cursor;

use anyhow::{Context, Result, anyhow, bail};
use image::codecs::bmp::BmpDecoder;
use image::{DynamicImage, GrayImage, ImageDecoder, ImageFormat};

use super::Level;
use crate::data::image::picture::{ImageFile, MAX_DECODED, decode_bytes, decode_guarded, upright};

/// A mask as its file has it.
pub struct MaskImage {
    pub height: usize,
    pub width: usize,
    pub(super) levels: Vec<Level>,
    /// The colours of the indices, where it has a palette.
    pub(super) palette: Option<Vec<[u8; 3]>>,
    /// Its format changes levels a little: JPEG, or WebP with loss.
    pub(super) lossy: bool,
}

impl MaskImage {
    /// Reads a file. The error says why it cannot be decoded.
    pub fn read(file: &ImageFile) -> Result<Self> {
        decode_guarded(&file.path, |bytes| {
            if let Some((indices, palette)) = indexed(bytes)? {
                let image = upright(DynamicImage::ImageLuma8(indices), bytes, file);
                return Ok(Self { palette: Some(palette), ..Self::from_image(image, false)? });
            }
            let lossy = bytes.starts_with(&[0xff, 0xd8])
                || bytes.starts_with(b"RIFF") && memchr::memmem::find(bytes, b"VP8 ").is_some();
            Self::from_image(decode_bytes(bytes, file)?, lossy)
        })
    }

    fn from_image(image: DynamicImage, lossy: bool) -> Result<Self> {
        let (width, height) = (image.width() as usize, image.height() as usize);
        let numbers = |values: Vec<u16>| values.into_iter().map(Level::Number).collect::<Vec<_>>();
        let levels = match image {
            DynamicImage::ImageLuma16(_) | DynamicImage::ImageLumaA16(_) => {
                numbers(image.into_luma16().into_raw())
            }
            _ if !image.color().has_color() => {
                numbers(image.into_luma8().into_raw().into_iter().map(u16::from).collect())
            }
            DynamicImage::ImageRgb8(_) | DynamicImage::ImageRgba8(_) => {
                let colours = image.into_rgb8().into_raw();
                colours.as_chunks::<3>().0.iter().map(|&colour| Level::Colour(colour)).collect()
            }
            _ => bail!(
                "has colours of more than 8 bits a channel; a mask wants 8-bit colours or class numbers"
            ),
        };
        Ok(Self { height, width, levels, palette: None, lossy })
    }

    /// How often each level occurs.
    pub(super) fn counts(&self) -> Result<BTreeMap<Level, u64>> {
        // A photograph given as a mask is not worth counting.
        const MOST: usize = 1 << 16;
        let mut counts: HashMap<Level, u64> = HashMap::new();
        for run in self.levels.chunk_by(|a, b| a == b) {
            *counts.entry(run[0]).or_default() += run.len() as u64;
            if counts.len() > MOST {
                bail!("has more than {MOST} colours, as a photograph has and no mask");
            }
        }
        Ok(counts.into_iter().collect())
    }
}

/// The indices and the colours of a PNG, GIF or BMP file that has a palette; None for all others.
fn indexed(bytes: &[u8]) -> Result<Option<(GrayImage, Vec<[u8; 3]>)>> {
    let too_large = || anyhow!("is too large when decoded");
    let image = |width: u32, height: u32, indices: Vec<u8>| {
        GrayImage::from_raw(width, height, indices).ok_or_else(|| anyhow!("is truncated"))
    };
    match image::guess_format(bytes) {
        Ok(ImageFormat::Png) => {
            let mut reader =
                png::Decoder::new(Cursor::new(bytes)).read_info().context("cannot be decoded")?;
            let info = reader.info();
            if info.color_type != png::ColorType::Indexed {
                return Ok(None);
            }
            let (width, height) = info.size();
            let palette = info.palette.as_deref().unwrap_or_default().as_chunks::<3>().0.to_vec();
            let size = reader.output_buffer_size().filter(|&size| size as u64 <= MAX_DECODED / 8);
            let mut packed = vec![0; size.ok_or_else(too_large)?];
            let frame = reader.next_frame(&mut packed).context("cannot be decoded")?;
            let bits = frame.bit_depth as usize;
            let mask = (0xffu16 >> (8 - bits)) as u8;
            let mut indices = Vec::with_capacity(width as usize * height as usize);
            for line in packed.chunks_exact(frame.line_size).take(height as usize) {
                let index = |at: usize| line[at * bits / 8] >> (8 - bits - at * bits % 8) & mask;
                indices.extend((0..width as usize).map(index));
            }
            Ok(Some((image(width, height, indices)?, palette)))
        }
        Ok(ImageFormat::Gif) => {
            let mut options = gif::DecodeOptions::new();
            options.set_color_output(gif::ColorOutput::Indexed);
            let mut reader = options.read_info(Cursor::new(bytes)).context("cannot be decoded")?;
            let (width, height) = (reader.width(), reader.height());
            let frame = reader.read_next_frame().context("cannot be decoded")?.context("has no picture")?;
            if (frame.left, frame.top, frame.width, frame.height) != (0, 0, width, height) {
                bail!("has a first frame that is smaller than the picture; convert it to PNG");
            }
            let indices = frame.buffer.to_vec();
            let local = frame.palette.clone();
            let palette = local.as_deref().or(reader.global_palette()).unwrap_or_default();
            let palette = palette.as_chunks::<3>().0.to_vec();
            Ok(Some((image(width.into(), height.into(), indices)?, palette)))
        }
        Ok(ImageFormat::Bmp) => {
            let mut decoder = BmpDecoder::new(Cursor::new(bytes)).context("cannot be decoded")?;
            let Some(palette) = decoder.get_palette().map(<[_]>::to_vec) else { return Ok(None) };
            decoder.set_indexed_color(true);
            let (width, height) = decoder.dimensions();
            if decoder.total_bytes() > MAX_DECODED / 8 {
                return Err(too_large());
            }
            if decoder.total_bytes() != u64::from(width) * u64::from(height) {
                return Ok(None);
            }
            let mut indices = vec![0; decoder.total_bytes() as usize];
            decoder.read_image(&mut indices).context("cannot be decoded")?;
            Ok(Some((image(width, height, indices)?, palette)))
        }
        _ => Ok(None),
    }
}
