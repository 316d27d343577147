//! SHA-256, in lower-case hexadecimal.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use anyhow::Result;
use sha2::{Digest, Sha256};

pub fn hexadecimal(sum: Sha256) -> String {
    sum.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Of a whole file.
pub fn of_file(path: &Path) -> Result<String> {
    let mut file = File::open(path)?;
    let (mut sum, mut buffer) = (Sha256::new(), vec![0; 256 << 10]);
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hexadecimal(sum)),
            Ok(len) => sum.update(&buffer[..len]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
}
