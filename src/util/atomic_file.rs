//! Atomic files: written to a temporary file in the same folder, fsynced, then renamed.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::util::exit_code::{ExitCode, WithExitCode};

/// The path to write: symbolic links to regular files are resolved. Exit 2 if `path` exists and is not a
/// regular file (a device, pipe, folder or dangling link), which a rename would replace.
pub fn place(path: &Path) -> Result<PathBuf> {
    let Ok(found) = fs::symlink_metadata(path) else { return Ok(path.to_owned()) };
    let real = if found.is_symlink() { path.canonicalize().ok() } else { Some(path.to_owned()) };
    real.filter(|real| real.is_file()).with_exit_code(ExitCode::Usage, || {
        format!(
            "{} is there and is no regular file, which alone is ever replaced: give another name",
            path.display()
        )
    })
}

/// Calls `write` on a temporary file beside `path`, fsyncs it and renames it to `path`: see [`place`]. Exit 7
/// on errors of the disk.
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

/// The same, creating parent folders.
pub fn write_with_folders(path: &Path, bytes: &[u8]) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_exit_code(ExitCode::Storage, || folder.display())?;
    }
    write_bytes(path, bytes)
}

/// Creates a folder and its parents, and fsyncs the folders that got a new entry.
pub fn make_folder(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let above = folder_of(path);
    make_folder(above)?;
    match fs::create_dir(path) {
        // Another process created it first.
        Err(_) if path.is_dir() => {}
        made => made?,
    }
    Ok(File::open(above)?.sync_all()?)
}

/// As [`write()`], for writers that open the path themselves.
pub fn write_by_path(path: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let place = place(path)?;
    sweep_once(folder_of(&place));
    let temporary = neighbour(&place);
    unfinished().push(temporary.clone());
    let result = write(&temporary).and_then(|()| settle(&temporary, &place));
    if result.is_err() {
        // The error that is reported is the first one.
        let _ = fs::remove_file(&temporary);
    }
    unfinished().retain(|other| *other != temporary);
    result.with_exit_code(ExitCode::Storage, || format!("writing {}", path.display()))
}

/// As [`write_by_path`], and the file appears only where `check` accepts it. Its error is returned as it is: what the
/// file holds is no matter of the disk.
pub fn write_checked<T>(
    path: &Path,
    write: impl FnOnce(&Path) -> Result<()>,
    check: impl FnOnce(&Path) -> Result<T>,
) -> Result<T> {
    let mut verdict = None;
    let written = write_by_path(path, |temporary| {
        write(temporary)?;
        let checked = check(temporary);
        let is_accepted = checked.is_ok();
        verdict = Some(checked);
        ensure!(is_accepted, "the file is not what it should be");
        Ok(())
    });
    match verdict {
        Some(Err(error)) => Err(error),
        Some(Ok(checked)) => written.map(|()| checked),
        None => written.and_then(|()| bail!("the file was not compared")),
    }
}

/// `.NAME.HOST.PROCESS.partial`
fn neighbour(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}.{}.partial", host(), std::process::id()));
    path.with_file_name(name)
}

/// The host name, which tells machines and containers apart.
fn host() -> &'static str {
    static HOST: OnceLock<String> = OnceLock::new();
    HOST.get_or_init(|| {
        let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        name.trim().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(40).collect()
    })
}

/// Temporary files that this process is writing.
fn unfinished() -> MutexGuard<'static, Vec<PathBuf>> {
    static UNFINISHED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes the temporary files of this process; called before it exits.
pub fn give_up() {
    unfinished().iter().for_each(|temporary| drop(fs::remove_file(temporary)));
}

/// Removes temporary files of dead processes from a folder: by process id on this machine, by a last write
/// more than ten minutes ago on others.
pub fn sweep(folder: &Path) {
    const STALE: Duration = Duration::from_secs(600);
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let is_left = match writer(&entry.file_name().to_string_lossy()) {
            Some((true, process)) => is_dead(process),
            Some((false, _)) => {
                let written = entry.metadata().and_then(|metadata| metadata.modified());
                written.is_ok_and(|written| written.elapsed().is_ok_and(|age| age > STALE))
            }
            None => false,
        };
        if is_left {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// The same, once per folder and process.
fn sweep_once(folder: &Path) {
    static SWEPT: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
    if SWEPT.lock().unwrap_or_else(PoisonError::into_inner).insert(folder.to_owned()) {
        sweep(folder);
    }
}

/// Parses the name of a temporary file: whether it is from this machine, and the process id.
fn writer(name: &str) -> Option<(bool, u32)> {
    let (of, process) = name.strip_prefix('.')?.strip_suffix(".partial")?.rsplit_once('.')?;
    Some((of.rsplit_once('.').is_some_and(|(_, by)| by == host()), process.parse().ok()?))
}

/// Whether a process of this machine has ended; false if that is not known.
fn is_dead(process: u32) -> bool {
    process != std::process::id()
        && Path::new("/proc/self").exists()
        && !Path::new(&format!("/proc/{process}")).exists()
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn settle(temporary: &Path, path: &Path) -> Result<()> {
    File::open(temporary)?.sync_all().context("flushing to the disk")?;
    fs::rename(temporary, path)?;
    File::open(folder_of(path))?.sync_all().context("flushing the folder to the disk")
}
