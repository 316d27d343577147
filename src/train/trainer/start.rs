//! How a run begins: everything built and loaded that could be refused, and only then its folder touched.

use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tch::Device;

use super::Trainer;
use crate::checkpoint::{Loaded, State};
use crate::config::{Amp, CONFIG_FILE, PROGRAM_FILE, Segments, Toggle};
use crate::data::{JPEG_PIXELS, Split};
use crate::libtorch::device;
use crate::nn::model::ModelSource;
use crate::optim::{Ema, EmaSpec, GradScaler};
use crate::penalty::{ParamGroup, StepRates};
use crate::schedule::Plateau;
use crate::train::early_stopping;
use crate::train::hypergradient::LambdaTuner;
use crate::train::initial_weights::InitialWeights;
use crate::train::run_folder::LockedFolder;
use crate::train::session::Session;
use crate::train::tensorboard::Board;
use crate::train::trainer::cuda_graph::GraphState;
use crate::train::trainer::deferred_scalar::DeferredScalar;
use crate::util::exit_code::{ExitCode, WithExitCode, fail};
use crate::util::stopwatch::Stopwatch;
use crate::util::yaml::Invalid;

/// Where a run begins.
pub enum Start {
    /// With weights drawn by the seed, and those of a file where the config names one.
    Fresh(Option<InitialWeights>),
    /// Where a checkpoint left it.
    Resumed(Box<Loaded>),
}

impl<'a> Trainer<'a> {
    pub fn new(session: &'a Session, folder: LockedFolder, start: Start) -> Result<Self> {
        let spec = &session.config.spec;
        let mut network = session.network()?;
        let channels_last = is_channels_last(session);
        if channels_last {
            network.use_channels_last()?;
        }
        match spec.train.checkpoint_activations {
            None | Some(Segments::None) => {}
            Some(Segments::Root) => network.recompute(None),
            Some(Segments::Number(number)) => network.recompute(Some(number)),
        }
        let named = network.parameters().iter().map(|p| (p.name.clone(), p.tensor.shallow_clone())).collect();
        let peak = spec.schedule.peak(spec.optimizer.lr());
        let mut optimizer = spec.optimizer.build(named, &session.groups)?.with_peak(peak);
        check_rates(session, |group| optimizer.rates(peak, group))?;
        let train = session.train()?;
        let loader = Rc::new(session.loader(train, true)?);
        let (mut state, saved_average, resumed) = match start {
            Start::Resumed(loaded) => {
                let from = || format!("resuming from {}", loaded.folder.display());
                session.is_reachable(&loaded.state, loader.steps().div_ceil(session.batches_per_step()))?;
                let loading = network.load_state(&loaded.model).with_context(from).and_then(|()| {
                    optimizer.load_state(&loaded.optimizer).with_exit_code(ExitCode::Checkpoint, from)
                });
                match loading {
                    // The checkpoint is as it should be; it is the config that changed.
                    Err(error) if session.is_redesigned(&loaded.state)? => Err(error).with_exit_code(ExitCode::Usage, || {
                        "the config's `model` or `optimizer` is not what this run was started with: change it back, or \
                         start a new run with --output FOLDER"
                    })?,
                    loading => loading?,
                }
                optimizer.load_pending(&loaded.state.decay);
                let mut terms = session.groups.iter().flat_map(ParamGroup::active);
                let needs_initial = terms.any(|term| term.form.needs_initial());
                if needs_initial && optimizer.initial().iter().all(Option::is_none) {
                    let message = "this run did not keep the weights that it began with, which `l2_sp` pulls to: start a new run with \
                                   --output FOLDER";
                    return Err(fail(ExitCode::Usage, message));
                }
                (loaded.state, loaded.ema, true)
            }
            Start::Fresh(initial) => {
                if let Some(initial) = &initial {
                    initial.load_into(&network)?;
                    optimizer.load_state(&initial.optimizer)?;
                    optimizer.keep_initial(&session.groups, |name| initial.tensors.contains_key(name))?;
                }
                (State::new(train.fingerprint.clone()), None, false)
            }
        };
        state.classes = train.classes.clone();
        state.features = train.features.clone();
        state.config = serde_json::to_value(spec)?;
        state.fingerprints = session.fingerprints();
        state.data_fingerprint = train.fingerprint.clone();
        state.jpeg_pixels = JPEG_PIXELS;
        state.ranks = session.world_size();
        state.threads = Some(tch::get_num_threads() as usize);
        // What an earlier version saved is saved as of this one.
        (state.format, state.version) = (State::new(String::new()).format, env!("CARGO_PKG_VERSION").into());
        // An optimiser that averages by itself is followed at every step.
        let follows = optimizer.averages().then_some(EmaSpec { decay: 0.0, warmup: false });
        let averaged = match follows.as_ref().or(spec.train.ema.as_ref()) {
            Some(ema) => {
                // An average that a resume adds starts from the weights as they are.
                let mut ema = Ema::new(ema, &network.state())?;
                if let Some(saved) = saved_average {
                    ema.load_state(&saved)
                        .with_exit_code(ExitCode::Checkpoint, || "resuming the averaged weights")?;
                }
                Some((ema, session.network()?))
            }
            None => None,
        };
        let thresholded = session.groups.iter().filter(|group| group.is_sparse());
        let thresholded = thresholded.flat_map(|group| &group.param_indices);
        state.sparse = match &averaged {
            Some(_) => thresholded.map(|&member| network.parameters()[member].name.clone()).collect(),
            None => Vec::new(),
        };
        let adaptive = LambdaTuner::new(session, &network, &state.tuned)?;
        let scale = match spec.train.amp {
            Some(Amp::Fp16) => Some(GradScaler::new(state.scaling, session.device)?),
            _ => None,
        };
        let mut plateau = match &state.plateau {
            serde_json::Value::Null => Plateau::default(),
            saved => serde_json::from_value(saved.clone())
                .with_exit_code(ExitCode::Checkpoint, || "the checkpoint's schedule state")?,
        };
        let mut warnings = Vec::new();
        // A run without epochs to come keeps what it has chosen.
        let budget = spec.train.budget();
        let is_spent = budget.is_spent(state.epoch, state.step, state.seconds);
        if !is_spent {
            warnings.extend(early_stopping::restart(&mut state, &mut plateau, spec, &session.monitor));
        }
        device::autotune(spec.train.is_benchmarked());
        let (graphing, note) = GraphState::new(session)?;
        // The folder is touched only now that nothing can be refused any more.
        let folder = folder.begin(resumed.then_some(&state))?;
        let is_first = session.is_first_rank();
        if let ModelSource::Program { file, sha256: Some(sha256), .. } = &spec.model.source
            && is_first
        {
            folder.keep_program(PROGRAM_FILE, file, sha256)?;
        }
        let board = match spec.train.tensorboard && is_first {
            true => Some(Board::open(folder.path(), resumed.then_some(&state))?),
            false => None,
        };
        // Of a run that is over the config says how it was trained, whatever this command sets.
        let is_over = resumed && (is_spent || early_stopping::should_stop(&state, &spec.train));
        if is_first && (!is_over || !folder.path().join(CONFIG_FILE).exists()) {
            folder.write(CONFIG_FILE, &session.config.resolved()?)?;
        }
        let checkpoints = session.checkpoints();
        if is_first {
            checkpoints
                .settle(resumed.then_some(&state))
                .with_exit_code(ExitCode::Storage, || "tidying the checkpoints")?;
        }
        if let Some(best) = &state.best
            && !checkpoints.has(&best.checkpoint())
        {
            let name = best.within.map_or_else(|| best.epoch.to_string(), |_| best.checkpoint());
            warnings.push(format!(
                "the checkpoint of the best epoch so far, {name}, is not there: the best is chosen anew among the epochs to come"
            ));
            state.best = None;
        }
        let mut trainer = Self {
            loss_sum: DeferredScalar::new(state.loss_sum, session.device),
            finite_check: DeferredScalar::new(0.0, session.device),
            epoch_began: Instant::now(),
            evaluating: Duration::ZERO,
            time_share: 0.0,
            logged: Instant::now(),
            samples_since_log: 0,
            samples_since_begin: 0,
            samples_of_step: 0,
            latest: None,
            stopwatch: Stopwatch::default(),
            session,
            network,
            averaged,
            optimizer,
            lambda_tuner: adaptive,
            scale,
            graph_state: graphing,
            channels_last,
            reducer: None,
            frozen: vec![false; session.groups.len()],
            note,
            // What was found at the start is printed with the sets.
            reported: [Split::Train, Split::Validation, Split::Test]
                .map(|split| session.split(split).map_or(0, |set| set.skipped.len())),
            warnings,
            saved: None,
            loader,
            folder,
            board,
            state,
            plateau,
        };
        trainer.freeze_and_thaw();
        trainer.share_weights()?;
        Ok(trainer)
    }
}

/// Whether images and weights of convolutions are kept in the memory format `channels_last`.
fn is_channels_last(session: &Session) -> bool {
    let spec = &session.config.spec;
    let is_wanted = match spec.train.channels_last {
        Toggle::Off => false,
        Toggle::On => true,
        // A program may take a view of its images that other formats do not have.
        Toggle::Auto => spec.train.amp.is_some() && !spec.model.is_program(),
    };
    is_wanted && session.device != Device::Cpu
}

/// Refuses forms of the penalty that have no meaning at the highest rates of the run, given by group.
fn check_rates(session: &Session, rates: impl Fn(usize) -> StepRates) -> Result<()> {
    for (at, group) in session.groups.iter().enumerate() {
        for term in group.active() {
            if let Err(message) = term.form.check_rates(&rates(at)) {
                let invalid = Invalid::new(format!("penalty.{}", term.form.key()), message);
                return Err(session.config.document.invalid_at("", invalid));
            }
        }
    }
    Ok(())
}
