//! The zip archives of `torch.save` and TorchScript, read through their central directory.
//!
//! Own code instead of the `zip` crate, for three reasons: entries must be addressable as plain ranges of the
//! file, so that a storage is read straight into its tensor; what a hostile archive may do (overlapping
//! entries, local headers that disagree with the directory, duplicate names) must be refused rather than
//! tolerated, or a single flipped bit could exchange two storages; and memory is charged to one budget.
//! Understood are stored and deflated entries, zip64 and data descriptors; encryption, splitting and other
//! methods are refused by name. Every entry that is read is held to its CRC-32.

use std::collections::HashMap;
use std::io::Read;

use anyhow::{Context, Result, bail};

use super::source::{Budget, Source};

/// One entry: where its bytes lie and what they must be.
#[derive(Clone, Debug)]
pub struct Entry {
    pub name: Box<str>,
    /// First byte of the data in the file.
    pub start: u64,
    /// Bytes in the file and bytes unpacked; equal unless deflated.
    pub packed: u64,
    pub size: u64,
    pub deflated: bool,
    pub crc: u32,
}

/// The entries of an archive, in the order of its directory.
pub struct Archive {
    pub entries: Vec<Entry>,
    by_name: HashMap<Box<str>, usize>,
}

fn u16_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(bytes[at]) | u64::from(bytes[at + 1]) << 8
}

fn u32_at(bytes: &[u8], at: usize) -> u64 {
    u16_at(bytes, at) | u16_at(bytes, at + 2) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u32_at(bytes, at) | u32_at(bytes, at + 4) << 32
}

const END: &[u8] = b"PK\x05\x06";
const END_LEN: usize = 22;
const CENTRAL_LEN: usize = 46;
const LOCAL_LEN: u64 = 30;
const FULL32: u64 = 0xffff_ffff;

impl Archive {
    /// Reads the directory and checks every local header against it.
    pub fn open(source: &Source, budget: &Budget) -> Result<Archive> {
        let (directory, start, count) = directory(source, budget)?;
        if count > (directory.len() / CENTRAL_LEN) as u64 {
            bail!("the zip directory is too short for its {count} entries");
        }
        budget.charge(count * (size_of::<Entry>() as u64 + 128))?;
        let mut entries = Vec::with_capacity(count as usize);
        let mut by_name = HashMap::with_capacity(count as usize);
        let mut rest = &directory[..];
        for index in 0..count as usize {
            let (entry, local, after) =
                central(rest).with_context(|| format!("zip directory, entry {index}"))?;
            rest = after;
            let entry = locate(source, entry, local, start)
                .with_context(|| format!("zip directory, entry {index}"))?;
            budget.charge(4 * entry.name.len() as u64)?;
            if by_name.insert(entry.name.clone(), index).is_some() {
                bail!("two entries are called {:?}", entry.name);
            }
            entries.push((entry, local));
        }
        if !rest.is_empty() {
            bail!("{} bytes behind the last entry of the zip directory", rest.len());
        }
        disjoint(&entries, budget)?;
        Ok(Archive { entries: entries.into_iter().map(|(entry, _)| entry).collect(), by_name })
    }

    pub fn index(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    pub fn entry(&self, name: &str) -> Option<&Entry> {
        self.index(name).map(|index| &self.entries[index])
    }
}

impl Entry {
    /// The whole entry in memory, charged to `budget` before anything is allocated.
    pub fn read(&self, source: &Source, budget: &Budget) -> Result<Vec<u8>> {
        let context = || format!("entry {:?}", self.name);
        budget.charge(self.size).with_context(context)?;
        let mut bytes = vec![0; usize::try_from(self.size)?];
        self.read_into(source, &mut bytes)?;
        Ok(bytes)
    }

    /// Unpacks the entry into `buffer`, which is exactly as long as the entry, and verifies its CRC-32.
    pub fn read_into(&self, source: &Source, buffer: &mut [u8]) -> Result<()> {
        self.fill(source, buffer).with_context(|| format!("entry {:?}", self.name))
    }

    fn fill(&self, source: &Source, buffer: &mut [u8]) -> Result<()> {
        debug_assert_eq!(buffer.len() as u64, self.size);
        let mut crc = crc32fast::Hasher::new();
        // Pieces that are still in the cache when the checksum reads them again.
        const PIECE: usize = 256 << 10;
        if self.deflated {
            let packed = Window { source, next: self.start, end: self.start + self.packed };
            let mut unpacked =
                flate2::bufread::DeflateDecoder::new(std::io::BufReader::with_capacity(PIECE, packed));
            for piece in buffer.chunks_mut(PIECE) {
                unpacked.read_exact(piece).context("the deflated data is damaged or too short")?;
                crc.update(piece);
            }
            if unpacked.read(&mut [0]).context("the deflated data is damaged")? != 0 {
                bail!("it unpacks to more than the {} bytes it declares", self.size);
            }
        } else {
            let mut at = self.start;
            for piece in buffer.chunks_mut(PIECE) {
                source.read_at(piece, at)?;
                crc.update(piece);
                at += piece.len() as u64;
            }
        }
        let found = crc.finalize();
        if found != self.crc {
            bail!("damaged: its CRC-32 is {found:08x}, the archive says {:08x}", self.crc);
        }
        Ok(())
    }
}

struct Window<'a> {
    source: &'a Source,
    next: u64,
    end: u64,
}

impl Read for Window<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let len = (buffer.len() as u64).min(self.end - self.next) as usize;
        self.source.read_at(&mut buffer[..len], self.next)?;
        self.next += len as u64;
        Ok(len)
    }
}

/// The central directory's bytes, its offset, and its number of entries.
fn directory(source: &Source, budget: &Budget) -> Result<(Vec<u8>, u64, u64)> {
    let size = source.size();
    let tail_len = size.min((END_LEN + 0xffff) as u64);
    let tail = source.read(size - tail_len, tail_len, budget)?;
    // The record whose comment ends exactly with the file; torch writes none.
    let end = (0..(tail.len() + 1).saturating_sub(END_LEN))
        .rev()
        .find(|&at| {
            tail[at..].starts_with(END) && at + END_LEN + u16_at(&tail, at + 20) as usize == tail.len()
        })
        .context("the zip archive has no directory at its end: truncated or damaged")?;
    let record = &tail[end..];
    if (u16_at(record, 4), u16_at(record, 6)) != (0, 0) {
        bail!("a zip archive in several parts");
    }
    let (mut count, mut len, mut start) = (u16_at(record, 10), u32_at(record, 12), u32_at(record, 16));
    let mut limit = size - tail_len + end as u64;
    let locator = limit.checked_sub(20).map(|at| source.read(at, 20, budget)).transpose()?;
    if let Some(locator) = locator.filter(|bytes| bytes.starts_with(b"PK\x06\x07")) {
        let at = u64_at(&locator, 8);
        if at.checked_add(56 + 20).is_none_or(|end| end > limit) {
            bail!("the zip64 record lies outside the file");
        }
        let record = source.read(at, 56, budget)?;
        if !record.starts_with(b"PK\x06\x06") {
            bail!("the zip64 record is damaged");
        }
        (count, len, start) = (u64_at(&record, 32), u64_at(&record, 40), u64_at(&record, 48));
        limit = at;
    } else if count == 0xffff || len == FULL32 || start == FULL32 {
        bail!("the zip64 record is missing");
    }
    if start.checked_add(len) != Some(limit) {
        bail!(
            "the zip directory ({len} bytes at {start}) does not end where its end record begins ({limit})"
        );
    }
    Ok((source.read(start, len, budget)?, start, count))
}

/// One directory entry, the offset of its local header, and the bytes behind it.
fn central(bytes: &[u8]) -> Result<(Entry, u64, &[u8])> {
    if bytes.len() < CENTRAL_LEN || !bytes.starts_with(b"PK\x01\x02") {
        bail!("no entry there");
    }
    let (name_len, extra_len, comment_len) = (u16_at(bytes, 28), u16_at(bytes, 30), u16_at(bytes, 32));
    let variable = bytes.get(CENTRAL_LEN..CENTRAL_LEN + (name_len + extra_len + comment_len) as usize);
    let variable = variable.context("it reaches beyond the directory")?;
    let name = std::str::from_utf8(&variable[..name_len as usize]).context("its name is not UTF-8")?;
    if u16_at(bytes, 8) & 1 != 0 {
        bail!("{name:?} is encrypted");
    }
    let deflated = match u16_at(bytes, 10) {
        0 => false,
        8 => true,
        method => bail!("{name:?} is compressed by method {method}; only deflate is known"),
    };
    let (mut packed, mut size, mut local) = (u32_at(bytes, 20), u32_at(bytes, 24), u32_at(bytes, 42));
    let mut wide = zip64(&variable[name_len as usize..(name_len + extra_len) as usize]).into_iter();
    for field in [&mut size, &mut packed, &mut local] {
        if *field == FULL32 {
            *field = wide.next().with_context(|| format!("{name:?}: its zip64 sizes are missing"))?;
        }
    }
    if !deflated && packed != size {
        bail!("{name:?}: stored, but of sizes {packed} and {size}");
    }
    let crc = u32_at(bytes, 16) as u32;
    let entry = Entry { name: name.into(), start: 0, packed, size, deflated, crc };
    Ok((entry, local, &bytes[CENTRAL_LEN + variable.len()..]))
}

/// The 64-bit numbers of the zip64 extra field, if there is one.
fn zip64(mut extra: &[u8]) -> Vec<u64> {
    while extra.len() >= 4 {
        let (id, len) = (u16_at(extra, 0), u16_at(extra, 2) as usize);
        let Some(data) = extra.get(4..4 + len) else { break };
        if id == 1 {
            return data.chunks_exact(8).map(|word| u64_at(word, 0)).collect();
        }
        extra = &extra[4 + len..];
    }
    Vec::new()
}

/// Finds an entry's data behind its local header, which must say the same as the directory.
fn locate(source: &Source, mut entry: Entry, local: u64, limit: u64) -> Result<Entry> {
    let name_len = entry.name.len() as u64;
    let outside = || format!("{:?} lies outside the archive", entry.name);
    let data = local.checked_add(LOCAL_LEN + name_len).filter(|&end| end <= limit).with_context(outside)?;
    let mut header = [0; LOCAL_LEN as usize];
    source.read_at(&mut header, local)?;
    if !header.starts_with(b"PK\x03\x04") || u16_at(&header, 26) != name_len {
        bail!("{:?}: its local header is damaged", entry.name);
    }
    let mut name = vec![0; entry.name.len()];
    source.read_at(&mut name, local + LOCAL_LEN)?;
    let method = if entry.deflated { 8 } else { 0 };
    // With a data descriptor the local sizes may be zero; zip64 puts all ones there.
    let same = |at, value: u64| {
        let found = u32_at(&header, at);
        found == value || found == FULL32 || (found == 0 && u16_at(&header, 6) & 8 != 0)
    };
    let crc = same(14, entry.crc.into());
    if name != entry.name.as_bytes()
        || u16_at(&header, 8) != method
        || !crc
        || !same(18, entry.packed)
        || !same(22, entry.size)
    {
        bail!("{:?}: its local header disagrees with the directory", entry.name);
    }
    entry.start = data + u16_at(&header, 28);
    if entry.start.checked_add(entry.packed).is_none_or(|end| end > limit) {
        bail!("{:?} reaches outside the archive", entry.name);
    }
    Ok(entry)
}

/// Refuses entries that share bytes, the trick by which a small archive unpacks to a huge one.
fn disjoint(entries: &[(Entry, u64)], budget: &Budget) -> Result<()> {
    budget.charge(16 * entries.len() as u64)?;
    let mut order: Vec<_> = entries.iter().collect();
    order.sort_unstable_by_key(|(_, local)| *local);
    for pair in order.windows(2) {
        let ((first, _), (second, local)) = (pair[0], pair[1]);
        if first.start + first.packed > *local {
            bail!("the entries {:?} and {:?} overlap", first.name, second.name);
        }
    }
    Ok(())
}
