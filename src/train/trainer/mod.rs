//! A run in progress: network, optimiser, penalty and position, and what the training loop calls.

mod cuda_graph;
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
use std::time::Instant;

use anyhow::Result;

use crate::checkpoint::State;
use crate::data::loader::{Batch, Loader};
use crate::metrics::Scores;
use crate::nn::model::Network;
use crate::optim::{Ema, GradScaler, Optimizer};
use crate::penalty::LambdaValues;
use crate::schedule::{Plateau, ScheduleStep};
use crate::train::early_stopping;
use crate::train::hypergradient::LambdaTuner;
use crate::train::records::{self, Averaged, EpochRecord, Record, Scaling, StepRecord, WeightStats};
use crate::train::run_folder::RunFolder;
use crate::train::session::Session;
use crate::train::tensorboard::Board;
use crate::util::exit_code::{self, ExitCode};
use crate::util::stopwatch::Stopwatch;
use cuda_graph::GraphState;
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
        let (loss, aux_loss) = (loss.read(), auxiliary.map(DeferredScalar::read));
        let input_gradient = input_gradient.map(DeferredScalar::read);
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
        let seconds = self.epoch_began.elapsed().as_secs_f64();
        // NaN, the mean of nothing, where every step was skipped.
        let loss = self.loss_sum.read() / self.state.samples as f64;
        let unfinished = (self.state.clone(), self.loss_sum.read());
        self.next_epoch()?;
        self.state.seconds += seconds;
        self.state.score = None;

        let due =
            self.is_over() || self.state.epoch.is_multiple_of(self.session.config.spec.train.eval_every);
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
        if let Some(scores) = &validation {
            let Session { config, monitor, .. } = self.session;
            early_stopping::check(scores, monitor)?;
            early_stopping::update_best(&mut self.state, &mut self.plateau, &config.spec, monitor, scores);
        }
        self.latest = due.then(|| [validation.clone(), test.clone()]);
        let condition = |network: &Network| self.stats_of(network, last, lr, &lambdas);
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
