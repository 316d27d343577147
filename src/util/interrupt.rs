//! Cancels long work that has no state to save (reading a data set, evaluating a network) after a signal.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use anyhow::Result;

use crate::util::exit_code::{ExitCode, fail};

static REQUESTED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// Registers the flag that the signal handlers set.
pub fn watch(flag: &Arc<AtomicBool>) {
    // Only the first call counts.
    let _ = REQUESTED.set(flag.clone());
}

pub fn is_requested() -> bool {
    REQUESTED.get().is_some_and(|flag| flag.load(Ordering::Relaxed))
}

/// Exit 75 where a signal came during `what`.
pub fn check(what: &str) -> Result<()> {
    if !is_requested() {
        return Ok(());
    }
    let message =
        format!("interrupted while {what}; the same command with --resume goes on from what is saved");
    Err(fail(ExitCode::Interrupted, message))
}
