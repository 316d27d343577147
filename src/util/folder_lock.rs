//! One process per folder: two in one would overwrite each other's files.

use std::fs::{File, TryLockError};
use std::path::Path;

use anyhow::{Context, Result};

use crate::util::exit_code::{ExitCode, WithExitCode, fail};

/// Locks the folder of a run or a sweep for as long as the returned file is open. Exit 2 where another
/// process holds it; `at_work` says what that one does, such as training.
pub fn lock(path: &Path, at_work: &str) -> Result<File> {
    let file = path.join(".lock");
    let lock =
        File::create(&file).with_exit_code(ExitCode::Storage, || format!("making {}", file.display()))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => {
            let message =
                format!("another process is {at_work} in {}; wait for it, or use --output", path.display());
            Err(fail(ExitCode::Usage, message))
        }
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("locking {}", file.display())),
    }
}
