//! Files that appear whole or not at all: written beside their place, flushed to the disk, then renamed.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::exit::{Exit, OrExit};

/// Where a file called `path` really lies: a link to a regular file is written through. Exit 2 for what is there and no
/// regular file, such as a device, a pipe, a folder or a link to nothing, which a rename would replace.
pub fn place(path: &Path) -> Result<PathBuf> {
    let Ok(found) = fs::symlink_metadata(path) else { return Ok(path.to_owned()) };
    let real = if found.is_symlink() { path.canonicalize().ok() } else { Some(path.to_owned()) };
    real.filter(|real| real.is_file()).or_exit(Exit::Usage, || {
        format!(
            "{} is there and is no regular file, which alone is ever replaced: give another name",
            path.display()
        )
    })
}

/// Lets `write` fill a temporary neighbour of `path` and moves it there once it is on the disk: see [`place`]. Errors of the disk
/// exit with 7.
pub fn write(path: &Path, write: impl FnOnce(&mut BufWriter<File>) -> Result<()>) -> Result<()> {
    write_by_path(path, |temporary| {
        let mut file = BufWriter::with_capacity(1 << 20, File::create(temporary)?);
        write(&mut file)?;
        file.flush()?;
        Ok(())
    })
}

/// A file of these bytes.
pub fn write_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    write(path, |file| Ok(file.write_all(bytes)?))
}

/// The same, and the folders that lead to it.
pub fn write_with_folders(path: &Path, bytes: &[u8]) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).or_exit(Exit::Storage, || folder.display())?;
    }
    write_bytes(path, bytes)
}

/// As [`write()`] for writers that open the file themselves.
pub fn write_by_path(path: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let place = place(path)?;
    let temporary = neighbour(&place);
    let result = write(&temporary).and_then(|()| settle(&temporary, &place));
    if result.is_err() {
        // The error that is reported is the first one.
        let _ = fs::remove_file(&temporary);
    }
    result.or_exit(Exit::Storage, || format!("writing {}", path.display()))
}

fn neighbour(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}.partial", std::process::id()));
    path.with_file_name(name)
}

fn settle(temporary: &Path, path: &Path) -> Result<()> {
    File::open(temporary)?.sync_all().context("flushing to the disk")?;
    fs::rename(temporary, path)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all().context("flushing the folder to the disk")
}
