//! Any bytes as a file.
#![no_main]

mod common;

libfuzzer_sys::fuzz_target!(|data: &[u8]| common::exercise(data.to_vec()));
