//! The zip archive of a `.pt` as it is written: stored entries, each on a multiple of 64 bytes, so that
//! Python can map them.

use std::io::Write;

use anyhow::{Result, ensure};

const ALIGNMENT: u64 = 64;
const FULL32: u64 = 0xffff_ffff;

/// A zip archive as it is written: stored entries, zip64 where the numbers need it.
pub(crate) struct Zip<'a, W: Write> {
    out: &'a mut W,
    /// The folder of all entries.
    root: &'static str,
    at: u64,
    directory: Vec<u8>,
    count: u64,
}

impl<'a, W: Write> Zip<'a, W> {
    pub fn new(out: &'a mut W, root: &'static str) -> Self {
        Self { out, root, at: 0, directory: Vec::new(), count: 0 }
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes)?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    /// Adds `name` to the root folder.
    pub fn entry(&mut self, name: &str, data: &[u8]) -> Result<()> {
        let name = format!("{}/{name}", self.root);
        let (start, size) = (self.at, data.len() as u64);
        let crc = crc32fast::hash(data);
        let wide = size >= FULL32;
        let small = if wide { FULL32 } else { size } as u32;

        let mut extra = Vec::new();
        if wide {
            extra.extend([1, 0, 16, 0]);
            extra.extend(size.to_le_bytes());
            extra.extend(size.to_le_bytes());
        }
        // Padding in an extra field of its own, "FB" as PyTorch calls it, which has a header of four bytes.
        let data_at = start + 30 + name.len() as u64 + extra.len() as u64 + 4;
        let padding = data_at.next_multiple_of(ALIGNMENT) - data_at;
        extra.extend(b"FB");
        extra.extend((padding as u16).to_le_bytes());
        extra.resize(extra.len() + padding as usize, b'Z');

        // Version needed, UTF-8 flag, stored, 1980-01-01 00:00: the same bytes on every day.
        let version: u16 = if wide { 45 } else { 20 };
        let mut common = Vec::new();
        for field in [version, 0x800, 0, 0, 0x21] {
            common.extend(field.to_le_bytes());
        }
        for field in [crc, small, small] {
            common.extend(field.to_le_bytes());
        }
        common.extend((name.len() as u16).to_le_bytes());

        self.put(b"PK\x03\x04")?;
        self.put(&common)?;
        self.put(&(extra.len() as u16).to_le_bytes())?;
        self.put(name.as_bytes())?;
        self.put(&extra)?;
        self.put(data)?;

        let far = start >= FULL32;
        let mut wide_fields = Vec::new();
        if wide {
            wide_fields.extend(size.to_le_bytes());
            wide_fields.extend(size.to_le_bytes());
        }
        if far {
            wide_fields.extend(start.to_le_bytes());
        }
        let directory = &mut self.directory;
        directory.extend(b"PK\x01\x02\x2d\x00");
        directory.extend(&common);
        let extra_len = if wide_fields.is_empty() { 0 } else { 4 + wide_fields.len() as u16 };
        directory.extend(extra_len.to_le_bytes());
        // No comment, first disk, no attributes.
        directory.extend([0; 10]);
        directory.extend((if far { FULL32 } else { start } as u32).to_le_bytes());
        directory.extend(name.as_bytes());
        if !wide_fields.is_empty() {
            directory.extend([1, 0]);
            directory.extend((wide_fields.len() as u16).to_le_bytes());
            directory.extend(wide_fields);
        }
        self.count += 1;
        Ok(())
    }

    /// Writes the directory.
    pub fn finish(mut self) -> Result<()> {
        let (start, size, count) = (self.at, self.directory.len() as u64, self.count);
        let directory = std::mem::take(&mut self.directory);
        self.put(&directory)?;
        let end = self.at;
        if start >= FULL32 || size >= FULL32 || count >= 0xffff {
            self.put(b"PK\x06\x06")?;
            self.put(&44u64.to_le_bytes())?;
            self.put(&[45, 0, 45, 0, 0, 0, 0, 0, 0, 0, 0, 0])?;
            for field in [count, count, size, start] {
                self.put(&field.to_le_bytes())?;
            }
            self.put(b"PK\x06\x07\0\0\0\0")?;
            self.put(&end.to_le_bytes())?;
            self.put(&1u32.to_le_bytes())?;
        }
        let count = count.min(0xffff) as u16;
        self.put(b"PK\x05\x06\0\0\0\0")?;
        self.put(&count.to_le_bytes())?;
        self.put(&count.to_le_bytes())?;
        self.put(&(size.min(FULL32) as u32).to_le_bytes())?;
        self.put(&(start.min(FULL32) as u32).to_le_bytes())?;
        self.put(&[0, 0])?;
        ensure!(self.count == count as u64 || count == 0xffff, "the number of entries overflows");
        Ok(())
    }
}
