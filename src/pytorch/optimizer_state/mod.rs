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

use crate::optim::{Argument, OptimizerSpec};

/// Kinds of optimisers that differ in what they keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    Sgd,
    /// Adam and AdamW: the penalty tells them apart.
    Adam,
    Adagrad,
    RmsProp,
}

impl Family {
    fn of(spec: &OptimizerSpec) -> Family {
        match spec {
            OptimizerSpec::Sgd(_) => Family::Sgd,
            OptimizerSpec::Adam(_) | OptimizerSpec::AdamW(_) => Family::Adam,
            OptimizerSpec::Adagrad(_) => Family::Adagrad,
            OptimizerSpec::RmsProp(_) => Family::RmsProp,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Family::Sgd => "SGD",
            Family::Adam => "Adam or AdamW",
            Family::Adagrad => "Adagrad",
            Family::RmsProp => "RMSprop",
        }
    }
}

/// For people.
fn shown(argument: Argument) -> String {
    match argument {
        Argument::Number(number) => number.to_string(),
        Argument::Flag(flag) => flag.to_string(),
        Argument::Pair(a, b) => format!("({a}, {b})"),
    }
}
