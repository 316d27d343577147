//! One process per folder: two in one would overwrite each other's files.

use std::fs::{File, TryLockError};
use std::path::Path;

use anyhow::{Context, Result};

use crate::util::exit_code::{Exit, OrExit, fail};

/// Locks the folder of a run or a sweep for as long as the returned file is open. Exit 2 where another process holds it;
/// `at_work` says what that one does, such as training.
pub fn lock(path: &Path, at_work: &str) -> Result<File> {
    let file = path.join(".lock");
    let lock = File::create(&file).or_exit(Exit::Storage, || format!("making {}", file.display()))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => {
            let message =
                format!("another process is {at_work} in {}; wait for it, or use --output", path.display());
            Err(fail(Exit::Usage, message))
        }
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("locking {}", file.display())),
    }
}
