//! Every integration test in one binary: linking libtorch once is enough.

mod common;

mod adaptive;
mod amp;
mod architecture;
mod augment;
mod auxiliary;
mod balance;
#[cfg(feature = "kernels")]
mod batch_norm;
mod bench;
mod budget;
mod checkpointing;
mod compression;
mod config;
mod cuda;
mod data;
mod device;
mod distributed;
mod dropped;
mod examples;
mod explain;
mod export;
mod exported;
mod faults;
mod finetune;
mod generation;
mod gradcam;
mod group_lasso;
mod init_from;
mod judged;
mod judgement;
mod kernels;
#[cfg(feature = "kernels")]
mod layers;
mod linear;
mod loader;
#[cfg(feature = "kernels")]
mod loss;
mod masks;
mod model;
mod monitor;
mod onnx;
mod optim;
mod optimizer_state;
mod papers;
mod penalty;
mod penalty_forms;
mod pretend_cuda;
mod preview;
mod python_files;
mod report;
mod restoration;
mod restore;
mod schedule;
mod scores;
mod scripted;
mod second_pass;
mod shrink;
mod sweep;
mod tables;
mod tasks;
mod told;
mod torchvision;
mod train;
mod wheel;
#[cfg(feature = "kernels")]
mod winograd;
mod zoo;
