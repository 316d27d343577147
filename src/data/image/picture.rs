//! One image file as 8-bit pixels: decoded by its content, turned upright, grey or RGB.
//!
//! The format is that of the first bytes, not of the name (but for TGA, which has no signature). Of
//! animations the first frame is read. EXIF orientation is applied, unless it is not wanted. Palettes are
//! expanded, 16-bit values become round(v / 257), floating-point pixels and numbers of more bits are refused,
//! transparent pixels are blended with white. Grey becomes RGB by repetition, RGB becomes grey by ITU-R
//! BT.601-2 luma as Pillow rounds it. A picture may need 512 MiB when decoded, a file may have 1 GiB.

use std::cell::RefCell;
use std::io::{Cursor, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use fast_image_resize as fir;
use image::metadata::Orientation;
use image::{
    ColorType, DynamicImage, GrayImage, ImageDecoder, ImageError, ImageFormat, ImageReader, RgbImage,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::container::Entry;
use super::eval_transform::EvalTransform;
use super::floats;
use super::jpeg::Jpeg;
use super::resample;
use super::smooth::SmoothSpec;
use crate::data::format;
use crate::util::regular_file;
use crate::util::yaml::Invalid;

/// Bytes that one decoded picture may need.
pub const MAX_DECODED: u64 = 512 << 20;
/// Counts the changes of the pixels that JPEG files decode to; those of libjpeg are 1.
pub const JPEG_PIXELS: u32 = 1;
/// Bytes that one file may have.
const MAX_FILE: u64 = 1 << 30;

/// The channels that every picture is brought to.
#[derive(Deserialize, Serialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    #[default]
    Rgb,
    Grey,
    /// So many channels as float32: 16-bit levels from 0 to 1 with all their bits, floats of TIFF, EXR and .npy as
    /// they are. Pictures are not resized.
    Float32(usize),
}

impl Mode {
    pub fn channels(self) -> usize {
        match self {
            Mode::Rgb => 3,
            Mode::Grey => 1,
            Mode::Float32(channels) => channels,
        }
    }

    /// Bytes of a decoded pixel.
    pub fn bytes(self) -> usize {
        if self.is_float() { floats::BYTES * self.channels() } else { self.channels() }
    }

    pub fn is_float(self) -> bool {
        matches!(self, Mode::Float32(_))
    }

    /// Refuses what no picture has.
    pub fn validate(self, key: &str) -> Result<(), Invalid> {
        match self {
            Mode::Float32(channels) if !(1..=1024).contains(&channels) => {
                Err(Invalid::new(key, format!("a picture has 1 to 1024 channels, not {channels}")))
            }
            _ => Ok(()),
        }
    }
}

/// How a picture of any size is brought to the size of the samples.
#[derive(Deserialize, Serialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Resize {
    /// Both sides to the wanted size, whatever that does to the proportions.
    #[default]
    Squash,
    /// The picture scaled until it just covers the wanted size, then its centre, as torchvision's `Resize`
    /// and `CenterCrop`.
    Crop,
    /// The same from another size: `data.eval_transform`.
    #[serde(skip)]
    Shorter(EvalTransform),
}

/// An image file that is decoded when needed.
#[derive(Clone, Debug)]
pub struct ImageFile {
    pub path: Arc<Path>,
    /// Which picture of the file, where it holds many.
    pub entry: Option<Entry>,
    pub mode: Mode,
    /// Whether the picture is turned as its EXIF data says; else its pixels stay as they are stored.
    pub exif: bool,
}

/// What a file's header says of its picture.
pub(crate) struct Header {
    /// Before it is turned.
    pub height: usize,
    pub width: usize,
    /// How it is to be turned.
    pub turn: Orientation,
    /// Whether it has 16 bits per channel.
    pub is_deep: bool,
}

thread_local! {
    /// With the memory that it needs between its two passes.
    static RESIZER: RefCell<fir::Resizer> = RefCell::new(fir::Resizer::new());
}

/// 8-bit pixels, `height × width × channels` in `data`, channels innermost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    pub channels: usize,
    pub height: usize,
    pub width: usize,
    pub data: Vec<u8>,
}

/// Brings pictures to the size of the samples, then smooths them.
#[derive(Clone, Debug)]
pub struct Fit {
    pub height: usize,
    pub width: usize,
    pub resize: Resize,
    pub smooth: Option<SmoothSpec>,
    /// What evaluation does in the place of `resize`.
    pub eval: Option<EvalTransform>,
}

impl ImageFile {
    /// A file that is turned upright.
    pub fn new(path: impl Into<PathBuf>, mode: Mode) -> Self {
        Self { path: path.into().into(), entry: None, mode, exif: true }
    }

    /// What messages call it.
    pub fn place(&self) -> String {
        match &self.entry {
            Some(entry) => format!("{}: {}", self.path.display(), entry.container.name(entry.index)),
            None => self.path.display().to_string(),
        }
    }

    /// The whole picture at its own size. The error says why the file cannot be decoded.
    pub fn decode(&self) -> Result<Picture> {
        let bytes = self.read(MAX_FILE)?;
        // Damaged files meet rarely used paths of the decoders; none may take the run down.
        catch_unwind(AssertUnwindSafe(|| decode(&bytes, self)))
            .unwrap_or_else(|_| Err(anyhow!("the decoder gave up on it")))
    }

    /// Only the rectangle that `choose` picks from the picture's height and width: top, left, height and
    /// width. The same bits as a part of the whole picture, in half the time. None where that needs the whole
    /// picture, or where the file is damaged.
    pub fn decode_part(&self, choose: impl FnOnce([usize; 2]) -> Option<[usize; 4]>) -> Option<Picture> {
        if self.mode != Mode::Rgb {
            return None;
        }
        let bytes = self.read(MAX_FILE).ok()?;
        let decode = || {
            let jpeg = Jpeg::open(&bytes)?;
            if jpeg.is_turned || jpeg.channels() != 3 || !jpeg_ends(&bytes) {
                return None;
            }
            if (jpeg.height * jpeg.width * 3) as u64 > MAX_DECODED {
                return None;
            }
            let [top, left, height, width] = choose([jpeg.height, jpeg.width])?;
            let data = jpeg.region(top, left, height, width)?;
            Some(Picture { channels: 3, height, width, data })
        };
        catch_unwind(AssertUnwindSafe(decode)).ok().flatten()
    }

    /// (height, width) from the file's header, before it is turned upright. Cheap; a damaged body goes
    /// unnoticed.
    pub fn probe(&self) -> Result<(usize, usize)> {
        let header = self.header()?;
        Ok((header.height, header.width))
    }

    /// All that the header says.
    pub(crate) fn header(&self) -> Result<Header> {
        if self.mode.is_float() {
            let Picture { height, width, .. } = self.decode()?;
            return Ok(Header { height, width, turn: Orientation::NoTransforms, is_deep: false });
        }
        const HEAD: u64 = 256 << 10;
        let probe = |bytes: &[u8]| {
            let header = || {
                let mut decoder = open(bytes, self)?;
                let (turn, (width, height)) = (self.turn(&mut decoder), decoder.dimensions());
                let is_deep = decoder.color_type().bytes_per_pixel() > decoder.color_type().channel_count();
                Ok(Header { height: height as usize, width: width as usize, turn, is_deep })
            };
            catch_unwind(AssertUnwindSafe(header))
                .unwrap_or_else(|_| Err(anyhow!("the decoder gave up on it")))
        };
        let head = self.read(HEAD)?;
        match probe(&head) {
            // Some formats keep their header at the end.
            Err(_) if head.len() as u64 == HEAD => probe(&self.read(MAX_FILE)?),
            outcome => outcome,
        }
    }

    fn turn(&self, decoder: &mut impl ImageDecoder) -> Orientation {
        match self.exif {
            true => decoder.orientation().unwrap_or(Orientation::NoTransforms),
            false => Orientation::NoTransforms,
        }
    }

    /// At most the first `most` bytes.
    fn read(&self, most: u64) -> Result<Vec<u8>> {
        if let Some(Entry { container, index }) = &self.entry {
            let bytes = container.read(*index, most)?;
            if bytes.is_empty() {
                bail!("is empty");
            }
            return Ok(bytes);
        }
        let file = regular_file::open(&self.path)?;
        let metadata = file.metadata()?;
        if metadata.len() > MAX_FILE {
            bail!("has {} MiB, more than any picture", metadata.len() >> 20);
        }
        if metadata.len() == 0 {
            bail!("is empty");
        }
        let mut bytes = Vec::with_capacity(most.min(metadata.len()) as usize);
        file.take(most).read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

fn open<'a>(bytes: &'a [u8], file: &ImageFile) -> Result<impl ImageDecoder + 'a> {
    let format = image::guess_format(bytes).or_else(|_| match ImageFormat::from_path(&file.path) {
        Ok(ImageFormat::Tga) => Ok(ImageFormat::Tga),
        _ => Err(anyhow!(format::unknown(&file.path, bytes))),
    })?;
    if format == ImageFormat::Tiff && format::has_reversed_bits(bytes) {
        bail!(
            "is a TIFF with FillOrder 2 (the bits of each byte reversed), which is not read; convert it to PNG"
        );
    }
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut limits = image::Limits::default();
    limits.max_alloc = Some(MAX_DECODED);
    reader.limits(limits);
    let decoder = reader.into_decoder().map_err(|error| match error {
        ImageError::Unsupported(_) if format == ImageFormat::Tiff => {
            anyhow!(format::unread_tiff(bytes, &error))
        }
        error => error.into(),
    })?;
    if matches!(decoder.color_type(), ColorType::Rgb32F | ColorType::Rgba32F) {
        bail!(format::FLOATS);
    }
    if decoder.total_bytes() > MAX_DECODED {
        let (width, height) = decoder.dimensions();
        bail!("is too large when decoded ({width}x{height}: {} MiB)", decoder.total_bytes() >> 20);
    }
    if decoder.dimensions().0 == 0 || decoder.dimensions().1 == 0 {
        bail!("has no pixels");
    }
    Ok(decoder)
}

/// The picture of a file, upright, in the colours and the depth that it has.
pub(crate) fn decode_as_is(path: &Path) -> Result<DynamicImage> {
    decode_guarded(path, |bytes| decode_bytes(bytes, &ImageFile::new(path, Mode::Rgb)))
}

/// What `decode` makes of a file's bytes.
pub(crate) fn decode_guarded<T>(path: &Path, decode: impl FnOnce(&[u8]) -> Result<T>) -> Result<T> {
    let bytes = ImageFile::new(path, Mode::Rgb).read(MAX_FILE)?;
    catch_unwind(AssertUnwindSafe(|| decode(&bytes)))
        .unwrap_or_else(|_| Err(anyhow!("the decoder gave up on it")))
}

/// Turns what was decoded otherwise as the file's EXIF data says.
pub(crate) fn upright(mut image: DynamicImage, bytes: &[u8], file: &ImageFile) -> DynamicImage {
    if let Ok(mut decoder) = open(bytes, file) {
        image.apply_orientation(file.turn(&mut decoder));
    }
    image
}

fn decode(bytes: &[u8], file: &ImageFile) -> Result<Picture> {
    if let Mode::Float32(channels) = file.mode {
        return floats::decode(bytes, file, channels);
    }
    Ok(Picture::from_image(decode_bytes(bytes, file)?, file.mode))
}

/// The picture of these bytes, in the colours and the depth that it has; the file's name tells the format where
/// they do not.
pub(crate) fn decode_bytes(bytes: &[u8], file: &ImageFile) -> Result<DynamicImage> {
    // The JPEG decoder fills what is missing with grey and says nothing.
    if bytes.starts_with(&[0xff, 0xd8]) && !jpeg_ends(bytes) {
        bail!("is truncated: the JPEG stream has no end");
    }
    let mut decoder = open(bytes, file)?;
    let orientation = file.turn(&mut decoder);
    let mut image = match decode_jpeg(bytes) {
        Some(image) => image,
        None => DynamicImage::from_decoder(decoder).context("cannot be decoded")?,
    };
    image.apply_orientation(orientation);
    Ok(image)
}

/// The pixels that Pillow sees, to the bit. None for what the decoder of `image` reads: other formats, and
/// rare or damaged JPEG files.
fn decode_jpeg(bytes: &[u8]) -> Option<DynamicImage> {
    let jpeg = Jpeg::open(bytes)?;
    let pixels = jpeg.region(0, 0, jpeg.height, jpeg.width)?;
    let (width, height) = (jpeg.width as u32, jpeg.height as u32);
    match jpeg.channels() {
        1 => GrayImage::from_raw(width, height, pixels).map(DynamicImage::from),
        _ => RgbImage::from_raw(width, height, pixels).map(DynamicImage::from),
    }
}

/// Whether the stream reaches its end marker, markers of embedded thumbnails not counted.
fn jpeg_ends(bytes: &[u8]) -> bool {
    let mut at = 2;
    loop {
        // To the next marker, past entropy-coded data, stuffed zeros, restarts and fill bytes.
        let Some(ahead) = memchr::memchr(0xff, bytes.get(at..).unwrap_or_default()) else { return false };
        at += ahead;
        match bytes.get(at + 1) {
            None => return false,
            Some(0xd9) => return true,
            Some(0xff) => at += 1,
            Some(0x00 | 0x01 | 0xd0..=0xd8) => at += 2,
            Some(_) => {
                let Some(&[high, low]) = bytes.get(at + 2..at + 4) else { return false };
                at += 2 + usize::from(u16::from_be_bytes([high, low])).max(2);
            }
        }
    }
}

impl Picture {
    fn from_image(image: DynamicImage, mode: Mode) -> Self {
        let (width, height) = (image.width() as usize, image.height() as usize);
        let picture = |channels, data| Self { channels, height, width, data };
        let is_grey = matches!(image, DynamicImage::ImageLuma8(_) | DynamicImage::ImageLuma16(_));
        match mode {
            Mode::Grey if is_grey => picture(1, image.into_luma8().into_raw()),
            Mode::Rgb if !image.color().has_alpha() => picture(3, image.into_rgb8().into_raw()),
            Mode::Rgb | Mode::Float32(_) => picture(3, on_white(image.into_rgba8().as_raw())),
            Mode::Grey => {
                let rgb = if image.color().has_alpha() {
                    on_white(image.into_rgba8().as_raw())
                } else {
                    image.into_rgb8().into_raw()
                };
                let luma = |rgb: &[u8]| {
                    let [r, g, b] = [rgb[0], rgb[1], rgb[2]].map(u32::from);
                    ((19595 * r + 38470 * g + 7471 * b + 0x8000) >> 16) as u8
                };
                picture(1, rgb.chunks_exact(3).map(luma).collect())
            }
        }
    }

    /// The rectangle `height × width` whose upper left corner is (`top`, `left`); it is clipped to the
    /// picture.
    pub fn crop(&self, top: usize, left: usize, height: usize, width: usize) -> Picture {
        let (top, left) = (top.min(self.height), left.min(self.width));
        let (height, width) = (height.min(self.height - top), width.min(self.width - left));
        let row = self.width * self.channels;
        let mut data = Vec::with_capacity(height * width * self.channels);
        for y in top..top + height {
            let start = y * row + left * self.channels;
            data.extend_from_slice(&self.data[start..start + width * self.channels]);
        }
        Picture { channels: self.channels, height, width, data }
    }

    /// Every pixel `scale` times down and across.
    pub fn repeated(&self, scale: usize) -> Picture {
        let mut data = Vec::with_capacity(self.data.len() * scale * scale);
        for row in self.data.chunks_exact((self.width * self.channels).max(1)) {
            let start = data.len();
            for pixel in row.chunks_exact(self.channels) {
                (0..scale).for_each(|_| data.extend_from_slice(pixel));
            }
            let end = data.len();
            (1..scale).for_each(|_| data.extend_from_within(start..end));
        }
        Picture { channels: self.channels, height: self.height * scale, width: self.width * scale, data }
    }

    /// Both pictures as one, the channels of `other` after one's own.
    pub fn stack(&self, other: &Picture) -> Result<Picture> {
        if (self.height, self.width) != (other.height, other.width) {
            bail!("is {}x{}, and the picture {}x{}", other.width, other.height, self.width, self.height);
        }
        let pairs = self.data.chunks_exact(self.channels).zip(other.data.chunks_exact(other.channels));
        let data = pairs.flat_map(|(own, other)| own.iter().chain(other).copied()).collect();
        Ok(Picture { channels: self.channels + other.channels, height: self.height, width: self.width, data })
    }

    /// Scaled with an antialiased bilinear filter, as Pillow's `BILINEAR`.
    pub fn resize(&self, height: usize, width: usize) -> Picture {
        self.cut(0, 0, self.height, self.width, height, width)
    }

    /// The rectangle `of_height × of_width` whose upper left corner is (`top`, `left`), scaled as by
    /// [`resize`](Self::resize) and without a look at what lies around it. It is clipped to the picture.
    fn cut(
        &self,
        top: usize,
        left: usize,
        of_height: usize,
        of_width: usize,
        height: usize,
        width: usize,
    ) -> Picture {
        let (top, left) = (top.min(self.height), left.min(self.width));
        let (of_height, of_width) = (of_height.min(self.height - top), of_width.min(self.width - left));
        if (height, width) == (of_height, of_width) {
            return self.crop(top, left, height, width);
        }
        let kind = if self.channels == 1 { fir::PixelType::U8 } else { fir::PixelType::U8x3 };
        let mut scaled = fir::images::Image::new(width as u32, height as u32, kind);
        let options =
            fir::ResizeOptions::new().resize_alg(fir::ResizeAlg::Convolution(fir::FilterType::Bilinear));
        let source = fir::images::ImageRef::new(self.width as u32, self.height as u32, &self.data, kind);
        let [top, left, of_height, of_width] = [top, left, of_height, of_width].map(|side| side as u32);
        if let Ok(source) = &source
            && let Ok(part) = fir::images::CroppedImage::new(source, left, top, of_width, of_height)
        {
            // Fails only when the pixel types differ, and they are one.
            let outcome = RESIZER.with_borrow_mut(|resizer| resizer.resize(&part, &mut scaled, &options));
            debug_assert!(outcome.is_ok());
        }
        Picture { channels: self.channels, height, width, data: scaled.into_vec() }
    }

    /// The pixels as planes: `channels × height × width`, one sample of a `[N, C, H, W]` tensor.
    pub fn planes(&self) -> Vec<u8> {
        let mut planes = vec![0; self.data.len()];
        self.write_planes(&mut planes);
        planes
    }

    /// Writes the pixels as planes into a slice of the same length.
    pub fn write_planes(&self, planes: &mut [u8]) {
        let pixels = self.height * self.width;
        for (pixel, values) in self.data.chunks_exact(self.channels).enumerate() {
            for (channel, &value) in values.iter().enumerate() {
                planes[channel * pixels + pixel] = value;
            }
        }
    }
}

/// RGBA blended with white, as RGB.
fn on_white(rgba: &[u8]) -> Vec<u8> {
    let blend = |value: u8, alpha: u8| {
        let (value, alpha) = (u32::from(value), u32::from(alpha));
        ((value * alpha + 255 * (255 - alpha) + 127) / 255) as u8
    };
    rgba.chunks_exact(4).flat_map(|p| [blend(p[0], p[3]), blend(p[1], p[3]), blend(p[2], p[3])]).collect()
}

impl Fit {
    /// The whole picture as one sample, `self.height × self.width`.
    pub fn whole(&self, picture: &Picture) -> Picture {
        let fitted = match self.resize {
            Resize::Squash => picture.resize(self.height, self.width),
            Resize::Shorter(EvalTransform { resize: side, interpolation, .. }) => {
                let (height, width) = if picture.height <= picture.width {
                    (side, picture.width * side / picture.height)
                } else {
                    (picture.height * side / picture.width, side)
                };
                self.centre(&resample::resize(picture, height, width, interpolation))
            }
            Resize::Crop => {
                // The side that limits gets the wanted length, the other its share, cut to whole pixels.
                let (height, width) = if picture.height * self.width <= picture.width * self.height {
                    (self.height, (picture.width * self.height / picture.height).max(self.width))
                } else {
                    ((picture.height * self.width / picture.width).max(self.height), self.width)
                };
                self.centre(&picture.resize(height, width))
            }
        };
        self.finish(fitted)
    }

    /// The same for pictures to judge by.
    pub fn judging(&self) -> Self {
        Self { resize: self.eval.map_or(self.resize, Resize::Shorter), ..self.clone() }
    }

    /// The middle of a picture of at least the wanted size.
    fn centre(&self, picture: &Picture) -> Picture {
        let start = |length: usize, wanted: usize| {
            (length.saturating_sub(wanted) as f64 / 2.0).round_ties_even() as usize
        };
        let (top, left) = (start(picture.height, self.height), start(picture.width, self.width));
        picture.crop(top, left, self.height, self.width)
    }

    /// A part of a picture as one sample, as if it were the whole.
    pub fn part(&self, part: &Picture) -> Picture {
        self.finish(part.resize(self.height, self.width))
    }

    /// A rectangle of the picture as one sample, for random resized crops.
    pub fn region(&self, picture: &Picture, top: usize, left: usize, height: usize, width: usize) -> Picture {
        self.finish(picture.cut(top, left, height, width, self.height, self.width))
    }

    fn finish(&self, mut picture: Picture) -> Picture {
        if let Some(smooth) = &self.smooth {
            smooth.picture(&mut picture);
        }
        picture
    }
}
