//! The output of one layer, by its name: for embeddings and for maps of what an answer depends on.

use std::cell::RefCell;

use anyhow::Result;
use tch::Tensor;

use super::tree::Op;
use super::{Model, grow};
use crate::util::exit_code::{ExitCode, fail};
use crate::util::yaml::nearest;

/// The tap of a layer that no auxiliary head takes from.
const OWN: usize = usize::MAX;

/// What is listened to, and what was heard.
struct Listening {
    tap: usize,
    heard: Option<Tensor>,
    /// Whether the output starts a graph of its own, so that gradients can be taken of what follows.
    tracked: bool,
}

thread_local! {
    static LISTENING: RefCell<Option<Listening>> = const { RefCell::new(None) };
}

impl Model {
    /// Keeps the layer called `name` apart in the networks built of this model, and gives what
    /// [`features`] needs. Names are those of parameters (`layer4.1.conv2`), or with the silent names in them
    /// (`_pool`). Exit 2 where there is no such layer, with the nearest that there is.
    pub fn listen(&mut self, name: &str) -> Result<usize> {
        let found = grow::find(&mut self.root, name);
        if let Some(node) = found {
            return Ok(*node.tap.get_or_insert(OWN));
        }
        let known = self.layer_names();
        let hint = match nearest(name, known.iter().map(String::as_str)) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("its layers are {}", known.join(", ")),
        };
        Err(fail(ExitCode::Usage, format!("the network has no layer `{name}`; {hint}")))
    }

    /// The names that [`listen`](Self::listen) takes.
    pub fn layer_names(&self) -> Vec<String> {
        let mut names = Vec::new();
        grow::places(&self.root, &mut |node| names.push(node.place.clone()));
        names
    }

    /// The last layer whose output is an image of more than one pixel.
    pub fn last_image_layer(&self) -> Option<String> {
        let mut last = None;
        grow::places(&self.root, &mut |node| {
            let is_image = matches!(*node.output, [_, height, width] if height * width > 1);
            let is_leaf = matches!(node.op, Op::Layer(_) | Op::Join(_) | Op::Concat);
            if is_image && is_leaf {
                last = Some(node.place.clone());
            }
        });
        last
    }
}

/// Runs `f`, which calls [`super::Network::forward`]; also gives the output of the layer of `tap`. `tracked` makes
/// that output a leaf, whose gradient a backward pass of what follows leaves in it.
pub fn features<T>(tap: usize, tracked: bool, f: impl FnOnce() -> T) -> (T, Option<Tensor>) {
    LISTENING.set(Some(Listening { tap, heard: None, tracked }));
    struct End;
    impl Drop for End {
        fn drop(&mut self) {
            LISTENING.set(None);
        }
    }
    let _end = End;
    let result = f();
    (result, LISTENING.take().and_then(|listening| listening.heard))
}

/// The output of the layer of `tap`, as the rest of the network is to see it.
pub(super) fn heard(tap: usize, ys: Tensor) -> Tensor {
    LISTENING.with_borrow_mut(|listening| match listening {
        Some(listening) if listening.tap == tap => {
            let ys = if listening.tracked { ys.detach().set_requires_grad(true) } else { ys };
            listening.heard = Some(ys.shallow_clone());
            ys
        }
        _ => ys,
    })
}
