//! Lines for whoever looks on. They may go away while the work is done (`| head`, a terminal that is closed): no reason to end it.

use std::fmt::Arguments;
use std::io::{ErrorKind, Write, stderr, stdout};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;

use crate::exit::{Exit, OrExit};

/// Why stdout took no more, where somebody still listens.
static LOST: OnceLock<std::io::Error> = OnceLock::new();

/// A line of the result, on stdout.
macro_rules! say {
    ($($text:tt)*) => { $crate::say::out(format_args!("{}\n", format_args!($($text)*))) };
}

/// A line beside the result, on stderr.
macro_rules! tell {
    ($($text:tt)*) => { $crate::say::aside(format_args!("{}\n", format_args!($($text)*))) };
}

pub(crate) use {say, tell};

/// Text of the result, on stdout. What does not get there is told by [`complete`].
pub fn out(text: Arguments) {
    let mut out = stdout().lock();
    if let Err(error) = out.write_fmt(text).and_then(|()| out.flush())
        && error.kind() != ErrorKind::BrokenPipe
    {
        // The first one tells the cause.
        let _ = LOST.set(error);
    }
}

/// Text beside the result, on stderr.
pub fn aside(text: Arguments) {
    let _ = stderr().lock().write_fmt(text);
}

/// Whether [`progress`] is silent, as `--quiet` wants it.
static QUIET: AtomicBool = AtomicBool::new(false);

pub fn hush() {
    QUIET.store(true, Ordering::Relaxed);
}

/// A line on how far long work is, on stderr.
pub fn progress(text: Arguments) {
    if !QUIET.load(Ordering::Relaxed) {
        aside(text);
    }
}

/// Exit 7 where a part of the result did not get to stdout.
pub fn complete() -> Result<()> {
    let Some(error) = LOST.get() else { return Ok(()) };
    let cause = std::io::Error::new(error.kind(), error.to_string());
    Err(cause).or_exit(Exit::Storage, || "writing to stdout: the work is done, its report is not whole")
}
