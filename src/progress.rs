//! What training shows: a bar on a terminal, plain lines elsewhere, everything worth keeping in the log.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use anyhow::Result;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::run_folder::RunFolder;
use crate::say::tell;
use crate::telemetry::{EpochRecord, StepRecord};

/// How often a plain line tells where an epoch stands when there is no terminal.
const PLAIN_EVERY: Duration = Duration::from_secs(10);

/// The bar counts the optimiser steps of the whole run, so that its ETA is the run's.
pub struct Progress {
    bar: ProgressBar,
    style: Style,
    epochs: u64,
    told: Instant,
}

#[derive(Clone, Copy, PartialEq)]
enum Style {
    Bar,
    Plain,
    Quiet,
}

impl Progress {
    /// `done` of `steps` are behind us already after a resume.
    pub fn new(epochs: u64, steps: u64, done: u64, quiet: bool) -> Self {
        let style = match (quiet, std::io::stderr().is_terminal()) {
            (true, _) => Style::Quiet,
            (false, true) => Style::Bar,
            (false, false) => Style::Plain,
        };
        let target =
            if style == Style::Bar { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(steps), target).with_position(done);
        let template = "{prefix} {bar:28.cyan/blue} {percent:>3} % · {eta} left · {wide_msg}";
        bar.set_style(
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()),
        );
        bar.reset_eta();
        Self { bar, style, epochs, told: Instant::now() }
    }

    pub fn step(&mut self, epoch: u64, step: u64) {
        self.bar.set_prefix(format!("epoch {}/{}", epoch + 1, self.epochs));
        self.bar.set_position(step);
    }

    /// The numbers of a logged step.
    pub fn numbers(&mut self, record: &StepRecord) {
        let text = format!(
            "loss {:.4} + penalty {:.4} · lr {:.2e} · {:.0} samples/s",
            record.loss, record.condition.penalty, record.condition.lr, record.images_per_s
        );
        if self.style == Style::Plain && self.told.elapsed() > PLAIN_EVERY {
            let of = self.bar.length().unwrap_or(0);
            tell!("  step {}/{of} · {text}", record.step);
            self.told = Instant::now();
        }
        self.bar.set_message(text);
    }

    /// One line per epoch, on the screen and in the log.
    pub fn epoch(&mut self, record: &EpochRecord, folder: &mut RunFolder) -> Result<()> {
        let width = self.epochs.to_string().len();
        let condition = &record.condition;
        let mut line = format!(
            "epoch {:>width$}/{} · loss {:.4} · penalty {:.4} · lr {:.2e} · ‖w‖ {:.2}",
            record.epoch, self.epochs, record.loss, condition.penalty, condition.lr, condition.weight_norm
        );
        match record.tuned.as_slice() {
            [] => {}
            [(_, lambda)] => line += &format!(" · λ {lambda:.2e}"),
            several => {
                let each: Vec<_> =
                    several.iter().map(|(group, lambda)| format!("{group} {lambda:.2e}")).collect();
                line += &format!(" · λ {}", each.join(", "));
            }
        }
        if let Some(scaling) = record.scaling.filter(|scaling| scaling.skipped_steps > 0) {
            line += &format!(" · skipped {} (scale {})", scaling.skipped_steps, scaling.loss_scale);
        }
        if condition.zeros > 0.0 {
            line += &format!(" · zeros {:.1} %", 100.0 * condition.zeros);
        }
        for (split, scores) in [("validation", &record.validation), ("test", &record.test)] {
            if let Some(scores) = scores {
                let shown = scores.values.iter().take(2);
                let shown: Vec<_> = shown.map(|(name, value)| format!("{name} {value:.4}")).collect();
                line += &format!(" | {split} {}", shown.join(" "));
            }
        }
        line += &format!(" | {:.1} s, {:.0} samples/s", record.seconds, record.images_per_s);
        self.told = Instant::now();
        self.say(&line, folder)
    }

    /// A line for the user, above the bar, and for the log.
    pub fn say(&mut self, line: &str, folder: &mut RunFolder) -> Result<()> {
        match self.style {
            Style::Bar => self.bar.println(line),
            Style::Plain => tell!("{line}"),
            Style::Quiet => {}
        }
        folder.log(line)
    }

    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
