//! From 8-bit planes to the batch in one pass: flips, crops, normalisation and cutout without a tensor
//! between.

use anyhow::{Result, anyhow};
use tch::{Kind, Tensor};

use super::LoaderContext;
use crate::data::Picture;
use crate::data::augment::{Erased, Fill, PixelMap, Pixels, fill_level};
use crate::data::image::floats;
use crate::libtorch::memory::{Number, Slots};

/// How the slots of a batch are filled from pictures of one shape.
pub struct BatchWriter {
    channels: usize,
    /// Height and width of the pictures, then of what is made of them.
    from: [usize; 2],
    to: [usize; 2],
    tables: Tables,
    /// Where nothing moves, whole planes are looked up.
    moves: bool,
}

/// The value of each level in each channel.
enum Tables {
    /// The levels themselves; the rest is done on the device.
    Levels,
    Float(Vec<[f32; 256]>),
    Double(Vec<[f64; 256]>),
}

/// A batch that is being filled.
pub enum Buffer {
    Levels(Slots<u8>),
    Float(Slots<f32>),
    Double(Slots<f64>),
}

impl BatchWriter {
    /// For pictures `[C, H, W]`. Where the pipeline has steps that only libtorch can do, or the batch goes to
    /// a GPU, it collects the levels.
    pub fn new(shape: &[i64; 3], context: &LoaderContext) -> Result<Self> {
        let [channels, height, width] = shape.map(|n| n as usize);
        let whole = Self {
            channels,
            from: [height, width],
            to: [height, width],
            tables: Tables::Levels,
            moves: false,
        };
        if context.device != tch::Device::Cpu || !context.pipeline.is_one_pass() {
            return Ok(whole);
        }
        // The same operations as for tensors, so the same params to the last bit.
        let levels = Tensor::arange(256, (Kind::Uint8, tch::Device::Cpu)).view([1, 1, 1, 256]);
        let levels = levels.expand([1, channels as i64, 1, 256], false);
        let values =
            context.normalized(Pixels::new(levels, context.kind).into_unit()).view([channels as i64, 256]);
        let tables = match context.kind {
            Kind::Double => Tables::Double(tables(&values)?),
            _ => Tables::Float(tables(&values)?),
        };
        let to = match *context.pipeline.output() {
            [_, height, width] => [height as usize, width as usize],
            _ => [height, width],
        };
        Ok(Self { to, tables, moves: context.pipeline.moves_pixels(), ..whole })
    }

    /// For samples of the shape `decoded` whose levels the pipeline may change first.
    pub fn collecting(decoded: &[i64], context: &LoaderContext) -> Result<Self> {
        match context.pipeline.collected(decoded).first_chunk() {
            // The bytes of values; the rest is done on the device.
            Some(&[channels, height, width]) if context.floats => {
                let sides = [height, width].map(|side| side as usize);
                let channels = channels as usize * floats::BYTES;
                Ok(Self { channels, from: sides, to: sides, tables: Tables::Levels, moves: false })
            }
            Some(shape) => Self::new(shape, context),
            None => Err(anyhow!("samples of shape {decoded:?} have no pixels")),
        }
    }

    /// Whether the batch comes out normalised and augmented, all but mixed.
    pub fn finishes(&self) -> bool {
        !matches!(self.tables, Tables::Levels)
    }

    /// An empty batch of `samples`.
    pub fn buffer(&self, samples: usize, pinned: bool) -> Result<Buffer> {
        let size = [samples, self.channels, self.to[0], self.to[1]].map(|n| n as i64);
        Ok(match self.tables {
            Tables::Levels => Buffer::Levels(Slots::new(&size, pinned)?),
            Tables::Float(_) => Buffer::Float(Slots::new(&size, pinned)?),
            Tables::Double(_) => Buffer::Double(Slots::new(&size, pinned)?),
        })
    }

    /// Fills slot `slot` with a picture as the augmentation's `params` of it say. Each slot can be filled once.
    pub fn write(
        &self,
        buffer: &Buffer,
        slot: usize,
        levels: PixelData<'_>,
        context: &LoaderContext,
        params: &[f64],
    ) -> Result<()> {
        let bytes = levels.bytes().len();
        if bytes != self.channels * self.from[0] * self.from[1] {
            return Err(anyhow!("a picture of {bytes} bytes does not fit the samples"));
        }
        let taken = || anyhow!("a batch has no free slot {slot}");
        match (buffer, &self.tables) {
            (Buffer::Levels(slots), _) => match (slots.slot(slot).ok_or_else(taken)?, levels) {
                (out, PixelData::Planes(planes)) => out.copy_from_slice(planes),
                (out, PixelData::Picture(picture)) => picture.write_planes(out),
            },
            (Buffer::Float(slots), Tables::Float(tables)) => {
                self.sample(slots.slot(slot).ok_or_else(taken)?, levels, tables, context, params);
            }
            (Buffer::Double(slots), Tables::Double(tables)) => {
                self.sample(slots.slot(slot).ok_or_else(taken)?, levels, tables, context, params);
            }
            _ => return Err(anyhow!("a batch of another kind")),
        }
        Ok(())
    }

    fn sample<T: Number>(
        &self,
        out: &mut [T],
        levels: PixelData<'_>,
        tables: &[[T; 256]],
        context: &LoaderContext,
        params: &[f64],
    ) {
        let maps = self.moves.then(|| context.pipeline.pixel_map(self.from, params));
        let (maps, plane) = (maps.as_ref(), self.from[0] * self.from[1]);
        let target_fill = context.pipeline.target_fill();
        match levels {
            PixelData::Picture(Picture { channels: 3, data, .. }) => {
                let pixels = data.as_chunks::<3>().0;
                self.place((0..3).map(|lane| Plane { pixels, lane }), out, tables, maps, target_fill);
            }
            PixelData::Picture(picture) if picture.channels > 1 => {
                self.place(Plane::each(&picture.planes(), plane), out, tables, maps, target_fill);
            }
            levels => self.place(Plane::each(levels.bytes(), plane), out, tables, maps, target_fill),
        }
        let image = self.channels - context.pipeline.target_channels();
        for erased in context.pipeline.erased(params) {
            erase(&mut out[..image * self.to[0] * self.to[1]], self.to, erased);
        }
    }

    fn place<'a, T: Number, const STEP: usize>(
        &self,
        planes: impl Iterator<Item = Plane<'a, STEP>>,
        out: &mut [T],
        tables: &[[T; 256]],
        maps: Option<&PixelMap>,
        target_fill: Option<u8>,
    ) {
        let runs = maps.map(|maps| runs(&maps.across)).unwrap_or_default();
        let outputs = out.chunks_exact_mut(self.to[0] * self.to[1]);
        for ((channel, plane), (out, table)) in planes.enumerate().zip(outputs.zip(tables)) {
            // The last channel may be a mask, which has a padding of its own.
            let fill = target_fill.filter(|_| channel + 1 == self.channels);
            match maps {
                None => plane.look_up(0, out, table),
                Some(PixelMap { down, across, transposed: true, .. }) => {
                    self.write_transposed(out, plane, table, down, across, fill);
                }
                Some(maps) => self.write_rows(out, plane, table, &maps.down, &runs, fill),
            }
        }
    }

    /// As [`write_rows`](Self::write_rows), rows of the picture running down the sample's columns.
    fn write_transposed<T: Number, const STEP: usize>(
        &self,
        out: &mut [T],
        plane: Plane<'_, STEP>,
        table: &[T; 256],
        down: &[i32],
        across: &[i32],
        target_fill: Option<u8>,
    ) {
        for (&column, out) in down.iter().zip(out.chunks_exact_mut(self.to[1])) {
            for (&row, out) in across.iter().zip(out) {
                let fill = row.min(column);
                let at = if fill < 0 {
                    target_fill.map_or(fill_level(fill), usize::from)
                } else {
                    plane.pixels[row as usize * self.from[1] + column as usize][plane.lane].into()
                };
                *out = table[at];
            }
        }
    }

    fn write_rows<T: Number, const STEP: usize>(
        &self,
        out: &mut [T],
        plane: Plane<'_, STEP>,
        table: &[T; 256],
        rows: &[i32],
        columns: &[Run],
        target_fill: Option<u8>,
    ) {
        for (&row, mut out) in rows.iter().zip(out.chunks_exact_mut(self.to[1])) {
            let line = row.max(0) as usize * self.from[1];
            for run in columns {
                let (part, rest) = out.split_at_mut(run.len);
                out = rest;
                match run.origin {
                    // Where padding crosses padding, the later crop's is on top.
                    _ if row.min(run.first) < 0 => {
                        part.fill(table[target_fill.map_or(fill_level(row.min(run.first)), usize::from)]);
                    }
                    Origin::Forward => plane.look_up(line + run.first as usize, part, table),
                    Origin::Backward => plane.look_up_back(line + run.first as usize, part, table),
                    Origin::Fill => {}
                }
            }
        }
    }
}

/// 8-bit pixels of one picture.
#[derive(Clone, Copy)]
pub enum PixelData<'a> {
    /// `channels × height × width`.
    Planes(&'a [u8]),
    Picture(&'a Picture),
}

impl<'a> PixelData<'a> {
    fn bytes(self) -> &'a [u8] {
        match self {
            PixelData::Planes(planes) => planes,
            PixelData::Picture(picture) => &picture.data,
        }
    }
}

/// One channel: a byte of each pixel of `STEP` bytes.
#[derive(Clone, Copy)]
struct Plane<'a, const STEP: usize> {
    pixels: &'a [[u8; STEP]],
    lane: usize,
}

impl<'a> Plane<'a, 1> {
    fn each(planes: &'a [u8], len: usize) -> impl Iterator<Item = Self> {
        planes.chunks_exact(len).map(|plane| Self { pixels: plane.as_chunks().0, lane: 0 })
    }
}

impl<const STEP: usize> Plane<'_, STEP> {
    /// The values of the pixels from `first` on.
    fn look_up<T: Number>(&self, first: usize, out: &mut [T], table: &[T; 256]) {
        for (out, pixel) in out.iter_mut().zip(&self.pixels[first..]) {
            *out = table[pixel[self.lane] as usize];
        }
    }

    /// The values of the pixels from `first` on, backwards.
    fn look_up_back<T: Number>(&self, first: usize, out: &mut [T], table: &[T; 256]) {
        for (out, pixel) in out.iter_mut().zip(self.pixels[..=first].iter().rev()) {
            *out = table[pixel[self.lane] as usize];
        }
    }
}

impl Buffer {
    pub fn into_tensor(self) -> Tensor {
        match self {
            Buffer::Levels(slots) => slots.into_tensor(),
            Buffer::Float(slots) => slots.into_tensor(),
            Buffer::Double(slots) => slots.into_tensor(),
        }
    }
}

/// Columns that follow each other in the picture, or all show the same fill.
struct Run {
    /// Where the first of them comes from, or the fill.
    first: i32,
    origin: Origin,
    len: usize,
}

#[derive(Clone, Copy)]
enum Origin {
    Fill,
    Forward,
    Backward,
}

/// Blanks a rectangle of every plane of `[height, width]`.
fn erase<T: Number>(planes: &mut [T], [height, width]: [usize; 2], erased: Erased) {
    let [top, bottom, left, right] = erased.rectangle;
    if left >= right {
        return;
    }
    let mut noise = erased.noise(planes.len() / (height * width).max(1)).unwrap_or_default().into_iter();
    for plane in planes.chunks_exact_mut(height * width) {
        for row in plane.chunks_exact_mut(width).take(bottom).skip(top) {
            match erased.fill {
                Fill::Value(value) => row[left..right].fill(T::of(value)),
                Fill::Normal(_) => {
                    for (out, noise) in row[left..right].iter_mut().zip(&mut noise) {
                        *out = T::of(noise.into());
                    }
                }
            }
        }
    }
}

/// A map of columns as its runs: two or three, unless it was mirrored often.
fn runs(columns: &[i32]) -> Vec<Run> {
    let mut runs = Vec::with_capacity(4);
    let mut rest = columns;
    while let &[first, ref tail @ ..] = rest {
        let ahead =
            |step: i32| 1 + tail.iter().zip(1..).take_while(|&(&at, n)| at == first + step * n).count();
        let (forward, backward) = (ahead(1), ahead(-1).min(first.max(0) as usize + 1));
        let (origin, len) = match first {
            ..0 => (Origin::Fill, ahead(0)),
            _ if forward >= backward => (Origin::Forward, forward),
            _ => (Origin::Backward, backward),
        };
        runs.push(Run { first, origin, len });
        rest = &rest[len..];
    }
    runs
}

/// `[C, 256]` as one table per channel.
fn tables<T: Number>(values: &Tensor) -> Result<Vec<[T; 256]>> {
    let mut tables = vec![[T::ZERO; 256]; values.size()[0] as usize];
    let flat = tables.as_flattened_mut();
    values.contiguous().f_copy_data(flat, flat.len())?;
    Ok(tables)
}
