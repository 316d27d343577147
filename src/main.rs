//! The process: parse, run, report, exit code.

use clap::Parser;
use tikhonov::cli::{Cli, errors};
use tikhonov::libtorch::{exit_fast, out_of_memory};
use tikhonov::util::signals;

#[global_allocator]
static ALLOCATOR: out_of_memory::NotingAllocator = out_of_memory::NotingAllocator;

fn main() {
    errors::install_panic_hook();
    out_of_memory::install_handlers();
    signals::outlive_file_limits();
    // Help, the version and mistakes on the command line end here.
    let cli = Cli::try_parse().unwrap_or_else(|told| {
        let _ = told.print();
        exit_fast(told.exit_code() as u8)
    });
    exit_fast(match cli.run() {
        Ok(()) => 0,
        Err(error) => errors::failure(&error, cli.debug),
    })
}
