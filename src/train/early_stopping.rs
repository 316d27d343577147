//! What the monitored score on the validation set decides: the best epoch so far, the last improvement, and
//! what the schedule observes.

use anyhow::Result;

use crate::checkpoint::{Best, State};
use crate::config::{RunConfig, TrainSpec};
use crate::metrics::{Monitor, Scores};
use crate::schedule::Plateau;
use crate::util::exit_code::{ExitCode, fail};

/// Remembers the validation result of this moment if it is the best, and shows it to the
/// schedule.
pub fn update_best(
    state: &mut State,
    plateau: &mut Plateau,
    spec: &RunConfig,
    monitor: &Monitor,
    scores: &Scores,
) {
    let Some(value) = scores.get(&monitor.metric) else { return };
    let gains = |past: &Option<Best>, by: f64| {
        past.as_ref().is_none_or(|past| match monitor.higher_is_better {
            true => value > past.value + by,
            false => value < past.value - by,
        })
    };
    let Monitor { metric, higher_is_better } = monitor.clone();
    let within = (state.batch > 0).then_some(state.step);
    let now = Best { metric, higher_is_better: Some(higher_is_better), value, epoch: state.epoch, within };
    let min_delta = spec.train.early_stopping.as_ref().map_or(0.0, |early| early.min_delta);
    if gains(&state.gain, min_delta) {
        state.gain = Some(now.clone());
    }
    if gains(&state.best, 0.0) {
        state.best = Some(now);
    }
    state.score = Some(value);
    if let Some(mode) = spec.schedule.watches() {
        let watched = scores.get(&spec.plateau_score(mode, monitor));
        spec.schedule.observe(watched.unwrap_or(value), plateau);
    }
}

/// Forgets the best so far and what `plateau` observed where another score than `monitor`'s decided until
/// now; returns a line about it.
pub fn restart(
    state: &mut State,
    plateau: &mut Plateau,
    spec: &RunConfig,
    monitor: &Monitor,
) -> Option<String> {
    let past = state.best.as_ref().or(state.gain.as_ref()).map(|best| best.metric.clone())?;
    if past == monitor.metric {
        return None;
    }
    (state.best, state.gain, state.score) = (None, None, None);
    if spec.schedule.watches().is_some() {
        (plateau.best, plateau.bad_epochs) = (None, 0);
    }
    Some(format!(
        "the best so far was chosen by {past}: by {} it is chosen anew among the epochs to come",
        monitor.metric
    ))
}

/// Refuses scores on the validation set that do not say how good the network is by `monitor`: exit 2 where it
/// is none of them, exit 5 where it is NaN.
pub fn check(scores: &Scores, monitor: &Monitor) -> Result<()> {
    let metric = &monitor.metric;
    match scores.get(metric) {
        Some(value) if value.is_nan() => {
            let message = format!("the validation set has no {metric}, which decides: it is NaN");
            Err(fail(ExitCode::Numeric, message))
        }
        Some(_) => Ok(()),
        None => {
            let known: Vec<_> = scores.values.iter().map(|(name, _)| name.as_str()).collect();
            let message = format!(
                "train.monitor: the validation set gives no score `{metric}`; its scores are {}",
                known.join(", ")
            );
            Err(fail(ExitCode::Usage, message))
        }
    }
}

/// Whether early stopping has seen enough.
pub fn should_stop(state: &State, spec: &TrainSpec) -> bool {
    let (Some(early), Some(gain), Some(_)) = (&spec.early_stopping, &state.gain, state.score) else {
        return false;
    };
    state.epoch - gain.epoch >= early.patience
}

/// Whether the moment that was just evaluated is the best of the run.
pub fn is_best(state: &State) -> bool {
    state.best.as_ref().is_some_and(|best| best.is_at(state))
}
