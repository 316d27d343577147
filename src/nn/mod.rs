//! Networks: layers, and the model language that composes them.

pub mod layers;
pub mod model;
pub mod shrink;
