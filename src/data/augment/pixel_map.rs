//! Where the pixels of a sample come from: flips, crops and transpositions compose to one map of rows and one
//! of columns, so that a batch is made in one pass, from bytes or by one gather of libtorch.

use tch::{Kind, Tensor};

use super::Levels;
use crate::libtorch::constant::constant;
use crate::libtorch::device::upload;

/// Where each row (`down`) and each column (`across`) of a sample comes from. Negative entries show a level:
/// [`fill_level`]; where two of them cross, the smaller one, that of the later step, is on top.
pub(crate) struct PixelMap {
    pub down: Vec<i32>,
    pub across: Vec<i32>,
    /// `down` holds columns of the picture, and `across` rows.
    pub transposed: bool,
    /// Crops so far.
    crops: i32,
}

/// The level that a negative entry of a map shows.
pub(crate) fn fill_level(entry: i32) -> usize {
    (-1 - entry) as usize % 256
}

impl PixelMap {
    /// Every pixel where it is, for pictures of this height and width.
    pub fn new([height, width]: [usize; 2]) -> Self {
        let line = |len: usize| (0..len as i32).collect();
        Self { down: line(height), across: line(width), transposed: false, crops: 0 }
    }

    /// Rows and columns of the picture, as they are shown.
    pub fn of_lines(down: Vec<i32>, across: Vec<i32>) -> Self {
        Self { down, across, transposed: false, crops: 0 }
    }

    /// Left becomes right.
    pub fn flip_horizontal(&mut self) {
        self.across.reverse();
    }

    /// Top becomes bottom.
    pub fn flip_vertical(&mut self) {
        self.down.reverse();
    }

    /// Rows become columns.
    pub fn transpose(&mut self) {
        std::mem::swap(&mut self.down, &mut self.across);
        self.transposed = !self.transposed;
    }

    /// Cuts `height × width` pixels whose upper left corner is (`top`, `left`), which may lie outside. There
    /// `source` says which position of a line of so many pixels is shown, or None for the level `fill`.
    pub fn crop(
        &mut self,
        [top, left]: [i64; 2],
        [height, width]: [usize; 2],
        fill: u8,
        source: impl Fn(i64, i64) -> Option<i64>,
    ) {
        let fill = -1 - (self.crops * 256 + i32::from(fill));
        let cut = |line: &[i32], start: i64, len: usize| -> Vec<i32> {
            (start..start + len as i64)
                .map(|at| source(at, line.len() as i64).map_or(fill, |at| line[at as usize]))
                .collect()
        };
        (self.down, self.across) = (cut(&self.down, top, height), cut(&self.across, left, width));
        self.crops += 1;
    }

    /// Moves the pixels of one 8-bit sample.
    pub fn move_levels(&self, levels: &mut Levels) {
        let (width, plane) = (levels.width, (levels.height * levels.width).max(1));
        let last = (levels.data.len() / plane).saturating_sub(1);
        let mut data = Vec::with_capacity(levels.data.len() / plane * self.down.len() * self.across.len());
        for (channel, from) in levels.data.chunks_exact(plane).enumerate() {
            let mask_fill = levels.target.mask_fill().filter(|_| channel == last);
            for &down in &self.down {
                data.extend(self.across.iter().map(|&across| match down.min(across) {
                    entry @ ..0 => mask_fill.unwrap_or(fill_level(entry) as u8),
                    _ if self.transposed => from[across as usize * width + down as usize],
                    _ => from[down as usize * width + across as usize],
                }));
            }
        }
        (levels.data, levels.height, levels.width) = (data, self.down.len(), self.across.len());
    }

    /// Offsets of the rows, then of the columns, in a plane of lines of `width` pixels; fills stay negative.
    fn offsets(&self, width: i64) -> impl Iterator<Item = i64> {
        let (down, across) = if self.transposed { (1, width) } else { (width, 1) };
        let scaled = |line: &[i32], step: i64| -> Vec<i64> {
            line.iter().map(|&at| if at < 0 { at.into() } else { i64::from(at) * step }).collect()
        };
        scaled(&self.down, down).into_iter().chain(scaled(&self.across, across))
    }
}

/// Moves the pixels of `xs` `[B, C, H, W]`, uint8 levels or floating point with white at 1, by operations of
/// libtorch: as `maps` say, one per sample, all to one size. `target_fill` is the level that padding shows in
/// the last channel, where that is a target.
pub(super) fn move_pixels(xs: &Tensor, maps: &[PixelMap], target_fill: Option<u8>) -> Tensor {
    let Some(first) = maps.first() else { return xs.shallow_clone() };
    let size = xs.size();
    let (batch, channels, width) = (size[0], size[1], size[3]);
    let (rows, columns) = (first.down.len() as i64, first.across.len() as i64);
    let offsets: Vec<i64> = maps.iter().flat_map(|map| map.offsets(width)).collect();
    let offsets = upload(&Tensor::from_slice(&offsets).view([batch, 1, rows + columns]), xs.device());
    let down = offsets.narrow(2, 0, rows).unsqueeze(3);
    let across = offsets.narrow(2, rows, columns).unsqueeze(2);
    let index = (&down + &across).clamp_min(0).flatten(2, 3).expand([batch, channels, -1], false);
    let moved = xs.flatten(2, 3).gather(2, &index, false).view([batch, channels, rows, columns]);
    if maps.iter().all(|map| map.down.iter().chain(&map.across).all(|&at| at >= 0)) {
        return moved;
    }
    let unit = if xs.kind() == Kind::Uint8 { 1.0 } else { 255.0 };
    let values: Vec<f64> = (0..256).map(|level| f64::from(level) / unit).collect();
    let values = constant(&values, &[256], (xs.kind(), xs.device()));
    let entries = down.minimum(&across);
    let outside = entries.lt(0);
    let levels = (entries.neg() - 1).clamp_min(0).remainder(256);
    let moved = values.take(&levels).where_self(&outside, &moved);
    if let Some(level) = target_fill {
        let _ = moved.narrow(1, channels - 1, 1).masked_fill_(&outside, f64::from(level) / unit);
    }
    moved
}
