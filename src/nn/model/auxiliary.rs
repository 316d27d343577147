//! Auxiliary heads (Szegedy et al. 2015, "Going deeper with convolutions"): a branch that learns what the network
//! learns from features half-way, for training alone. Its parameters are the network's; use leaves it out.

use std::cell::RefCell;
use std::collections::BTreeMap;

use tch::Tensor;
use tch::nn::ModuleT;

use super::expand::Item;
use super::tree::{Node, Op};
use crate::nn::layers::Upsample;

/// An auxiliary head in its place, before shapes are known.
#[derive(Debug)]
pub(super) struct AuxiliaryItem {
    pub weight: f64,
    pub from: Option<String>,
    pub resize: Option<Upsample>,
    pub layers: Vec<Item>,
}

/// What a head is beside its layers.
#[derive(Debug)]
pub(crate) struct Auxiliary {
    /// Of its loss.
    pub weight: f64,
    /// Its number among the network's heads, in the order of definition.
    pub index: usize,
    /// The number of the node whose output it takes; what comes into its place where absent.
    pub tap: Option<usize>,
    /// Brings its answer to the height and width of the network's.
    pub resize: Option<Upsample>,
}

/// A head as its network knows it.
#[derive(Clone, Debug)]
pub struct AuxiliaryHead {
    /// The prefix of its parameters.
    pub name: String,
    /// Of its loss.
    pub weight: f64,
    pub(super) resize: Option<Upsample>,
}

impl AuxiliaryHead {
    /// Whether the tensor called `name` is its own.
    pub fn holds(&self, name: &str) -> bool {
        name.strip_prefix(&self.name).is_some_and(|rest| rest.starts_with('.'))
    }
}

/// `the auxiliary head aux1`, or `the auxiliary heads aux1, aux2`; None where there are none.
pub fn named_heads(heads: &[AuxiliaryHead]) -> Option<String> {
    let names: Vec<_> = heads.iter().map(|head| head.name.as_str()).collect();
    let word = if names.len() == 1 { "head" } else { "heads" };
    (!names.is_empty()).then(|| format!("the auxiliary {word} {}", names.join(", ")))
}

/// The heads below `node`, in the order of definition.
pub(super) fn heads(node: &Node) -> Vec<AuxiliaryHead> {
    match &node.op {
        Op::Auxiliary(Auxiliary { weight, resize, .. }) => {
            vec![AuxiliaryHead { name: node.path.clone(), weight: *weight, resize: resize.clone() }]
        }
        _ => node.children.iter().flat_map(heads).collect(),
    }
}

/// One forward pass in training whose heads answer.
#[derive(Default)]
struct Pass {
    taps: BTreeMap<usize, Tensor>,
    answers: BTreeMap<usize, Tensor>,
}

thread_local! {
    static PASS: RefCell<Option<Pass>> = const { RefCell::new(None) };
}

/// Ends the pass, also where it panics.
struct End;

impl Drop for End {
    fn drop(&mut self) {
        PASS.set(None);
    }
}

/// Runs `f`; the heads of networks that it runs in training answer. Their answers by their number.
pub(super) fn answering<T>(f: impl FnOnce() -> T) -> (T, BTreeMap<usize, Tensor>) {
    PASS.set(Some(Pass::default()));
    let _end = End;
    let result = f();
    (result, PASS.take().map_or_else(BTreeMap::new, |pass| pass.answers))
}

fn is_answering() -> bool {
    PASS.with_borrow(Option::is_some)
}

fn with_pass<T>(f: impl FnOnce(&mut Pass) -> T) -> Option<T> {
    PASS.with_borrow_mut(|pass| pass.as_mut().map(f))
}

/// Brings the answers of `heads` to the height and width of `ys`, the network's own.
pub(super) fn resize(heads: &[AuxiliaryHead], ys: &Tensor) {
    with_pass(|pass| {
        for (index, answer) in &mut pass.answers {
            if let Some(upsample) = heads.get(*index).and_then(|head| head.resize.as_ref()) {
                *answer = upsample.resize_like(answer, ys);
            }
        }
    });
}

/// Crops the answers that are images as `ys` was cropped.
pub(super) fn crop(ys: &Tensor) {
    let &[_, _, height, width] = ys.size().as_slice() else { return };
    with_pass(|pass| {
        for answer in pass.answers.values_mut().filter(|answer| answer.dim() == 4) {
            *answer = answer.narrow(2, 0, height).narrow(3, 0, width);
        }
    });
}

/// A module whose output a head takes, or [`super::features()`] gives.
#[derive(Debug)]
pub(super) struct Tapped {
    pub module: Box<dyn ModuleT>,
    pub tap: usize,
}

impl ModuleT for Tapped {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Tensor {
        let ys = super::features::heard(self.tap, self.module.forward_t(xs, train));
        if train {
            with_pass(|pass| pass.taps.insert(self.tap, ys.shallow_clone()));
        }
        ys
    }
}

/// A head in its place: it hands on what comes in.
#[derive(Debug)]
pub(super) struct HeadModule {
    pub layers: Box<dyn ModuleT>,
    pub index: usize,
    pub tap: Option<usize>,
}

impl ModuleT for HeadModule {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Tensor {
        if train && is_answering() {
            let tapped = self
                .tap
                .and_then(|tap| with_pass(|pass| pass.taps.get(&tap).map(Tensor::shallow_clone)).flatten());
            let answer = self.layers.forward_t(tapped.as_ref().unwrap_or(xs), true);
            with_pass(|pass| pass.answers.insert(self.index, answer));
        }
        xs.shallow_clone()
    }
}
