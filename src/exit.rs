//! Exit codes: what kind of failure it was, carried through `anyhow` beside the message.

use std::fmt;

/// Why the process ends, as its exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// A wrong command line, config or model description.
    Usage = 2,
    /// Data that is missing, damaged or does not fit.
    Data = 3,
    /// A checkpoint or model file that cannot be used.
    Checkpoint = 4,
    /// NaN or infinity where a number was due.
    Numeric = 5,
    /// Out of memory, on the host or on the device.
    Memory = 6,
    /// The disk is full or refuses to write.
    Storage = 7,
    /// The distributed job failed.
    Distributed = 8,
    /// Interrupted; the state is saved and `--resume` goes on from it.
    Interrupted = 75,
}

impl Exit {
    /// The kind of failure that another process of ours ended with.
    pub fn from_code(code: Option<i32>) -> Option<Self> {
        use Exit::*;
        let all = [Usage, Data, Checkpoint, Numeric, Memory, Storage, Distributed, Interrupted];
        all.into_iter().find(|exit| Some(*exit as i32) == code)
    }
}

/// An error with its exit code. Make one with [`fail`] or [`OrExit::or_exit`].
#[derive(Debug)]
pub struct Failure {
    pub exit: Exit,
    message: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// An error that ends the process with `exit`.
pub fn fail(exit: Exit, message: impl fmt::Display) -> anyhow::Error {
    anyhow::Error::new(Failure { exit, message: message.to_string() })
}

/// Gives an error its exit code and says what was being done.
pub trait OrExit<T> {
    /// `context` names the thing and, where there is one, the remedy; the cause follows it.
    fn or_exit<C: fmt::Display>(self, exit: Exit, context: impl FnOnce() -> C) -> anyhow::Result<T>;
}

impl<T, E: Into<anyhow::Error>> OrExit<T> for Result<T, E> {
    fn or_exit<C: fmt::Display>(self, exit: Exit, context: impl FnOnce() -> C) -> anyhow::Result<T> {
        self.map_err(|error| error.into().context(Failure { exit, message: context().to_string() }))
    }
}

impl<T> OrExit<T> for Option<T> {
    fn or_exit<C: fmt::Display>(self, exit: Exit, context: impl FnOnce() -> C) -> anyhow::Result<T> {
        self.ok_or_else(|| fail(exit, context()))
    }
}

/// The code that `error` ends the process with: the outermost one given, else what the text tells, else 1.
pub fn code(error: &anyhow::Error) -> u8 {
    if error.chain().any(|cause| is_out_of_memory(&cause.to_string())) {
        return Exit::Memory as u8;
    }
    if error.chain().any(is_storage_full) {
        return Exit::Storage as u8;
    }
    error.downcast_ref::<Failure>().map_or(1, |failure| failure.exit as u8)
}

/// Whether libtorch's message says that memory ran out, on the CPU or on a GPU.
pub fn is_out_of_memory(message: &str) -> bool {
    message.contains("out of memory") || message.contains("can't allocate memory")
}

fn is_storage_full(cause: &(dyn std::error::Error + 'static)) -> bool {
    use std::io::ErrorKind::{QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    let own = cause.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
    // The writer of JSON hides the system's error in its own.
    let kind = own.or_else(|| cause.downcast_ref::<serde_json::Error>()?.io_error_kind());
    matches!(kind, Some(StorageFull | QuotaExceeded | ReadOnlyFilesystem))
}
