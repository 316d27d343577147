//! A segmentation network on pictures of any size: a class for every pixel, in tiles.

use anyhow::{Context, Result};
use tch::{Device, Kind, Tensor};

use crate::config::RunConfig;
use crate::data::image::floats;
use crate::data::normalize::{Normalize, NormalizeSpec};
use crate::data::{Mode, Picture, SourceSpec};
use crate::inference::tiles::Tiles;
use crate::nn::model::{Model, Network};
use crate::tasks::Task;
use crate::util::exit_code::{ExitCode, fail};

/// A network that segments.
pub struct Segmenter<'a> {
    tiles: Tiles<'a>,
    normalize: Option<Normalize>,
    /// The channels that pictures are decoded to.
    pub mode: Mode,
}

impl<'a> Segmenter<'a> {
    /// Measures the network. Exit 2 where it does not answer pictures with pictures, or the config says
    /// neither how its inputs were normalised nor that they were not.
    pub fn new(model: &Model, network: &'a Network, task: &'a dyn Task, spec: &RunConfig) -> Result<Self> {
        let mode = match (&spec.data.train, model.input()) {
            (SourceSpec::Images(images), _) => images.mode,
            (_, [3, _, _]) => Mode::Rgb,
            _ => Mode::Grey,
        };
        let channels = mode.channels() as i64;
        if model.input().first() != Some(&channels) {
            let message =
                format!("the network wants {:?}, and pictures have {channels} channels", model.input());
            return Err(fail(ExitCode::Usage, message));
        }
        let normalize = match &spec.data.normalize {
            NormalizeSpec::None => None,
            NormalizeSpec::Given(given) => Some(given.clone()),
            _ => {
                let message = "data.normalize: `auto` is of the training set, which is not read here; give the run folder, \
                               whose config has the numbers, or `--set data.normalize={mean: […], std: […]}`";
                return Err(fail(ExitCode::Usage, message));
            }
        };
        // Where the largest of several values counts, the gradient shows one of them only.
        let tiles =
            Tiles::new(model, network, task, channels, "predict")?.wider(|geometry| geometry.multiple);
        if tiles.scale() != 1 {
            return Err(fail(ExitCode::Usage, "the network answers with pictures of another size"));
        }
        Ok(Self { tiles, normalize, mode })
    }

    /// The side of tiles, their surroundings apart, that `bytes` of memory allow.
    pub fn tile(&self, bytes: f64) -> usize {
        self.tiles.side(bytes)
    }

    /// The class of every pixel, row by row. `tell` hears of every tile: how many are done, of how many.
    pub fn segment(
        &self,
        picture: &Picture,
        tile: usize,
        mut tell: impl FnMut(usize, usize),
    ) -> Result<Vec<u8>> {
        let mut classes = vec![0u8; picture.height * picture.width];
        let work = |[top, left, height, width]: [usize; 4]| {
            let part = picture.crop(top, left, height, width);
            let size = [1, part.channels as i64, height as i64, width as i64];
            let levels = Tensor::f_from_data_size(&part.planes(), &size, Kind::Uint8)?;
            let xs = match self.mode.is_float() {
                true => floats::tensor(&levels)?,
                false => levels.to_kind(Kind::Float) / 255.0,
            };
            let xs = self.normalize.as_ref().map_or(xs.shallow_clone(), |normalize| normalize.apply(&xs));
            self.tiles.answer(&xs)
        };
        self.tiles.each([picture.height, picture.width], tile, work, |part, [top, left], [done, of]| {
            let found = part.f_argmax(1, false)?.f_squeeze_dim(0)?.f_to_kind(Kind::Uint8)?;
            let &[height, width] = found.size().as_slice() else {
                return Err(fail(ExitCode::Data, "no picture"));
            };
            let (height, width) = (height as usize, width as usize);
            let mut values = vec![0u8; height * width];
            found.f_to_device(Device::Cpu)?.f_contiguous()?.f_copy_data(&mut values, height * width)?;
            for (row, line) in values.chunks_exact(width.max(1)).enumerate() {
                let first = (top + row) * picture.width + left;
                classes
                    .get_mut(first..first + width)
                    .context("a tile beyond the picture")?
                    .copy_from_slice(line);
            }
            tell(done, of);
            Ok(())
        })?;
        Ok(classes)
    }
}
