//! A hash that tells whether a run goes on with the data that it started with.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::Result;
use sha2::{Digest, Sha256};
use tch::Tensor;

use super::mask::Encoding;
use super::{Dataset, ImageFile, Samples, Targets};
use crate::libtorch::bytes;
use crate::libtorch::device::cores;
use crate::util::regular_file;
use crate::util::sha256::hexadecimal;
use crate::util::threads::each;

/// Tensors above this many bytes are hashed in part.
const WHOLE: usize = 256 << 20;
/// The parts: this many, evenly spaced, first and last bytes included.
const PARTS: usize = 256;
const PART_BYTES: usize = 1 << 20;
/// Of a file that is read at need, this many parts count: evenly spaced, first and last bytes included.
/// Formats that compress change everywhere where anything changes.
const FILE_PARTS: u64 = 4;
const FILE_PART_BYTES: u64 = 16 << 10;

impl Dataset {
    /// Sets the fingerprint: sha256 of shape, classes, samples and targets. Resident samples count with their
    /// bytes (those above 256 MiB with 256 evenly spaced MiB), files with names, sizes and bytes (those above
    /// 64 KiB with four parts of 16 KiB).
    pub(super) fn seal(&mut self) -> Result<()> {
        let mut hash = Sha256::new();
        hash.update(format!("{:?} {:?} {:?}\n", self.shape, self.classes, self.features));
        match &self.samples {
            Samples::Resident(xs) => tensor(&mut hash, xs)?,
            Samples::Files(files) => {
                let all: Vec<_> = files.files.iter().chain(&files.partners).collect();
                // A shard is hashed once, and counts with the number of each of its pictures.
                let mut shards: BTreeMap<&Path, String> = BTreeMap::new();
                for file in all.iter().filter(|file| file.entry.is_some()) {
                    shards.entry(&file.path).or_insert_with(|| of_file(&file.path).unwrap_or_default());
                }
                // Shares of many files: a file takes no longer than handing it over.
                let shares = all.chunks(all.len().div_ceil(8 * cores()).max(1)).collect();
                let sums = each(cores(), shares, |share| {
                    // What cannot be read is named when its turn comes in training.
                    let of = |file: &&&ImageFile| match &file.entry {
                        Some(entry) => format!("{} {}", entry.index, shards[&*file.path]),
                        None => of_file(&file.path).unwrap_or_default(),
                    };
                    share.iter().map(|file| of(&file)).collect::<Vec<_>>()
                });
                for (file, sum) in all.iter().zip(sums.iter().flatten()) {
                    hash.update(format!("{:?} {sum}\n", file.path.file_name().unwrap_or_default()));
                }
                hash.update(format!("{:?}\n", files.framing));
            }
        }
        match &self.targets {
            Targets::Classes(labels) => {
                for label in labels {
                    hash.update(label.to_le_bytes());
                }
            }
            Targets::Values(ys) | Targets::MultiLabel(ys) => tensor(&mut hash, ys)?,
            Targets::Masks(masks) => {
                let Encoding { levels, ignore, .. } = &masks.encoding;
                let bytes: Option<Vec<u8>> = levels.iter().map(|level| level.byte()).collect();
                match bytes.filter(|_| ignore.is_empty()) {
                    Some(bytes) => hash.update(bytes),
                    None => hash.update(format!("{levels:?} {ignore:?}")),
                }
            }
            Targets::Images { .. } | Targets::Unknown => {}
        }
        self.fingerprint = hexadecimal(hash);
        Ok(())
    }
}

impl Dataset {
    /// Whether samples, or what belongs to them, are JPEG files by their names.
    pub fn has_jpegs(&self) -> bool {
        let is_jpeg = |path: &Path| {
            let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
            // The pictures of a parquet file have no names.
            extension == "jpg" || extension == "jpeg" || extension == "parquet"
        };
        let in_files = match &self.samples {
            Samples::Files(files) => {
                files.files.iter().chain(&files.partners).any(|file| is_jpeg(&file.path))
            }
            Samples::Resident(_) => false,
        };
        in_files || self.names.iter().any(|name| is_jpeg(Path::new(name)))
    }

    /// How its fingerprint was taken, where that was not from all bytes.
    pub fn sampled(&self) -> Option<String> {
        let Samples::Files(files) = &self.samples else { return None };
        let count = files.files.len();
        let mut shards: Vec<_> =
            files.files.iter().filter(|file| file.entry.is_some()).map(|file| &file.path).collect();
        shards.dedup();
        if !shards.is_empty() {
            return Some(format!(
                "{count} pictures of {} shards are read at need; a resume knows the shards by name, size and up to 64 KiB \
                 of each",
                shards.len()
            ));
        }
        Some(format!(
            "{count} files are read at need; a resume knows them by name, size and up to 64 KiB of each"
        ))
    }
}

/// The size of a file, and the sum of its parts.
fn of_file(path: &Path) -> io::Result<String> {
    let file = regular_file::open(path)?;
    let (size, mut hash) = (file.metadata()?.len(), Sha256::new());
    let parts = match size {
        size if size <= FILE_PARTS * FILE_PART_BYTES => vec![(0, size)],
        _ => {
            let last = size - FILE_PART_BYTES;
            (0..FILE_PARTS).map(|part| (last * part / (FILE_PARTS - 1), FILE_PART_BYTES)).collect()
        }
    };
    let mut buffer = vec![0; parts.iter().map(|(_, len)| *len as usize).max().unwrap_or(0)];
    for (start, len) in parts {
        let part = &mut buffer[..len as usize];
        file.read_exact_at(part, start)?;
        hash.update(part);
    }
    Ok(format!("{size} {}", hexadecimal(hash)))
}

/// The fingerprint of the samples `indices` of a set that has one itself.
pub(super) fn of_part(whole: &str, indices: &[i64]) -> String {
    let mut hash = Sha256::new();
    hash.update(whole);
    for index in indices {
        hash.update(index.to_le_bytes());
    }
    hexadecimal(hash)
}

fn tensor(hash: &mut Sha256, tensor: &Tensor) -> Result<()> {
    hash.update(format!("{:?} {:?}\n", tensor.size(), tensor.kind()));
    let width = tensor.kind().elt_size_in_bytes();
    bytes::with(&tensor.f_contiguous()?, |bytes| {
        if bytes.len() <= WHOLE {
            hash.update(bytes);
            return;
        }
        let part = PART_BYTES / width;
        let last = bytes.len() / width - part;
        for index in 0..PARTS {
            let start = last / (PARTS - 1) * index + last % (PARTS - 1) * index / (PARTS - 1);
            hash.update(&bytes[start * width..(start + part) * width]);
        }
    })
}
