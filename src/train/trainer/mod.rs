//! A run in progress: network, optimiser, penalty and position, and the steps that the loop is told in.

mod cuda_graph;
mod deferred_scalar;
mod evaluation;
mod finite_check;
mod micro_batch_loss;
mod notes;
mod saving;
mod start;

use std::rc::Rc;
use std::time::Instant;

use anyhow::Result;
use tch::Tensor;

use crate::checkpoint::State;
use crate::config::Amp;
use crate::data::Split;
use crate::data::loader::{Batch, Loader};
use crate::libtorch::autocast::autocast;
use crate::libtorch::catch_panics;
use crate::libtorch::device;
use crate::metrics::Scores;
use crate::nn::model::Network;
use crate::optim::{Ema, GradScaler, Optimizer, StepOptions};
use crate::penalty::LambdaValues;
use crate::schedule::{Plateau, ScheduleStep};
use crate::train::early_stopping;
use crate::train::hypergradient::LambdaTuner;
use crate::train::records::{self, Averaged, EpochRecord, Record, Scaling, StepRecord, WeightStats};
use crate::train::run_folder::RunFolder;
use crate::train::session::Session;
use crate::train::tensorboard::Board;
use crate::util::exit_code::{self, ExitCode};
use crate::util::rng::{CounterRng, RngStream};
use crate::util::stopwatch::{Phase, Stopwatch};
use cuda_graph::GraphState;
use deferred_scalar::DeferredScalar;
use micro_batch_loss::MicroBatchLoss;
pub use start::Start;

pub struct Trainer<'a> {
    session: &'a Session,
    network: Network,
    /// The averaged weights, and a network of their own in which they are evaluated.
    averaged: Option<(Ema, Network)>,
    optimizer: Optimizer,
    /// The λs that the validation set tunes.
    lambda_tuner: LambdaTuner<'a>,
    /// Of `amp: fp16`.
    scale: Option<GradScaler>,
    graph_state: GraphState,
    /// What the user is to be told.
    note: Option<String>,
    /// How many of the samples that were left out the user has been told of, set by set.
    told: [usize; 3],
    /// The same, with `--quiet` too.
    warnings: Vec<String>,
    /// Step, epoch and batch of the checkpoint that this process saved last.
    saved: Option<(u64, u64, usize)>,

    loader: Rc<Loader>,
    folder: RunFolder,
    board: Option<Board>,
    state: State,
    plateau: Plateau,
    /// Data loss × samples over this epoch: read only when it is shown or saved.
    loss_sum: DeferredScalar,
    /// Sum of losses and gradient norms: finite as long as all of them were.
    finite_check: DeferredScalar,
    epoch_began: Instant,
    logged: Instant,
    samples_since_log: u64,
    samples_since_begin: u64,
    samples_of_step: u64,
    /// The scores (validation, test) of the weights as they are, where the end of an epoch has just told
    /// them.
    latest: Option<[Option<Scores>; 2]>,
    /// Runs in a bench only.
    stopwatch: Stopwatch,
}

/// What one step made of the weights.
struct StepResult {
    /// Of the data.
    loss: DeferredScalar,
    grad_norm: DeferredScalar,
    /// As in [`crate::optim::Step`].
    found_inf: Option<Tensor>,
    /// How the weights stood before it, where it is logged.
    before: Option<WeightStats>,
    samples: i64,
}

impl Trainer<'_> {
    pub fn epoch(&self) -> u64 {
        self.state.epoch
    }

    pub fn step(&self) -> u64 {
        self.state.step
    }

    pub fn state(&self) -> &State {
        &self.state
    }

    pub fn folder(&mut self) -> &mut RunFolder {
        &mut self.folder
    }

    /// Has the phases of the steps to come timed by `stopwatch`.
    pub fn time_phases(&mut self, stopwatch: Stopwatch) {
        self.stopwatch = stopwatch;
    }

    pub fn stopwatch(&self) -> &Stopwatch {
        &self.stopwatch
    }

    pub fn loader(&self) -> Rc<Loader> {
        self.loader.clone()
    }

    pub fn is_over(&self) -> bool {
        self.state.epoch >= self.session.config.spec.train.epochs
    }

    /// Optimiser steps of the whole run.
    pub fn total_steps(&self) -> u64 {
        self.steps_per_epoch() * self.session.config.spec.train.epochs
    }

    fn steps_per_epoch(&self) -> u64 {
        self.loader.steps().div_ceil(self.session.config.spec.train.accumulate) as u64
    }

    /// Steps made: a skipped one moves neither learning rate nor λ.
    fn position(&self) -> u64 {
        self.state.step - self.state.skipped
    }

    fn clock(&self) -> ScheduleStep {
        let steps_per_epoch = self.steps_per_epoch();
        ScheduleStep { step: self.position(), steps_per_epoch, total_steps: self.total_steps() }
    }

    /// The learning rate of the step that `step` others, made and not skipped, precede.
    fn lr_at(&self, step: u64) -> f64 {
        let spec = &self.session.config.spec;
        spec.schedule.lr(spec.optimizer.lr(), ScheduleStep { step, ..self.clock() }, &self.plateau)
    }

    /// The λs of the step that `step` others, made and not skipped, precede; those that are tuned, as they
    /// stand.
    fn rates_at(&self, step: u64) -> Vec<LambdaValues> {
        let clock = ScheduleStep { step, ..self.clock() };
        let mut rates: Vec<_> = self.session.groups.iter().map(|group| group.lambdas(clock)).collect();
        self.lambda_tuner.fill(&mut rates);
        rates
    }

    /// The highest rate that the schedule means to reach.
    fn peak(&self) -> f64 {
        let spec = &self.session.config.spec;
        spec.schedule.peak(spec.optimizer.lr())
    }

    pub fn begin_epoch(&mut self) {
        self.epoch_began = Instant::now();
        self.logged = Instant::now();
        self.samples_since_log = 0;
        self.samples_since_begin = 0;
    }

    /// The rest of this epoch, one item per optimiser step: `accumulate` batches, fewer at the end.
    pub fn remaining_micro_batches<'l>(
        &self,
        loader: &'l Loader,
    ) -> impl Iterator<Item = Result<Vec<Batch>>> + 'l {
        let accumulate = self.session.config.spec.train.accumulate;
        let mut batches = loader.epoch(self.state.epoch, self.state.batch);
        std::iter::from_fn(move || {
            let group: Result<Vec<Batch>> = batches.by_ref().take(accumulate).collect();
            group.map(|group| (!group.is_empty()).then_some(group)).transpose()
        })
    }

    /// One optimiser step. Numbers come back when it is time to log them; otherwise nothing waits for the
    /// device.
    pub fn train_step(&mut self, group: Vec<Batch>) -> Result<Option<StepRecord>> {
        let log_every = self.session.config.spec.train.log_every;
        let is_logged = self.state.step % log_every == log_every - 1;
        let batches = group.len();
        self.seed();
        let made = match self.try_replay(group, is_logged)? {
            Ok(made) => made,
            Err(group) => self.eager_step(group, is_logged)?,
        };
        self.state.batch += batches;
        self.update_counters(&made);
        match made.before {
            Some(before) => self.log_step(before, &made.loss, &made.grad_norm).map(Some),
            None => Ok(None),
        }
    }

    /// Dropout and noise are functions of the seed and the step, so that nothing of the generator needs
    /// saving.
    fn seed(&self) {
        let mut draw = CounterRng::new(self.session.config.spec.seed, self.state.step, 0, RngStream::Step);
        device::seed(draw.bits());
    }

    /// The learning rate and the λs of the step to come; waits for the gradients of the one before where it
    /// could have been skipped.
    fn next_lr_and_lambdas(&mut self) -> Result<(f64, Vec<LambdaValues>)> {
        self.sync_skipped_step()?;
        let lr = self.lr_at(self.position());
        self.lambda_tuner.bound(&self.optimizer, lr);
        Ok((lr, self.rates_at(self.position())))
    }

    fn weight_stats(&self, is_logged: bool, lr: f64, rates: &[LambdaValues]) -> Result<Option<WeightStats>> {
        let groups = &self.session.groups;
        is_logged.then(|| WeightStats::of(&self.network, groups, rates, lr, self.peak())).transpose()
    }

    /// The gradient of the batches together, and a step by it.
    fn eager_step(&mut self, group: Vec<Batch>, is_logged: bool) -> Result<StepResult> {
        let samples: i64 = group.iter().map(|batch| batch.xs.size()[0]).sum();
        let parts = self.micro_batch_loss(&group)?;
        let (task, network) = (&self.session.task, &self.network);
        let (stopwatch, scale) = (&self.stopwatch, &self.scale);
        let (device, amp) = (self.session.device, self.session.config.spec.train.amp.map(Amp::kind));
        let mut loss_sum = DeferredScalar::new(0.0, device);
        for batch in group {
            let share = batch.xs.size()[0] as f64 / samples as f64;
            let part = catch_panics(|| -> Result<DeferredScalar> {
                let (xs, ys) = task.make_batch(batch.xs, batch.ys, true)?;
                stopwatch.passed(Phase::Prepare);
                let loss = autocast(device, amp, || -> Result<Tensor> {
                    let answer = task.forward(network, &xs, true)?;
                    Ok(parts.of(self, &answer, &ys, share))
                })??;
                stopwatch.passed(Phase::Forward);
                scale.as_ref().map_or(loss.shallow_clone(), |scale| scale.scaled(&loss)).backward();
                stopwatch.passed(Phase::Backward);
                Ok(DeferredScalar::of(&loss))
            })??;
            loss_sum.add(&part, 1.0);
        }
        if let MicroBatchLoss::Joint { loss, .. } = &parts {
            loss_sum = DeferredScalar::of(loss);
        }
        // As late as this: the device has all of the backward pass to do while the step before is asked
        // after.
        let (lr, rates) = self.next_lr_and_lambdas()?;
        let before = self.weight_stats(is_logged, lr, &rates)?;
        let (clip, tuned) =
            (self.session.config.spec.train.clip.as_ref(), self.lambda_tuner.due(self.state.step));
        let scale = self.scale.as_ref();
        let stride =
            StepOptions { lr, rates: &rates, clip, differentiate: &tuned, scale, graph_scalars: None };
        let step = self.optimizer.step_with(&stride)?;
        if !step.shifts.is_empty() {
            self.lambda_tuner.update_lambdas(&self.network, self.state.step, &tuned, &step.shifts)?;
            self.optimizer.zero_grad()?;
        }
        if let Some((ema, _)) = &mut self.averaged {
            ema.update(&self.network.state(), step.found_inf.as_ref())?;
        }
        if let (Some(scale), Some(found_inf)) = (&mut self.scale, &step.found_inf) {
            scale.update(found_inf)?;
        }
        self.stopwatch.passed(Phase::Optimizer);
        let grad_norm = DeferredScalar::of(&step.grad_norm);
        Ok(StepResult { loss: loss_sum, grad_norm, found_inf: step.found_inf, before, samples })
    }

    /// Counts a step, and adds its loss to the epoch's; nothing waits for the device.
    fn update_counters(&mut self, step: &StepResult) {
        let samples = step.samples as u64;
        // A skipped step is no sign of ill health, and no part of the epoch's loss.
        let [loss, grad_norm] =
            [&step.loss, &step.grad_norm].map(|number| number.unless(step.found_inf.as_ref()));
        self.finite_check.add(&loss, 1.0);
        self.finite_check.add(&grad_norm, 1.0);
        self.loss_sum.add(&loss, step.samples as f64);
        self.samples_of_step = samples;
        self.state.step += 1;
        self.state.samples += samples;
        self.samples_since_log += samples;
        self.samples_since_begin += samples;
        self.state.score = None;
        self.latest = None;
    }

    /// What the user is to be told, once.
    pub fn take_note(&mut self) -> Option<String> {
        self.note.take()
    }

    /// A line for each sample that was left out since the last time.
    pub fn left_out(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        for (told, (set, all)) in self.told.iter_mut().zip(self.session.left_out()) {
            let new = all.get(*told..).unwrap_or_default();
            lines.extend(new.iter().map(|one| format!("{set}: {one}")));
            *told = all.len().max(*told);
        }
        lines
    }

    /// What the user must not miss, once.
    pub fn take_warnings(&mut self) -> Vec<String> {
        std::mem::take(&mut self.warnings)
    }

    /// Takes note of whether the last step was skipped; waits for its gradients where it could have been.
    fn sync_skipped_step(&mut self) -> Result<()> {
        if let Some(scale) = &mut self.scale
            && scale.was_skipped()?
        {
            self.state.skipped += 1;
            self.state.samples -= self.samples_of_step;
            self.optimizer.uncount();
            if let Some((ema, _)) = &mut self.averaged {
                ema.uncount();
            }
        }
        Ok(())
    }

    /// Waits for the device.
    fn scaling(&self) -> Result<Option<Scaling>> {
        let of = |scale: &GradScaler| -> Result<Scaling> {
            Ok(Scaling { loss_scale: scale.state()?.scale, skipped_steps: self.state.skipped })
        };
        self.scale.as_ref().map(of).transpose()
    }

    fn log_step(
        &mut self,
        before: WeightStats,
        loss: &DeferredScalar,
        grad_norm: &DeferredScalar,
    ) -> Result<StepRecord> {
        self.sync_skipped_step()?;
        self.check_finite()?;
        let loss = loss.read();
        let record = StepRecord {
            epoch: self.state.epoch + 1,
            step: self.state.step,
            loss,
            total: loss + before.penalty,
            condition: before,
            grad_norm: grad_norm.read(),
            scaling: self.scaling()?,
            images_per_s: self.samples_since_log as f64 / self.logged.elapsed().as_secs_f64(),
        };
        self.samples_since_log = 0;
        self.logged = Instant::now();
        self.folder.record(&Record::Step(&record))?;
        if let Some(board) = &mut self.board {
            board.step(&record)?;
        }
        Ok(record)
    }

    /// Evaluates, tells the schedule, and moves on to the next epoch.
    pub fn end_epoch(&mut self) -> Result<EpochRecord> {
        self.sync_skipped_step()?;
        self.check_finite()?;
        self.check_steps()?;
        // The rates of the last step that was made, and the weights as it left them.
        let last = self.position().saturating_sub(1);
        let (lr, rates) = (self.lr_at(last), self.rates_at(last));
        let seconds = self.epoch_began.elapsed().as_secs_f64();
        // NaN, the mean of nothing, where every step was skipped.
        let loss = self.loss_sum.read() / self.state.samples as f64;
        let unfinished = (self.state.clone(), self.loss_sum.read());
        self.next_epoch()?;
        self.state.seconds += seconds;
        self.state.score = None;

        let due =
            self.is_over() || self.state.epoch.is_multiple_of(self.session.config.spec.train.eval_every);
        let scores = || -> Result<_> {
            let validation = if due { self.scores(Split::Validation)? } else { None };
            // The test set is looked at on the way only where nothing is decided by looking.
            let test_due = due && (validation.is_none() || self.is_over());
            Ok((validation, if test_due { self.scores(Split::Test)? } else { None }))
        };
        let (validation, test) = match scores() {
            Err(error) if exit_code::code(&error) == ExitCode::Interrupted as u8 => {
                // All batches of the epoch are learnt and its end is still to come: so it is saved, and so a
                // resume finds it.
                self.state = unfinished.0;
                self.loss_sum = DeferredScalar::new(unfinished.1, self.session.device);
                return Err(error);
            }
            scores => scores?,
        };
        if let Some(scores) = &validation {
            let goal = self.session.task.monitor();
            early_stopping::update_best(
                &mut self.state,
                &mut self.plateau,
                &self.session.config.spec,
                goal,
                scores,
            );
        }
        self.latest = due.then(|| [validation.clone(), test.clone()]);
        let condition =
            |network: &Network| WeightStats::of(network, &self.session.groups, &rates, lr, self.peak());
        let averaged = self.averaged.as_ref().map(|_| condition(self.judged()?)).transpose()?;
        let record = EpochRecord {
            epoch: self.state.epoch,
            step: self.state.step,
            loss,
            condition: condition(&self.network)?,
            averaged: averaged.map(Averaged::from),
            tuned: self.lambda_tuner.tuned().iter().map(|one| (one.group.clone(), one.lambda)).collect(),
            scaling: self.scaling()?,
            images_per_s: self.samples_since_begin as f64 / seconds,
            seconds,
            validation,
            test,
            layers: records::layers(&self.network)?,
        };
        self.folder.record(&Record::Epoch(&record))?;
        if let Some(board) = &mut self.board {
            board.epoch(&record, &self.network)?;
        }
        Ok(record)
    }

    /// Moves on to the next epoch, without a look at this one.
    pub fn next_epoch(&mut self) -> Result<()> {
        self.sync_skipped_step()?;
        self.state.epoch += 1;
        self.state.batch = 0;
        self.state.samples = 0;
        self.loss_sum = DeferredScalar::new(0.0, self.session.device);
        Ok(())
    }
}
