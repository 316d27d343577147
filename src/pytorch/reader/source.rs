//! Bytes that may lie in a file of any size, read piece by piece, and the memory that reading them may take.
//!
//! No memory map: a file that shrinks under a map kills the process with SIGBUS; a short read is an error.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, bail};

/// A file or a block of memory that is read at any offset.
pub enum Source {
    File { file: File, size: u64 },
    Bytes(Vec<u8>),
}

impl Source {
    /// Opens a regular file; anything else (a folder, a pipe, a device) is refused.
    pub fn open(path: &Path) -> Result<Source> {
        let kind = std::fs::metadata(path)?;
        if !kind.is_file() {
            bail!("not a regular file");
        }
        let file = File::open(path)?;
        let size = file.metadata()?.len();
        Ok(Source::File { file, size })
    }

    pub fn size(&self) -> u64 {
        match self {
            Source::File { size, .. } => *size,
            Source::Bytes(bytes) => bytes.len() as u64,
        }
    }

    /// Fills `buffer` from `offset`; fewer bytes there are an error.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        match self {
            Source::File { file, .. } => file.read_exact_at(buffer, offset),
            Source::Bytes(bytes) => {
                let start = usize::try_from(offset).map_err(|_| io::ErrorKind::UnexpectedEof)?;
                let end = start.checked_add(buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
                let bytes = bytes.get(start..end).ok_or(io::ErrorKind::UnexpectedEof)?;
                buffer.copy_from_slice(bytes);
                Ok(())
            }
        }
    }

    /// `len` bytes from `offset`, their memory charged to `budget` before it is taken.
    pub fn read(&self, offset: u64, len: u64, budget: &Budget) -> Result<Vec<u8>> {
        if offset.checked_add(len).is_none_or(|end| end > self.size()) {
            bail!("truncated: {len} bytes wanted at offset {offset}, the file ends at {}", self.size());
        }
        budget.charge(len)?;
        let mut buffer = vec![0; usize::try_from(len)?];
        self.read_at(&mut buffer, offset).with_context(|| format!("at offset {offset}"))?;
        Ok(buffer)
    }
}

/// The first eight bytes as a little-endian number.
pub fn u64_le(bytes: &[u8]) -> Option<u64> {
    bytes.first_chunk().map(|word| u64::from_le_bytes(*word))
}

/// The memory that reading one file may take; every allocation whose size the file decides is charged first.
pub struct Budget {
    left: AtomicU64,
    limit: u64,
}

impl Budget {
    /// For a file of `size` bytes: three times its size and 48 MiB. The tensors themselves, at most the
    /// file's size again, come on top.
    pub fn for_file(size: u64) -> Budget {
        let limit = size.saturating_mul(3).saturating_add(48 << 20);
        Budget { left: AtomicU64::new(limit), limit }
    }

    pub fn charge(&self, bytes: u64) -> Result<()> {
        let take = |left: u64| left.checked_sub(bytes);
        match self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take) {
            Ok(_) => Ok(()),
            Err(_) => bail!(
                "it unfolds to more than {} MiB (three times the file and 48 MiB), which no checkpoint needs",
                self.limit >> 20
            ),
        }
    }
}

/// A forward reader over a part of a source, with a window of 64 KiB.
pub struct Input<'a> {
    source: &'a Source,
    budget: &'a Budget,
    window: Vec<u8>,
    next: usize,
    /// Offset in the source of the window's end.
    offset: u64,
    end: u64,
}

impl<'a> Input<'a> {
    /// Reads `source` from `start` to its end.
    pub fn new(source: &'a Source, start: u64, budget: &'a Budget) -> Input<'a> {
        Input { source, budget, window: Vec::new(), next: 0, offset: start, end: source.size() }
    }

    /// Offset in the source of the next byte.
    pub fn position(&self) -> u64 {
        self.offset - (self.window.len() - self.next) as u64
    }

    pub fn remaining(&self) -> u64 {
        self.end.saturating_sub(self.position())
    }

    pub fn byte(&mut self) -> Result<u8> {
        if self.next == self.window.len() {
            self.refill()?;
        }
        let byte = self.window[self.next];
        self.next += 1;
        Ok(byte)
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        for byte in &mut bytes {
            *byte = self.byte()?;
        }
        Ok(bytes)
    }

    /// `len` bytes in memory of their own; more than remain is an error before anything is allocated.
    pub fn take(&mut self, len: u64) -> Result<Vec<u8>> {
        if len > self.remaining() {
            bail!("truncated: {len} bytes wanted, {} left", self.remaining());
        }
        self.budget.charge(len)?;
        let mut bytes = vec![0; usize::try_from(len)?];
        let ready = (self.window.len() - self.next).min(bytes.len());
        bytes[..ready].copy_from_slice(&self.window[self.next..self.next + ready]);
        self.next += ready;
        if ready < bytes.len() {
            self.source.read_at(&mut bytes[ready..], self.offset)?;
            self.offset += (bytes.len() - ready) as u64;
        }
        Ok(bytes)
    }

    /// Passes over `len` bytes, which must be there.
    pub fn skip(&mut self, len: u64) -> Result<()> {
        if len > self.remaining() {
            bail!("truncated: {len} bytes wanted, {} left", self.remaining());
        }
        self.offset = self.position() + len;
        self.window.clear();
        self.next = 0;
        Ok(())
    }

    /// The bytes up to a newline, which is consumed; at most `limit` of them.
    pub fn line(&mut self, limit: usize) -> Result<Vec<u8>> {
        let mut line = Vec::new();
        loop {
            match self.byte()? {
                b'\n' => return Ok(line),
                _ if line.len() == limit => bail!("a name of more than {limit} bytes"),
                byte => line.push(byte),
            }
        }
    }

    fn refill(&mut self) -> Result<()> {
        let len = (self.end.saturating_sub(self.offset)).min(64 << 10) as usize;
        if len == 0 {
            bail!("truncated: the data ends here");
        }
        self.window.resize(len, 0);
        self.next = 0;
        // On failure nothing may be taken from a window that was never filled.
        if let Err(error) = self.source.read_at(&mut self.window, self.offset) {
            self.window.clear();
            return Err(error.into());
        }
        self.offset += len as u64;
        Ok(())
    }
}
