//! Cuts a network into segments for activation checkpointing: in the backward pass only one segment at a time
//! has all its activations in memory.

use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;

use tch::Tensor;

use crate::libtorch::activation_checkpoint::{Shared, recomputed};
use crate::libtorch::is_recording;

/// Shorter lists of layers are not cut; lists inside them may be.
const SHORTEST: usize = 4;

/// How the lists of a network are to be cut.
#[derive(Clone, Debug)]
pub(super) struct Segmentation {
    /// Segments per list; the root of its length where absent.
    pub segments: Option<usize>,
    /// Tensors that a forward pass updates (running statistics).
    pub buffers: Rc<Vec<Tensor>>,
}

thread_local! {
    static PLAN: RefCell<Option<Segmentation>> = const { RefCell::new(None) };
}

/// Restores the previous plan when dropped.
struct Restore(Option<Segmentation>);

impl Drop for Restore {
    fn drop(&mut self) {
        PLAN.set(self.0.take());
    }
}

/// Runs `f`, in which the outermost lists of four layers or more are cut as `plan` says; with None, none is.
pub(super) fn planned<T>(plan: Option<Segmentation>, f: impl FnOnce() -> T) -> T {
    let _restore = Restore(PLAN.replace(plan));
    f()
}

/// Layers one after the other.
#[derive(Debug)]
pub(super) struct Chain<L> {
    layers: Shared<Vec<L>>,
    /// How much of the network each holds.
    weights: Vec<usize>,
}

impl<L: Send + 'static> Chain<L> {
    /// `weights` are one per layer.
    pub fn new(layers: Vec<L>, weights: Vec<usize>) -> Self {
        Self { layers: Shared::new(layers), weights }
    }

    pub fn layers(&self) -> &[L] {
        &self.layers
    }

    /// What `fold` makes of `xs` through all layers; in segments, where this thread has a plan and gradients
    /// are recorded.
    pub fn through(&self, xs: &Tensor, train: bool, fold: fn(&[L], &Tensor, bool) -> Tensor) -> Tensor {
        let is_cut = train && self.layers.len() >= SHORTEST && is_recording();
        let Some(plan) = PLAN.with_borrow(|plan| plan.clone().filter(|_| is_cut)) else {
            return fold(&self.layers, xs, train);
        };
        planned(None, || {
            let wanted = plan.segments.unwrap_or((self.layers.len() as f64).sqrt().ceil() as usize);
            let mut segments = cut(&self.weights, wanted);
            // The last one's backward pass comes at once.
            let last = segments.pop().unwrap_or_default();
            let ys = segments.into_iter().fold(xs.shallow_clone(), |xs, segment| {
                let layers = self.layers.clone();
                recomputed(&xs, &plan.buffers, move |xs| fold(&layers[segment.clone()], xs, true))
            });
            fold(&self.layers[last], &ys, true)
        })
    }
}

/// At most `count` runs of layers, in order, of about the same weight; a layer belongs where its middle lies.
fn cut(weights: &[usize], count: usize) -> Vec<Range<usize>> {
    let total: usize = weights.iter().sum();
    let (mut segments, mut at, mut before) = (Vec::new(), 0, 0);
    for (layer, weight) in weights.iter().enumerate() {
        let segment = (2 * before + weight) * count.max(1) / (2 * total).max(1);
        if layer == 0 || segment != at {
            segments.push(layer..layer);
        }
        if let Some(last) = segments.last_mut() {
            last.end = layer + 1;
        }
        (at, before) = (segment, before + weight);
    }
    segments
}

#[cfg(test)]
mod tests {
    use super::cut;

    #[test]
    fn segments_hold_every_layer_once_and_weigh_about_the_same() {
        assert_eq!(cut(&[1; 10], 3), [0..3, 3..7, 7..10]);
        assert_eq!(cut(&[1, 1, 8, 1, 1], 3), [0..2, 2..3, 3..5]);
        assert_eq!(cut(&[1; 4], 9), [0..1, 1..2, 2..3, 3..4]);
        assert_eq!(cut(&[2, 2], 1).len(), 1);
        for count in 1..40 {
            let segments = cut(&[1, 5, 5, 1, 9, 1, 1, 3, 30, 2, 2, 2], count);
            assert!(segments.len() <= count, "{segments:?}");
            let all: Vec<usize> = segments.into_iter().flatten().collect();
            assert_eq!(all, (0..12).collect::<Vec<_>>());
        }
    }
}
