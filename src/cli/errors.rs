//! How the process ends when something goes wrong: the message and the exit code.

use std::io::{ErrorKind, Write};
use std::panic::PanicHookInfo;

use crate::libtorch;
use crate::util::console;
use crate::util::exit_code::{self, ExitCode, Failure};

/// What needs less memory, of a run whose network fits.
const LESS: &str =
    "  memory ran out: a smaller data.batch_size (with train.accumulate for the same result) needs less";

/// Prints `error` and what caused it; returns the exit code that belongs to it.
pub fn failure(error: &anyhow::Error, debug: bool) -> u8 {
    if error.chain().any(is_broken_pipe) {
        return 0;
    }
    let mut text = format!("error: {error}\n");
    for cause in error.chain().skip(1) {
        text += &format!("  caused by: {}\n", cause.to_string().trim_end().replace('\n', "\n    "));
    }
    if debug {
        text = format!("error: {error:?}\n");
    }
    let code = exit_code::code(error);
    // What was found too large before it was made names its own remedy.
    let is_told = error.downcast_ref::<Failure>().is_some_and(|failure| failure.exit == ExitCode::Memory);
    if code == ExitCode::Memory as u8 && !is_told {
        text = text + LESS + "\n";
    }
    if exit_code::is_full(error) {
        text += "  no room is left on that disk, in its quota or under `ulimit -f`: free some; a run goes on with --resume\n";
    }
    let text = console::plain(&text);
    // An error that stderr is closed too has nowhere to go.
    let _ = std::io::stderr().write_all(text.as_bytes());
    code
}

/// Whether the reader of our output has closed the pipe, as `head` does; that is no failure. The writers of
/// JSON and CSV hide the system's error in their own, so its text counts too.
fn is_broken_pipe(cause: &(dyn std::error::Error + 'static)) -> bool {
    let io = cause.downcast_ref::<std::io::Error>();
    io.is_some_and(|io| io.kind() == ErrorKind::BrokenPipe) || cause.to_string().ends_with("(os error 32)")
}

/// A panic is a mistake of the program, and says so. Panics of libtorch under [`libtorch::catch_panics`]
/// become errors and are silent here.
pub fn install_panic_hook() {
    std::panic::set_hook(Box::new(|info| {
        if libtorch::is_catching() {
            return;
        }
        let text = exit_code::plain(&message(info));
        if exit_code::is_out_of_memory(&text) {
            let _ = writeln!(std::io::stderr(), "error: memory ran out\n  caused by: {text}\n{LESS}");
            std::process::exit(ExitCode::Memory as i32);
        }
        let place = info.location().map(|at| format!("{}:{}", at.file(), at.line())).unwrap_or_default();
        let _ = write!(
            std::io::stderr(),
            "internal error at {place}: {text}\n\
             This is a mistake in tikhonov {}, not in what you asked for. Please report it with the command, its\n\
             config and these lines; RUST_BACKTRACE=1 adds where it happened. Checkpoints written so far are whole.\n",
            env!("CARGO_PKG_VERSION"),
        );
        if std::env::var_os("RUST_BACKTRACE").is_some_and(|value| value != "0") {
            let _ = writeln!(std::io::stderr(), "{}", std::backtrace::Backtrace::force_capture());
        }
    }));
}

fn message(info: &PanicHookInfo) -> String {
    let payload = info.payload();
    match (payload.downcast_ref::<String>(), payload.downcast_ref::<&str>()) {
        (Some(text), _) => text.clone(),
        (_, Some(text)) => (*text).to_owned(),
        _ => "a panic without a message".into(),
    }
}
