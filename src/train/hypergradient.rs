//! λ₂ tuned while the network learns, by the gradient of the validation loss one step ahead: T1–T2 (Luketina,
//! Berglund, Greff and Raiko 2016, "Scalable gradient-based tuning of continuous regularization
//! hyperparameters").
//!
//! Every `every` optimiser steps, after the step w → w′ that λ took part in, for each penalty group whose λ₂
//! is `auto`:
//!
//! 1. L_val(w′), the mean loss of one batch of the validation set, as evaluation computes it, and its
//!    gradient.
//! 2. h = dL_val(w′)/d log λ = λ·∇L_val(w′)·∂w′/∂λ over the group's weights. λ acts through this one step
//!    alone; that w depends on earlier λs is neglected (the paper's approximation). ∂w′/∂λ is exact:
//!    - SGD with `l2`: −η·w, times 1 − dampening with momentum m (not in the first step), or 1 + m·(1 −
//!      dampening) with Nesterov's;
//!    - Adam, Adagrad, RMSprop with `l2`: ∂w′/∂g ⊙ w, since λw is a part of g: for Adam −η·[(1 − β₁)/d −
//!      m·r′/d²]/(1 − β₁ᵗ) ⊙ w, r = √(v/(1 − β₂ᵗ)), d = r + ε, r′ = (1 − β₂)·g/(r·(1 − β₂ᵗ)), m, v those
//!      after the step; see `optim`;
//!    - `decoupled`, any optimiser: −η·w; relative −(η/η_peak)·w; cautious −η·1[u·w ≥ 0]·w;
//!    - a soft threshold in the same step: 0 where w′ = 0.
//! 3. Adam (Kingma and Ba 2015) on log λ: m ← 0.9·m + 0.1·h, v ← 0.99·v + 0.01·h², and with both corrected
//!    for their start log λ ← log λ − `lr`·m̂/√v̂, kept within 10⁻¹² ≤ λ ≤ 10³.
//!
//! Before every step λ is held to where it takes no more than a tenth of a weight between two updates:
//! λ·`every`·s ≤ 0.1, where s is the share that a unit of λ takes per step: η of decoupled decay, η·(1 −
//! dampening)/(1 − m) of `l2` with SGD. From there it can come down by 0.1 per update while the weights lose
//! a factor of e at most; without that, λ a hundred times too large empties the network before the first few
//! updates, and an empty one has no gradient to mend it by. (`l2` under Adam, Adagrad and RMSprop needs no
//! such bound: their steps do not grow with λ.)
//!
//! The logarithm and the quotient make a λ that starts 100 times wrong come home in ln 100/`lr` ≈ 46 updates,
//! whatever the scale of the losses; that h holds η lets λ rest as the schedule ends.
//!
//! h sees what shrinking all weights of a group alike does to the validation *loss* in one step, and no more.
//! Classifiers that overfit are overconfident, which it sees well. A regression network that has learnt its
//! noise by heart often answers too small where it knows nothing, so that one step of shrinking does harm
//! though a run of it would do good: sweep λ there.
//!
//! A batch norm takes the batch's own statistics here, as in training, and its running ones stay as they
//! were: with those held fixed, shrinking a weight before it would seem to matter, which it does not. Such a
//! network's dropout is on, as it goes with the same switch. Networks without batch norms are in evaluation
//! mode.
//!
//! Which samples make the batch, and all noise, are functions of the seed and of the number of the update.

use anyhow::{Context, Result};
use tch::{Kind, Tensor};

use crate::data::loader::{Batch, Loader};
use crate::libtorch::catch_panics;
use crate::libtorch::device;
use crate::nn::model::Network;
use crate::optim::{LambdaGradient, Optimizer};
use crate::penalty::{Auto, LambdaValues, TunedLambda, apply_tuned};
use crate::train::session::Session;
use crate::util::exit_code::{ExitCode, fail};
use crate::util::rng::{CounterRng, RngStream};

/// What λ may take of a weight between two updates.
const SHARE: f64 = 0.1;

/// The tuned λs of a run, and where their validation batches come from.
pub struct LambdaTuner<'a> {
    session: &'a Session,
    /// None where no λ is tuned.
    loader: Option<Loader>,
    tuned: Vec<TunedLambda>,
    /// Index of the penalty group, and how it is tuned; one for each of `tuned`.
    how: Vec<(usize, Auto)>,
    /// Running statistics, which no validation batch may touch; empty without batch norm.
    buffers: Vec<Tensor>,
}

impl<'a> LambdaTuner<'a> {
    /// `saved` are those of a checkpoint; a group that is not among them starts anew.
    pub fn new(session: &'a Session, network: &Network, saved: &[TunedLambda]) -> Result<Self> {
        let groups = session.groups.iter().enumerate();
        let how: Vec<_> = groups.filter_map(|(at, group)| Some((at, group.tuned()?.1))).collect();
        let loader = match how.is_empty() {
            true => None,
            false => Some(session.validation_in_random_order().context("the validation set that tunes λ")?),
        };
        let start = |&(at, auto): &(usize, Auto)| {
            let label = &session.groups[at].label;
            let known = saved.iter().find(|known| known.group == *label);
            known.cloned().unwrap_or_else(|| TunedLambda::new(label, auto))
        };
        let tuned = how.iter().map(start).collect();
        Ok(Self { session, loader, tuned, how, buffers: network.buffers() })
    }

    /// The λs between two steps, to be saved.
    pub fn tuned(&self) -> &[TunedLambda] {
        &self.tuned
    }

    /// Puts the λs of another process, in the same order, in the place of these.
    pub fn set_tuned(&mut self, tuned: Vec<TunedLambda>) {
        self.tuned = tuned;
    }

    /// Holds the λs to what `optimizer` can bear at the rate `lr`.
    pub fn bound(&mut self, optimizer: &Optimizer, lr: f64) {
        for (tuned, (group, auto)) in self.tuned.iter_mut().zip(&self.how) {
            let tuned_term = self.session.groups[*group].tuned();
            let shrinkage =
                tuned_term.and_then(|(term, _)| term.form.shrinkage(&optimizer.rates(lr, *group)));
            if let Some(per_step) = shrinkage.filter(|per_step| *per_step > 0.0) {
                tuned.bound(SHARE / (auto.every as f64 * per_step));
            }
        }
    }

    /// Puts the λs of now into `lambdas`, one entry per penalty group.
    pub fn fill(&self, lambdas: &mut [LambdaValues]) {
        apply_tuned(&self.session.groups, lambdas, &self.tuned);
    }

    /// The groups, by index, whose λ moves after the step that `step` others precede: that step is to be
    /// traced.
    pub fn due(&self, step: u64) -> Vec<usize> {
        let due = self.how.iter().filter(|(_, auto)| step % auto.every == auto.every - 1);
        due.map(|&(group, _)| group).collect()
    }

    /// Moves the λs of the groups `due` after a step that gave `shifts` for them and left no gradients. Waits
    /// for the device.
    pub fn update_lambdas(
        &mut self,
        network: &Network,
        step: u64,
        due: &[usize],
        shifts: &[Vec<LambdaGradient>],
    ) -> Result<()> {
        let Some(batch) = self.batch(step)? else { return Ok(()) };
        // The same draws whether or not others came before.
        device::seed(CounterRng::new(self.session.config.spec.seed, step, 0, RngStream::Tune).bits());
        let kept: Vec<Tensor> = self.buffers.iter().map(Tensor::copy).collect();
        let task = &self.session.task;
        catch_panics(|| -> Result<()> {
            let (xs, ys) = task.make_batch(batch.xs, batch.ys, false)?;
            let answer = task.forward(network, &xs, !self.buffers.is_empty())?;
            task.loss(&answer, &ys, None).backward();
            Ok(())
        })??;
        let parameters = network.parameters();
        tch::no_grad(|| -> Result<()> {
            for (buffer, kept) in self.buffers.iter_mut().zip(&kept) {
                buffer.f_copy_(kept)?;
            }
            for (group, shifts) in due.iter().zip(shifts) {
                let mut slope = 0.0;
                for LambdaGradient { param, tensor } in shifts {
                    let gradient = parameters[*param].tensor.grad();
                    if gradient.defined() {
                        slope += gradient.f_mul(tensor)?.f_sum(Kind::Double)?.f_double_value(&[])?;
                    }
                }
                self.update(*group, slope)?;
            }
            Ok(())
        })
    }

    fn update(&mut self, group: usize, slope: f64) -> Result<()> {
        let Some(at) = self.how.iter().position(|&(of, _)| of == group) else { return Ok(()) };
        let tuned = &mut self.tuned[at];
        let gradient = slope * tuned.lambda;
        if !gradient.is_finite() {
            let message = format!(
                "the gradient of the validation loss that tunes λ of `{}` became NaN or infinite at λ = {:e}; lower \
                 `optimizer` lr, clip (`train: {{clip: {{norm: 1.0}}}}`), or start from a smaller λ",
                tuned.group, tuned.lambda
            );
            return Err(fail(ExitCode::Numeric, message));
        }
        tuned.update(gradient, self.how[at].1.lr);
        Ok(())
    }

    /// The validation batch of the step that `step` others precede: one after another through ever new random
    /// orders.
    fn batch(&self, step: u64) -> Result<Option<Batch>> {
        let Some(loader) = &self.loader else { return Ok(None) };
        let every = self.how.iter().map(|(_, auto)| auto.every).min().unwrap_or(1).max(1);
        let (update, batches) = (step / every, loader.steps().max(1) as u64);
        loader.batch(update / batches, (update % batches) as usize)
    }
}
