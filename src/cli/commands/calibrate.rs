//! `tikhonov calibrate`: the temperature that makes a run's probabilities honest.

use std::fs;
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use serde_json::json;

use super::judged::{Judged, Request};
use super::{MachineOptions, WeightOptions, assignment};
use crate::config::{CALIBRATION_FILE, CONFIG_FILE};
use crate::data::Split;
use crate::inference::calibration::{Calibrated, Calibration, fingerprint};
use crate::inference::loaded_model::Weights;
use crate::metrics::answers::Answers;
use crate::metrics::temperature::{NoTemperature, fit};
use crate::metrics::{reliability, resampled};
use crate::plot::png::png;
use crate::plot::standalone;
use crate::report::reliability::figure;
use crate::tasks::tta::Tta;
use crate::util::atomic_file;
use crate::util::console::print_out;
use crate::util::exit_code::{ExitCode, WithExitCode, fail};

/// Find the temperature of a run's probabilities on its validation set.
///
/// Logits divided by the temperature give the probabilities under which the validation set is most likely (Guo et
/// al. 2017); which class is the most probable stays. It is kept in the run folder, for those weights: `predict` and
/// `eval` apply it, exports say it and apply it with --softmax and --sigmoid. The reliability before and after is
/// drawn into the run's plots.
#[derive(Args, Debug)]
pub struct Options {
    /// A run folder
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// last, best, or a folder under RUN/checkpoints; without it best, else last
    #[arg(long, value_name = "NAME")]
    checkpoint: Option<String>,
    /// Override one key of the run's config, such as a data path (repeatable)
    #[arg(long, value_name = "KEY=VALUE", value_parser = assignment)]
    set: Vec<String>,
    #[command(flatten)]
    machine: MachineOptions,
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub fn run(options: &Options) -> Result<()> {
    let run = &options.run;
    if !run.join(CONFIG_FILE).is_file() {
        let message = format!("{} is no run folder: what is found is kept in one", run.display());
        return Err(fail(ExitCode::Usage, message));
    }
    let weights = WeightOptions { checkpoint: options.checkpoint.clone(), ..WeightOptions::default() };
    let judged = Judged::of(&Request {
        run,
        weights: &weights,
        set: &options.set,
        machine: &options.machine,
        split: Some(Split::Validation),
        calibrated: false,
        tta: Tta::None,
        pictures: 0,
    })?;
    let task = judged.session.task.name();
    let no_classes =
        || format!("{task} answers with no probabilities of classes: there is nothing to calibrate");
    let answers = judged.scores.answers.as_ref().with_exit_code(ExitCode::Usage, no_classes)?;
    let temperature = fit(answers).map_err(|why| match why {
        NoTemperature::NoClasses => fail(ExitCode::Usage, no_classes()),
        NoTemperature::AllRight => fail(
            ExitCode::Data,
            "every answer on the validation set is right, so that the temperature would go to 0: a larger or harder set is needed",
        ),
        NoTemperature::Chance => fail(
            ExitCode::Data,
            "the answers on the validation set are no better than chance at any temperature: train the network first",
        ),
    })?;
    let after = answers.at_temperature(temperature).with_exit_code(ExitCode::Usage, no_classes)?;
    let Weights::Checkpoint(loaded) = &judged.weights else {
        return Err(fail(ExitCode::Usage, "only the weights of a run's checkpoint are calibrated"));
    };
    let (checkpoint, weights) = fingerprint(loaded);
    let (before_scores, after_scores) = (scores(task, answers), scores(task, &after));
    let calibration = Calibration {
        temperature,
        checkpoint,
        weights,
        samples: answers.samples(),
        before: before_scores,
        after: after_scores,
    };
    calibration.write(run)?;
    let plots = run.join("plots");
    fs::create_dir_all(&plots).with_exit_code(ExitCode::Storage, || plots.display())?;
    let (bins, bins_after) = (reliability(answers), reliability(&after));
    if let Some(drawn) = figure(&[("before", &bins), ("calibrated", &bins_after)]) {
        atomic_file::write_bytes(&plots.join("reliability.png"), &png(&standalone(&drawn.svg))?)?;
    }
    if options.json {
        let mut line = json!(calibration);
        line["run"] = json!(run);
        line["reliability"] = json!({"before": bins, "after": bins_after});
        print_out!("{line}");
        return Ok(());
    }
    print_out!(
        "{}: temperature {temperature:.4}, by {} samples of the validation set",
        judged.weights.name(),
        calibration.samples
    );
    print_out!("  {:<12} {:>8} {:>11}", "", "before", "calibrated");
    let Calibrated { loss, ece, brier_score } = before_scores;
    let rows = [
        ("loss", loss, after_scores.loss),
        ("ece", ece, after_scores.ece),
        ("brier_score", brier_score, after_scores.brier_score),
    ];
    for (name, before, after) in rows {
        print_out!("  {name:<12} {before:>8.4} {after:>11.4}");
    }
    print_out!(
        "kept in {}, for predict, eval and export; drawn in {}",
        run.join(CALIBRATION_FILE).display(),
        plots.join("reliability.png").display()
    );
    Ok(())
}

fn scores(task: &str, answers: &Answers) -> Calibrated {
    let all = resampled(task, answers, None);
    let of = |name: &str| all.iter().find(|(known, _)| known == name).map_or(f64::NAN, |(_, value)| *value);
    Calibrated { loss: of("loss"), ece: of("ece"), brier_score: of("brier_score") }
}
