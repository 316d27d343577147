//! The subcommands: one file each, with its `Options` and its `run`, and one row of `commands!`.

mod bench;
mod calibrate;
mod compare;
mod completions;
mod convert;
mod decode;
mod doctor;
mod encode;
mod eval;
mod explain;
mod export;
mod finetune;
mod gradcam;
mod init;
mod inspect;
mod interpolate;
mod judged;
mod lr_find;
mod models;
mod outputs;
mod predict;
mod preview;
mod report;
mod restore;
mod runs;
mod sample;
mod shrink;
mod summary;
mod sweep;
mod sweep_worker;
mod train;

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::config::{CONFIG_FILE, Config, Override};
use crate::data::{DatasetCache, Split};
use crate::inference::compressor::Compressor;
use crate::inference::loaded_model::{LoadedModel, WeightSelection};
use crate::libtorch::device::DeviceSpec;
use crate::libtorch::kernels::KernelSpec;
use crate::libtorch::machine::keep_memory;
use crate::pytorch::weights::Part;
use crate::sweep::worker::COMMAND;
use crate::train::session::{ModelPlan, Session};
use crate::train::trainer::Start;
use crate::util::console::print_err;

macro_rules! commands {
    ($($(#[$attribute:meta])* $variant:ident => $module:ident $(, $saves:ident)?;)*) => {
        #[derive(Debug, Subcommand)]
        pub enum Command {
            $($(#[$attribute])* $variant($module::Options),)*
        }

        impl Command {
            pub fn run(&self) -> Result<()> {
                match self {
                    $(Self::$variant(options) => $module::run(options),)*
                }
            }

            /// Whether it saves its state on a signal, instead of ending at once.
            pub fn saves_on_signal(&self) -> bool {
                match self {
                    $(Self::$variant(_) => commands!(@ $($saves)?),)*
                }
            }
        }
    };
    (@ saves_on_signal) => { true };
    (@) => { false };
}

// In the order of `--help`.
commands! {
    Train => train, saves_on_signal;
    Finetune => finetune, saves_on_signal;
    LrFind => lr_find;
    Sweep => sweep, saves_on_signal;
    #[command(name = COMMAND, hide = true)]
    SweepWorker => sweep_worker, saves_on_signal;
    Report => report;
    Runs => runs;
    Eval => eval;
    Compare => compare;
    Calibrate => calibrate;
    Predict => predict;
    Restore => restore;
    Gradcam => gradcam;
    Sample => sample;
    Interpolate => interpolate;
    Encode => encode;
    Decode => decode;
    Models => models;
    Preview => preview;
    Summary => summary;
    Shrink => shrink;
    Inspect => inspect;
    Convert => convert;
    Export => export;
    Init => init;
    Explain => explain;
    Doctor => doctor;
    Bench => bench;
    Completions => completions;
}

/// Which config, and what the command line changes in it.
#[derive(Args, Clone, Debug)]
pub struct ConfigOptions {
    /// A YAML file, a run folder, or the name of a shipped config such as `quickstart`
    pub config: String,
    /// Override one key of the config; VALUE is YAML (repeatable): --set optimizer.sgd.lr=0.05
    #[arg(long, value_name = "KEY=VALUE", value_parser = assignment)]
    pub set: Vec<String>,
}

/// Where the arithmetic happens.
#[derive(Args, Clone, Debug)]
pub struct MachineOptions {
    /// cpu, cuda, cuda:N, or auto (the first GPU, else the CPU); a GPU that is not there is an error
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<DeviceSpec>,
    /// CPU threads for one operation of libtorch
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub threads: Option<u32>,
    /// CPU kernels: `own`, or `libtorch` for libtorch's operations alone (see `train.kernels`)
    #[arg(long, value_name = "own|libtorch")]
    pub kernels: Option<KernelSpec>,
}

/// Which weights to use.
#[derive(Args, Clone, Debug, Default)]
pub struct WeightOptions {
    /// last, best, or a folder under RUN/checkpoints; without it best, else last
    #[arg(long, value_name = "NAME", conflicts_with = "weights")]
    pub checkpoint: Option<String>,
    /// Weights from a file that Python or tikhonov wrote, from a run folder or a checkpoint
    #[arg(long, value_name = "FILE")]
    pub weights: Option<PathBuf>,
    /// Dotted path of the weights in FILE, instead of the part with the most tensors; `.` is the whole
    /// (repeatable: parts are joined)
    #[arg(long, value_name = "PATH", requires = "weights")]
    pub key: Vec<String>,
    /// Leave out the tensors of FILE that PATTERN names, such as 'aux*' (repeatable)
    #[arg(long, value_name = "PATTERN", requires = "weights")]
    pub ignore: Vec<String>,
    /// The weights as trained, where a run or FILE has their moving average too
    #[arg(long)]
    pub raw: bool,
}

impl WeightOptions {
    pub fn choice(&self) -> WeightSelection<'_> {
        let Self { checkpoint, weights, key, ignore, raw } = self;
        let part = Part { keys: key.clone(), ignore: ignore.clone(), raw: *raw };
        WeightSelection { checkpoint: checkpoint.as_deref(), weights: weights.as_deref(), part }
    }
}

/// A network with its weights, to be used and not trained.
#[derive(Args, Clone, Debug)]
pub struct TrainedOptions {
    /// A run folder, or a config with --weights
    #[arg(value_name = "RUN|CONFIG")]
    pub run: PathBuf,
    #[command(flatten)]
    pub weights: WeightOptions,
    /// Override one key of the config (repeatable)
    #[arg(long, value_name = "KEY=VALUE", value_parser = assignment)]
    pub set: Vec<String>,
    #[command(flatten)]
    pub machine: MachineOptions,
}

impl TrainedOptions {
    /// Finds the weights, checks that they fit, and sets the number of threads where the config names one.
    pub fn open(&self) -> Result<LoadedModel> {
        let trained =
            LoadedModel::open(&self.run, &self.set, self.machine.overrides(), &self.weights.choice())?;
        trained.is_complete(&self.run)?;
        trained.use_threads();
        Ok(trained)
    }

    /// The compressor of a compression run; says which weights it has. Exit 2 where the run is no
    /// compression.
    fn compressor(&self) -> Result<Compressor> {
        let trained = self.open()?;
        let weights = trained.weights.name();
        let compressor = Compressor::new(trained, &self.run)?;
        print_err!("{weights}");
        Ok(compressor)
    }
}

impl ConfigOptions {
    /// Loads the config with `--set` and the options of its own applied, the latter last.
    pub fn load(&self, overrides: impl IntoIterator<Item = Override>) -> Result<Config> {
        let folder = Path::new(&self.config);
        if folder.join(CONFIG_FILE).is_file() {
            return Config::of_run(folder, &self.set, overrides);
        }
        Config::load(&self.config, &self.set, overrides)
    }
}

impl MachineOptions {
    /// The keys of the config that these options replace.
    pub fn overrides(&self) -> impl Iterator<Item = Override> {
        let device = self.device.map(|device| Override::new("--device", "device", String::from(device)));
        let threads = self.threads.map(|threads| Override::new("--threads", "threads", threads));
        let kernels = self.kernels.as_ref();
        let kernels = kernels.map(|kernels| Override::new("--kernels", "train.kernels", kernels.to_string()));
        device.into_iter().chain(threads).chain(kernels)
    }
}

/// A run of `config` from its start, of which nothing is kept but what it is measured for.
fn open_to_measure(mut config: Config) -> Result<(Session, Start)> {
    config.validate_data(&Split::ALL)?;
    let device = config.spec.device.resolve()?;
    let plan = ModelPlan::of(&config)?;
    keep_memory();
    let initial = plan.initial_with_optimizer(&mut config)?;
    let session = Session::open(config, plan, device, &mut DatasetCache::default())?;
    Ok((session, Start::Fresh(initial)))
}

pub(crate) fn assignment(text: &str) -> Result<String, String> {
    match text.split_once('=') {
        Some((key, _)) if !key.is_empty() => Ok(text.to_owned()),
        _ => Err("expected KEY=VALUE, such as train.epochs=3".into()),
    }
}
