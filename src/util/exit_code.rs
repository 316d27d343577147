//! Exit codes: what kind of failure it was, carried through `anyhow` beside the message.

use std::fmt;

/// Why the process ends, as its exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitCode {
    /// A wrong command line, config or model description.
    Usage = 2,
    /// Data that is missing, damaged or does not fit.
    Data = 3,
    /// A checkpoint or model file that cannot be used.
    Checkpoint = 4,
    /// NaN or infinity in training.
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

impl ExitCode {
    /// The kind of failure that another process of ours ended with.
    pub fn from_code(code: Option<i32>) -> Option<Self> {
        use ExitCode::*;
        let all = [Usage, Data, Checkpoint, Numeric, Memory, Storage, Distributed, Interrupted];
        all.into_iter().find(|exit| Some(*exit as i32) == code)
    }
}

/// An error with its exit code. Make one with [`fail`] or [`WithExitCode::with_exit_code`].
#[derive(Debug)]
pub struct Failure {
    pub exit: ExitCode,
    message: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// An error that ends the process with `exit`.
pub fn fail(exit: ExitCode, message: impl fmt::Display) -> anyhow::Error {
    anyhow::Error::new(Failure { exit, message: message.to_string() })
}

/// Gives an error its exit code and says what was being done.
pub trait WithExitCode<T> {
    /// `context` names the thing and, where there is one, the remedy; the cause follows it.
    fn with_exit_code<C: fmt::Display>(
        self,
        exit: ExitCode,
        context: impl FnOnce() -> C,
    ) -> anyhow::Result<T>;
}

impl<T, E: Into<anyhow::Error>> WithExitCode<T> for Result<T, E> {
    fn with_exit_code<C: fmt::Display>(
        self,
        exit: ExitCode,
        context: impl FnOnce() -> C,
    ) -> anyhow::Result<T> {
        self.map_err(|error| error.into().context(Failure { exit, message: context().to_string() }))
    }
}

impl<T> WithExitCode<T> for Option<T> {
    fn with_exit_code<C: fmt::Display>(
        self,
        exit: ExitCode,
        context: impl FnOnce() -> C,
    ) -> anyhow::Result<T> {
        self.ok_or_else(|| fail(exit, context()))
    }
}

/// The exit code of `error`: the outermost one given, else inferred from the message (memory, disk), else 1.
pub fn code(error: &anyhow::Error) -> u8 {
    if error.chain().any(|cause| is_out_of_memory(&cause.to_string()) || is_memory_refused(cause)) {
        return ExitCode::Memory as u8;
    }
    if error.chain().any(is_storage_full) {
        return ExitCode::Storage as u8;
    }
    error.downcast_ref::<Failure>().map_or(1, |failure| failure.exit as u8)
}

/// Whether a library's message says that memory ran out, on the CPU or on a GPU: libtorch's, C++'s, those of CUDA's
/// libraries, cuDNN's of a convolution none of whose algorithms gets its memory, or oneDNN's, which says no more when
/// a primitive whose descriptor is fine gets no memory.
pub fn is_out_of_memory(message: &str) -> bool {
    const SAID: [&str; 6] = [
        "out of memory",
        "can't allocate memory",
        "std::bad_alloc",
        // CUDNN_STATUS_…, CUBLAS_STATUS_…, CUSOLVER_STATUS_…, CUSPARSE_STATUS_…
        "STATUS_ALLOC_FAILED",
        "DEVICE_ALLOCATION_FAILED",
        "unable to find an engine to execute this computation",
    ];
    let says = |text: &str| message.contains(text);
    SAID.into_iter().any(says)
        || (says("could not create a primitive") && !says("could not create a primitive descriptor"))
}

/// What a library says of an error, without the code of ours that it came through and its own addresses:
/// tch's operators without an error path panic with `called Result::unwrap() …: Torch("TEXT")`.
pub fn plain(message: &str) -> String {
    let inner = message.strip_prefix("called `Result::unwrap()` on an `Err` value: ").unwrap_or(message);
    let inner = match inner.strip_prefix("Torch(\"").and_then(|inner| inner.strip_suffix("\")")) {
        Some(inner) => {
            inner.replace("\\n", "\n").replace("\\\"", "\"").replace("\\'", "'").replace("\\\\", "\\")
        }
        None => inner.to_owned(),
    };
    let end =
        ["\nframe #", " frame #", "\nException raised from"].iter().filter_map(|mark| inner.find(mark)).min();
    inner[..end.unwrap_or(inner.len())].trim_end().to_owned()
}

fn io_kind(cause: &(dyn std::error::Error + 'static)) -> Option<std::io::ErrorKind> {
    let own = cause.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
    // The writer of JSON hides the system's error in its own.
    own.or_else(|| cause.downcast_ref::<serde_json::Error>()?.io_error_kind())
}

fn is_memory_refused(cause: &(dyn std::error::Error + 'static)) -> bool {
    io_kind(cause) == Some(std::io::ErrorKind::OutOfMemory)
}

/// Whether the error is that of a disk, a quota or a limit of file size that is used up.
pub fn is_full(error: &anyhow::Error) -> bool {
    use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    error.chain().any(|cause| matches!(io_kind(cause), Some(FileTooLarge | QuotaExceeded | StorageFull)))
}

fn is_storage_full(cause: &(dyn std::error::Error + 'static)) -> bool {
    use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    matches!(io_kind(cause), Some(FileTooLarge | QuotaExceeded | ReadOnlyFilesystem | StorageFull))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_librarys_message_is_shown_without_what_it_came_through() {
        let raw = "called `Result::unwrap()` on an `Err` value: Torch(\"[enforce fail at alloc_cpu.cpp:119] err == 0. \
                   DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.\\nframe #0: c10::Error\")";
        let text = plain(raw);
        assert!(text.starts_with("[enforce fail") && text.ends_with("9 bytes."), "{text}");
        assert!(is_out_of_memory(&text));
        assert!(is_out_of_memory("could not create a primitive"));
        for status in
            ["CUDNN_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_ALLOC_FAILED", "CUSOLVER_STATUS_ALLOC_FAILED"]
        {
            assert!(is_out_of_memory(&format!("CUDA error: {status} when calling `cublasCreate(handle)`")));
        }
        assert!(is_out_of_memory("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"));
        assert!(is_out_of_memory("FIND was unable to find an engine to execute this computation"));
        assert!(!is_out_of_memory("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"));
        assert!(!is_out_of_memory("could not create a primitive descriptor for a convolution"));
        assert_eq!(plain("as it is"), "as it is");
    }
}
