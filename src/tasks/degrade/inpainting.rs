//! Missing pixels, in all channels at once; they are black, or the mean of what is left.

use std::sync::OnceLock;

use anyhow::{Context, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::Degradation;
use super::level::Level;
use crate::data::sources::FilePath;
use crate::data::{ImageFile, Mode, Picture};
use crate::libtorch::device::upload;
use crate::util::exit_code::{ExitCode, WithExitCode};
use crate::util::yaml::Invalid;

/// Missing pixels.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Inpainting {
    pub missing: Missing,
    pub fill: Fill,
    #[serde(skip)]
    mask: OnceLock<Picture>,
}

/// Which pixels are missing.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Missing {
    /// Each pixel with this probability.
    Random(Level),
    /// `count` rectangles, each side drawn from `size` pixels, wholly inside the image.
    Boxes {
        /// Number of rectangles per image.
        #[serde(default = "one")]
        count: u32,
        /// Side in pixels.
        size: Level,
    },
    /// `count` straight lines of `width` pixels between two random places.
    Strokes {
        /// Number of lines per image.
        #[serde(default = "several")]
        count: u32,
        /// Width in pixels.
        width: Level,
    },
    /// The pixels where this picture is white (128 or more). It is repeated for larger images and cut for
    /// smaller ones.
    Mask(FilePath),
}

/// The value of a missing pixel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Fill {
    /// 0.
    #[default]
    Zero,
    /// The mean of the image's other pixels, channel by channel.
    Mean,
}

fn one() -> u32 {
    1
}

fn several() -> u32 {
    5
}

impl Default for Inpainting {
    fn default() -> Self {
        Self { missing: Missing::Random(Level::fixed(0.5)), fill: Fill::Zero, mask: OnceLock::new() }
    }
}

impl Inpainting {
    fn picture(&self, path: &FilePath) -> Result<&Picture> {
        if let Some(picture) = self.mask.get() {
            return Ok(picture);
        }
        let path = path.resolve()?;
        let file = ImageFile::new(&path, Mode::Grey);
        let picture = file.decode().with_context(|| path.display().to_string());
        let picture =
            picture.with_exit_code(ExitCode::Data, || "the mask of missing pixels cannot be read")?;
        Ok(self.mask.get_or_init(|| picture))
    }

    /// Where pixels are missing; bool, broadcasting to `[N, 1, H, W]`.
    fn holes(&self, images: &Tensor, train: bool) -> Result<Tensor> {
        let (size, options) = (images.size(), (images.kind(), images.device()));
        let [n, _, height, width] = size[..] else { anyhow::bail!("images are [N, C, H, W], not {size:?}") };
        let none = || Tensor::zeros([n, 1, height, width], (Kind::Bool, options.1));
        // Centres of pixels, so that a distance is one between pixels.
        let (ys, xs) = (
            Tensor::arange(height, options).view([1, 1, height, 1]),
            Tensor::arange(width, options).view([1, 1, 1, width]),
        );
        let draw = || Tensor::rand([n, 1, 1, 1], options);
        Ok(match &self.missing {
            Missing::Random(share) => {
                let share = share.per_image(images, train);
                Tensor::rand([n, 1, height, width], options).less_tensor(&share)
            }
            Missing::Boxes { count, size } => (0..*count).fold(none(), |holes, _| {
                let inside = |at: &Tensor, extent: i64| {
                    let side = size.per_image(images, train).round().clamp_max(extent as f64);
                    let first = (draw() * ((extent + 1) as f64 - &side)).floor();
                    at.greater_equal_tensor(&first).logical_and(&at.less_tensor(&(first + side)))
                };
                let rows = inside(&ys, height);
                holes.logical_or(&rows.logical_and(&inside(&xs, width)))
            }),
            Missing::Strokes { count, width: thickness } => (0..*count).fold(none(), |holes, _| {
                let [y0, x0] = [height, width].map(|extent| draw() * (extent - 1) as f64);
                let [dy, dx] =
                    [(height, &y0), (width, &x0)].map(|(extent, from)| draw() * (extent - 1) as f64 - from);
                let (y, x) = (&ys - y0, &xs - x0);
                // The nearest place of the line: 0 at its start, 1 at its end.
                let length = (dy.square() + dx.square()).clamp_min(1e-12);
                let nearest = ((&y * &dy + &x * &dx) / length).clamp(0.0, 1.0);
                let distance = ((y - &nearest * dy).square() + (x - nearest * dx).square()).sqrt();
                holes.logical_or(&distance.less_equal_tensor(&(thickness.per_image(images, train) * 0.5)))
            }),
            Missing::Mask(path) => {
                let picture = self.picture(path)?;
                let sides = [picture.height as i64, picture.width as i64];
                let mask =
                    Tensor::from_slice(&picture.data).view([1, 1, sides[0], sides[1]]).greater_equal(128);
                let at = |extent: i64, side: i64| {
                    Tensor::arange(extent, (Kind::Int64, Device::Cpu)).remainder(side)
                };
                let mask = mask.index_select(2, &at(height, sides[0])).index_select(3, &at(width, sides[1]));
                upload(&mask, options.1)
            }
        })
    }
}

impl Degradation for Inpainting {
    fn validate(&self) -> Result<(), Invalid> {
        let counted = |key: &str, count: u32| match count {
            1..=1000 => Ok(()),
            _ => Err(Invalid::new(key, format!("{count} is not in 1..=1000"))),
        };
        match &self.missing {
            Missing::Random(share) => share.validate("random", 0.0, 1.0),
            Missing::Boxes { count, size } => {
                counted("boxes.count", *count).and_then(|()| size.validate("boxes.size", 1.0, f64::INFINITY))
            }
            Missing::Strokes { count, width } => counted("strokes.count", *count)
                .and_then(|()| width.validate("strokes.width", 0.0, f64::INFINITY)),
            Missing::Mask(_) => Ok(()),
        }
        .map_err(|invalid| invalid.under("missing"))
    }

    fn check(&self, _image: [i64; 3]) -> Result<()> {
        match &self.missing {
            Missing::Mask(path) => self.picture(path).map(drop),
            _ => Ok(()),
        }
    }

    fn apply(&self, images: &Tensor, train: bool) -> Result<Tensor> {
        let holes = self.holes(images, train)?;
        Ok(match self.fill {
            Fill::Zero => images.masked_fill(&holes, 0.0),
            Fill::Mean => {
                let known = holes.logical_not().to_kind(images.kind());
                let over = |values: &Tensor| values.sum_dim_intlist(&[2i64, 3][..], true, images.kind());
                let mean = over(&(images * &known)) / over(&known.expand_as(images)).clamp_min(1.0);
                mean.where_self(&holes, images)
            }
        })
    }
}
