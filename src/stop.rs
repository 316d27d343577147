//! Ctrl-C, SIGTERM and the end of the terminal: the first asks the loop to save and stop, the second ends the process at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};

use anyhow::{Context, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;

use crate::interrupt;

/// The exit status of a second signal.
const IMPATIENT: i32 = 130;

/// Whether this process lets `signal` pass, as Linux tells it.
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

/// Set by a signal, read by the loop.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Listens for SIGINT and SIGTERM from now on, and for SIGHUP unless whoever started us has it ignored, as `nohup` does.
    pub fn on_signals() -> Result<Self> {
        let stop = Self::default();
        for signal in [SIGINT, SIGTERM, SIGHUP].into_iter().filter(|signal| !is_ignored(*signal)) {
            // Order matters: the exit sees the flag only if an earlier signal has set it.
            flag::register_conditional_shutdown(signal, IMPATIENT, stop.0.clone())
                .and_then(|_| flag::register(signal, stop.0.clone()))
                .context("listening for Ctrl-C")?;
        }
        interrupt::watch(&stop.0);
        Ok(stop)
    }

    /// The same, and the end of stdin asks too: whoever started us and holds the other end has let go, by its own death
    /// at the latest. Also returns the lines that come from there.
    pub fn on_signals_and_end_of_stdin() -> Result<(Self, Receiver<String>)> {
        let stop = Self::on_signals()?;
        let (flag, (sender, lines)) = (stop.0.clone(), channel());
        std::thread::spawn(move || {
            for line in std::io::stdin().lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
            flag.store(true, Ordering::Relaxed);
        });
        Ok((stop, lines))
    }

    /// As a signal would.
    pub fn request(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub fn is_requested(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
