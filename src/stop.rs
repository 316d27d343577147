//! Ctrl-C and SIGTERM: the first asks the loop to save and stop, the second ends the process at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

/// The exit status of a second signal.
const IMPATIENT: i32 = 130;

/// The environment variable that a process sets for the trials it starts: they stop when it lets go of their stdin, by
/// its own death at the latest.
pub const LEASH: &str = "TIKHONOV_LEASH";

/// Set by a signal, read by the loop.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Listens for SIGINT and SIGTERM from now on.
    pub fn on_signals() -> Result<Self> {
        let stop = Self::default();
        for signal in [SIGINT, SIGTERM] {
            // Order matters: the exit sees the flag only if an earlier signal has set it.
            flag::register_conditional_shutdown(signal, IMPATIENT, stop.0.clone())
                .and_then(|_| flag::register(signal, stop.0.clone()))
                .context("listening for Ctrl-C")?;
        }
        if std::env::var_os(LEASH).is_some() {
            let flag = stop.0.clone();
            std::thread::spawn(move || {
                // Nothing is ever written there: the end of it is the message.
                let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
                flag.store(true, Ordering::Relaxed);
            });
        }
        Ok(stop)
    }

    pub fn is_requested(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
