//! Files of several scans: progressive ones (ITU-T T.81, annex G), and sequential ones with a scan per
//! channel. All coefficients are read before the first is transformed.

use super::entropy::{Bits, Huffman, ZIGZAG, unstuff};
use super::{Channel, Jpeg, Scan, marker, segment};

/// More scans than this are an attack: each passes over the whole picture.
const MAX_SCANS: usize = 200;

/// The coefficients of a channel, by blocks.
pub struct Plane {
    pub blocks: Vec<[i16; 64]>,
    /// Blocks in a row.
    pub across: usize,
    pub quantizer: [i32; 64],
    /// The lowest bit that is known of each coefficient of the zigzag, `UNKNOWN` before its first scan.
    known: [u8; 64],
}

const UNKNOWN: u8 = 255;

/// The planes of all channels. None where the data are not in order, or where libjpeg would smooth what they
/// lack.
pub fn read(jpeg: &Jpeg, data: &mut Vec<u8>, restarts: &mut Vec<usize>) -> Option<Vec<Plane>> {
    let [down, across] = jpeg.mcus();
    let plane = |channel: &Channel| {
        let [rows, columns] = channel.sampling;
        let blocks = vec![[0; 64]; down * rows * across * columns];
        Plane { blocks, across: across * columns, quantizer: [0; 64], known: [UNKNOWN; 64] }
    };
    let mut planes: Vec<Plane> = jpeg.channels.iter().map(plane).collect();
    let (mut tables, mut scan, mut rest) = (jpeg.tables.clone(), jpeg.scan.clone(), jpeg.rest);
    for _ in 0..MAX_SCANS {
        for &(n, ..) in &scan.channels {
            let (plane, slot) = (&mut planes[n], jpeg.channels[n].quantizer);
            if plane.known[0] == UNKNOWN {
                plane.quantizer = (*tables.quantizers.get(slot)?)?;
            }
            plane.known[scan.first..=scan.last].fill(scan.low as u8);
        }
        rest = unstuff(rest, data, restarts);
        let passes = Pass::new(&scan, &tables.dc, &tables.ac, jpeg.is_progressive)?;
        read_scan(jpeg, &scan, &passes, tables.restart, (data, restarts), &mut planes)?;
        loop {
            if marker(rest)?.0 == 0xd9 {
                return planes.iter().all(|plane| plane.known[..10] == [0; 10]).then_some(planes);
            }
            let (marker, segment, after) = segment(rest)?;
            rest = after;
            match marker {
                0xda => {
                    scan = jpeg.read_scan(segment)?;
                    break;
                }
                0xe0..=0xef | 0xfe => {}
                _ => tables.read(marker, segment)?,
            }
        }
    }
    None
}

/// What a scan says about each block of a channel.
enum Pass<'a> {
    /// All coefficients.
    Whole(&'a Huffman, &'a Huffman),
    /// The upper bits of the first one; then one bit more of it.
    Dc(&'a Huffman),
    DcBit,
    /// The upper bits of others; then one bit more of them.
    Ac(&'a Huffman),
    AcBit(&'a Huffman),
}

type Codes = [Option<Box<Huffman>>; 4];

impl<'a> Pass<'a> {
    /// One for each channel of the scan.
    fn new(scan: &Scan, dc: &'a Codes, ac: &'a Codes, is_progressive: bool) -> Option<Vec<Self>> {
        let passes = scan.channels.iter().map(|&(_, dc_slot, ac_slot)| {
            let (dc, ac) = (dc.get(dc_slot)?.as_deref(), ac.get(ac_slot)?.as_deref());
            Some(match (is_progressive, scan.first, scan.high) {
                (false, ..) => Self::Whole(dc?, ac?),
                (true, 0, 0) => Self::Dc(dc?),
                (true, 0, _) => Self::DcBit,
                (true, _, 0) => Self::Ac(ac?),
                (true, ..) => Self::AcBit(ac?),
            })
        });
        passes.collect()
    }
}

fn read_scan(
    jpeg: &Jpeg,
    scan: &Scan,
    passes: &[Pass],
    restart: usize,
    (data, restarts): (&[u8], &[usize]),
    planes: &mut [Plane],
) -> Option<()> {
    // A channel alone has no padding to whole MCUs.
    let alone = scan.channels.len() == 1;
    let [down, across] = if alone { jpeg.blocks(scan.channels[0].0) } else { jpeg.mcus() };
    let (mut bits, mut restarts) = (Bits::at(data, 0), restarts.iter());
    let (mut last, mut until_restart, mut ended) = ([0i32; 3], restart, 0);
    for row in 0..down {
        for column in 0..across {
            if restart > 0 && until_restart == 0 {
                bits = Bits::at(data, *restarts.next()?);
                (last, until_restart, ended) = ([0; 3], restart, 0);
            }
            until_restart = until_restart.wrapping_sub(1);
            for (&(n, ..), pass) in scan.channels.iter().zip(passes) {
                let [rows, columns] = if alone { [1, 1] } else { jpeg.channels[n].sampling };
                for part in 0..rows * columns {
                    let (y, x) = (row * rows + part / columns, column * columns + part % columns);
                    let at = y * planes[n].across + x;
                    let block = &mut planes[n].blocks[at];
                    match pass {
                        Pass::Whole(dc, ac) => whole(&mut bits, dc, ac, &mut last[n], block)?,
                        Pass::Dc(table) => {
                            last[n] = last[n].wrapping_add(bits.dc(table)?);
                            block[0] = (last[n] << scan.low) as i16;
                        }
                        Pass::DcBit => block[0] |= (bits.take(1) << scan.low) as i16,
                        Pass::Ac(table) => ac(&mut bits, table, scan, &mut ended, block)?,
                        Pass::AcBit(table) => ac_bit(&mut bits, table, scan, &mut ended, block)?,
                    }
                }
            }
        }
    }
    bits.is_within().then_some(())
}

fn whole(bits: &mut Bits, dc: &Huffman, ac: &Huffman, last: &mut i32, block: &mut [i16; 64]) -> Option<()> {
    let mut wide = [0; 64];
    *last = last.wrapping_add(bits.dc(dc)?);
    wide[0] = *last;
    bits.ac(ac, &[1; 64], &mut wide)?;
    *block = wide.map(|value| value as i16);
    Some(())
}

/// `ended` counts the blocks to come of which the scan says nothing more.
fn ac(bits: &mut Bits, table: &Huffman, scan: &Scan, ended: &mut u32, block: &mut [i16; 64]) -> Option<()> {
    if *ended > 0 {
        *ended -= 1;
        return Some(());
    }
    let mut at = scan.first;
    while at <= scan.last {
        let symbol = bits.next(table)?;
        let (run, size) = (usize::from(symbol >> 4), u32::from(symbol & 15));
        if size > 0 {
            at += run;
            let value = bits.number(size) << scan.low;
            *block.get_mut(usize::from(ZIGZAG[at]))? = value as i16;
            at += 1;
        } else if run == 15 {
            at += 16;
        } else {
            *ended = (1 << run) - 1 + bits.take(run as u32) as u32;
            break;
        }
    }
    Some(())
}

fn ac_bit(
    bits: &mut Bits,
    table: &Huffman,
    scan: &Scan,
    ended: &mut u32,
    block: &mut [i16; 64],
) -> Option<()> {
    let one = 1i16 << scan.low;
    // Coefficients that are known so far get their next bit wherever they are passed.
    let refine = |bits: &mut Bits, value: &mut i16| {
        if bits.take(1) == 1 && *value & one == 0 {
            *value = value.wrapping_add(if *value > 0 { one } else { -one });
        }
    };
    let mut at = scan.first;
    while *ended == 0 && at <= scan.last {
        let symbol = bits.next(table)?;
        let (mut run, size) = (symbol >> 4, symbol & 15);
        let new = match (run, size) {
            (0..15, 0) => {
                *ended = (1 << run) + bits.take(run.into()) as u32;
                break;
            }
            (_, 0) => 0,
            _ if bits.take(1) == 1 => one,
            _ => -one,
        };
        loop {
            let value = &mut block[usize::from(*ZIGZAG[at..=scan.last].first()?)];
            if *value != 0 {
                refine(bits, value);
            } else if run > 0 {
                run -= 1;
            } else {
                *value = new;
                break;
            }
            at += 1;
        }
        at += 1;
    }
    if *ended > 0 {
        for &place in ZIGZAG.get(at..=scan.last)? {
            let value = &mut block[usize::from(place)];
            if *value != 0 {
                refine(bits, value);
            }
        }
        *ended -= 1;
    }
    Some(())
}
