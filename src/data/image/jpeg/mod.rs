//! JPEG files with the pixels of libjpeg-turbo, and so of Pillow and torchvision, to the bit: the same
//! integer transform, the same filter for chroma, the same rounding. Of a rectangle only the work for it is
//! done: what lies below is not read, what lies above and beside it is passed over, bit by bit, and not
//! transformed.
//!
//! Read are 8-bit files with Huffman codes, sequential and progressive: grey, YCbCr and RGB, chroma at full,
//! half or a quarter of the resolution. All others (CMYK, arithmetic codes, ..), and what looks damaged, are
//! left to another decoder.

mod colour;
mod compress;
mod entropy;
mod scans;
mod tables;
mod transform;

use std::cell::RefCell;

use image::metadata::Orientation;

pub use compress::compress;

use colour::{blend, blend_and_widen, interleave, to_rgb, widen};
use entropy::{Bits, ZIGZAG, unstuff};
use tables::Tables;
use transform::transform;

/// An open file, its tables read.
pub struct Jpeg<'a> {
    pub height: usize,
    pub width: usize,
    /// Whether Exif data say that the picture is not upright.
    pub is_turned: bool,
    colours: Colours,
    is_progressive: bool,
    /// One, or luma and two of chroma.
    channels: Vec<Channel>,
    tables: Tables,
    /// The first scan, and the file from its data on.
    scan: Scan,
    rest: &'a [u8],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Colours {
    Grey,
    YCbCr,
    Rgb,
}

#[derive(Clone, Copy)]
struct Channel {
    id: u8,
    /// Blocks in an MCU, down and across.
    sampling: [usize; 2],
    quantizer: usize,
}

#[derive(Clone)]
struct Scan {
    /// Index, table for the first coefficient and table for the others.
    channels: Vec<(usize, usize, usize)>,
    /// Which coefficients of the zigzag.
    first: usize,
    last: usize,
    /// Bits that were below the lowest one so far (0: none was known), and that are below it now.
    high: u32,
    low: u32,
}

/// Planes of more bytes than this are not kept for the next picture.
const KEPT: usize = 32 << 20;

/// Memory that a thread uses again for the next picture.
#[derive(Default)]
struct Scratch {
    /// The entropy-coded data without stuffing and restart markers, and where each restart begins.
    data: Vec<u8>,
    restarts: Vec<usize>,
    planes: [Vec<u8>; 3],
    /// Rows of chroma brought to the size of luma, and sums on the way to them.
    wide: [Vec<u8>; 2],
    sums: Vec<u16>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// The code of the marker that comes next, and what follows it. Any number of 0xff may stand before the code.
fn marker(rest: &[u8]) -> Option<(u8, &[u8])> {
    let code = rest.iter().position(|&byte| byte != 0xff).filter(|&at| at > 0)?;
    Some((rest[code], &rest[code + 1..]))
}

/// The marker that comes next, its segment, and what follows.
fn segment(rest: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (marker, rest) = marker(rest)?;
    let len = usize::from(u16::from_be_bytes(*rest.first_chunk()?));
    Some((marker, rest.get(2..len)?, &rest[len..]))
}

impl<'a> Jpeg<'a> {
    /// None for what is left to another decoder.
    pub fn open(bytes: &'a [u8]) -> Option<Self> {
        let (mut frame, mut tables) = (None, Tables::default());
        let (mut is_turned, mut is_jfif, mut adobe) = (false, false, None);
        let mut rest = bytes.strip_prefix(&[0xff, 0xd8])?;
        loop {
            let (marker, segment, after) = segment(rest)?;
            rest = after;
            match marker {
                0xc0..=0xc2 if frame.is_none() => frame = Some((marker == 0xc2, segment)),
                0xda => {
                    let (is_progressive, frame) = frame?;
                    let (&[8, h1, h0, w1, w0, count], channels) = frame.split_first_chunk()? else {
                        return None;
                    };
                    let (channels, []) = channels.as_chunks() else { return None };
                    let ids = channels.iter().map(|&[id, ..]: &[u8; 3]| id);
                    let colours =
                        colours(ids, is_jfif, adobe).filter(|_| channels.len() == usize::from(count))?;
                    let mut jpeg = Self {
                        height: u16::from_be_bytes([h1, h0]).into(),
                        width: u16::from_be_bytes([w1, w0]).into(),
                        is_turned,
                        colours,
                        is_progressive,
                        channels: channels.iter().map(Channel::new).collect(),
                        tables,
                        scan: Scan { channels: Vec::new(), first: 0, last: 0, high: 0, low: 0 },
                        rest,
                    };
                    jpeg.check_sampling()?;
                    jpeg.scan = jpeg.read_scan(segment)?;
                    return Some(jpeg);
                }
                0xe0 => is_jfif |= segment.starts_with(b"JFIF\0") && segment.len() >= 14,
                0xe1 => is_turned |= turned(segment),
                0xee if segment.starts_with(b"Adobe") && segment.len() >= 12 => adobe = Some(segment[11]),
                0xe2..=0xef | 0xfe => {}
                _ => tables.read(marker, segment)?,
            }
        }
    }

    /// Grey, or chroma at full, half or a quarter of the resolution, down and across.
    fn check_sampling(&mut self) -> Option<()> {
        let sampling: Vec<_> = self.channels.iter().map(|channel| channel.sampling).collect();
        let fits = match sampling[..] {
            // Of one channel an MCU is one block.
            [_] => {
                self.channels[0].sampling = [1, 1];
                true
            }
            [[1, 1], [1, 1], [1, 1]] => true,
            // An MCU has at most 10 blocks.
            [[rows @ (1 | 2 | 4), columns @ (1 | 2 | 4)], [1, 1], [1, 1]] => {
                rows * columns <= 8 && self.colours == Colours::YCbCr
            }
            _ => false,
        };
        (fits && self.height > 0 && self.width > 0).then_some(())
    }

    fn read_scan(&self, segment: &[u8]) -> Option<Scan> {
        let (&count, rest) = segment.split_first()?;
        let (channels, &[first, last, bits]) = rest.split_last_chunk()?;
        let (channels, []) = channels.as_chunks() else { return None };
        let channel = |&[id, tables]: &[u8; 2]| {
            let index = self.channels.iter().position(|channel| channel.id == id)?;
            Some((index, usize::from(tables >> 4), usize::from(tables & 15)))
        };
        let channels: Vec<_> = channels.iter().map(channel).collect::<Option<_>>()?;
        let (high, low) = (bits >> 4, bits & 15);
        let fits = match (self.is_progressive, first) {
            (false, _) => (first, last, bits) == (0, 63, 0),
            (true, 0) => last == 0,
            (true, _) => channels.len() == 1 && (first..64).contains(&last),
        } && low < 14
            && (high == 0 || high == low + 1);
        let rises = channels.windows(2).all(|pair| pair[0].0 < pair[1].0);
        (fits && rises && !channels.is_empty() && channels.len() == usize::from(count)).then(|| Scan {
            channels,
            first: first.into(),
            last: last.into(),
            high: high.into(),
            low: low.into(),
        })
    }

    /// Luma samples to one of chroma, down and across.
    fn sampling(&self) -> [usize; 2] {
        self.channels[0].sampling
    }

    /// MCUs of the picture, down and across.
    fn mcus(&self) -> [usize; 2] {
        let [rows, columns] = self.sampling();
        [self.height.div_ceil(8 * rows), self.width.div_ceil(8 * columns)]
    }

    /// Samples of a channel, down and across, without padding.
    fn samples(&self, channel: usize) -> [usize; 2] {
        let (own, luma) = (self.channels[channel].sampling, self.sampling());
        [(self.height * own[0]).div_ceil(luma[0]), (self.width * own[1]).div_ceil(luma[1])]
    }

    /// The blocks that hold them.
    fn blocks(&self, channel: usize) -> [usize; 2] {
        self.samples(channel).map(|samples| samples.div_ceil(8))
    }

    /// Channels of a pixel: 1 or 3.
    pub fn channels(&self) -> usize {
        self.channels.len()
    }

    /// The rectangle, `height × width × channels`; it must lie within the picture. None where the data are
    /// not in order.
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
                let side = 8 * self.sampling()[axis];
                [first.saturating_sub(2) / side, (end + 2).min(sides[axis]).div_ceil(side)]
            });
            let [down, across] = blocks.map(|[first, end]| end - first);
            for (plane, channel) in scratch.planes.iter_mut().zip(&self.channels) {
                let [rows, columns] = channel.sampling;
                plane.resize(down * rows * 8 * across * columns * 8, 0);
            }
            if self.is_progressive || self.scan.channels.len() < self.channels.len() {
                self.decode_scans(blocks, scratch)?;
            } else {
                self.decode(blocks, scratch)?;
            }
            let pixels = self.pixels(blocks, [top, left], [height, width], scratch);
            if scratch.planes.iter().map(Vec::len).sum::<usize>() > KEPT {
                *scratch = Scratch::default();
            }
            Some(pixels)
        })
    }

    /// Fills the planes with the blocks of the MCUs `blocks`: rows from and to, columns from and to.
    fn decode(&self, [down, across]: [[usize; 2]; 2], scratch: &mut Scratch) -> Option<()> {
        let Scratch { data, restarts, planes, .. } = scratch;
        unstuff(self.rest, data, restarts);
        let tables = &self.tables;
        let channel = |&(n, dc, ac): &(usize, usize, usize)| {
            let (dc, ac) = (tables.dc.get(dc)?.as_deref()?, tables.ac.get(ac)?.as_deref()?);
            Some((dc, ac, tables.quantizers.get(self.channels[n].quantizer)?.as_ref()?))
        };
        let channels: Vec<_> = self.scan.channels.iter().map(channel).collect::<Option<_>>()?;
        let mcus = self.mcus()[1];
        let mut bits = Bits::at(data, 0);
        let mut last = [0i32; 3];
        let (mut until_restart, mut restart) = (tables.restart, restarts.iter());
        let mut block = [0i32; 64];
        for row in 0..down[1] {
            for column in 0..mcus {
                if tables.restart > 0 && until_restart == 0 {
                    bits = Bits::at(data, *restart.next()?);
                    last = [0; 3];
                    until_restart = tables.restart;
                }
                until_restart = until_restart.wrapping_sub(1);
                let wanted = row >= down[0] && (across[0]..across[1]).contains(&column);
                for (n, &(dc, ac, quantizer)) in channels.iter().enumerate() {
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

    /// The same of a file whose coefficients come in several scans.
    fn decode_scans(&self, [down, across]: [[usize; 2]; 2], scratch: &mut Scratch) -> Option<()> {
        let planes = scans::read(self, &mut scratch.data, &mut scratch.restarts)?;
        for ((own, channel), out) in planes.iter().zip(&self.channels).zip(&mut scratch.planes) {
            let [rows, columns] = channel.sampling;
            let (first, end) = (across[0] * columns, across[1] * columns);
            let stride = (end - first) * 8;
            let lines = own.blocks.chunks_exact(own.across).skip(down[0] * rows);
            for (line, out) in lines.zip(out.chunks_exact_mut(8 * stride)) {
                for (x, known) in line[first..end].iter().enumerate() {
                    let end = ZIGZAG[..64].iter().rposition(|&at| known[usize::from(at)] != 0);
                    let mut block: [i32; 64] =
                        std::array::from_fn(|at| i32::from(known[at]) * own.quantizer[at]);
                    transform(&mut block, end.unwrap_or(0) + 1, &mut out[x * 8..], stride);
                }
            }
        }
        Some(())
    }

    fn pixels(
        &self,
        [down, across]: [[usize; 2]; 2],
        [top, left]: [usize; 2],
        [height, width]: [usize; 2],
        scratch: &mut Scratch,
    ) -> Vec<u8> {
        let Scratch { planes, wide, sums, .. } = scratch;
        let [rows, columns] = self.sampling();
        let chroma = (across[1] - across[0]) * 8;
        let stride = chroma * columns;
        let (first, skip) = (top - down[0] * 8 * rows, left - across[0] * 8 * columns);
        let count = self.channels.len();
        let mut pixels = vec![0; height * width * count];
        // Chroma samples of the planes that are no padding.
        let [lines, samples] = self.samples(count - 1);
        let (lines, samples) = (lines - down[0] * 8, chroma.min(samples - across[0] * 8));
        let is_smooth = self.samples(count - 1)[1] > 2;
        for (row, out) in pixels.chunks_exact_mut(width * count).enumerate() {
            let row = first + row;
            let line = |plane: usize| &planes[plane][row * stride + skip..][..width];
            if self.colours == Colours::Grey {
                out.copy_from_slice(line(0));
                continue;
            }
            if self.colours == Colours::Rgb {
                interleave(line(0), line(1), line(2), out);
                continue;
            }
            for (plane, wide) in planes[1..].iter().zip(wide.iter_mut()) {
                let is_below = row % 2 == 1;
                let near = row / rows;
                let far = if is_below { (near + 1).min(lines - 1) } else { near.saturating_sub(1) };
                let [near, far] = [near, far].map(|at| &plane[at * chroma..][..samples]);
                wide.resize(samples * columns, 0);
                match [rows, columns] {
                    [1, 2] if is_smooth => widen(near, wide),
                    [2, 2] if is_smooth => blend_and_widen(near, far, sums, wide),
                    [2, 1] => blend(near, far, is_below, wide),
                    [_, 1] => wide.copy_from_slice(near),
                    // libjpeg repeats a quarter of the resolution, and the samples of the narrowest pictures.
                    _ => wide.chunks_exact_mut(columns).zip(near).for_each(|(run, &sample)| run.fill(sample)),
                }
            }
            let [blue, red] = &*wide;
            to_rgb(line(0), &blue[skip..][..width], &red[skip..][..width], out);
        }
        pixels
    }
}

impl Channel {
    fn new(&[id, sampling, quantizer]: &[u8; 3]) -> Self {
        let sampling = [usize::from(sampling & 15), usize::from(sampling >> 4)];
        Self { id, sampling, quantizer: quantizer.into() }
    }
}

/// How libjpeg reads the channels; None for more or fewer than it has names for.
fn colours(ids: impl ExactSizeIterator<Item = u8>, is_jfif: bool, adobe: Option<u8>) -> Option<Colours> {
    match (ids.len(), is_jfif, adobe) {
        (1, ..) => Some(Colours::Grey),
        (3, false, Some(0)) => Some(Colours::Rgb),
        (3, false, None) if ids.eq(*b"RGB") => Some(Colours::Rgb),
        (3, ..) => Some(Colours::YCbCr),
        _ => None,
    }
}

fn turned(segment: &[u8]) -> bool {
    let exif = segment.strip_prefix(b"Exif\0\0").and_then(Orientation::from_exif_chunk);
    exif.is_some_and(|orientation| orientation != Orientation::NoTransforms)
}
