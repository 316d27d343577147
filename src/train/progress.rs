//! What training shows: a bar on a terminal, plain lines elsewhere, everything worth keeping in the log.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use anyhow::Result;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::metrics::with_class_name;
use crate::train::records::{Averaged, EpochRecord, StepRecord, WeightStats};
use crate::train::run_folder::RunFolder;
use crate::util::console::{plain, print_err};
use crate::util::terminal::{Part, line, stderr_columns};

/// How often the step is printed where there is no terminal.
const PLAIN_EVERY: Duration = Duration::from_secs(10);

/// The bar counts the optimiser steps of the whole run, so that its ETA is the run's.
pub struct Progress {
    bar: ProgressBar,
    style: Style,
    /// None where the clock decides.
    epochs: Option<u64>,
    /// The score that is shown beside the loss.
    metric: String,
    /// The last plain line.
    printed: Instant,
}

#[derive(Clone, Copy, PartialEq)]
enum Style {
    Bar,
    Plain,
    Quiet,
}

impl Progress {
    /// `done` of `steps`, or of seconds where the clock decides, were made before a resume; `metric` is the score that is shown beside the loss.
    pub fn new(epochs: Option<u64>, metric: &str, (done, steps): (u64, u64), quiet: bool) -> Self {
        let style = match (quiet, std::io::stderr().is_terminal()) {
            (true, _) => Style::Quiet,
            (false, true) => Style::Bar,
            (false, false) => Style::Plain,
        };
        let target =
            if style == Style::Bar { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(steps), target).with_position(done);
        let template = "{prefix} {wide_bar:.cyan/blue} {percent:>3} % · {eta} left{msg}";
        bar.set_style(
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()),
        );
        bar.reset_eta();
        if style == Style::Bar {
            // During evaluations no step moves the bar, and the time left is still to be drawn.
            bar.enable_steady_tick(Duration::from_secs(1));
        }
        Self { bar, style, epochs, metric: metric.into(), printed: Instant::now() }
    }

    pub fn step(&mut self, epoch: u64, step: u64) {
        let of = self.epochs.map_or_else(String::new, |epochs| format!("/{epochs}"));
        self.bar.set_prefix(format!("epoch {}{of}", epoch + 1));
        self.bar.set_position(step);
    }

    /// The numbers of a logged step.
    pub fn numbers(&mut self, record: &StepRecord) {
        let mut parts = vec![Part::new(4, format!("loss {:.4}", record.loss))];
        parts.extend(record.aux_loss.map(|loss| Part::new(3, format!(" + aux {loss:.4}"))));
        parts.extend(
            penalised(&record.condition)
                .then(|| Part::new(3, format!(" + penalty {:.4}", record.condition.penalty))),
        );
        parts.push(Part::new(2, format!(" · lr {:.2e}", record.condition.lr)));
        parts.push(Part::new(1, format!(" · {:.0} samples/s", record.images_per_s)));
        let text = line(&parts, None);
        if self.style == Style::Plain && self.printed.elapsed() > PLAIN_EVERY {
            let of = self.bar.length().filter(|_| self.epochs.is_some());
            let of = of.map_or_else(String::new, |of| format!("/{of}"));
            print_err!("  step {}{of} · {text}", record.step);
            self.printed = Instant::now();
        }
        // The epoch, the share, the time left and a bar that one can see need about 44 columns.
        let room = stderr_columns().map(|columns| columns.saturating_sub(44));
        let shown = line(&parts, room);
        self.bar.set_message(if shown.is_empty() { shown } else { format!(" · {shown}") });
    }

    /// One line per epoch, on the screen and in the log.
    pub fn epoch(&mut self, record: &EpochRecord, folder: &mut RunFolder) -> Result<()> {
        let of = self.epochs.map_or_else(String::new, |epochs| format!("/{epochs}"));
        let width = of.len().saturating_sub(1);
        let epoch = match record.epoch.fract() {
            0.0 => format!("epoch {:>width$}{of}", record.epoch as u64),
            _ => format!("step {} (epoch {:.2}{of})", record.step, record.epoch),
        };
        let condition = &record.condition;
        let loss = match record.loss.is_nan() {
            true => "none, every step skipped".into(),
            false => format!("{:.4}", record.loss),
        };
        let averaged = |of: fn(&Averaged) -> String| {
            record
                .averaged
                .as_ref()
                .map_or_else(String::new, |averaged| format!(" (averaged {})", of(averaged)))
        };
        let kept = |text: String| Part::new(Part::KEPT, text);
        let mut parts = vec![kept(epoch), kept(format!(" · loss {loss}"))];
        if penalised(condition) {
            parts.push(Part::new(5, format!(" · penalty {:.4}", condition.penalty)));
        }
        parts.push(Part::new(3, format!(" · lr {:.2e}", condition.lr)));
        let norm = averaged(|averaged| format!("{:.2}", averaged.weight_norm));
        parts.push(Part::new(1, format!(" · ‖w‖ {:.2}{norm}", condition.weight_norm)));
        match record.tuned.as_slice() {
            [] => {}
            [(_, lambda)] => parts.push(Part::new(7, format!(" · λ {lambda:.2e}"))),
            several => {
                let each: Vec<_> =
                    several.iter().map(|(group, lambda)| format!("{group} {lambda:.2e}")).collect();
                parts.push(Part::new(7, format!(" · λ {}", each.join(", "))));
            }
        }
        if let Some(scaling) = record.scaling.filter(|scaling| scaling.skipped_steps > 0) {
            let text = format!(" · skipped {} (scale {})", scaling.skipped_steps, scaling.loss_scale);
            parts.push(Part::new(6, text));
        }
        if condition.zeros > 0.0 {
            let zeros = averaged(|averaged| format!("{:.1} %", 100.0 * averaged.zeros));
            parts.push(Part::new(6, format!(" · zeros {:.1} %{zeros}", 100.0 * condition.zeros)));
        }
        let whose = if record.averaged.is_some() { " (averaged weights)" } else { "" };
        for (split, scores) in [("validation", &record.validation), ("test", &record.test)] {
            let Some(scores) = scores else { continue };
            // The loss and the monitored score, or where they are one the task's own.
            let mut shown: Vec<_> = scores.values.iter().take(2).collect();
            let monitored = scores.values.iter().find(|(name, _)| *name == self.metric);
            if let (Some(monitored), false) = (monitored, self.metric == "loss") {
                shown.truncate(1);
                shown.push(monitored);
            }
            parts.push(kept(format!(" | {split}{whose}")));
            // Where there is little room the loss goes first.
            for (at, (name, value)) in shown.iter().enumerate() {
                let name = with_class_name(name, &scores.classes);
                let rank = if at + 1 == shown.len() { Part::KEPT } else { 4 };
                parts.push(Part::new(rank, format!(" {name} {value:.4}")));
            }
        }
        parts.push(Part::new(2, format!(" | {:.1} s", record.seconds)));
        parts.push(Part::new(0, format!(", {:.0} samples/s", record.images_per_s)));
        self.printed = Instant::now();
        let whole = line(&parts, None);
        match self.style {
            Style::Bar => self.bar.println(line(&parts, stderr_columns())),
            Style::Plain => print_err!("{whole}"),
            Style::Quiet => {}
        }
        folder.log(&whole)
    }

    /// A line for the user, above the bar, and for the log.
    pub fn say(&mut self, line: &str, folder: &mut RunFolder) -> Result<()> {
        match self.style {
            Style::Bar => self.bar.println(plain(line)),
            Style::Plain => print_err!("{line}"),
            Style::Quiet => {}
        }
        folder.log(line)
    }

    /// The same for what must not be missed: with `--quiet` too.
    pub fn warn(&mut self, line: &str, folder: &mut RunFolder) -> Result<()> {
        if self.style == Style::Quiet {
            print_err!("{line}");
        }
        self.say(line, folder)
    }

    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// Whether any weight is penalised.
fn penalised(condition: &WeightStats) -> bool {
    !condition.lambda.is_empty() || condition.penalty != 0.0
}
