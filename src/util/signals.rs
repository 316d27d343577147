//! Signals: the first sets a flag that makes the training loop save and stop; a second SIGINT, SIGTERM or
//! SIGHUP ends the process at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};

use anyhow::{Context, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2, SIGXCPU, SIGXFSZ};
use signal_hook::flag;
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

use crate::util::atomic_file;
use crate::util::threads::spawn;

use crate::util::interrupt;

/// The exit status of a second signal.
const IMPATIENT: i32 = 130;

/// Whether this process ignores `signal`, according to /proc/self/status.
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

/// Makes writing beyond `ulimit -f` an error of the disk (exit 7) instead of a SIGXFSZ that ends the process.
pub fn outlive_file_limits() {
    // If that fails, the signal keeps its default action.
    let _ = flag::register(SIGXFSZ, Arc::default());
}

/// Removes temporary files before SIGINT, SIGTERM or SIGHUP ends the process. For commands that have nothing
/// else to save.
pub fn clean_up_on_signals() {
    let signals = [SIGINT, SIGTERM, SIGHUP].into_iter().filter(|signal| !is_ignored(*signal));
    let Ok(mut signals) = Signals::new(signals) else { return };
    let handle = signals.handle();
    let watch = move || {
        if let Some(signal) = signals.forever().next() {
            atomic_file::give_up();
            let _ = emulate_default_handler(signal);
        }
    };
    // Without a thread the signals keep their default action.
    if spawn("signals", watch).is_err() {
        handle.close();
        for signal in [SIGINT, SIGTERM, SIGHUP].into_iter().filter(|signal| !is_ignored(*signal)) {
            let _ = flag::register_conditional_default(signal, Arc::new(AtomicBool::new(true)));
        }
    }
}

/// Set by a signal, read by the loop.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Listens from now on for the signals that end processes, and for those by which batch systems warn
    /// (SIGUSR1 and SIGUSR2 of SLURM's `--signal`, SIGXCPU of a limit of CPU time); not for those that the
    /// parent process has ignored, as `nohup` does SIGHUP.
    pub fn on_signals() -> Result<Self> {
        let (stop, insisted) = (Self::default(), Arc::new(AtomicBool::new(false)));
        for signal in [SIGINT, SIGTERM, SIGHUP].into_iter().filter(|signal| !is_ignored(*signal)) {
            // Order matters: the exit sees the flag only if an earlier signal has set it.
            flag::register_conditional_shutdown(signal, IMPATIENT, insisted.clone())
                .and_then(|_| flag::register(signal, insisted.clone()))
                .and_then(|_| flag::register(signal, stop.0.clone()))
                .context("listening for Ctrl-C")?;
        }
        // These may come again, and before one of the others, while the state is being saved.
        for signal in [SIGUSR1, SIGUSR2, SIGXCPU].into_iter().filter(|signal| !is_ignored(*signal)) {
            flag::register(signal, stop.0.clone()).context("listening for signals")?;
        }
        interrupt::watch(&stop.0);
        Ok(stop)
    }

    /// As [`Self::on_signals`]; also stops at EOF on stdin, i.e. when the parent process exits. Returns the lines
    /// read from stdin.
    pub fn on_signals_and_end_of_stdin() -> Result<(Self, Receiver<String>)> {
        let stop = Self::on_signals()?;
        let (flag, (sender, lines)) = (stop.0.clone(), channel());
        spawn("stdin", move || {
            for line in std::io::stdin().lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
            flag.store(true, Ordering::Relaxed);
        })?;
        Ok((stop, lines))
    }

    /// Sets the flag, as a signal does.
    pub fn request(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub fn is_requested(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
