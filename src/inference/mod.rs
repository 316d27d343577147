//! A trained network at work.

pub mod calibration;
pub mod codec;
pub mod compressor;
pub mod gradcam;
pub mod loaded_model;
pub mod restorer;
pub mod sampler;
pub mod segmenter;
pub mod tiles;
