//! Interchange with Python: what `torch.save` and its relatives wrote is read without running any of it, and
//! what is written here `torch.load` and `torch.jit.load` read.

pub(crate) mod attributes;
pub(crate) mod dcp;
pub mod export;
pub(crate) mod name_matching;
mod named_weights;
pub mod optimizer_state;
pub mod reader;
pub(crate) mod reparametrized;
pub(crate) mod sharded;
mod single_file;
pub mod weights;
pub mod writer;
