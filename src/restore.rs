//! A restoration network on images of any size: tile by tile within a memory budget, without seams.
//!
//! Each tile is computed with as much of its surroundings as the network can see from there, measured by its gradient,
//! and only its own part is kept. Networks that see everything (global pooling) get the whole image.

use anyhow::{Context, Result, bail};
use tch::{Kind, Tensor, no_grad};

use crate::data::photo::Photo;
use crate::device;
use crate::exit::{Exit, fail};
use crate::imaging::{bicubic, color};
use crate::libtorch::catching;
use crate::model::{Model, Network};
use crate::tasks::degrade::ANY_SIZE;
use crate::tasks::{Reconstruction, Task};

/// Gradients below this share of the largest do not count: what they carry is far below one level of 16 bits.
const NEGLIGIBLE: f64 = 1e-6;

/// A network that restores.
pub struct Restorer<'a> {
    network: &'a Network,
    task: &'a Reconstruction,
    geometry: Geometry,
    /// Channels that the network works on, the image's own for it.
    channels: i64,
    /// Bytes per pixel of a tile, roughly, at the network's widest.
    bytes_per_pixel: f64,
    /// Average the answers to the eight flips and turns of each tile.
    pub ensemble: bool,
}

/// What a network asks of the sizes of its inputs.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Geometry {
    /// Sides must be multiples of it.
    multiple: usize,
    /// How many times larger the answer is.
    scale: usize,
    /// How far it sees beyond a pixel; None where it sees everything.
    reach: Option<usize>,
}

/// An area of an image: top, left, height, width.
type Area = [usize; 4];

impl<'a> Restorer<'a> {
    /// Measures the network. Exit 2 where it is none that restores images.
    pub fn new(model: &Model, network: &'a Network, task: &'a Reconstruction) -> Result<Self> {
        let wanted = model.input().first().copied().unwrap_or_default();
        let fits = |channels: &i64| task.input(&[*channels, ANY_SIZE, ANY_SIZE]).first() == Some(&wanted);
        let channels = [1, 3].into_iter().find(fits);
        let Some(channels) = channels.filter(|_| model.input().len() == 3) else {
            let message =
                format!("the network wants {:?}, which is neither a grey nor an RGB image", model.input());
            return Err(fail(Exit::Usage, message));
        };
        let mut restorer = Self {
            network,
            task,
            geometry: Geometry { multiple: 1, scale: 1, reach: None },
            channels,
            bytes_per_pixel: bytes_per_pixel(model),
            ensemble: false,
        };
        restorer.geometry = restorer.measure()?;
        Ok(restorer)
    }

    /// The side of tiles, their surroundings apart, that `bytes` of memory allow.
    pub fn tile(&self, bytes: f64) -> usize {
        let side = (bytes / self.bytes_per_pixel).sqrt() as usize;
        let around = 2 * self.geometry.reach.unwrap_or(0);
        side.saturating_sub(around).clamp(64, 1 << 14)
    }

    /// The restored photo, of the same depth. `noise` is added first: σ on the scale 0..255 and a seed; the noisy image
    /// comes back then, too. `tell` hears of every tile: how many are done, of how many.
    pub fn restore(
        &self,
        photo: &Photo,
        noise: Option<(f64, u64)>,
        tile: usize,
        mut tell: impl FnMut(usize, usize),
    ) -> Result<(Photo, Option<Tensor>)> {
        let Geometry { multiple, scale, reach } = self.geometry;
        let noisy = match noise {
            Some((sigma, seed)) => {
                let clean = photo.part(0, 0, photo.height, photo.width)?;
                device::seed(seed);
                Some(&clean + clean.randn_like() * (sigma / 255.0))
            }
            None => None,
        };
        let step = match reach {
            Some(_) => tile.div_ceil(multiple) * multiple,
            None => photo.height.max(photo.width),
        };
        let around = reach.unwrap_or(0).div_ceil(multiple) * multiple;
        let mut restored = photo.enlarged(scale);
        let tops: Vec<_> = (0..photo.height).step_by(step).collect();
        let lefts: Vec<_> = (0..photo.width).step_by(step).collect();
        let tiles = tops.len() * lefts.len();
        for (index, (&top, &left)) in
            tops.iter().flat_map(|top| lefts.iter().map(move |left| (top, left))).enumerate()
        {
            let (first_row, first_column) = (top.saturating_sub(around), left.saturating_sub(around));
            let last_row = (top + step + around).min(photo.height);
            let last_column = (left + step + around).min(photo.width);
            let area = [first_row, first_column, last_row - first_row, last_column - first_column];
            let seen = match &noisy {
                Some(noisy) => cut(noisy, area),
                None => photo.part(area[0], area[1], area[2], area[3])?,
            };
            let answer = catching(|| no_grad(|| self.answer_colours(&seen)))?
                .with_context(|| format!("a tile of {}x{}", area[3], area[2]))?;
            let (height, width) = (step.min(photo.height - top), step.min(photo.width - left));
            let kept = [top - first_row, left - first_column, height, width].map(|side| side * scale);
            restored.put(&cut(&answer, kept), top * scale, left * scale)?;
            tell(index + 1, tiles);
        }
        Ok((restored, noisy))
    }

    /// The answer to `[1, C, H, W]`, whatever colours the network knows: a grey network restores the channels of RGB one
    /// by one, or Y alone where its task says so; an RGB network gets grey repeated.
    fn answer_colours(&self, seen: &Tensor) -> Result<Tensor> {
        let colours = seen.size()[1];
        if colours == 3 && self.task.luma {
            let size = seen.size();
            let scale = self.geometry.scale as i64;
            let answer = self.answer(seen)?;
            let chroma = color::ycbcr(seen).narrow(1, 1, 2);
            let chroma = bicubic::resize(&chroma, size[2] * scale, size[3] * scale);
            return Ok(color::rgb(&Tensor::cat(&[answer, chroma], 1)));
        }
        match (colours, self.channels) {
            // One after the other: all at once they would fill three times the memory of a tile.
            (3, 1) => {
                let answers: Result<Vec<_>> = (0..3).map(|at| self.answer(&seen.narrow(1, at, 1))).collect();
                Ok(Tensor::cat(&answers?, 1))
            }
            (1, 3) => Ok(self.answer(&seen.expand([-1, 3, -1, -1], false))?.mean_dim(
                &[1i64][..],
                true,
                Kind::Float,
            )),
            _ => self.answer(seen),
        }
    }

    /// `[N, C, H, W]` float32 on the CPU to the same, `scale` times as large.
    fn answer(&self, seen: &Tensor) -> Result<Tensor> {
        if !self.ensemble {
            return self.answer_once(seen);
        }
        let mut sum: Option<Tensor> = None;
        for symmetry in 0..8 {
            let answer = back(self.answer_once(&turned(seen, symmetry))?, symmetry);
            sum = Some(match sum {
                Some(sum) => sum + answer,
                None => answer,
            });
        }
        sum.map(|sum| sum / 8.0).context("no answer")
    }

    fn answer_once(&self, seen: &Tensor) -> Result<Tensor> {
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
            bail!("the network answered {:?} to {:?}", answer.size(), padded.size());
        }
        Ok(answer.narrow(2, 0, height * scale).narrow(3, 0, width * scale))
    }

    fn through(&self, xs: &Tensor) -> Result<Tensor> {
        let xs = self.task.present(xs.shallow_clone());
        Ok(self.task.answer(self.network, &xs, false)?.outputs)
    }

    /// Tries sizes, then looks how far the gradient of an answer reaches.
    fn measure(&self) -> Result<Geometry> {
        let probe = |side: i64| {
            device::seed(0);
            Tensor::rand([1, self.channels, side, side], (self.network.kind(), self.network.device()))
        };
        let fits = |multiple: &i64| {
            let side = multiple * ((48 / multiple) | 1);
            // What the network would pad by itself would make tiles differ from the whole.
            let pads = !self.network.divides(&self.task.present(probe(side)));
            let answer = catching(|| no_grad(|| self.through(&probe(side)))).ok()?.ok()?;
            let scale = answer.size().get(2)? / side;
            (scale >= 1 && !pads && answer.size()[2..] == [side * scale, side * scale])
                .then_some((*multiple, scale))
        };
        let Some((multiple, scale)) = [1, 2, 4, 8, 16, 32, 64].iter().find_map(fits) else {
            let message =
                "the network does not answer images with images of their size; `restore` needs one that does";
            return Err(fail(Exit::Usage, message));
        };
        let geometry = |reach| Geometry { multiple: multiple as usize, scale: scale as usize, reach };
        for side in [96, 192, 384] {
            let side = ((side / multiple) | 1) * multiple;
            let reach = catching(|| -> Result<_> {
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

fn cut(image: &Tensor, [top, left, height, width]: Area) -> Tensor {
    image.narrow(2, top as i64, height as i64).narrow(3, left as i64, width as i64)
}

/// One of the eight symmetries of the square.
fn turned(xs: &Tensor, symmetry: i64) -> Tensor {
    let xs = xs.rot90(symmetry % 4, [2, 3]);
    if symmetry >= 4 { xs.flip([3]) } else { xs }
}

fn back(xs: Tensor, symmetry: i64) -> Tensor {
    let xs = if symmetry >= 4 { xs.flip([3]) } else { xs };
    xs.rot90(-(symmetry % 4), [2, 3])
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
