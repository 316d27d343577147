//! A hash that tells whether a run goes on with the data that it started with.

use anyhow::Result;
use sha2::{Digest, Sha256};
use tch::Tensor;

use super::mask::Encoding;
use super::{Dataset, Samples, Targets};
use crate::digest::hexadecimal;
use crate::libtorch::bytes;

/// Tensors above this many bytes are hashed in part.
const WHOLE: usize = 256 << 20;
/// The parts: this many, evenly spaced, first and last bytes included.
const PARTS: usize = 256;
const PART_BYTES: usize = 1 << 20;

impl Dataset {
    /// Sets the fingerprint: sha256 of shape, classes, samples and targets. Resident samples count with their bytes
    /// (those above 256 MiB with 256 evenly spaced MiB), files with names and sizes.
    pub(super) fn seal(&mut self) -> Result<()> {
        let mut hash = Sha256::new();
        hash.update(format!("{:?} {:?} {:?}\n", self.shape, self.classes, self.features));
        match &self.samples {
            Samples::Resident(xs) => tensor(&mut hash, xs)?,
            Samples::Files(files) => {
                for file in files.files.iter().chain(&files.partners) {
                    let size = file.path.metadata().map_or(0, |metadata| metadata.len());
                    hash.update(format!("{:?} {size}\n", file.path.file_name().unwrap_or_default()));
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
            Targets::Values(ys) => tensor(&mut hash, ys)?,
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
