//! Checkpoints: our own folders, and what Python users saved.

mod folder;
mod state;
mod store;

pub use folder::{Loaded, Snapshot, is_checkpoint, load};
pub use state::{Best, State};
pub use store::{Checkpoints, STABLE};
