//! `tikhonov train`: one run, from its config to its result.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::{ConfigOptions, MachineOptions};
use crate::checkpoint::Checkpoints;
use crate::config::Override;
use crate::data::Split;
use crate::exit::{Exit, fail};
use crate::libtorch::machine::keep_memory;
use crate::outcome;
use crate::progress::Progress;
use crate::report::plots;
use crate::run_folder::LockedFolder;
use crate::session::{Plan, Session};
use crate::stop::{LEASH, Stop};
use crate::train::{Outcome, train};
use crate::trainer::{Start, Trainer};

/// Train the network of a config.
///
/// Metrics, log and checkpoints go into the run folder. Ctrl-C saves and exits with 75; --resume goes on.
#[derive(Args, Debug)]
pub struct Options {
    #[command(flatten)]
    pub config: ConfigOptions,
    #[command(flatten)]
    pub machine: MachineOptions,
    /// Seed of weights, batch order and augmentation
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// The run folder
    #[arg(long, value_name = "DIR")]
    pub output: Option<PathBuf>,
    /// Go on from the run folder's last checkpoint; start where there is none
    #[arg(long)]
    pub resume: bool,
    /// Write event files for TensorBoard into the run folder
    #[arg(long)]
    pub tensorboard: bool,
    /// Check everything but the data, print the config with all defaults filled in, and stop
    #[arg(long)]
    pub dry_run: bool,
    /// No progress on the terminal; the run folder keeps the log
    #[arg(long, short)]
    pub quiet: bool,
}

impl Options {
    fn overrides(&self) -> impl Iterator<Item = Override> {
        let seed = self.seed.map(|seed| Override::new("--seed", "seed", seed));
        let output = self.output.as_ref();
        let output =
            output.map(|path| Override::new("--output", "output", path.to_string_lossy().into_owned()));
        let tensorboard = self.tensorboard.then(|| Override::new("--tensorboard", "train.tensorboard", true));
        self.machine.overrides().chain(seed).chain(output).chain(tensorboard)
    }
}

pub fn run(options: &Options) -> Result<()> {
    let config = options.config.load(options.overrides())?;
    config.validate_data(&Split::ALL)?;
    let plan = Plan::of(&config)?;
    if options.dry_run {
        plan.initial_with_optimizer(&config)?;
        print!("{}", config.resolved()?);
        return Ok(());
    }
    // A device that cannot be used is refused before anything is written.
    config.spec.device.resolve()?;
    keep_memory();
    let stop = Stop::on_signals()?;
    // A folder that is taken, or holds a run, is refused before the data is read.
    let output = config.spec.output.clone();
    let folder = LockedFolder::take(&output)?;
    let checkpoints = Checkpoints::new(output.join("checkpoints"));
    let holds_run = checkpoints.exist()?;
    if holds_run && !options.resume {
        let message = format!(
            "{} holds a run already; --resume goes on with it, --output FOLDER puts the new one elsewhere",
            output.display()
        );
        return Err(fail(Exit::Usage, message));
    }
    // Weights that do not fit are refused before the data is read, too.
    let initial = if holds_run { None } else { plan.initial_with_optimizer(&config)? };
    let session = Session::open(config, plan)?;
    let mut notes = session.notes();
    let start = match holds_run {
        true => {
            let (loaded, complaints) = checkpoints.last()?;
            notes.extend(complaints);
            notes.extend(session.differences(&loaded.state)?);
            notes.push(format!("resuming at step {} (epoch {})", loaded.state.step, loaded.state.epoch + 1));
            Start::Resumed(Box::new(loaded))
        }
        false => {
            notes.extend(initial.iter().flat_map(|initial| initial.notes.clone()));
            Start::Fresh(initial)
        }
    };
    let mut run = Trainer::new(&session, folder, start)?;
    let epochs = session.config.spec.train.epochs;
    let mut progress = Progress::new(epochs, run.total_steps(), run.step(), options.quiet);
    for note in notes {
        progress.say(&note, run.folder())?;
    }
    let ended = train(&mut run, &mut progress, &stop);
    progress.finish();
    let outcome = ended.and_then(|ended| match ended {
        Outcome::Interrupted => {
            let message = format!(
                "interrupted and saved at step {}; the same command with --resume goes on from there",
                run.step()
            );
            Err(fail(Exit::Interrupted, message))
        }
        ended => outcome::judge(&session, &run, ended),
    });
    let ended = match outcome {
        Ok(result) => {
            // Before the result, which says that the run is over.
            if let Some(confusion) = result.confusion(&run.state().classes) {
                run.folder().write("confusion.json", &confusion.to_string())?;
            }
            run.folder().write("result.json", &serde_json::to_string_pretty(&result)?)?;
            let text = result.to_string();
            run.folder().log(&text)?;
            println!("{text}");
            Ok(())
        }
        Err(error) => {
            // The error itself matters more than a log that cannot be written any more.
            let _ = run.folder().log(&format!("{error:#}"));
            Err(error)
        }
    };
    // Where nothing can be drawn the run stands all the same. Nobody looks at each trial of a sweep.
    if std::env::var_os(LEASH).is_none()
        && let Err(error) = plots(&output)
    {
        let _ = run.folder().log(&format!("no plots: {error:#}"));
    }
    ended
}
