//! Lines on stdout and stderr. Their reader may go away while the work is done (`| head`, a terminal that is closed):
//! no reason to end it.

use std::borrow::Cow;
use std::fmt::Arguments;
use std::io::{ErrorKind, Write, stderr, stdout};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;

use crate::util::exit_code::{ExitCode, WithExitCode};

/// Why stdout took no more, where somebody still listens.
static LOST: OnceLock<std::io::Error> = OnceLock::new();

/// A line of the result, on stdout.
macro_rules! print_out {
    ($($text:tt)*) => { $crate::util::console::out(format_args!("{}\n", format_args!($($text)*))) };
}

/// A line beside the result, on stderr.
macro_rules! print_err {
    ($($text:tt)*) => { $crate::util::console::aside(format_args!("{}\n", format_args!($($text)*))) };
}

pub(crate) use {print_err, print_out};

/// Text of the result, on stdout. What could not be written is reported by [`complete`].
pub fn out(text: Arguments) {
    let text = text.to_string();
    let mut out = stdout().lock();
    if let Err(error) = out.write_all(plain(&text).as_bytes()).and_then(|()| out.flush())
        && error.kind() != ErrorKind::BrokenPipe
    {
        // The first one tells the cause.
        let _ = LOST.set(error);
    }
}

/// Text beside the result, on stderr.
pub fn aside(text: Arguments) {
    let text = text.to_string();
    let _ = stderr().lock().write_all(plain(&text).as_bytes());
}

/// `text` with its control characters written out, line ends and tabs apart: a file's name may hold what a
/// terminal obeys.
pub fn plain(text: &str) -> Cow<'_, str> {
    let is_obeyed = |c: char| c.is_control() && c != '\n' && c != '\t';
    if !text.contains(is_obeyed) {
        return text.into();
    }
    let written =
        text.chars().map(|c| if is_obeyed(c) { c.escape_default().to_string() } else { c.to_string() });
    written.collect::<String>().into()
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
    Err(cause)
        .with_exit_code(ExitCode::Storage, || "writing to stdout: the work is done, its report is not whole")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_obeys_is_written_out() {
        assert_eq!(plain("a\u{1b}[2Jb\r\u{9b}31m\tc\n"), "a\\u{1b}[2Jb\\r\\u{9b}31m\tc\n");
        assert!(matches!(plain("Größe 漢字\n"), Cow::Borrowed(_)));
    }
}
