//! The best validation score so far, early stopping, and the metric that `reduce_on_plateau` follows.

use crate::checkpoint::{Best, State};
use crate::config::{RunConfig, TrainSpec};
use crate::metrics::Scores;
use crate::schedule::{Mode, Plateau};
use crate::tasks::Monitor;

/// Remembers the validation result of the epoch that just ended if it is the best, and shows it to the
/// schedule.
pub fn update_best(
    state: &mut State,
    plateau: &mut Plateau,
    spec: &RunConfig,
    goal: Monitor,
    scores: &Scores,
) {
    let Some(value) = scores.get(goal.metric) else { return };
    let gains = |past: &Option<Best>, by: f64| {
        past.as_ref().is_none_or(|past| match goal.higher_is_better {
            true => value > past.value + by,
            false => value < past.value - by,
        })
    };
    let now = Best { metric: goal.metric.into(), value, epoch: state.epoch };
    let min_delta = spec.train.early_stopping.as_ref().map_or(0.0, |early| early.min_delta);
    if gains(&state.gain, min_delta) {
        state.gain = Some(now.clone());
    }
    if gains(&state.best, 0.0) {
        state.best = Some(now);
    }
    state.score = Some(value);
    let watched = match spec.schedule.watches() {
        Some(Mode::Min) => scores.get("loss").unwrap_or(value),
        _ => value,
    };
    spec.schedule.observe(watched, plateau);
}

/// Whether early stopping has seen enough.
pub fn should_stop(state: &State, spec: &TrainSpec) -> bool {
    let (Some(early), Some(gain), Some(_)) = (&spec.early_stopping, &state.gain, state.score) else {
        return false;
    };
    state.epoch - gain.epoch >= early.patience
}

/// Whether the epoch that just ended is the best of the run.
pub fn is_best(state: &State) -> bool {
    state.batch == 0 && state.best.as_ref().is_some_and(|best| best.epoch == state.epoch)
}
