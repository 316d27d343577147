//! TensorFlow's `Event` message in a TFRecord, as much of both as scalars, histograms and pictures need.
//!
//! A record is the length (u64), its checksum (u32), the message, its checksum; little endian, the checksums
//! CRC-32C, masked. The fields are those of event.proto and summary.proto.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;

use crate::util::protobuf::{Fields, Message};

/// A message that is being written.
pub struct Event {
    bytes: Message,
    summary: Message,
}

pub struct Histogram {
    pub min: f64,
    pub max: f64,
    pub count: f64,
    pub sum: f64,
    pub squares: f64,
    /// Upper end and number of values, ascending.
    pub buckets: Vec<(f64, f64)>,
}

impl Event {
    /// The first of a file.
    pub fn version() -> Result<Self> {
        let mut event = Self::at(0)?;
        event.bytes.bytes(3, b"brain.Event:2");
        Ok(event)
    }

    /// Written now, of the moment after `step` steps.
    pub fn at(step: u64) -> Result<Self> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
        let mut bytes = Message::default();
        bytes.double(1, now).integer(2, step as i64);
        Ok(Self { bytes, summary: Message::default() })
    }

    pub fn scalar(&mut self, tag: &str, value: f64) {
        self.value(tag, |out| {
            out.float(2, value as f32);
        });
    }

    pub fn histogram(&mut self, tag: &str, histogram: &Histogram) {
        let mut message = Message::default();
        let Histogram { min, max, count, sum, squares, buckets } = histogram;
        for (field, value) in [(1, min), (2, max), (3, count), (4, sum), (5, squares)] {
            message.double(field, *value);
        }
        message.doubles(6, buckets.iter().map(|bucket| bucket.0));
        message.doubles(7, buckets.iter().map(|bucket| bucket.1));
        self.value(tag, |out| {
            out.bytes(5, message);
        });
    }

    /// `png` as it is in its file.
    pub fn image(&mut self, tag: &str, width: u32, height: u32, png: &[u8]) {
        const RGB: i64 = 3;
        let mut message = Message::default();
        message.integer(1, height.into()).integer(2, width.into()).integer(3, RGB).bytes(4, png);
        self.value(tag, |out| {
            out.bytes(4, message);
        });
    }

    fn value(&mut self, tag: &str, content: impl FnOnce(&mut Message)) {
        let mut value = Message::default();
        value.bytes(1, tag);
        content(&mut value);
        self.summary.bytes(1, value);
    }

    /// As it is in the file.
    pub fn record(&self) -> Vec<u8> {
        let mut message = self.bytes.clone();
        if !self.summary.0.is_empty() {
            message.bytes(5, &self.summary);
        }
        let message = message.0;
        let length = (message.len() as u64).to_le_bytes();
        let mut record = length.to_vec();
        record.extend(masked(&length).to_le_bytes());
        record.extend(&message);
        record.extend(masked(&message).to_le_bytes());
        record
    }
}

/// How many bytes of a file are whole records that `keep(step, first tag)` keeps, up to the first that is
/// not.
pub fn cut(file: &[u8], keep: impl Fn(u64, &str) -> bool) -> usize {
    let mut at = 0;
    while let Some((message, length)) = message(&file[at..]) {
        let (step, tag) = position(message);
        if !keep(step, &tag) {
            break;
        }
        at += length;
    }
    at
}

/// The first message, and how long its record is; None where it is not whole.
fn message(file: &[u8]) -> Option<(&[u8], usize)> {
    let length = file.get(..8)?;
    let sum = |bytes: &[u8]| Some(u32::from_le_bytes(bytes.try_into().ok()?));
    if sum(file.get(8..12)?)? != masked(length) {
        return None;
    }
    let size = usize::try_from(u64::from_le_bytes(length.try_into().ok()?)).ok()?;
    let end = size.checked_add(12)?;
    let message = file.get(12..end)?;
    (sum(file.get(end..end.checked_add(4)?)?)? == masked(message)).then_some((message, end + 4))
}

/// The step of an event and the tag of its first value.
fn position(message: &[u8]) -> (u64, String) {
    let (mut step, mut tag) = (0, String::new());
    for (field, number, bytes) in Fields(message) {
        match field {
            2 => step = number,
            5 => {
                let value = Fields(bytes).find(|field| field.0 == 1).map(|field| field.2).unwrap_or_default();
                let name = Fields(value).find(|field| field.0 == 1).map(|field| field.2).unwrap_or_default();
                tag = String::from_utf8_lossy(name).into_owned();
            }
            _ => {}
        }
    }
    (step, tag)
}

/// The checksum of a TFRecord: rotated and moved, so that sums of sums are no sums.
fn masked(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// Castagnoli's polynomial, reflected.
fn crc32c(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut byte = 0;
        while byte < 256 {
            let mut sum = byte as u32;
            let mut bit = 0;
            while bit < 8 {
                sum = if sum & 1 == 1 { sum >> 1 ^ 0x82f6_3b78 } else { sum >> 1 };
                bit += 1;
            }
            table[byte] = sum;
            byte += 1;
        }
        table
    };
    !bytes.iter().fold(!0, |sum, byte| TABLE[(sum as u8 ^ byte) as usize] ^ sum >> 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_the_standard() {
        // RFC 3720, B.4: 32 bytes of zeros, of ones, and ascending.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(&(0..32).collect::<Vec<u8>>()), 0x46dd_794e);
    }

    #[test]
    fn a_file_is_cut_at_the_first_record_that_is_not_to_stay_or_not_whole() {
        let mut file = Event::version().unwrap().record();
        let mut ends = vec![file.len()];
        for (step, tag) in [(1, "step/loss"), (300, "step/loss"), (300, "loss"), (301, "step/loss")] {
            let mut event = Event::at(step).unwrap();
            event.scalar(tag, 1.0);
            file.extend(event.record());
            ends.push(file.len());
        }
        assert_eq!(cut(&file, |step, _| step <= 300), ends[3]);
        assert_eq!(cut(&file, |step, tag| step < 300 || step == 300 && tag.starts_with("step/")), ends[2]);
        assert_eq!(cut(&file, |_, _| true), file.len());
        assert_eq!(cut(&file[..file.len() - 1], |_, _| true), ends[3]);
        let mut damaged = file.clone();
        damaged[ends[1] + 20] ^= 1;
        assert_eq!(cut(&damaged, |_, _| true), ends[1]);
        for length in 0..file.len() {
            assert!(cut(&file[..length], |_, _| true) <= length);
        }
    }
}
