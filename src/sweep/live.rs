//! What a sweep shows while it runs: on a terminal a line per trial that is under way, below those that are over;
//! elsewhere a plain line for each that is over.

use std::io::IsTerminal;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{Design, Ending, Finished, Trial, words};
use crate::say::tell;

pub struct Live {
    all: MultiProgress,
    slots: Vec<ProgressBar>,
    total: ProgressBar,
}

impl Live {
    /// `done` of `total` trials are behind us already.
    pub fn new(total: usize, done: usize, slots: usize) -> Self {
        let is_terminal = std::io::stderr().is_terminal();
        let target = if is_terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let all = MultiProgress::with_draw_target(target);
        let style = |template| {
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
        };
        let slots = (0..slots)
            .map(|_| all.add(ProgressBar::new_spinner().with_style(style("  {elapsed:>4} {wide_msg}"))))
            .collect();
        let bar = ProgressBar::new(total as u64).with_position(done as u64);
        let total = all.add(bar.with_style(style("{bar:28.cyan/blue} {pos}/{len} trials · {eta} left")));
        total.reset_eta();
        Self { all, slots, total }
    }

    pub fn began(&self, slot: usize, trial: &Trial, design: &Design) {
        let Some(line) = self.slots.get(slot) else { return };
        line.reset();
        let point = words(&design.named(&design.points[trial.point]));
        line.set_prefix(which(&point, trial.seed, trial.fold));
        line.set_message(line.prefix());
    }

    pub fn stands(&self, slot: usize, epoch: u64, metric: &str, value: f64) {
        let Some(line) = self.slots.get(slot) else { return };
        line.set_message(format!("{}: epoch {epoch}, {metric} {value:.5}", line.prefix()));
    }

    pub fn ended(&self, finished: &Finished, metric: &str) {
        let score = finished.score.map_or_else(String::new, |score| format!("{metric} {score:.5}"));
        let end = match finished.ending {
            Ending::Done => score,
            Ending::Diverged => "diverged".into(),
            Ending::Pruned => format!("pruned after epoch {}, {score}", finished.epoch.unwrap_or_default()),
            Ending::Crashed => "its process died, twice".into(),
        };
        let which = which(&words(&finished.point), finished.seed, finished.fold);
        self.all.suspend(|| tell!("{which}: {end}, {:.1} s", finished.seconds));
        self.total.inc(1);
    }

    pub fn idle(&self, slot: usize) {
        if let Some(line) = self.slots.get(slot) {
            line.finish_and_clear();
        }
    }

    pub fn finish(&self) {
        self.total.finish_and_clear();
    }
}

fn which(point: &str, seed: u64, fold: Option<usize>) -> String {
    let fold = fold.map_or_else(String::new, |fold| format!(", fold {fold}"));
    format!("{point}, seed {seed}{fold}")
}
