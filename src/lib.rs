//! tikhonov trains regularised convolutional networks with libtorch.
//!
//! A folder imports only folders below it in this table (tests/architecture.rs checks that);
//! docs/ARCHITECTURE.md walks through them.
//!
//! | folder | holds |
//! |---|---|
//! | [`cli`] | the command line: arguments, one file per subcommand, errors as the user reads them |
//! | [`inference`] | a trained network at work: loading, restoring, compressing, sampling, segmenting |
//! | [`train`] | one run: training loop, trainer, session, run folder, records |
//! | [`report`] | pages about runs |
//! | [`sweep`] | many runs: grids, searches, folds, pruning |
//! | [`checkpoint`] | our own checkpoints |
//! | [`config`] | the YAML of a run, composed of the specs of the folders below |
//! | [`pytorch`] | what Python wrote or reads: checkpoints, optimiser states, TorchScript, source code |
//! | [`tasks`] | what a network is trained for |
//! | [`optim`] | optimisers, clipping, weight averages, gradient scaling |
//! | [`penalty`] | penalties on the weights and their strengths |
//! | [`schedule`] | learning rates and strengths over the steps |
//! | [`metrics`] | scores on a set |
//! | [`data`] | data sets: where samples come from, and how they become batches |
//! | [`nn`] | layers, and the model language that composes them |
//! | [`functional`] | losses and image arithmetic |
//! | [`plot`] | figures |
//! | [`libtorch`] | the only unsafe code: what tch does not bind, and in `kernels` our own CPU kernels |
//! | [`util`] | YAML, exit codes, files, signals, the terminal, random numbers |

pub mod checkpoint;
pub mod cli;
pub mod config;
pub mod data;
pub mod functional;
pub mod inference;
pub mod libtorch;
pub mod metrics;
pub mod nn;
pub mod optim;
pub mod penalty;
pub mod plot;
pub mod pytorch;
pub mod report;
pub mod schedule;
pub mod sweep;
pub mod tasks;
pub mod train;
pub mod util;
