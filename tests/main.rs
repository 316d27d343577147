//! Every integration test in one binary: linking libtorch once is enough.

mod common;

mod adaptive;
mod amp;
mod augment;
mod bench;
mod checkpointing;
mod compression;
mod config;
mod data;
mod dense;
mod device;
mod dropped;
mod export;
mod generation;
mod init_from;
mod loader;
mod loss;
mod masks;
mod model;
mod norm;
mod optim;
mod optimizer_state;
mod penalty;
mod python_files;
mod report;
mod restoration;
mod restore;
mod schedule;
mod scripted;
mod sweep;
mod tables;
mod tasks;
mod told;
mod train;
mod winograd;
