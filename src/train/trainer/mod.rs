//! A run in progress: network, optimiser, penalty and position, and what the training loop calls.

mod cuda_graph;
mod data_parallel;
mod deferred_scalar;
mod evaluation;
mod finite_check;
mod freezing;
mod input_gradient;
mod micro_batch_loss;
mod notes;
mod sam;
mod saving;
mod start;
mod train_step;

use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::checkpoint::State;
use crate::config::Budget;
use crate::data::loader::Loader;
use crate::libtorch::distributed::Reducer;
use crate::metrics::Scores;
use crate::nn::model::Network;
use crate::optim::{Ema, GradScaler, Optimizer};
use crate::penalty::LambdaValues;
use crate::schedule::{Plateau, ScheduleStep, total_of_share};
use crate::train::distributed::ProcessGroup;
use crate::train::early_stopping;
use crate::train::hypergradient::LambdaTuner;
use crate::train::records::{self, Averaged, EpochRecord, Record, Scaling, StepRecord, WeightStats};
use crate::train::run_folder::RunFolder;
use crate::train::session::Session;
use crate::train::tensorboard::Board;
use crate::util::exit_code::{self, ExitCode};
use crate::util::stopwatch::Stopwatch;
use cuda_graph::GraphState;
pub use data_parallel::{StepBatches, StopVote};
use deferred_scalar::DeferredScalar;
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
    /// Whether images and weights of convolutions are in the memory format of that name.
    channels_last: bool,
    /// Averages gradients over the processes that share the run; made when it is first needed.
    reducer: Option<Reducer>,
    /// By penalty group: whether it is frozen for now.
    frozen: Vec<bool>,
    /// A line for the user that `--quiet` drops.
    note: Option<String>,
    /// How many of the left-out samples have been reported, set by set.
    reported: [usize; 3],
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
    /// Of the time since then, what was spent on evaluations.
    evaluating: Duration,
    /// Of a run of so many hours, what was over when the step began.
    time_share: f64,
    logged: Instant,
    samples_since_log: u64,
    samples_since_begin: u64,
    samples_of_step: u64,
    /// The scores (validation, test) of the weights as they are, where the end of an epoch has just computed
    /// them.
    latest: Option<[Option<Scores>; 2]>,
    /// Runs in a bench only.
    stopwatch: Stopwatch,
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
        self.budget().is_spent(self.state.epoch, self.state.step, self.seconds())
    }

    fn budget(&self) -> Budget {
        self.session.config.spec.train.budget()
    }

    /// Seconds of training so far, evaluation and pauses apart.
    pub fn seconds(&self) -> f64 {
        let epoch = self.epoch_began.elapsed().saturating_sub(self.evaluating);
        // Between two epochs its time is counted already.
        self.state.seconds + if self.state.batch > 0 { epoch.as_secs_f64() } else { 0.0 }
    }

    /// Optimiser steps of the whole run; of one of so many hours, as many as it would have at its pace so far.
    pub fn total_steps(&self) -> u64 {
        let steps = self.budget().steps(self.steps_per_epoch());
        steps.unwrap_or_else(|| total_of_share(self.state.step, self.time_share))
    }

    /// Epochs of the whole run, the last of which may be cut short; None where the clock decides.
    pub fn planned_epochs(&self) -> Option<u64> {
        self.budget().epochs(self.steps_per_epoch())
    }

    /// What is done, and of what: steps, or seconds of a run of so many hours.
    pub fn done(&self) -> (u64, u64) {
        match self.budget() {
            Budget::Hours(hours) => (self.seconds() as u64, (hours * 3600.0).ceil() as u64),
            _ => (self.state.step, self.total_steps()),
        }
    }

    /// Whether batches of this epoch are learnt and others are not.
    pub fn is_within_epoch(&self) -> bool {
        self.state.batch > 0 && self.state.batch < self.loader.steps()
    }

    /// Whether an evaluation within the epoch is due, which has not been made.
    pub fn is_look_due(&self) -> Result<bool> {
        let every = self.session.config.spec.train.eval_every;
        let is_due = self.is_within_epoch() && (every.is_due_within(self.state.step) || self.is_over());
        let is_made = || Ok(self.folder.last_evaluation() == Some(self.state.step));
        Ok(is_due && self.state.score.is_none() && !self.on_first_rank(is_made)?)
    }

    fn steps_per_epoch(&self) -> u64 {
        self.loader.steps().div_ceil(self.session.batches_per_step()) as u64
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

    /// The λs of the step that `step` others, made and not skipped, precede; tuned ones as they are now.
    fn lambdas_at(&self, step: u64) -> Vec<LambdaValues> {
        let clock = ScheduleStep { step, ..self.clock() };
        let mut lambdas: Vec<_> = self.session.groups.iter().map(|group| group.lambdas(clock)).collect();
        self.lambda_tuner.fill(&mut lambdas);
        // What is not trained is not penalised either.
        for (lambdas, _) in lambdas.iter_mut().zip(&self.frozen).filter(|(_, frozen)| **frozen) {
            *lambdas = lambdas.cleared();
        }
        lambdas
    }

    /// The highest rate that the schedule means to reach.
    fn peak(&self) -> f64 {
        let spec = &self.session.config.spec;
        spec.schedule.peak(spec.optimizer.lr())
    }

    pub fn begin_epoch(&mut self) {
        self.epoch_began = Instant::now();
        self.logged = Instant::now();
        self.evaluating = Duration::ZERO;
        self.samples_since_log = 0;
        self.samples_since_begin = 0;
    }

    /// The rest of this epoch, one item per optimiser step.
    pub fn remaining_steps<'l>(&self, loader: &'l Loader) -> impl Iterator<Item = Result<StepBatches>> + 'l {
        let rank = (self.ranks().map_or(0, ProcessGroup::rank), self.session.world_size());
        let accumulate = self.session.config.spec.train.accumulate;
        data_parallel::step_batches(loader, (self.state.epoch, self.state.batch), rank, accumulate)
    }

    /// A line for the user, once.
    pub fn take_note(&mut self) -> Option<String> {
        self.note.take()
    }

    /// A line for each sample that was left out since the last time.
    pub fn left_out(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        for (reported, (set, all)) in self.reported.iter_mut().zip(self.session.left_out()) {
            let new = all.get(*reported..).unwrap_or_default();
            lines.extend(new.iter().map(|one| format!("{set}: {one}")));
            *reported = all.len().max(*reported);
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
        mut before: WeightStats,
        loss: &DeferredScalar,
        auxiliary: Option<&DeferredScalar>,
        input_gradient: Option<&DeferredScalar>,
        grad_norm: &DeferredScalar,
    ) -> Result<StepRecord> {
        self.sync_skipped_step()?;
        self.check_finite()?;
        let read = |part: &DeferredScalar| self.over_ranks(part.read());
        let (loss, aux_loss) = (read(loss)?, auxiliary.map(read).transpose()?);
        let input_gradient = input_gradient.map(read).transpose()?;
        before.penalty += input_gradient.unwrap_or_default();
        let record = StepRecord {
            epoch: self.state.epoch + 1,
            step: self.state.step,
            loss,
            aux_loss,
            total: loss + aux_loss.unwrap_or(0.0) + before.penalty,
            condition: before,
            input_gradient,
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
        // The lambdas of the last step that was made, and the weights as it left them.
        let last = self.position().saturating_sub(1);
        let (lr, lambdas) = (self.lr_at(last), self.lambdas_at(last));
        let seconds = self.epoch_began.elapsed().saturating_sub(self.evaluating).as_secs_f64();
        // NaN, the mean of nothing, where every step was skipped.
        let loss = self.over_ranks(self.loss_sum.read())? / self.state.samples as f64;
        let unfinished = (self.state.clone(), self.loss_sum.read());
        self.next_epoch()?;
        self.state.seconds += seconds;
        self.state.score = None;

        let every = self.session.config.spec.train.eval_every;
        let due = self.is_over() || every.is_due_after(self.state.epoch, self.state.step);
        let [validation, test] = match self.judge(due) {
            Err(error) if exit_code::code(&error) == ExitCode::Interrupted as u8 => {
                // All batches of the epoch are learnt and its end is still to come: so it is saved, and so a
                // resume finds it.
                self.state = unfinished.0;
                self.loss_sum = DeferredScalar::new(unfinished.1, self.session.device);
                return Err(error);
            }
            scores => scores?,
        };
        self.take_scores(&validation)?;
        self.latest = due.then(|| [validation.clone(), test.clone()]);
        self.record_evaluation(
            self.state.epoch as f64,
            seconds,
            loss,
            (last, lr, &lambdas),
            [validation, test],
        )
    }

    /// Evaluates within an epoch, and tells the schedule. An error leaves the state as it was.
    pub fn look(&mut self) -> Result<EpochRecord> {
        self.sync_skipped_step()?;
        self.check_finite()?;
        let last = self.position().saturating_sub(1);
        let (lr, lambdas) = (self.lr_at(last), self.lambdas_at(last));
        let seconds = self.epoch_began.elapsed().saturating_sub(self.evaluating).as_secs_f64();
        let loss = self.loss_sum.read() / self.state.samples as f64;
        let began = Instant::now();
        let [validation, test] = self.judge(true)?;
        self.take_scores(&validation)?;
        self.latest = Some([validation.clone(), test.clone()]);
        let epoch = self.state.epoch as f64 + self.state.batch as f64 / self.loader.steps() as f64;
        let record = self.record_evaluation(epoch, seconds, loss, (last, lr, &lambdas), [validation, test]);
        self.evaluating += began.elapsed();
        record
    }

    /// Shows the scores on the validation set to what decides by them.
    fn take_scores(&mut self, validation: &Option<Scores>) -> Result<()> {
        if let Some(scores) = validation {
            let Session { config, monitor, .. } = self.session;
            early_stopping::check(scores, monitor)?;
            early_stopping::update_best(&mut self.state, &mut self.plateau, &config.spec, monitor, scores);
        }
        Ok(())
    }

    /// Records an evaluation, `last` the step before it with its rate and λs.
    fn record_evaluation(
        &mut self,
        epoch: f64,
        seconds: f64,
        loss: f64,
        (last, lr, lambdas): (u64, f64, &[LambdaValues]),
        [validation, test]: [Option<Scores>; 2],
    ) -> Result<EpochRecord> {
        let condition = |network: &Network| self.stats_of(network, last, lr, lambdas);
        let averaged = self.averaged.as_ref().map(|_| condition(self.judged()?)).transpose()?;
        let record = EpochRecord {
            epoch,
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
