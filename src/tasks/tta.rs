//! Test-time augmentation: the mean answer to an image and to its mirror images, as EDSR's self-ensemble (Lim et
//! al. 2017) and ttach have it. Classes by the mean of their probabilities.

use std::fmt;

use anyhow::Result;
use clap::ValueEnum;
use tch::{Kind, Tensor};

use super::{ModelOutput, Task};
use crate::nn::model::Network;
use crate::util::exit_code::{ExitCode, fail};

/// What an image is shown as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Tta {
    /// Itself alone.
    #[default]
    None,
    /// Itself, and left to right.
    Hflip,
    /// The eight flips and quarter turns; of square images.
    D4,
}

impl fmt::Display for Tta {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Tta::None => "none",
            Tta::Hflip => "hflip",
            Tta::D4 => "d4",
        })
    }
}

/// A flip left to right, then quarter turns counter-clockwise.
#[derive(Clone, Copy)]
struct View {
    flip: bool,
    turns: i64,
}

impl View {
    fn of(self, xs: &Tensor) -> Tensor {
        let flipped = if self.flip { xs.flip([3]) } else { xs.shallow_clone() };
        flipped.rot90(self.turns, [2, 3])
    }

    fn undone(self, ys: &Tensor) -> Tensor {
        let turned = ys.rot90(-self.turns, [2, 3]);
        if self.flip { turned.flip([3]) } else { turned }
    }
}

impl Tta {
    fn views(self) -> Vec<View> {
        let view = |flip| move |turns| View { flip, turns };
        match self {
            Tta::None => vec![View { flip: false, turns: 0 }],
            Tta::Hflip => [false, true].map(|flip| View { flip, turns: 0 }).to_vec(),
            Tta::D4 => (0..4).map(view(false)).chain((0..4).map(view(true))).collect(),
        }
    }

    /// Exit 2 where `task` or samples of `shape` have no such views.
    pub fn check(self, task: &dyn Task, shape: &[i64]) -> Result<()> {
        let refuse = |why: String| Err(fail(ExitCode::Usage, format!("--tta {self}: {why}; leave it out")));
        match (self, shape) {
            (Tta::None, _) => Ok(()),
            _ if task.runs_parts() => refuse(format!("the answers of {} have no mean", task.name())),
            (Tta::D4, [_, height, width]) if height != width => {
                refuse(format!("quarter turns need squares, and samples are {shape:?}"))
            }
            (_, [_, _, _]) => Ok(()),
            _ => refuse(format!("samples of shape {shape:?} are no images")),
        }
    }

    /// The task's answer to `xs` in evaluation, `[N, C, H, W]` where there is more than one view, its outputs divided
    /// by `temperature`. Panics as tch does.
    pub fn forward(
        self,
        task: &dyn Task,
        network: &Network,
        xs: &Tensor,
        temperature: Option<f64>,
    ) -> Result<ModelOutput> {
        let answer = |xs: &Tensor| -> Result<ModelOutput> {
            let mut answer = task.forward(network, xs, false)?;
            if let Some(temperature) = temperature {
                answer.outputs /= temperature;
            }
            Ok(answer)
        };
        if self == Tta::None {
            return answer(xs);
        }
        let mut all = Vec::new();
        for view in self.views() {
            let ModelOutput { outputs, .. } = answer(&view.of(xs))?;
            all.push(if outputs.dim() == 4 { view.undone(&outputs) } else { outputs });
        }
        let outputs = Tensor::stack(&all, 0);
        let shape = outputs.size();
        let mean = |values: &Tensor| values.mean_dim([0i64].as_slice(), false, None::<Kind>);
        let mean = if task.answers_logits(&shape[2..]) {
            // Logarithms of mean probabilities are logits of them.
            outputs.log_softmax(2, None::<Kind>).logsumexp([0i64].as_slice(), false) - (all.len() as f64).ln()
        } else if task.answers_labels() {
            let p = mean(&outputs.to_kind(Kind::Double).sigmoid()).clamp(1e-12, 1.0 - 1e-12);
            let rest: Tensor = 1.0 - &p;
            (p.log() - rest.log()).to_kind(outputs.kind())
        } else {
            mean(&outputs)
        };
        Ok(mean.into())
    }
}
