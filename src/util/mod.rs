//! Helpers without knowledge of the other folders: YAML with positions, JSON Schema, protocol buffers, exit
//! codes, atomic files, signals, the terminal, random numbers.

pub mod atomic_file;
pub mod builtin;
pub(crate) mod console;
pub mod exit_code;
pub(crate) mod folder_lock;
pub(crate) mod interrupt;
pub mod json_schema;
pub mod protobuf;
pub(crate) mod regular_file;
pub mod rename;
pub mod rng;
pub(crate) mod sha256;
pub mod signals;
pub mod stopwatch;
pub(crate) mod tagged_enum;
pub(crate) mod terminal;
pub(crate) mod threads;
pub mod yaml;
