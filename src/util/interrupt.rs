//! Whether a signal asks this process to stop: long work of which nothing is saved, such as reading a data
//! set or judging a network, is given up halfway.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use anyhow::Result;

use crate::util::exit_code::{ExitCode, fail};

static REQUESTED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// Has `flag`, which the handlers of signals set, count from now on.
pub fn watch(flag: &Arc<AtomicBool>) {
    // A process listens once.
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
