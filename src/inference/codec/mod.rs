//! The file of a compressed image: whose network made it, the sizes, and the code, channel by channel.
//!
//! Little-endian: `TIKC`, version (u8), network (8 bytes), width and height of the image (u32 each), the
//! number of the code's axes (u8) and their lengths (u32 each), least and greatest value of each channel (i8
//! each), the values as `range` codes them, CRC-32 of all that. Frequencies are learnt on the way, by reader
//! and writer alike, so that no table takes room.

mod range;

use anyhow::{Result, bail, ensure};

const MAGIC: &[u8; 4] = b"TIKC";
const VERSION: u8 = 1;
const MAX_AXES: usize = 3;
const CRC: usize = 4;

/// What a file says before the code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Which network made the code.
    pub network: [u8; 8],
    pub width: u32,
    pub height: u32,
    /// The shape of the code, channels first; at most three axes.
    pub shape: Vec<u32>,
}

/// A file whose header is read and whose bytes are whole.
pub struct Packed<'a> {
    pub header: Header,
    /// Least and greatest value of each channel.
    bounds: Vec<(i8, i8)>,
    body: &'a [u8],
}

impl Header {
    fn channels(&self) -> usize {
        self.shape.first().map_or(0, |&channels| channels as usize)
    }

    /// Values in a channel.
    fn places(&self) -> usize {
        self.shape.iter().skip(1).map(|&side| side as usize).product()
    }
}

/// The file of a code; `values` has the header's shape, row by row.
pub fn pack(header: &Header, values: &[i8]) -> Result<Vec<u8>> {
    let (channels, places) = (header.channels(), header.places());
    ensure!((1..=MAX_AXES).contains(&header.shape.len()), "a code of shape {:?}", header.shape);
    ensure!(
        places > 0 && channels * places == values.len(),
        "{} values for a code of shape {:?}",
        values.len(),
        header.shape
    );
    let mut file = [MAGIC.as_slice(), &[VERSION], &header.network].concat();
    file.extend([header.width, header.height].into_iter().flat_map(u32::to_le_bytes));
    file.push(header.shape.len() as u8);
    file.extend(header.shape.iter().copied().flat_map(u32::to_le_bytes));
    let mut encoder = range::Encoder::default();
    for channel in values.chunks_exact(places) {
        let least = channel.iter().copied().min().unwrap_or_default();
        let greatest = channel.iter().copied().max().unwrap_or_default();
        file.extend([least, greatest].map(|bound| bound.to_le_bytes()[0]));
        let mut counts = range::Counts::new(least, greatest);
        for &value in channel {
            encoder.encode(&mut counts, value);
        }
    }
    file.extend(encoder.finish());
    file.extend(crc32fast::hash(&file).to_le_bytes());
    Ok(file)
}

impl<'a> Packed<'a> {
    /// Allocates no more than the file is long.
    pub fn open(file: &'a [u8]) -> Result<Self> {
        let mut reader = Reader(file);
        if reader.take(MAGIC.len()).ok() != Some(MAGIC) {
            bail!("is no compressed image of tikhonov");
        }
        let [version] = reader.array()?;
        ensure!(version == VERSION, "has version {version} of the format, and this program reads {VERSION}");
        let Some((whole, crc)) = file.split_last_chunk::<CRC>() else { bail!("is truncated") };
        ensure!(
            crc32fast::hash(whole) == u32::from_le_bytes(*crc),
            "is damaged or truncated (its CRC-32 is wrong)"
        );
        let network = reader.array()?;
        let [width, height] = [reader.number()?, reader.number()?];
        let [axes] = reader.array()?;
        ensure!((1..=MAX_AXES).contains(&usize::from(axes)), "has a code of {axes} axes");
        let shape = (0..axes).map(|_| reader.number()).collect::<Result<Vec<_>>>()?;
        let header = Header { network, width, height, shape };
        let bounds = reader.take(header.channels().saturating_mul(2))?;
        let bounds: Vec<_> =
            bounds.chunks_exact(2).map(|pair| (pair[0].cast_signed(), pair[1].cast_signed())).collect();
        ensure!(bounds.iter().all(|(least, greatest)| least <= greatest), "has a channel without values");
        let body = reader.0.strip_suffix(crc.as_slice()).unwrap_or_default();
        Ok(Self { header, bounds, body })
    }

    /// The values, in the order of [`pack`]. Allocates as many bytes as the header's shape has values: look
    /// at it first.
    pub fn values(&self) -> Vec<i8> {
        let places = self.header.places();
        let mut values = Vec::with_capacity(self.bounds.len() * places);
        let mut decoder = range::Decoder::new(self.body);
        for &(least, greatest) in &self.bounds {
            let mut counts = range::Counts::new(least, greatest);
            values.extend((0..places).map(|_| decoder.decode(&mut counts)));
        }
        values
    }
}

/// What is left of a file.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        let Some((taken, rest)) = self.0.split_at_checked(len) else { bail!("is truncated") };
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        Ok(self.take(N)?.try_into()?)
    }

    fn number(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(shape: &[u32]) -> Header {
        Header { network: *b"12345678", width: 7, height: 9, shape: shape.into() }
    }

    /// Values about as normal as a code's, by a linear congruence.
    fn values(channels: usize, places: usize) -> Vec<i8> {
        let mut state = 1u64;
        let mut uniform = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f64 / f64::from(1 << 24)
        };
        let mut normal = || (0..12).map(|_| uniform()).sum::<f64>() - 6.0;
        let of = |channel: usize| [0.0, 0.2, 3.0, 60.0][channel % 4];
        let spread = (0..channels).flat_map(|channel| std::iter::repeat_n(of(channel), places));
        spread.map(|spread| (normal() * spread).round() as i8).collect()
    }

    fn entropy(values: &[i8]) -> f64 {
        let mut counts = [0f64; 256];
        values.iter().for_each(|value| counts[value.cast_unsigned() as usize] += 1.0);
        let used = counts.iter().filter(|count| **count > 0.0);
        used.map(|count| count * (values.len() as f64 / count).log2()).sum()
    }

    #[test]
    fn a_code_comes_back_from_little_more_than_its_entropy() {
        for (channels, places) in [(1, 1), (3, 1), (8, 16), (4, 6144), (4, 300_000)] {
            let values = values(channels, places);
            let header = header(&[channels as u32, places as u32]);
            let file = pack(&header, &values).unwrap();
            let packed = Packed::open(&file).unwrap();
            assert_eq!((packed.values(), &packed.header), (values.clone(), &header));
            let bits: f64 = values.chunks(places).map(entropy).sum();
            let learning = |channel: &[i8]| {
                let kinds =
                    f64::from(*channel.iter().max().unwrap()) - f64::from(*channel.iter().min().unwrap());
                kinds / 2.0 * (places as f64).log2() + 8.0
            };
            let learning: f64 = values.chunks(places).map(learning).sum();
            let fixed = (4 + 1 + 8 + 8 + 1 + 8 + 4 + 2 * channels + 2) as f64;
            assert!(
                file.len() as f64 <= fixed + (bits + learning) / 8.0,
                "{} bytes, {bits} bits",
                file.len()
            );
        }
    }

    #[test]
    fn the_extremes_of_every_count_come_back() {
        let steps = (0..70_000).map(|step| if step % 1000 == 0 { -128 } else { 127 });
        let values: Vec<i8> = steps.chain((0..=255).map(|byte: u8| byte.cast_signed())).collect();
        let header = header(&[1, values.len() as u32]);
        assert_eq!(Packed::open(&pack(&header, &values).unwrap()).unwrap().values(), values);
    }

    #[test]
    fn no_damage_goes_unseen_and_none_takes_the_program_down() {
        let file = pack(&header(&[4, 8, 8]), &values(4, 64)).unwrap();
        for at in 0..file.len() {
            let mut damaged = file.clone();
            damaged[at] ^= 0x41;
            assert!(Packed::open(&damaged).is_err(), "byte {at}");
            assert!(Packed::open(&file[..at]).is_err(), "{at} bytes");
            // The same by someone who knows the CRC: whatever comes out, it comes out.
            let end = damaged.len() - CRC;
            let crc = crc32fast::hash(&damaged[..end]).to_le_bytes();
            damaged[end..].copy_from_slice(&crc);
            if let Ok(packed) = Packed::open(&damaged)
                && packed.header.places() < 1 << 20
            {
                packed.values();
            }
        }
    }
}
