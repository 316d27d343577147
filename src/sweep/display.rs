//! What a sweep shows while it runs: on a terminal a line per trial that is under way, below those that are
//! over; elsewhere a plain line for each that is over.

use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{Design, Ending, Finished, Trial, join_pairs};
use crate::util::console::print_err;
use crate::util::terminal::{stderr_columns, width};

/// Of the total bar, for one trial: so that it moves while trials run.
const UNITS: u64 = 1000;
const TICK: Duration = Duration::from_secs(1);

pub struct Display {
    all: MultiProgress,
    slots: Vec<ProgressBar>,
    total: ProgressBar,
    is_terminal: bool,
    state: Mutex<State>,
}

struct State {
    /// Trials that are over.
    done: u64,
    /// How far the trial of each slot is, in units.
    shares: Vec<u64>,
    /// The last score that each has reported.
    scores: Vec<String>,
    count: u64,
}

impl Display {
    /// `done` of `total` trials are finished already.
    pub fn new(total: usize, done: usize, slots: usize) -> Self {
        let is_terminal = std::io::stderr().is_terminal();
        let target = if is_terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let all = MultiProgress::with_draw_target(target);
        let style = |template| {
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
        };
        let state = State {
            done: done as u64,
            shares: vec![0; slots],
            scores: vec![String::new(); slots],
            count: total as u64,
        };
        let slots = (0..slots)
            .map(|_| all.add(ProgressBar::new_spinner().with_style(style("  {elapsed:>4} {wide_msg}"))))
            .collect();
        let bar = ProgressBar::new(state.count * UNITS).with_position(state.done * UNITS);
        let total = all.add(bar.with_style(style("{wide_bar:.cyan/blue} {msg} · {eta} left")));
        total.set_message(format!("{done}/{total_count} trials", total_count = state.count));
        total.reset_eta();
        if is_terminal {
            total.enable_steady_tick(TICK);
        }
        Self { all, slots, total, is_terminal, state: Mutex::new(state) }
    }

    pub fn began(&self, slot: usize, trial: &Trial, design: &Design) {
        let Some(line) = self.slots.get(slot) else { return };
        line.reset();
        if self.is_terminal {
            line.enable_steady_tick(TICK);
        }
        let point = join_pairs(&design.named(&design.points[trial.point]));
        line.set_prefix(which(&point, trial.seed, trial.fold));
        line.set_message(line.prefix());
        self.with(|state| (state.shares[slot], state.scores[slot]) = (0, String::new()));
    }

    /// `done` of the trial's `of` steps are made.
    pub fn steps(&self, slot: usize, epoch: u64, done: u64, of: u64) {
        let Some(line) = self.slots.get(slot) else { return };
        let share = done.min(of) * UNITS / of.max(1);
        self.with(|state| {
            state.shares[slot] = share;
            line.set_message(format!(
                "{}: epoch {epoch}, {} %{}",
                line.prefix(),
                share / 10,
                state.scores[slot]
            ));
        });
    }

    pub fn scored(&self, slot: usize, epoch: u64, metric: &str, value: f64) {
        let Some(line) = self.slots.get(slot) else { return };
        self.with(|state| state.scores[slot] = format!(", {metric} {value:.5}"));
        line.set_message(format!("{}: epoch {epoch}, {metric} {value:.5}", line.prefix()));
    }

    pub fn ended(&self, slot: usize, finished: &Finished, metric: &str) {
        let score = finished.score.map_or_else(String::new, |score| format!("{metric} {score:.5}"));
        let end = match finished.ending {
            Ending::Done => score,
            Ending::Diverged => "diverged".into(),
            Ending::Pruned => format!("pruned after epoch {}, {score}", finished.epoch.unwrap_or_default()),
            Ending::Crashed => "its process died, twice".into(),
        };
        let end = format!("{end}, {:.1} s", finished.seconds);
        let mut line =
            format!("{}: {end}", which(&join_pairs(&finished.point), finished.seed, finished.fold));
        // The last parts of the keys identify them, where a line is too short for the whole.
        if stderr_columns().is_some_and(|columns| width(&line) > columns) {
            let (keys, values): (Vec<_>, Vec<_>) = finished.point.clone().into_iter().unzip();
            let point = super::plot::words(&keys, &values);
            line = format!("{}: {end}", which(&point, finished.seed, finished.fold));
        }
        self.all.suspend(|| print_err!("{line}"));
        self.with(|state| {
            state.done += 1;
            state.shares[slot] = 0;
        });
    }

    /// Changes the state, and shows what it means for the whole.
    fn with(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut state);
        self.total.set_position(state.done * UNITS + state.shares.iter().sum::<u64>());
        self.total.set_message(format!("{}/{} trials", state.done, state.count));
    }

    pub fn idle(&self, slot: usize) {
        if let Some(line) = self.slots.get(slot) {
            line.disable_steady_tick();
            line.finish_and_clear();
        }
    }

    pub fn finish(&self) {
        self.total.disable_steady_tick();
        self.total.finish_and_clear();
    }
}

fn which(point: &str, seed: u64, fold: Option<usize>) -> String {
    let fold = fold.map_or_else(String::new, |fold| format!(", fold {fold}"));
    format!("{point}, seed {seed}{fold}")
}
