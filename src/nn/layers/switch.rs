//! Freezing a layer while a run goes on: the switch that the layer and the network share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tch::Tensor;
use tch::nn::ModuleT;

/// On while a layer is frozen: it then runs in evaluation mode.
#[derive(Clone, Debug, Default)]
pub(crate) struct Switch(Arc<AtomicBool>);

impl Switch {
    pub fn set(&self, is_frozen: bool) {
        self.0.store(is_frozen, Ordering::Relaxed);
    }

    pub fn is_frozen(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A layer with running statistics that may be frozen for a while.
#[derive(Debug)]
pub(crate) struct Freezable {
    pub layer: Box<dyn ModuleT>,
    pub switch: Switch,
}

impl ModuleT for Freezable {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Tensor {
        self.layer.forward_t(xs, train && !self.switch.is_frozen())
    }
}
