//! A restoration network on images of any size and colour, in tiles.

use anyhow::{Context, Result};
use tch::{Kind, Tensor};

use crate::data::image::photo::Photo;
use crate::functional::{bicubic, color};
use crate::inference::tiles::{Area, Tiles, cut};
use crate::libtorch::device;
use crate::nn::model::{Model, Network};
use crate::tasks::degrade::ANY_SIZE;
use crate::tasks::{Reconstruction, Task};
use crate::util::exit_code::{ExitCode, fail};

/// A network that restores.
pub struct Restorer<'a> {
    task: &'a Reconstruction,
    tiles: Tiles<'a>,
    /// Channels that the network works on, the image's own for it.
    channels: i64,
    /// Average the answers to the eight flips and turns of each tile.
    pub ensemble: bool,
}

impl<'a> Restorer<'a> {
    /// Measures the network. Exit 2 where it is none that restores images.
    pub fn new(model: &Model, network: &'a Network, task: &'a Reconstruction) -> Result<Self> {
        let wanted = model.input().first().copied().unwrap_or_default();
        let fits = |channels: &i64| task.input(&[*channels, ANY_SIZE, ANY_SIZE]).first() == Some(&wanted);
        let channels = [1, 3].into_iter().find(fits);
        let Some(channels) = channels.filter(|_| model.input().len() == 3) else {
            let message =
                format!("the network wants {:?}, which is neither a grey nor an RGB image", model.input());
            return Err(fail(ExitCode::Usage, message));
        };
        let tiles = Tiles::new(model, network, task, channels, "restore")?;
        Ok(Self { task, tiles, channels, ensemble: false })
    }

    /// The side of tiles, their surroundings apart, that `bytes` of memory allow.
    pub fn tile(&self, bytes: f64) -> usize {
        self.tiles.side(bytes)
    }

    /// The restored photo, of the same depth. `noise` is added first: σ on the scale 0..255 and a seed; the
    /// noisy image comes back then, too. `tell` hears of every tile: how many are done, of how many.
    pub fn restore(
        &self,
        photo: &Photo,
        noise: Option<(f64, u64)>,
        tile: usize,
        mut tell: impl FnMut(usize, usize),
    ) -> Result<(Photo, Option<Tensor>)> {
        let noisy = match noise {
            Some((sigma, seed)) => {
                let clean = photo.part(0, 0, photo.height, photo.width)?;
                device::seed(seed);
                Some(&clean + clean.randn_like() * (sigma / 255.0))
            }
            None => None,
        };
        let mut restored = photo.enlarged(self.tiles.scale());
        let work = |area: Area| {
            let seen = match &noisy {
                Some(noisy) => cut(noisy, area),
                None => photo.part(area[0], area[1], area[2], area[3])?,
            };
            self.answer_colours(&seen)
        };
        self.tiles.each([photo.height, photo.width], tile, work, |part, [top, left], [done, of]| {
            restored.put(part, top, left)?;
            tell(done, of);
            Ok(())
        })?;
        Ok((restored, noisy))
    }

    /// The answer to `[1, C, H, W]`, whatever colours the network knows: a grey network restores the channels
    /// of RGB one by one, or Y alone where its task says so; an RGB network gets grey repeated.
    fn answer_colours(&self, seen: &Tensor) -> Result<Tensor> {
        let colours = seen.size()[1];
        if colours == 3 && self.task.luma {
            let size = seen.size();
            let scale = self.tiles.scale() as i64;
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
            return self.tiles.answer(seen);
        }
        let mut sum: Option<Tensor> = None;
        for symmetry in 0..8 {
            let answer = back(self.tiles.answer(&turned(seen, symmetry))?, symmetry);
            sum = Some(match sum {
                Some(sum) => sum + answer,
                None => answer,
            });
        }
        sum.map(|sum| sum / 8.0).context("no answer")
    }
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
