//! Training steps as a CUDA graph: forward pass, loss, backward pass, optimiser and average recorded once and
//! replayed, so that the host asks the GPU for one thing per step and not for a thousand.
//!
//! What changes from step to step is read by the GPU: the batch from buffers that it is copied into, the
//! learning rate, λ and the weight of the average from [`GraphScalars`], random numbers from the generator's
//! seed and offset. What the task does to a batch before the network sees it stays outside, and so does
//! logging. Steps of another shape (the last, smaller batch) run as they are.

use anyhow::{Result, anyhow};
use tch::{Device, Kind, Tensor};

use super::Trainer;
use super::micro_batch_loss::{AnswerLosses, Answers};
use super::train_step::StepResult;
use crate::config::{Amp, CudaGraph, RunConfig};
use crate::data::loader::Batch;
use crate::libtorch::autocast::autocast;
use crate::libtorch::catch_panics;
use crate::libtorch::graph::{Graph, copy_ahead, leave_default_stream};
use crate::optim::{GraphScalars, StepOptions};
use crate::penalty::{LambdaValues, ParamGroup};
use crate::train::session::Session;
use crate::train::trainer::deferred_scalar::DeferredScalar;
use crate::util::exit_code::{ExitCode, fail};
use crate::util::stopwatch::Phase;

/// Steps that run as they are first: cuDNN chooses its algorithms, the optimiser makes its state, the
/// allocator its pools.
const WARM_UP: u64 = 5;

/// Whether and how steps are replayed.
pub(super) enum GraphState {
    Off,
    /// Nothing is recorded yet, and so many steps have run.
    Warmup(u64),
    On(Box<RecordedStep>),
}

/// A step, recorded.
pub(super) struct RecordedStep {
    graph: Graph,
    xs: Tensor,
    ys: Tensor,
    scalars: GraphScalars,
    /// The λs when it was recorded: forms that did not act then were not recorded.
    lambdas: Vec<LambdaValues>,
    loss: Tensor,
    auxiliary: Option<Tensor>,
    grad_norm: Tensor,
}

impl GraphState {
    /// How the run begins, and what the user should know: why steps are not recorded. Exit 2 where the config
    /// insists.
    pub fn new(session: &Session) -> Result<(Self, Option<String>)> {
        let spec = &session.config.spec;
        let wanted = spec.train.cuda_graph;
        match obstacle(spec, session.device, &session.groups, session.task.loss_depends_on_step()) {
            _ if wanted == CudaGraph::Off => Ok((Self::Off, None)),
            None => {
                leave_default_stream(session.device)?;
                Ok((Self::Warmup(0), None))
            }
            // On the CPU there is nothing to insist on, and nothing to tell who did not ask.
            Some(_) if session.device == Device::Cpu && wanted == CudaGraph::Auto => Ok((Self::Off, None)),
            Some(reason) if session.device != Device::Cpu && wanted == CudaGraph::On => {
                let message = format!("train.cuda_graph: {reason}; or say `cuda_graph: auto`");
                Err(fail(ExitCode::Usage, message))
            }
            Some(reason) => Ok((Self::Off, Some(format!("no CUDA graph: {reason}")))),
        }
    }
}

/// What keeps the steps of a run from being recorded.
fn obstacle(
    spec: &RunConfig,
    device: Device,
    groups: &[ParamGroup],
    follows_the_clock: bool,
) -> Option<&'static str> {
    let train = &spec.train;
    let mut forms = groups.iter().flat_map(ParamGroup::active);
    let reasons = [
        (device == Device::Cpu, "the run is on the CPU"),
        (train.accumulate > 1, "`accumulate` makes a step of several batches"),
        (train.amp == Some(Amp::Fp16), "`amp: fp16` decides after each step whether it counts; take bf16"),
        (spec.penalty.input_gradient.is_some(), "`input_gradient` differentiates the backward pass"),
        (train.sam.is_some(), "`sam` makes two passes over a batch"),
        (train.is_cut(), "`checkpoint_activations` looks at the generator's state"),
        (groups.iter().any(|group| group.tuned().is_some()), "a λ that is `auto` looks at the weights"),
        (follows_the_clock, "the loss changes from step to step (`kl_warmup_steps`)"),
    ];
    let of_run = reasons.into_iter().find_map(|(holds, reason)| holds.then_some(reason));
    let of_run = of_run.or_else(|| spec.optimizer.graph_obstacle());
    of_run.or_else(|| forms.find_map(|term| term.form.graph_obstacle()))
}

impl Trainer<'_> {
    /// One step by a replay, where one is due; else the batches come back, to be learnt from as they are.
    pub(super) fn try_replay(
        &mut self,
        mut group: Vec<Batch>,
        is_logged: bool,
    ) -> Result<Result<StepResult, Vec<Batch>>> {
        if matches!(self.graph_state, GraphState::Off) || self.stopwatch.is_running() || group.len() != 1 {
            return Ok(Err(group));
        }
        if let GraphState::Warmup(steps) = &mut self.graph_state
            && *steps < WARM_UP
        {
            *steps += 1;
            return Ok(Err(group));
        }
        let full = self.session.config.spec.data.batch_size as i64;
        if group[0].xs.size()[0] != full {
            return Ok(Err(group));
        }
        let Some(batch) = group.pop() else { return Ok(Err(group)) };
        let (lr, lambdas) = self.next_lr_and_lambdas()?;
        let before = self.weight_stats(is_logged, lr, &lambdas)?;
        let task = &self.session.task;
        // Kept as it was for the case that recording fails: preparing draws random numbers.
        let kept = batch.shallow_clone();
        let (xs, ys) =
            catch_panics(|| task.make_batch(batch.xs, batch.ys, true)).and_then(|prepared| prepared)?;
        if !self.fits(&xs, &ys, &lambdas)
            && let Err(error) = self.record(&xs, &ys, lr, &lambdas)
        {
            let reason = format!("{error:#}");
            if self.session.config.spec.train.cuda_graph == CudaGraph::On {
                let message = format!(
                    "train.cuda_graph: the step cannot be recorded: {reason}; say `cuda_graph: auto`"
                );
                return Err(fail(ExitCode::Usage, message));
            }
            let first = reason.lines().next().unwrap_or_default();
            self.note = Some(format!("no CUDA graph: the step cannot be recorded: {first}"));
            self.graph_state = GraphState::Off;
            self.optimizer.zero_grad()?;
            self.seed();
            return Ok(Err(vec![kept]));
        }
        let GraphState::On(recorded) = &mut self.graph_state else {
            return Err(anyhow!("no step was recorded"));
        };
        copy_ahead(&recorded.xs, &xs)?;
        copy_ahead(&recorded.ys, &ys)?;
        let average = self.averaged.as_ref().map_or(0.0, |(ema, _)| ema.weight());
        recorded.scalars.set(&self.optimizer, lr, &lambdas, average)?;
        recorded.graph.replay()?;
        if let Some((ema, _)) = &mut self.averaged {
            ema.count();
        }
        let (loss, grad_norm) = (DeferredScalar::of(&recorded.loss), DeferredScalar::of(&recorded.grad_norm));
        self.stopwatch.passed(Phase::Optimizer);
        let auxiliary = recorded.auxiliary.as_ref().map(DeferredScalar::of);
        let input_gradient = None;
        Ok(Ok(StepResult {
            loss,
            auxiliary,
            input_gradient,
            grad_norm,
            found_inf: None,
            before,
            samples: full,
        }))
    }

    /// Whether what is recorded is the step to be made.
    fn fits(&self, xs: &Tensor, ys: &Tensor, lambdas: &[LambdaValues]) -> bool {
        let alike = |a: &Tensor, b: &Tensor| a.size() == b.size() && a.kind() == b.kind();
        match &self.graph_state {
            GraphState::On(recorded) => {
                alike(&recorded.xs, xs)
                    && alike(&recorded.ys, ys)
                    && recorded.lambdas.iter().zip(lambdas).all(|(own, now)| own.acts_alike(now))
            }
            _ => false,
        }
    }

    fn record(&mut self, xs: &Tensor, ys: &Tensor, lr: f64, lambdas: &[LambdaValues]) -> Result<()> {
        let device = self.session.device;
        // What was recorded before gives its memory back first.
        self.graph_state = GraphState::Warmup(WARM_UP);
        let (xs, ys) = (xs.f_detach()?.f_empty_like()?, ys.f_detach()?.f_empty_like()?);
        let mut scalars = GraphScalars::new(lambdas.len(), device)?;
        let average = self.averaged.as_ref().map_or(0.0, |(ema, _)| ema.weight());
        scalars.set(&self.optimizer, lr, lambdas, average)?;
        let (session, network, clock) = (self.session, &self.network, self.clock());
        let (optimizer, averaged) = (&mut self.optimizer, &self.averaged);
        let train = &session.config.spec.train;
        let amp = train.amp.map(Amp::kind);
        let (graph, (loss, auxiliary, grad_norm)) = Graph::record(device, || {
            let (loss, sum) = autocast(device, amp, || -> Result<_> {
                let answers = Answers::of(session.task.as_ref(), network, &xs)?;
                let loss =
                    AnswerLosses::of(&answers, |_, answer| session.task.loss(answer, &ys, Some(clock)));
                let sum = loss.with_auxiliary(&loss.main);
                Ok((loss, sum))
            })??;
            sum.backward();
            let options = StepOptions {
                lr,
                lambdas,
                clip: train.clip.as_ref(),
                graph_scalars: Some(&scalars),
                ..StepOptions::default()
            };
            let step = optimizer.step_with(&options)?;
            if let Some((ema, _)) = averaged {
                ema.blend(&network.state(), scalars.average())?;
            }
            let kept = |loss: &Tensor| loss.detach().to_kind(Kind::Double);
            Ok((kept(&loss.main), loss.auxiliary.as_ref().map(kept), step.grad_norm))
        })?;
        let lambdas = lambdas.to_vec();
        self.graph_state = GraphState::On(Box::new(RecordedStep {
            graph,
            xs,
            ys,
            scalars,
            lambdas,
            loss,
            auxiliary,
            grad_norm,
        }));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Config;
    use crate::penalty::PenaltyParam;
    use crate::util::yaml::Document;

    /// What keeps a run on a GPU that says `lines` besides from being recorded.
    fn reason(lines: &str) -> Option<&'static str> {
        let text = format!(
            "model: {{name: mlp}}\ntask: classification\ndata: {{train: {{shapes: {{count: 20, size: 16}}}}, \
             validation: {{fraction: 0.5}}}}\n{lines}\n"
        );
        let text = if lines.contains("optimizer:") { text } else { text + "optimizer: sgd\n" };
        let document = Document::parse("test", text).unwrap();
        let spec = Config::from_document(document, &[], [], Path::new("run")).unwrap().spec;
        let groups = spec.penalty.assign(&[PenaltyParam { name: "w", is_weight: true }]).unwrap();
        obstacle(&spec, Device::Cuda(0), &groups, spec.task.build().loss_depends_on_step())
    }

    #[test]
    fn a_plain_step_can_be_recorded_and_what_cannot_says_why() {
        let plain = "penalty: {decoupled: {start: 0.1, end: 0.2, epochs: 1}, l1: 0.1}\nschedule: cosine\n\
                     train: {epochs: 1, amp: bf16, clip: {norm: 1.0}, ema: {decay: 0.9, warmup: true}}";
        assert_eq!(reason(plain), None);
        for (lines, word) in [
            ("train: {epochs: 1, accumulate: 2}", "accumulate"),
            ("train: {epochs: 1, amp: fp16}", "fp16"),
            ("train: {epochs: 1, checkpoint_activations: 4}", "checkpoint_activations"),
            ("penalty: {input_gradient: 0.1}\ntrain: {epochs: 1}", "input_gradient"),
            ("train: {epochs: 1, sam: {rho: 0.1}}", "sam"),
            ("optimizer: muon\ntrain: {epochs: 1}", "muon"),
            ("penalty: {nuclear_norm: 0.1}\ntrain: {epochs: 1}", "singular values"),
            ("penalty: {l2: auto}\ntrain: {epochs: 1}", "auto"),
            ("penalty: {decoupled: 0.1, decoupled_mode: cautious}\ntrain: {epochs: 1}", "cautious"),
            ("penalty: {decoupled: 0.1, decoupled_mode: accumulated}\ntrain: {epochs: 1}", "accumulated"),
        ] {
            assert!(
                reason(lines).is_some_and(|reason| reason.contains(word)),
                "{lines}: {:?}",
                reason(lines)
            );
        }
        assert_eq!(reason("train: {epochs: 1, checkpoint_activations: false}"), None);
    }
}
