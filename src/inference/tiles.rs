//! A network that answers images with images of their size or a multiple of it, on images of any size: tile
//! by tile within a memory budget, without seams.
//!
//! Each tile is computed with as much of its surroundings as the network can see from there, measured by its
//! gradient, and only its own part is kept. Networks that see everything (global pooling) get the whole
//! image.

use anyhow::{Context, Result};
use tch::{Kind, Tensor, no_grad};

use crate::libtorch::catch_panics;
use crate::libtorch::device;
use crate::nn::model::{Model, Network};
use crate::tasks::Task;
use crate::util::exit_code::{ExitCode, fail};

/// Gradients below this share of the largest do not count: what they carry is far below one level of 16 bits.
const NEGLIGIBLE: f64 = 1e-6;

/// What the sides of a network's inputs may have to be multiples of.
const MULTIPLES: [i64; 15] = [1, 2, 3, 4, 5, 6, 8, 9, 10, 12, 16, 24, 32, 48, 64];

/// A network and what it asks of its tiles.
pub struct Tiles<'a> {
    network: &'a Network,
    task: &'a dyn Task,
    geometry: Geometry,
    /// Channels of the images that the task is given.
    channels: i64,
    /// Bytes per pixel of a tile, roughly, at the network's widest.
    bytes_per_pixel: f64,
}

/// What a network asks of the sizes of its inputs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Geometry {
    /// Sides must be multiples of it.
    pub multiple: usize,
    /// How many times larger the answer is.
    pub scale: usize,
    /// How far it sees beyond a pixel; None where it sees everything.
    pub reach: Option<usize>,
}

/// An area of an image: top, left, height, width.
pub type Area = [usize; 4];

impl<'a> Tiles<'a> {
    /// Measures the network on images of `channels` channels. Exit 2 where it does not answer with images;
    /// `command` is what needs that.
    pub fn new(
        model: &Model,
        network: &'a Network,
        task: &'a dyn Task,
        channels: i64,
        command: &str,
    ) -> Result<Self> {
        let geometry = Geometry { multiple: 1, scale: 1, reach: None };
        let mut tiles = Self { network, task, geometry, channels, bytes_per_pixel: bytes_per_pixel(model) };
        tiles.geometry = tiles.measure(command)?;
        Ok(tiles)
    }

    /// How many times larger the answer is.
    pub fn scale(&self) -> usize {
        self.geometry.scale
    }

    /// The same with so many pixels more around each tile, where it does not see everything anyway.
    pub fn wider(mut self, pixels: impl Fn(Geometry) -> usize) -> Self {
        self.geometry.reach = self.geometry.reach.map(|reach| reach + pixels(self.geometry));
        self
    }

    /// The side of tiles, their surroundings apart, that `bytes` of memory allow.
    pub fn side(&self, bytes: f64) -> usize {
        let side = (bytes / self.bytes_per_pixel).sqrt() as usize;
        let around = 2 * self.geometry.reach.unwrap_or(0);
        side.saturating_sub(around).clamp(64, 1 << 14)
    }

    /// Answers an image of `height` × `width` in tiles of `side`: `work` gets the area that a tile sees,
    /// as the part of the image that it is, and gives the answer to it, `[1, C, H, W]` and `scale` times as
    /// large; `put` gets the part of the answer that is the tile's own and where its upper left corner is,
    /// then how many are done, of how many.
    pub fn each(
        &self,
        [height, width]: [usize; 2],
        side: usize,
        mut work: impl FnMut(Area) -> Result<Tensor>,
        mut put: impl FnMut(&Tensor, [usize; 2], [usize; 2]) -> Result<()>,
    ) -> Result<()> {
        let Geometry { multiple, scale, reach } = self.geometry;
        let step = match reach {
            Some(_) => side.div_ceil(multiple) * multiple,
            None => height.max(width),
        };
        let around = reach.unwrap_or(0).div_ceil(multiple) * multiple;
        let tops: Vec<_> = (0..height).step_by(step).collect();
        let lefts: Vec<_> = (0..width).step_by(step).collect();
        let tiles = tops.len() * lefts.len();
        for (index, (&top, &left)) in
            tops.iter().flat_map(|top| lefts.iter().map(move |left| (top, left))).enumerate()
        {
            let (first_row, first_column) = (top.saturating_sub(around), left.saturating_sub(around));
            let last_row = (top + step + around).min(height);
            let last_column = (left + step + around).min(width);
            let area = [first_row, first_column, last_row - first_row, last_column - first_column];
            let answer = catch_panics(|| no_grad(|| work(area)))?
                .with_context(|| format!("a tile of {}x{}", area[3], area[2]))?;
            let (rows, columns) = (step.min(height - top), step.min(width - left));
            let kept = [top - first_row, left - first_column, rows, columns].map(|side| side * scale);
            put(&cut(&answer, kept), [top * scale, left * scale], [index + 1, tiles])?;
        }
        Ok(())
    }

    /// `[N, C, H, W]` float32 on the CPU to the answer to it, `scale` times as large.
    pub fn answer(&self, seen: &Tensor) -> Result<Tensor> {
        let size = seen.size();
        let (height, width) = (size[2], size[3]);
        let multiple = self.geometry.multiple as i64;
        let missing = |side: i64| (multiple - side % multiple) % multiple;
        let padded = match (missing(height), missing(width)) {
            (0, 0) => seen.shallow_clone(),
            (rows, columns) => seen.replication_pad2d([0, columns, 0, rows]),
        };
        let xs = padded.to_device(self.network.device()).to_kind(self.network.kind());
        let answer = self.through(&xs)?.to_device(tch::Device::Cpu).to_kind(Kind::Float);
        let scale = self.geometry.scale as i64;
        let expected = [padded.size()[2] * scale, padded.size()[3] * scale];
        if answer.size()[2..] != expected {
            let message = format!(
                "the network answered {:?} to {:?}, and {expected:?} was wanted; take one that answers images of any size",
                answer.size(),
                padded.size()
            );
            return Err(fail(ExitCode::Usage, message));
        }
        Ok(answer.narrow(2, 0, height * scale).narrow(3, 0, width * scale))
    }

    fn through(&self, xs: &Tensor) -> Result<Tensor> {
        let xs = self.task.make_inference_input(xs.shallow_clone());
        Ok(self.task.forward(self.network, &xs, false)?.outputs)
    }

    /// Tries sizes, then looks how far the gradient of an answer reaches.
    fn measure(&self, command: &str) -> Result<Geometry> {
        let probe = |side: i64| {
            device::seed(0);
            Tensor::rand([1, self.channels, side, side], (self.network.kind(), self.network.device()))
        };
        let fits = |multiple: &i64| {
            // A prime as factor: nothing but the multiple divides the side.
            let prime = [53, 29, 17, 13, 11, 7, 5, 3].into_iter().find(|prime| prime * multiple < 64);
            let side = multiple * prime.unwrap_or(1);
            // What the network would pad by itself would make tiles differ from the whole.
            let pads = !self.network.divides(&self.task.make_inference_input(probe(side)));
            let answer = catch_panics(|| no_grad(|| self.through(&probe(side)))).ok()?.ok()?;
            let scale = answer.size().get(2)? / side;
            (scale >= 1 && !pads && answer.size()[2..] == [side * scale, side * scale])
                .then_some((*multiple, scale))
        };
        let Some((multiple, scale)) = MULTIPLES.iter().find_map(fits) else {
            let message = format!(
                "the network does not answer images with images of their size; `{command}` needs one that does"
            );
            return Err(fail(ExitCode::Usage, message));
        };
        let geometry = |reach| Geometry { multiple: multiple as usize, scale: scale as usize, reach };
        for side in [96, 192, 384] {
            let side = ((side / multiple) | 1) * multiple;
            let reach = catch_panics(|| -> Result<_> {
                let xs = probe(side).set_requires_grad(true);
                let block = multiple * scale;
                let start = side / multiple / 2 * block;
                let answer = self.through(&xs)?.narrow(2, start, block).narrow(3, start, block);
                let sum = (&answer * answer.rand_like()).sum(Kind::Float);
                let gradient = Tensor::run_backward(&[sum], &[&xs], false, false);
                Ok(extent(&gradient[0], start / scale, multiple))
            })??;
            match reach {
                // At the probe's border it may see further.
                Some(reach) if reach + 1 < side / 2 - multiple => return Ok(geometry(Some(reach as usize))),
                _ => {}
            }
        }
        Ok(geometry(None))
    }
}

/// How far values other than zero lie beyond the block `start..start + block` of both sides.
fn extent(gradient: &Tensor, start: i64, block: i64) -> Option<i64> {
    let size = gradient.abs().amax([0i64, 1], false);
    let counts = size.gt_tensor(&(size.max() * NEGLIGIBLE));
    let places = counts.nonzero();
    if places.size()[0] == 0 {
        return None;
    }
    let (first, last) = (places.min().int64_value(&[]), places.max().int64_value(&[]));
    Some((start - first).max(last - (start + block - 1)).max(0))
}

pub fn cut(image: &Tensor, [top, left, height, width]: Area) -> Tensor {
    image.narrow(2, top as i64, height as i64).narrow(3, left as i64, width as i64)
}

/// Input and output of the widest layer, twice: convolutions need room of their own.
fn bytes_per_pixel(model: &Model) -> f64 {
    let values = |shape: &[i64]| shape.iter().product::<i64>() as f64;
    let pixels = model.input()[1..].iter().product::<i64>().max(1) as f64;
    let widest = model
        .root()
        .leaves()
        .iter()
        .map(|node| values(&node.input) + values(&node.output))
        .fold(0.0, f64::max);
    (2.0 * 4.0 * widest / pixels).max(16.0)
}
