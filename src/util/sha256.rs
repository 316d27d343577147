//! SHA-256 in lower-case hexadecimal, of whole files and of pieces of them that several cores verify in
//! parallel.

use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::Path;

use anyhow::Result;
use sha2::{Digest, Sha256};

use crate::util::regular_file;

/// Bytes of each piece but the last.
pub const PIECE: usize = 8 << 20;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sums {
    pub whole: String,
    pub pieces: Vec<String>,
}

/// Hashes data as it is written.
#[derive(Default)]
pub struct Summing {
    whole: Sha256,
    piece: Sha256,
    in_piece: usize,
    pieces: Vec<String>,
}

impl Summing {
    pub fn update(&mut self, mut bytes: &[u8]) {
        self.whole.update(bytes);
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(PIECE - self.in_piece));
            self.piece.update(now);
            self.in_piece += now.len();
            bytes = later;
            if self.in_piece == PIECE {
                self.end_piece();
            }
        }
    }

    fn end_piece(&mut self) {
        self.in_piece = 0;
        self.pieces.push(hexadecimal(std::mem::take(&mut self.piece)));
    }

    pub fn finish(mut self) -> Sums {
        if self.in_piece > 0 {
            self.end_piece();
        }
        Sums { whole: hexadecimal(self.whole), pieces: self.pieces }
    }
}

/// Of a whole file.
pub fn of_file(path: &Path) -> Result<String> {
    of(regular_file::open(path)?)
}

/// Of bytes in memory.
pub fn of_bytes(bytes: &[u8]) -> String {
    hexadecimal(Sha256::new_with_prefix(bytes))
}

/// Of piece `number` of a file.
pub fn of_piece(path: &Path, number: usize) -> Result<String> {
    let mut file = regular_file::open(path)?;
    file.seek(SeekFrom::Start((number * PIECE) as u64))?;
    of(file.take(PIECE as u64))
}

fn of(mut from: impl Read) -> Result<String> {
    let (mut sum, mut buffer) = (Sha256::new(), vec![0; 256 << 10]);
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(hexadecimal(sum)),
            Ok(len) => sum.update(&buffer[..len]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
}

pub fn hexadecimal(sum: Sha256) -> String {
    sum.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_do_not_depend_on_how_the_bytes_come_and_equal_those_of_the_file() {
        let bytes: Vec<u8> = (0..2 * PIECE + 12345).map(|at| ((at * at) >> 7) as u8).collect();
        let sums = |chunk: usize| {
            let mut summing = Summing::default();
            bytes.chunks(chunk).for_each(|part| summing.update(part));
            summing.finish()
        };
        let want = sums(bytes.len());
        assert_eq!(sums(1_000_003), want);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(of_file(&path).unwrap(), want.whole);
        let pieces: Vec<_> = (0..3).map(|number| of_piece(&path, number).unwrap()).collect();
        assert_eq!(pieces, want.pieces);
    }
}
