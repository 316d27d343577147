//! A rectangle of a JPEG file, without the work for the rest of it: what lies below is not read, what lies
//! above and beside it is passed over, bit by bit, and not transformed.
//!
//! For ordinary photographs: baseline, Huffman coding, YCbCr in one scan, chroma at full or half resolution.
//! Whatever else there is, or looks damaged, is left to the full decoder, whose every bit this one gives: the
//! same integer transform, the same triangle filter for chroma, the same rounding.

mod entropy;
mod transform;

use std::cell::RefCell;

use image::metadata::Orientation;

use entropy::{Bits, Huffman, ZIGZAG, unstuff};
use transform::{blend, to_rgb, transform, widen};

/// An open file, its tables read.
pub struct Jpeg<'a> {
    pub height: usize,
    pub width: usize,
    /// Samples of luma to one of chroma, down and across.
    sampling: [usize; 2],
    /// Of luma and of the two chroma channels.
    channels: [Channel; 3],
    quantizers: [Option<[i32; 64]>; 4],
    dc: [Option<Box<Huffman>>; 4],
    ac: [Option<Box<Huffman>>; 4],
    /// MCUs between restarts; 0 for none.
    restart: usize,
    scan: &'a [u8],
}

#[derive(Clone, Copy, Default)]
struct Channel {
    id: u8,
    sampling: [usize; 2],
    quantizer: usize,
    dc: usize,
    ac: usize,
}

/// Memory that a thread uses again for the next picture.
#[derive(Default)]
struct Scratch {
    /// The entropy-coded data without stuffing and restart markers, and where each restart begins.
    data: Vec<u8>,
    restarts: Vec<usize>,
    planes: [Vec<u8>; 3],
    /// Chroma rows between which a pixel row lies, then brought to the width of luma.
    between: Vec<u8>,
    wide: [Vec<u8>; 2],
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl<'a> Jpeg<'a> {
    /// None for what is left to the full decoder.
    pub fn open(bytes: &'a [u8]) -> Option<Self> {
        let mut jpeg = Self {
            height: 0,
            width: 0,
            sampling: [0; 2],
            channels: [Channel::default(); 3],
            quantizers: [None; 4],
            dc: Default::default(),
            ac: Default::default(),
            restart: 0,
            scan: &[],
        };
        let mut rest = bytes.strip_prefix(&[0xff, 0xd8])?;
        loop {
            let &[0xff, marker, high, low, ..] = rest else { return None };
            let len = usize::from(u16::from_be_bytes([high, low]));
            let (segment, after) = (rest.get(4..2 + len)?, rest.get(2 + len..)?);
            rest = after;
            match marker {
                0xc0 if jpeg.height == 0 => jpeg.read_frame(segment)?,
                0xc4 => jpeg.read_huffman(segment)?,
                0xdb => jpeg.read_quantizers(segment)?,
                0xdd => jpeg.restart = usize::from(u16::from_be_bytes(*segment.first_chunk()?)),
                0xda => {
                    jpeg.read_scan(segment)?;
                    jpeg.scan = rest;
                    return Some(jpeg);
                }
                0xe1 if is_turned(segment) => return None,
                0xee if !is_ycbcr(segment) => return None,
                0xe0..=0xef | 0xfe => {}
                _ => return None,
            }
        }
    }

    fn read_frame(&mut self, segment: &[u8]) -> Option<()> {
        let &[8, h1, h0, w1, w0, 3, ref channels @ ..] = segment else { return None };
        self.height = usize::from(u16::from_be_bytes([h1, h0]));
        self.width = usize::from(u16::from_be_bytes([w1, w0]));
        if channels.len() != 9 || self.height < 64 || self.width < 64 {
            return None;
        }
        for (n, (own, channel)) in self.channels.iter_mut().zip(channels.as_chunks::<3>().0).enumerate() {
            let &[id, sampling, quantizer] = channel;
            let sampling = [usize::from(sampling & 15), usize::from(sampling >> 4)];
            *own = Channel { id, sampling, quantizer: usize::from(quantizer), ..Channel::default() };
            if usize::from(id) != n + 1 || quantizer > 3 {
                return None;
            }
        }
        let [luma, blue, red] = self.channels.map(|channel| channel.sampling);
        self.sampling = luma;
        let fits = matches!(luma, [1 | 2, 1 | 2]) && blue == [1, 1] && red == [1, 1];
        fits.then_some(())
    }

    fn read_quantizers(&mut self, mut segment: &[u8]) -> Option<()> {
        while let &[what, ref rest @ ..] = segment {
            let (table, after) = rest.split_first_chunk::<64>()?;
            if what > 3 {
                return None;
            }
            let mut quantizer = [0; 64];
            for (&at, &step) in ZIGZAG.iter().zip(table) {
                quantizer[usize::from(at)] = i32::from(step);
            }
            self.quantizers[usize::from(what)] = Some(quantizer);
            segment = after;
        }
        Some(())
    }

    fn read_huffman(&mut self, mut segment: &[u8]) -> Option<()> {
        while let &[what, ref rest @ ..] = segment {
            let (counts, rest) = rest.split_first_chunk::<16>()?;
            let total = counts.iter().map(|&count| usize::from(count)).sum();
            let (symbols, after) = rest.split_at_checked(total)?;
            let slot = match what {
                0..=3 => &mut self.dc[usize::from(what)],
                0x10..=0x13 => &mut self.ac[usize::from(what & 3)],
                _ => return None,
            };
            *slot = Some(Huffman::new(counts, symbols)?);
            segment = after;
        }
        Some(())
    }

    fn read_scan(&mut self, segment: &[u8]) -> Option<()> {
        let &[3, ref channels @ .., 0, 63, 0] = segment else { return None };
        if self.height == 0 || channels.len() != 6 {
            return None;
        }
        for (own, &[id, tables]) in self.channels.iter_mut().zip(channels.as_chunks::<2>().0) {
            (own.dc, own.ac) = (usize::from(tables >> 4), usize::from(tables & 15));
            let complete = own.id == id
                && self.dc.get(own.dc)?.is_some()
                && self.ac.get(own.ac)?.is_some()
                && self.quantizers[own.quantizer].is_some();
            complete.then_some(())?;
        }
        Some(())
    }

    /// The rectangle as RGB, `height × num_params × 3`; it must lie within the picture. None where the data
    /// are not in order.
    pub fn region(&self, top: usize, left: usize, height: usize, width: usize) -> Option<Vec<u8>> {
        let ends = [top.checked_add(height)?, left.checked_add(width)?];
        if ends[0] > self.height || ends[1] > self.width || height == 0 || width == 0 {
            return None;
        }
        SCRATCH.with_borrow_mut(|scratch| {
            let sides = [self.height, self.width];
            // The blocks to be transformed: those of the rectangle and of the chroma samples next to it.
            let blocks: [[usize; 2]; 2] = std::array::from_fn(|axis| {
                let (first, end) = ([top, left][axis], ends[axis]);
                let side = 8 * self.sampling[axis];
                [first.saturating_sub(2) / side, (end + 2).min(sides[axis]).div_ceil(side)]
            });
            self.decode(blocks, scratch)?;
            Some(self.colours(blocks, [top, left], [height, width], scratch))
        })
    }

    /// Fills the planes with the blocks of the MCUs `blocks`: rows from and to, columns from and to.
    fn decode(&self, [down, across]: [[usize; 2]; 2], scratch: &mut Scratch) -> Option<()> {
        let Scratch { data, restarts, planes, .. } = scratch;
        unstuff(self.scan, data, restarts);
        let mcus = self.width.div_ceil(8 * self.sampling[1]);
        for (plane, channel) in planes.iter_mut().zip(&self.channels) {
            let [rows, columns] = channel.sampling;
            plane.resize((down[1] - down[0]) * rows * 8 * (across[1] - across[0]) * columns * 8, 0);
        }
        let tables = self.channels.map(|channel| {
            Some((
                self.dc[channel.dc].as_deref()?,
                self.ac[channel.ac].as_deref()?,
                self.quantizers[channel.quantizer].as_ref()?,
            ))
        });
        let [Some(luma), Some(blue), Some(red)] = tables else { return None };
        let tables = [luma, blue, red];
        let mut bits = Bits::at(data, 0);
        let mut last = [0i32; 3];
        let (mut until_restart, mut restart) = (self.restart, restarts.iter());
        let mut block = [0i32; 64];
        for row in 0..down[1] {
            for column in 0..mcus {
                if self.restart > 0 && until_restart == 0 {
                    bits = Bits::at(data, *restart.next()?);
                    last = [0; 3];
                    until_restart = self.restart;
                }
                until_restart = until_restart.wrapping_sub(1);
                let wanted = row >= down[0] && (across[0]..across[1]).contains(&column);
                for (n, (dc, ac, quantizer)) in tables.iter().enumerate() {
                    let [rows, columns] = self.channels[n].sampling;
                    for part in 0..rows * columns {
                        last[n] = last[n].wrapping_add(bits.dc(dc)?);
                        if !wanted {
                            bits.pass(ac)?;
                            continue;
                        }
                        block[0] = last[n].wrapping_mul(quantizer[0]);
                        let end = bits.ac(ac, quantizer, &mut block)?;
                        let stride = (across[1] - across[0]) * columns * 8;
                        let at = ((row - down[0]) * rows + part / columns) * 8 * stride
                            + ((column - across[0]) * columns + part % columns) * 8;
                        transform(&mut block, end, &mut planes[n][at..], stride);
                    }
                }
            }
        }
        bits.is_within().then_some(())
    }

    fn colours(
        &self,
        [down, across]: [[usize; 2]; 2],
        [top, left]: [usize; 2],
        [height, width]: [usize; 2],
        scratch: &mut Scratch,
    ) -> Vec<u8> {
        let Scratch { planes: [luma, blue, red], between, wide, .. } = scratch;
        let [rows, columns] = self.sampling;
        let chroma = (across[1] - across[0]) * 8;
        let (stride, lines) = (chroma * columns, (down[1] - down[0]) * 8);
        let (first, skip) = (top - down[0] * 8 * rows, left - across[0] * 8 * columns);
        let mut rgb = vec![0; height * width * 3];
        for (row, out) in rgb.chunks_exact_mut(width * 3).enumerate() {
            let row = first + row;
            let light = &luma[row * stride..][..stride];
            let mut colour = [&blue[..], &red[..]].into_iter().zip(wide.iter_mut()).map(|(plane, wide)| {
                let line = |at: usize| &plane[at * chroma..][..chroma];
                let near = line(row / rows);
                let mut narrow = near;
                if rows == 2 {
                    let far =
                        if row % 2 == 0 { (row / 2).saturating_sub(1) } else { (row / 2 + 1).min(lines - 1) };
                    between.resize(chroma, 0);
                    blend(near, line(far), between);
                    narrow = between;
                }
                if columns == 2 {
                    wide.resize(stride, 0);
                    widen(narrow, wide);
                } else {
                    wide.clear();
                    wide.extend_from_slice(narrow);
                }
                &wide[skip..][..width]
            });
            if let (Some(blue), Some(red)) = (colour.next(), colour.next()) {
                to_rgb(&light[skip..][..width], blue, red, out);
            }
        }
        rgb
    }
}

/// Whether Exif data say that the picture is not upright.
fn is_turned(segment: &[u8]) -> bool {
    let exif = segment.strip_prefix(b"Exif\0\0").and_then(Orientation::from_exif_chunk);
    exif.is_some_and(|orientation| orientation != Orientation::NoTransforms)
}

/// Whether Adobe's marker, if this is one, says so.
fn is_ycbcr(segment: &[u8]) -> bool {
    !segment.starts_with(b"Adobe") || segment.get(11) == Some(&1)
}
