//! 8-bit samples on the loader's threads: what the augmentations that compute levels work on.

use crate::data::mask::IGNORED;

/// What a sample carries of its own target, in its last channels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OwnTarget {
    /// Nothing: its target is elsewhere.
    #[default]
    None,
    /// An image of so many channels.
    Image(usize),
    /// A mask of classes, in one channel.
    Mask,
}

impl OwnTarget {
    pub fn channels(self) -> usize {
        match self {
            OwnTarget::None => 0,
            OwnTarget::Image(channels) => channels,
            OwnTarget::Mask => 1,
        }
    }

    /// What constant padding shows in the last channel, where that is a mask.
    pub fn mask_fill(self) -> Option<u8> {
        (self == OwnTarget::Mask).then_some(IGNORED)
    }
}

/// One sample: planes of `height × width`, those of its target last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Levels {
    pub data: Vec<u8>,
    pub height: usize,
    pub width: usize,
    pub target: OwnTarget,
}

impl Levels {
    /// The channels of the image, without its target.
    pub fn image(&mut self) -> &mut [u8] {
        let target = self.target.channels() * self.height * self.width;
        let end = self.data.len() - target;
        &mut self.data[..end]
    }

    /// The planes of the image.
    pub fn planes(&mut self) -> impl Iterator<Item = &mut [u8]> {
        let plane = (self.height * self.width).max(1);
        self.image().chunks_exact_mut(plane)
    }

    /// Red, green and blue; None of an image with another number of channels.
    pub fn rgb(&mut self) -> Option<[&mut [u8]; 3]> {
        let plane = self.height * self.width;
        let image = self.image();
        if plane == 0 || image.len() != 3 * plane {
            return None;
        }
        let (red, rest) = image.split_at_mut(plane);
        let (green, blue) = rest.split_at_mut(plane);
        Some([red, green, blue])
    }

    /// Replaces every level of the image by that of `table`.
    pub fn look_up(&mut self, table: &[u8; 256]) {
        for level in self.image() {
            *level = table[usize::from(*level)];
        }
    }
}

/// torchvision's luma of 8-bit RGB, before it is rounded down.
pub(super) fn luma(red: u8, green: u8, blue: u8) -> f32 {
    f32::from(red) * 0.2989 + f32::from(green) * 0.587 + f32::from(blue) * 0.114
}

/// `ratio` of a level and the rest of `other`, cut off to 8 bits as torchvision's `_blend` does.
pub(super) fn blend(level: u8, other: f32, ratio: f32) -> u8 {
    (f32::from(level) * ratio + other * (1.0 - ratio)).clamp(0.0, 255.0) as u8
}
