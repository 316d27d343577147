//! Reads regular files only: opening a pipe without a writer would block, and a device may have no end.

use std::fs::{File, Metadata};
use std::io::{self, Error, ErrorKind, Read};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

/// Opens a regular file to be read; a folder, a pipe, a socket or a device is an error that says which it is.
pub fn open(path: &Path) -> io::Result<File> {
    // Checked before opening, which would block on a pipe.
    is_regular(&path.metadata()?)?;
    let file = File::open(path)?;
    is_regular(&file.metadata()?)?;
    Ok(file)
}

/// The whole of a regular file of at most `most` bytes.
pub fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let file = open(path)?;
    let size = file.metadata()?.len();
    let mut bytes = Vec::with_capacity(size.min(most) as usize);
    // A file may grow while it is read, and those of /proc have no size.
    file.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(Error::new(ErrorKind::FileTooLarge, format!("has more than {most} bytes")));
    }
    Ok(bytes)
}

fn is_regular(metadata: &Metadata) -> io::Result<()> {
    match what(metadata) {
        None => Ok(()),
        Some(what) => Err(Error::new(ErrorKind::InvalidInput, format!("is {what}, not a regular file"))),
    }
}

/// The type of a file that is not a regular one, in words.
pub fn what(metadata: &Metadata) -> Option<&'static str> {
    let kind = metadata.file_type();
    match kind {
        _ if kind.is_file() => None,
        _ if kind.is_dir() => Some("a folder"),
        _ if kind.is_fifo() => Some("a pipe (FIFO)"),
        _ if kind.is_socket() => Some("a socket"),
        _ => Some("a device"),
    }
}
