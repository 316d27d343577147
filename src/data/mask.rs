//! Segmentation masks: what the pixels of a file say, and which class that is. Palettes give indices, grey
//! files of 8 or 16 bits numbers, the rest colours; alpha is no colour, and nothing is converted to grey.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io::Cursor;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use image::codecs::bmp::BmpDecoder;
use image::{DynamicImage, GrayImage, ImageDecoder, ImageFormat};
use serde::{Deserialize, Serialize};

use crate::data::image::picture::{MAX_DECODED, Picture, decode_guarded, upright};
use crate::util::exit_code::{ExitCode, fail};

/// What a decoded mask holds where a pixel counts nowhere; its class is negative in a batch.
pub const IGNORED: u8 = 255;

/// What a file says of one pixel: a number (grey level, class or palette index), or a colour `"#rrggbb"`.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(try_from = "Written", into = "Written")]
pub enum Level {
    Number(u16),
    Colour([u8; 3]),
}

/// A level as YAML has it.
#[derive(Deserialize, Serialize)]
#[serde(
    untagged,
    expecting = "a level is a number from 0 to 65535, or a colour: `[r, g, b]` with values from 0 to 255, or \"#rrggbb\" in quotes"
)]
enum Written {
    Number(u16),
    Colour([u8; 3]),
    Text(String),
}

impl TryFrom<Written> for Level {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        match written {
            Written::Number(number) => Ok(Level::Number(number)),
            Written::Colour(colour) => Ok(Level::Colour(colour)),
            Written::Text(text) => {
                let digits = text.strip_prefix('#').filter(|digits| digits.len() == 6 && digits.is_ascii());
                let byte = |at: usize| u8::from_str_radix(digits?.get(at..at + 2)?, 16).ok();
                match (byte(0), byte(2), byte(4)) {
                    (Some(r), Some(g), Some(b)) => Ok(Level::Colour([r, g, b])),
                    _ => Err(format!("`{text}` is no colour; write it as \"#rrggbb\" or `[r, g, b]`")),
                }
            }
        }
    }
}

impl From<Level> for Written {
    fn from(level: Level) -> Self {
        match level {
            Level::Number(number) => Written::Number(number),
            colour => Written::Text(colour.to_string()),
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Level::Number(number) => write!(f, "{number}"),
            Level::Colour([r, g, b]) => write!(f, "#{r:02x}{g:02x}{b:02x}"),
        }
    }
}

impl Level {
    /// Of a number below 256.
    pub fn byte(self) -> Option<u8> {
        match self {
            Level::Number(number) => u8::try_from(number).ok(),
            Level::Colour(_) => None,
        }
    }

    /// The largest difference of a channel; None between a number and a colour.
    fn distance(self, other: Level) -> Option<u16> {
        match (self, other) {
            (Level::Number(a), Level::Number(b)) => Some(a.abs_diff(b)),
            (Level::Colour(a), Level::Colour(b)) => {
                a.iter().zip(b).map(|(a, b)| u16::from(a.abs_diff(b))).max()
            }
            _ => None,
        }
    }
}

/// A mask as its file has it, upright.
pub struct MaskImage {
    pub height: usize,
    pub width: usize,
    levels: Vec<Level>,
    /// The colours of the indices, where it has a palette.
    palette: Option<Vec<[u8; 3]>>,
    /// Its format changes levels a little: JPEG, or WebP with loss.
    lossy: bool,
}

impl MaskImage {
    /// Reads a file. The error says why it cannot be decoded.
    pub fn read(path: &Path) -> Result<Self> {
        decode_guarded(path, |bytes| {
            if let Some((indices, palette)) = indexed(bytes)? {
                let image = upright(DynamicImage::ImageLuma8(indices), bytes, path);
                return Ok(Self { palette: Some(palette), ..Self::of(image, false)? });
            }
            let lossy = bytes.starts_with(&[0xff, 0xd8])
                || bytes.starts_with(b"RIFF") && memchr::memmem::find(bytes, b"VP8 ").is_some();
            Self::of(crate::data::image::picture::decode_bytes(bytes, path)?, lossy)
        })
    }

    fn of(image: DynamicImage, lossy: bool) -> Result<Self> {
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
    fn counts(&self) -> Result<BTreeMap<Level, u64>> {
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
                let of = |at: usize| line[at * bits / 8] >> (8 - bits - at * bits % 8) & mask;
                indices.extend((0..width as usize).map(of));
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
            let own = frame.palette.clone();
            let palette = own.as_deref().or(reader.global_palette()).unwrap_or_default();
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

/// Which level stands for which class.
#[derive(Clone, Debug, PartialEq)]
pub struct Encoding {
    /// In the order of the classes.
    pub levels: Vec<Level>,
    pub ignore: Vec<Level>,
    /// How far a pixel of a lossless file may lie from its level.
    pub tolerance: u16,
}

/// Pixels that no class claims: which levels, how often, of how many pixels.
#[derive(Clone, Debug, Default)]
pub struct Unclaimed {
    pub levels: BTreeMap<Level, u64>,
    pub pixels: u64,
}

impl Unclaimed {
    /// The levels that occur most, at most eight.
    pub fn most(&self) -> Vec<(Level, u64)> {
        let mut levels: Vec<_> = self.levels.iter().map(|(level, count)| (*level, *count)).collect();
        levels.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        levels.truncate(8);
        levels
    }
}

impl fmt::Display for Unclaimed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let most = self.most();
        let shown: Vec<_> = most
            .iter()
            .map(|(level, count)| format!("{level} ({})", percent(*count as f64 / self.pixels.max(1) as f64)))
            .collect();
        let more = if most.len() < self.levels.len() { ", …" } else { "" };
        write!(f, "{}{more}", shown.join(", "))
    }
}

/// A share for people: one decimal, more where it would be 0.
pub fn percent(share: f64) -> String {
    match share * 100.0 {
        percent if percent >= 0.05 || percent == 0.0 => format!("{percent:.1} %"),
        percent => format!("{percent:.1e} %"),
    }
}

impl Encoding {
    /// Class numbers 0 to `classes` − 1.
    pub fn numbers(classes: usize, ignore: Vec<Level>) -> Self {
        Self { levels: (0..classes as u16).map(Level::Number).collect(), ignore, tolerance: 0 }
    }

    /// Levels evenly from 0 to 255: rounded down, or else to the nearest.
    pub fn spread(classes: usize, down: bool, ignore: Vec<Level>) -> Self {
        let last = classes.max(2) - 1;
        let half = if down { 0 } else { last / 2 };
        let levels = (0..=last).map(|class| Level::Number(((class * 255 + half) / last) as u16)).collect();
        Self { levels, ignore, tolerance: 0 }
    }

    /// The classes of a mask as a picture of one channel, [`IGNORED`] where it is ignored, and how many
    /// pixels each has.
    pub fn classes(&self, image: &MaskImage) -> Result<Result<(Picture, Vec<u64>), Unclaimed>> {
        let counts = image.counts()?;
        let palette = image.palette.as_deref();
        let grey = |[r, g, b]: [u8; 3]| (r == g && g == b).then_some(Level::Number(r.into()));
        let colour = |level: Level| match level {
            Level::Number(index) if palette.is_some() => {
                palette.and_then(|colours| colours.get(usize::from(index)).copied())
            }
            Level::Number(number) => u8::try_from(number).ok().map(|grey| [grey; 3]),
            Level::Colour(colour) => Some(colour),
        };
        let in_colours = self.levels.iter().any(|level| matches!(level, Level::Colour(_)));
        let as_colour = |level: Level| colour(level).map_or(level, Level::Colour);
        // A colour file of greys alone is a grey file.
        let as_number = |level: Level| match level {
            Level::Colour(colour) => grey(colour).unwrap_or(level),
            number => number,
        };
        let table = match in_colours {
            true => self.table(&counts, as_colour, image.lossy),
            false => {
                let read = self.table(&counts, as_number, image.lossy);
                // Some formats have no other way to store greys than a palette of them.
                let as_grey = |level: Level| colour(level).and_then(grey).unwrap_or(level);
                let is_grey = || counts.keys().all(|level| colour(*level).and_then(grey).is_some());
                match read {
                    Err(_) if palette.is_some() && is_grey() => {
                        self.table(&counts, as_grey, image.lossy).or(read)
                    }
                    read => read,
                }
            }
        };
        let table = match table {
            Ok(table) => table,
            Err(unclaimed) => return Ok(Err(unclaimed)),
        };
        let mut per_class = vec![0; usize::from(IGNORED) + 1];
        for (level, count) in &counts {
            per_class[usize::from(table[level])] += count;
        }
        let mut data = Vec::with_capacity(image.levels.len());
        for run in image.levels.chunk_by(|a, b| a == b) {
            data.resize(data.len() + run.len(), table[&run[0]]);
        }
        let picture = Picture { channels: 1, height: image.height, width: image.width, data };
        Ok(Ok((picture, per_class)))
    }

    /// The class of each level of `counts`, read by `reading`.
    fn table(
        &self,
        counts: &BTreeMap<Level, u64>,
        reading: impl Fn(Level) -> Level,
        lossy: bool,
    ) -> Result<HashMap<Level, u8>, Unclaimed> {
        /// The share of a lossy file's pixels that may lie further from every level than a quarter of their
        /// distance: edges.
        const EDGES: f64 = 0.05;
        let claims: Vec<(Level, u8)> = (self.ignore.iter().map(|level| (*level, IGNORED)))
            .chain(self.levels.iter().copied().zip(0..))
            .collect();
        let between = |(at, (a, _)): (usize, &(Level, u8))| {
            claims[at + 1..].iter().filter_map(|(b, _)| a.distance(*b)).min()
        };
        let gap = claims.iter().enumerate().filter_map(between).min().unwrap_or(1);
        let near = if lossy { self.tolerance.max(gap / 4) } else { self.tolerance };
        let (mut table, mut unclaimed) = (HashMap::new(), Unclaimed::default());
        for (&level, &count) in counts {
            let read = reading(level);
            let nearest = claims.iter().filter_map(|(at, class)| Some((read.distance(*at)?, *class)));
            let nearest = nearest.min_by_key(|(distance, _)| *distance);
            unclaimed.pixels += count;
            match nearest {
                Some((distance, class)) => {
                    table.insert(level, class);
                    if distance > near {
                        unclaimed.levels.insert(read, count);
                    }
                }
                None => {
                    unclaimed.levels.insert(read, count);
                }
            }
        }
        let missed: u64 = unclaimed.levels.values().sum();
        let forgiven = if lossy && table.len() == counts.len() { EDGES } else { 0.0 };
        if missed as f64 > forgiven * unclaimed.pixels as f64 { Err(unclaimed) } else { Ok(table) }
    }

    /// The classes of a file. Exit 3 where it holds what no class claims; any other error says why it cannot
    /// be decoded.
    pub fn read(&self, path: &Path) -> Result<Picture> {
        match self.classes(&MaskImage::read(path)?)? {
            Ok((picture, _)) => Ok(picture),
            Err(unclaimed) => {
                let message = format!("{}: {}", path.display(), self.complaint(&unclaimed));
                Err(fail(ExitCode::Data, message))
            }
        }
    }

    /// What to say of pixels that no class claims.
    pub fn complaint(&self, unclaimed: &Unclaimed) -> String {
        let list = |levels: &[Level]| {
            let shown: Vec<_> = levels.iter().take(32).map(Level::to_string).collect();
            let more = if levels.len() > shown.len() { ", …" } else { "" };
            format!("{}{more}", shown.join(", "))
        };
        let furthest = unclaimed.levels.keys().filter_map(|level| {
            self.levels.iter().chain(&self.ignore).filter_map(|at| level.distance(*at)).min()
        });
        let noise = match furthest.max() {
            Some(furthest) if furthest <= 64 => format!(", or say `tolerance: {furthest}` if it is noise"),
            _ => String::new(),
        };
        let ignore = match self.ignore.as_slice() {
            [] => String::new(),
            ignore => format!(" or ignored ({})", list(ignore)),
        };
        format!(
            "pixels of no class: {unclaimed}; the classes are {}{ignore}. Declare them in `mask.levels`, or as \
             `mask.ignore`{noise}",
            list(&self.levels)
        )
    }
}

/// The colour of a class in the palette of Pascal VOC: the bits of the number, three by three, from the
/// highest on.
pub fn voc_colour(class: u8) -> [u8; 3] {
    let channel = |first: u32| {
        (0..3)
            .filter(|place| u32::from(class) >> (3 * place + first) & 1 == 1)
            .map(|place| 128u8 >> place)
            .sum()
    };
    [channel(0), channel(1), channel(2)]
}

/// Tints RGB pixels by their classes: the mean of a pixel and its class's colour, of every class but the first.
pub fn tint(pixels: &mut [u8], classes: &[u8]) {
    for (pixel, &class) in pixels.chunks_exact_mut(3).zip(classes).filter(|(_, class)| **class != 0) {
        for (own, colour) in pixel.iter_mut().zip(voc_colour(class)) {
            *own = ((u16::from(*own) + u16::from(colour)) / 2) as u8;
        }
    }
}

/// What is known of the masks of a set: how they are read, and what they hold.
#[derive(Clone, Debug)]
pub struct Masks {
    pub encoding: Encoding,
    /// Pixels of each class, and of none, in the files that were looked at.
    pub pixels: Vec<u64>,
    pub ignored: u64,
    /// Files that were looked at, of how many.
    pub looked_at: [usize; 2],
    /// How they are read, for people.
    pub reading: String,
}

impl Masks {
    /// The classes that no pixel shows.
    pub fn absent<'a>(&'a self, names: &'a [String]) -> impl Iterator<Item = &'a str> {
        names.iter().zip(&self.pixels).filter(|(_, count)| **count == 0).map(|(name, _)| name.as_str())
    }

    /// The share of each class among the pixels that count, and of the ignored ones among all: lines for
    /// people.
    pub fn notes(&self, set: &str, names: &[String]) -> Vec<String> {
        let counted: u64 = self.pixels.iter().sum();
        let of = |count: u64, whole: u64| percent(count as f64 / whole.max(1) as f64);
        let mut shares: Vec<_> = names
            .iter()
            .zip(&self.pixels)
            .map(|(name, count)| format!("{name} {}", of(*count, counted)))
            .collect();
        if self.ignored > 0 {
            shares.push(format!("ignored {}", of(self.ignored, counted + self.ignored)));
        }
        let files = match self.looked_at {
            [some, all] if some < all => format!("{some} of {all} masks"),
            [all, _] => format!("all {all} masks"),
        };
        let mut notes =
            vec![format!("{set}: {} of the pixels ({files}; {})", shares.join(", "), self.reading)];
        let absent: Vec<_> = self.absent(names).map(|name| format!("`{name}`")).collect();
        if !absent.is_empty() {
            let (classes, occur, them) = match absent.len() {
                1 => ("class", "occurs", "it is"),
                _ => ("classes", "occur", "one is"),
            };
            let outcome = match set {
                "train" => "nothing is learnt of it".to_owned(),
                _ => format!("mean_dice and mean_iou leave it out, or count 0 where {them} predicted"),
            };
            notes.push(format!(
                "{set}: {classes} {} never {occur} in the masks: {outcome}",
                absent.join(", ")
            ));
        }
        notes
    }
}
