//! Pictures of any number of channels as float32: 16-bit levels, floating-point TIFF and EXR, and numpy's arrays as
//! they are. On their way through the loader a value is four bytes in four channels, which whatever moves pixels
//! moves alike.

use std::io::Cursor;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use image::{ColorType, DynamicImage};
use tch::{Kind, Tensor};
use tiff::decoder::{Decoder, DecodingResult, Limits};

use super::picture::{ImageFile, MAX_DECODED, Picture, decode_bytes};
use crate::data::sources::npy::read_npy;

/// Bytes of a value.
pub const BYTES: usize = 4;

/// The picture of a file as values of `channels` channels: levels of 8 and 16 bits from 0 to 1, floats as they are.
/// The error says why there is none.
pub fn decode(bytes: &[u8], file: &ImageFile, channels: usize) -> Result<Picture> {
    let ([height, width, found], values) = match bytes {
        [0x93, b'N', b'U', b'M', b'P', b'Y', ..] => array(bytes, channels)?,
        [b'I', b'I', 42 | 43, 0, ..] | [b'M', b'M', 0, 42 | 43, ..] => tiff(bytes)?,
        _ => other(decode_bytes(bytes, file)?)?,
    };
    ensure!(found == channels, "has {found} channels, and `mode: {{float32: {channels}}}` wants {channels}");
    ensure!(values.len() == height * width * channels && !values.is_empty(), "has no pixels");
    ensure!(values.iter().all(|value| value.is_finite()), "holds NaN or infinity");
    let data = values.into_iter().flat_map(f32::to_le_bytes).collect();
    Ok(Picture { channels: channels * BYTES, height, width, data })
}

type Values = ([usize; 3], Vec<f32>);

/// `[H, W]`, `[H, W, C]` or `[C, H, W]`.
fn array(bytes: &[u8], channels: usize) -> Result<Values> {
    let array = read_npy(bytes, bytes.len() as u64)?;
    let unit = match array.kind() {
        Kind::Uint8 => 255.0,
        // uint16 travels as the next wider one.
        Kind::Int if memchr::memmem::find(&bytes[..bytes.len().min(256)], b"u2'").is_some() => 65535.0,
        Kind::Half | Kind::Float | Kind::Double => 1.0,
        kind => bail!("holds {kind:?} numbers, and uint8, uint16 and floats are read; save it as float32"),
    };
    let size: Vec<usize> = array.size().iter().map(|&side| side as usize).collect();
    let (array, shape) = match *size.as_slice() {
        [height, width] => (array, [height, width, 1]),
        [first, height, last] if last == channels && first != channels => (array, [first, height, last]),
        [first, height, width] if first == channels && width != channels => {
            (array.f_permute([1, 2, 0])?, [height, width, first])
        }
        [height, width, last] if height == last && last == channels => {
            bail!(
                "is {size:?}, channels first or last: save it as [{height}, {width}, {last}] with another size"
            )
        }
        [first, _, last] => {
            bail!("is {size:?}: neither {first} nor {last} is the number of channels, {channels}")
        }
        _ => bail!("is {size:?}, and a picture is [H, W], [H, W, C] or [C, H, W]"),
    };
    let values = array.f_to_kind(Kind::Double)?.f_contiguous()?.f_view([-1])? / unit;
    Ok((shape, Vec::<f32>::try_from(values.f_to_kind(Kind::Float)?)?))
}

fn tiff(bytes: &[u8]) -> Result<Values> {
    let mut limits = Limits::default();
    limits.decoding_buffer_size = MAX_DECODED as usize;
    let mut decoder = Decoder::new(Cursor::new(bytes)).context("is a damaged TIFF")?.with_limits(limits);
    let (width, height) = decoder.dimensions().context("is a damaged TIFF")?;
    let kind = decoder.colortype().context("is a TIFF of colours that are not read")?;
    ensure!(!matches!(kind, tiff::ColorType::Palette(_)), "is a TIFF with a palette; convert it to RGB");
    let (height, width, channels) = (height as usize, width as usize, usize::from(kind.num_samples()));
    let unit = |values: usize| -> Result<()> {
        ensure!(
            values == height * width * channels,
            "is a TIFF stored plane by plane, which is not read: save it pixel by pixel, or as .npy"
        );
        Ok(())
    };
    let scaled =
        |levels: Vec<f64>, white: f64| levels.into_iter().map(|level| (level / white) as f32).collect();
    let values: Vec<f32> = match decoder.read_image().context("cannot be decoded")? {
        DecodingResult::U8(levels) => scaled(levels.into_iter().map(f64::from).collect(), 255.0),
        DecodingResult::U16(levels) => scaled(levels.into_iter().map(f64::from).collect(), 65535.0),
        DecodingResult::F32(values) => values,
        DecodingResult::F64(values) => values.into_iter().map(|value| value as f32).collect(),
        _ => bail!("is a TIFF of signed or wide whole numbers; save them as float32"),
    };
    unit(values.len())?;
    Ok(([height, width, channels], values))
}

/// Every other format, in the colours that it has.
fn other(image: DynamicImage) -> Result<Values> {
    let (width, height) = (image.width() as usize, image.height() as usize);
    let channels = usize::from(image.color().channel_count());
    let bits = image.color().bits_per_pixel() as usize / channels.max(1);
    let values: Vec<f32> = match image.color() {
        ColorType::Rgb32F => image.into_rgb32f().into_raw(),
        ColorType::Rgba32F => image.into_rgba32f().into_raw(),
        _ => match bits {
            8 => image.as_bytes().iter().map(|&level| f32::from(level) / 255.0).collect(),
            16 => {
                let levels = image.as_bytes().as_chunks::<2>().0.iter();
                levels.map(|&level| (f64::from(u16::from_ne_bytes(level)) / 65535.0) as f32).collect()
            }
            bits => return Err(anyhow!("has {bits} bits per channel")),
        },
    };
    Ok(([height, width, channels], values))
}

/// Levels of 8 bits as values from 0 to 1.
pub fn widened(picture: &Picture) -> Picture {
    let data = picture.data.iter().flat_map(|&level| (f32::from(level) / 255.0).to_le_bytes()).collect();
    Picture { channels: picture.channels * BYTES, data, ..*picture }
}

/// Bytes `[B, 4 C, H, W]` as the values `[B, C, H, W]` that they are, float32.
pub fn tensor(bytes: &Tensor) -> Result<Tensor> {
    let &[batch, channels, height, width] = bytes.size().as_slice() else {
        bail!("pictures of the shape {:?}", bytes.size());
    };
    let split = bytes.f_view([batch, channels / BYTES as i64, BYTES as i64, height, width])?;
    let last = split.f_permute([0, 1, 3, 4, 2])?.f_contiguous()?;
    Ok(last.f_view_dtype(Kind::Float)?.f_squeeze_dim(-1)?)
}

/// Whether a file is numpy's by its name.
pub fn is_array(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("npy"))
}
