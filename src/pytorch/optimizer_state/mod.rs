//! The state of an optimiser as `torch.optim` saves it: `optimizer.state_dict()` beside the weights, read and
//! written.
//!
//! Python numbers the parameters through its param groups; here they have names. `read` is what a file says,
//! `fit` whose state is whose, [`write`] the way back.

mod fit;
mod read;
mod write;

pub use fit::{Fitted, Known};
pub use read::PythonOptimizer;
pub use write::{Resumable, state_dict};

use crate::optim::Argument;

/// As a message shows it.
fn shown(argument: Argument) -> String {
    match argument {
        Argument::Number(number) => number.to_string(),
        Argument::Flag(flag) => flag.to_string(),
        Argument::Pair(a, b) => format!("({a}, {b})"),
    }
}
