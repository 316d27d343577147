//! One run, from its config to its result.

pub mod bench;
pub(crate) mod coefficients;
pub mod distributed;
pub mod early_stopping;
pub mod evaluate;
pub mod filters;
pub mod hypergradient;
pub mod initial_weights;
pub mod lr_range;
pub mod predicted;
pub mod preview;
pub mod progress;
pub mod python_checkpoint;
pub mod recognition;
pub mod records;
pub mod run;
pub mod run_folder;
pub mod run_result;
pub mod sample_images;
pub mod session;
pub mod tensorboard;
pub mod trainer;
pub mod training_loop;
