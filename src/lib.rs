//! tikhonov trains regularised convolutional networks with libtorch.
//!
//! The rooms, lowest floor first; a room imports only rooms below it.

// Floor 0: libtorch, the device, exit codes, the embedded files, renaming rules, arithmetic of images, how a config
// writes an enum, drawings as pictures, the time of phases, SHA-256, regular files, signals, lines for whoever looks on, what
// fits a terminal, threads.
pub mod device;
mod digest;
pub mod exit;
pub mod figure;
pub mod imaging;
mod interrupt;
pub mod libtorch;
pub mod plot;
mod regular;
pub mod rename;
mod say;
pub mod shipped;
pub mod stopwatch;
mod tagged;
mod terminal;
mod threads;
// Floor 1: pure functions of files, tensors and steps.
pub mod codec;
pub mod data;
pub mod layers;
pub mod loss;
pub mod metrics;
pub mod penalty;
pub mod schedule;
pub mod yaml;
// Floor 2: the network, the optimiser; the task, which runs the network.
pub mod model;
pub mod optim;
pub mod tasks;
// Floor 3: files that outlive the process.
pub mod checkpoint;
pub mod export;
// Floor 4: the run as declared.
pub mod config;
// Floor 5: the work.
pub mod adaptive;
pub mod bench;
mod coefficients;
pub mod compressor;
pub mod eval;
pub mod gallery;
pub mod generator;
pub mod handover;
pub mod history;
pub mod launch;
pub mod outcome;
pub mod progress;
pub mod report;
pub mod restore;
pub mod run_folder;
pub mod segmenter;
pub mod session;
pub mod standing;
pub mod stop;
pub mod sweep;
pub mod telemetry;
pub mod tensorboard;
pub mod tiles;
pub mod train;
pub mod trained;
pub mod trainer;
// Floor 6: the command line.
pub mod cli;
pub mod commands;
