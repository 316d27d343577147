//! Training steps as a CUDA graph: forward pass, loss, backward pass, optimiser and average recorded once and
//! replayed, so that the host asks the GPU for one thing per step and not for a thousand.
//!
//! What changes from step to step is read by the GPU: the batches from buffers that they are copied into, the
//! learning rate, λ, the weight of the average and the number of the loss from [`GraphScalars`], the loss scale of
//! float16 where it is, random numbers from the generator's seed and offset. What the task does to a batch before
//! the network sees it stays outside, and so does logging. Steps of another shape (the last, smaller batch) run as
//! they are.

use anyhow::{Result, anyhow};
use tch::{Device, Kind, Tensor};

use super::Trainer;
use super::data_parallel::StepBatches;
use super::micro_batch_loss::{Answers, MicroBatchLoss};
use super::train_step::StepResult;
use crate::config::{Amp, RunConfig, Toggle};
use crate::data::loader::Batch;
use crate::functional::channels_last;
use crate::libtorch::autocast::autocast;
use crate::libtorch::catch_panics;
use crate::libtorch::graph::{Graph, copy_ahead, leave_default_stream};
use crate::metrics::ModelOutput;
use crate::optim::{GraphScalars, StepNumbers, StepOptions};
use crate::penalty::{LambdaValues, ParamGroup};
use crate::tasks::Task;
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
    /// The batches of a step: inputs and targets.
    inputs: Vec<(Tensor, Tensor)>,
    scalars: GraphScalars,
    /// The λs when it was recorded: forms that did not act then were not recorded.
    lambdas: Vec<LambdaValues>,
    outputs: Outputs,
}

/// What a recorded step leaves, each 0-dim.
struct Outputs {
    loss: Tensor,
    auxiliary: Option<Tensor>,
    grad_norm: Tensor,
    /// As in [`StepOutput::found_inf`](crate::optim::StepOutput::found_inf).
    found_inf: Option<Tensor>,
}

impl GraphState {
    /// How the run begins, and what the user should know: why steps are not recorded. Exit 2 where the config
    /// insists.
    pub fn new(session: &Session) -> Result<(Self, Option<String>)> {
        let spec = &session.config.spec;
        let wanted = spec.train.cuda_graph;
        let shared = session.ranks.is_some().then_some("several processes share each step");
        let obstacle = || obstacle(spec, session.device, &session.groups, session.task.as_ref());
        match shared.or_else(obstacle) {
            _ if wanted == Toggle::Off => Ok((Self::Off, None)),
            None => {
                leave_default_stream(session.device)?;
                Ok((Self::Warmup(0), None))
            }
            // On the CPU there is nothing to insist on, and nothing to tell who did not ask.
            Some(_) if session.device == Device::Cpu && wanted == Toggle::Auto => Ok((Self::Off, None)),
            Some(reason) if session.device != Device::Cpu && wanted == Toggle::On => {
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
    task: &dyn Task,
) -> Option<&'static str> {
    let train = &spec.train;
    let forms = || groups.iter().flat_map(ParamGroup::active);
    let skips_on_device =
        spec.optimizer.supports_found_inf() && forms().all(|term| term.form.supports_found_inf());
    let reasons = [
        (device == Device::Cpu, "the run is on the CPU"),
        (
            train.accumulate > 1 && task.is_joint(),
            "the loss of several batches (`accumulate`) is a function of sums that wants a forward pass of its own",
        ),
        (
            train.amp == Some(Amp::Fp16) && !skips_on_device,
            "under `amp: fp16` the host decides whether a step of this optimizer or penalty counts; take bf16",
        ),
        (spec.penalty.input_gradient.is_some(), "`input_gradient` differentiates the backward pass"),
        (train.sam.is_some(), "`sam` makes two passes over a batch"),
        (train.is_cut(), "`checkpoint_activations` looks at the generator's state"),
        (groups.iter().any(|group| group.tuned().is_some()), "a λ that is `auto` looks at the weights"),
    ];
    let of_run = reasons.into_iter().find_map(|(holds, reason)| holds.then_some(reason));
    let of_run = of_run.or_else(|| spec.optimizer.graph_obstacle());
    of_run.or_else(|| forms().find_map(|term| term.form.graph_obstacle()))
}

impl Trainer<'_> {
    /// One step by a replay, where one is due; else the batches come back, to be learnt from as they are.
    pub(super) fn try_replay(
        &mut self,
        step: StepBatches,
        is_logged: bool,
    ) -> Result<Result<StepResult, StepBatches>> {
        let spec = &self.session.config.spec;
        if matches!(self.graph_state, GraphState::Off) || self.stopwatch.is_running() {
            return Ok(Err(step));
        }
        if let GraphState::Warmup(steps) = &mut self.graph_state
            && (*steps < WARM_UP || !self.optimizer.has_begun())
        {
            *steps += 1;
            return Ok(Err(step));
        }
        let full = spec.data.batch_size as i64;
        let is_full = |batch: &Batch| batch.xs.size()[0] == full;
        if step.own.len() != spec.train.accumulate || !step.own.iter().all(is_full) {
            return Ok(Err(step));
        }
        let group = step.own;
        let (lr, lambdas) = self.next_lr_and_lambdas()?;
        let before = self.weight_stats(is_logged, lr, &lambdas)?;
        let task = &self.session.task;
        // Kept as they were for the case that recording fails: preparing draws random numbers.
        let kept: Vec<_> = group.iter().map(Batch::shallow_clone).collect();
        let prepared = catch_panics(|| -> Result<Vec<_>> {
            group.into_iter().map(|batch| task.make_batch(batch.xs, batch.ys, true)).collect()
        })??;
        if !self.fits(&prepared, &lambdas)
            && let Err(error) = self.record(&prepared, lr, &lambdas)
        {
            let reason = format!("{error:#}");
            if self.session.config.spec.train.cuda_graph == Toggle::On {
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
            return Ok(Err(StepBatches::alone(kept)));
        }
        let numbers = self.step_numbers();
        let GraphState::On(recorded) = &mut self.graph_state else {
            return Err(anyhow!("no step was recorded"));
        };
        for ((own_xs, own_ys), (xs, ys)) in recorded.inputs.iter().zip(&prepared) {
            copy_ahead(own_xs, xs)?;
            copy_ahead(own_ys, ys)?;
        }
        recorded.scalars.set(&self.optimizer, lr, &lambdas, numbers)?;
        recorded.graph.replay()?;
        if let Some((ema, _)) = &mut self.averaged {
            ema.count();
        }
        let Outputs { loss, auxiliary, grad_norm, found_inf } = &recorded.outputs;
        if let (Some(scale), Some(found_inf)) = (&mut self.scale, found_inf) {
            scale.observe(found_inf)?;
        }
        self.stopwatch.passed(Phase::Optimizer);
        Ok(Ok(StepResult {
            loss: DeferredScalar::of(loss),
            auxiliary: auxiliary.as_ref().map(DeferredScalar::of),
            input_gradient: None,
            grad_norm: DeferredScalar::of(grad_norm),
            found_inf: found_inf.as_ref().map(Tensor::shallow_clone),
            before,
            samples: full * prepared.len() as i64,
        }))
    }

    /// What a step reads beside rates and λs.
    fn step_numbers(&self) -> StepNumbers {
        let average = self.averaged.as_ref().map_or(0.0, |(ema, _)| ema.weight());
        StepNumbers { average, loss: self.session.task.loss_number(self.clock()).unwrap_or_default() }
    }

    /// Whether what is recorded is the step to be made.
    fn fits(&self, inputs: &[(Tensor, Tensor)], lambdas: &[LambdaValues]) -> bool {
        let alike = |a: &Tensor, b: &Tensor| a.size() == b.size() && a.kind() == b.kind();
        match &self.graph_state {
            GraphState::On(recorded) => {
                let pairs = recorded.inputs.iter().zip(inputs);
                pairs.clone().all(|(own, now)| alike(&own.0, &now.0) && alike(&own.1, &now.1))
                    && recorded.lambdas.iter().zip(lambdas).all(|(own, now)| own.acts_alike(now))
            }
            _ => false,
        }
    }

    fn record(&mut self, like: &[(Tensor, Tensor)], lr: f64, lambdas: &[LambdaValues]) -> Result<()> {
        let device = self.session.device;
        // What was recorded before gives its memory back first.
        self.graph_state = GraphState::Warmup(WARM_UP);
        let room = |like: &Tensor| -> Result<Tensor> { Ok(like.f_detach()?.f_empty_like()?) };
        let images = |xs| if self.channels_last { channels_last(&xs) } else { xs };
        let inputs: Vec<_> =
            like.iter().map(|(xs, ys)| Ok((images(room(xs)?), room(ys)?))).collect::<Result<_>>()?;
        let mut scalars = GraphScalars::new(lambdas.len(), device)?;
        scalars.set(&self.optimizer, lr, lambdas, self.step_numbers())?;
        let (network, scale, clock) = (&self.network, &self.scale, self.clock());
        let (optimizer, averaged) = (&mut self.optimizer, &self.averaged);
        let (task, train) = (self.session.task.as_ref(), &self.session.config.spec.train);
        let (amp, share) = (train.amp.map(Amp::kind), 1.0 / inputs.len() as f64);
        let has_number = task.loss_number(clock).is_some();
        let (graph, outputs) = Graph::record(device, || {
            let parts = match inputs.as_slice() {
                [_] => MicroBatchLoss::Samples,
                several => MicroBatchLoss::separate(task, several.iter().map(|(_, ys)| ys)),
            };
            let (mut total, mut auxiliary): (Option<Tensor>, Option<Tensor>) = (None, None);
            for (xs, ys) in &inputs {
                let loss = autocast(device, amp, || -> Result<_> {
                    let answers = Answers::of(task, network, xs)?;
                    let loss = |answer: &ModelOutput| match has_number {
                        true => task.loss_with(answer, ys, scalars.loss(), clock),
                        false => task.loss(answer, ys, Some(clock)),
                    };
                    Ok(parts.of(task, &answers, ys, share, loss))
                })??;
                let objective = loss.with_auxiliary(&loss.main);
                scale.as_ref().map_or(objective.shallow_clone(), |scale| scale.scaled(&objective)).backward();
                for (sum, part) in [(&mut total, Some(&loss.main)), (&mut auxiliary, loss.auxiliary.as_ref())]
                {
                    let Some(part) = part.map(|part| part.detach().to_kind(Kind::Double)) else { continue };
                    *sum = Some(match sum.take() {
                        Some(sum) => sum + part,
                        None => part,
                    });
                }
            }
            let options = StepOptions {
                lr,
                lambdas,
                clip: train.clip.as_ref(),
                scale: scale.as_ref(),
                graph_scalars: Some(&scalars),
                ..StepOptions::default()
            };
            let step = optimizer.step_with(&options)?;
            if let Some((ema, _)) = averaged {
                ema.blend(&network.state(), step.found_inf.as_ref(), scalars.average())?;
            }
            if let (Some(scale), Some(found_inf)) = (scale, &step.found_inf) {
                scale.adapt(found_inf)?;
            }
            let loss = total.ok_or_else(|| anyhow!("a step of no batches"))?;
            Ok(Outputs { loss, auxiliary, grad_norm: step.grad_norm, found_inf: step.found_inf })
        })?;
        let lambdas = lambdas.to_vec();
        self.graph_state =
            GraphState::On(Box::new(RecordedStep { graph, inputs, scalars, lambdas, outputs }));
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
        obstacle(&spec, Device::Cuda(0), &groups, spec.task.task())
    }

    #[test]
    fn a_plain_step_can_be_recorded_and_what_cannot_says_why() {
        let plain = "penalty: {decoupled: {start: 0.1, end: 0.2, epochs: 1}, l1: 0.1}\nschedule: cosine\n\
                     train: {epochs: 1, amp: bf16, clip: {norm: 1.0}, ema: {decay: 0.9, warmup: true}}";
        assert_eq!(reason(plain), None);
        for plain in ["train: {epochs: 1, accumulate: 2}", "train: {epochs: 1, amp: fp16}"] {
            assert_eq!(reason(plain), None);
        }
        for (lines, word) in [
            ("optimizer: nadam\ntrain: {epochs: 1, amp: fp16}", "fp16"),
            ("penalty: {unit_norm: 1}\ntrain: {epochs: 1, amp: fp16}", "fp16"),
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
