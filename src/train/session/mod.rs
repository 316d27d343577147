//! What a config declares, opened: the device, the data, the network and the task, for training and evaluation.

mod resume;

use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Context, Result};
use tch::{Device, Kind};

use crate::checkpoint::{Checkpoints, Loaded};
use crate::config::{Config, RunConfig};
use crate::data::balance::{self, ClassBalance};
use crate::data::loader::{Loader, LoaderOptions, Preparation};
use crate::data::normalize::{Normalize, NormalizeSpec};
use crate::data::{Dataset, DatasetCache, Skipped, Split, Splits, Targets};
use crate::libtorch::autocast::{allow_tf32, be_deterministic};
use crate::libtorch::cuda;
use crate::libtorch::device;
use crate::libtorch::kernels::KernelSpec;
use crate::metrics::Monitor;
use crate::nn::layers::{Param, ParamKind};
use crate::nn::model::{Model, Network};
use crate::penalty::{ParamGroup, PenaltyParam, PenaltySpec};
use crate::tasks::Task;
use crate::train::distributed::ProcessGroup;
use crate::train::initial_weights::InitialWeights;
use crate::util::exit_code::{self, ExitCode, WithExitCode, fail};
use crate::util::rng::{CounterRng, RngStream};
use crate::util::yaml::Invalid;

/// What can be known of a config without its data: the checked network, and which tensor gets which λ.
pub struct ModelPlan {
    pub model: Model,
    pub groups: Vec<ParamGroup>,
}

impl ModelPlan {
    /// Exit code 2, with file and line, for everything that cannot work.
    pub fn of(config: &Config) -> Result<Self> {
        if config.spec.model.is_program() {
            // It is run once, to learn the shape of its output.
            config.spec.device.prepare();
        }
        let model = Model::from_spec(&config.spec.model)?;
        let groups = penalty_groups(&config.spec.penalty(), &model)
            .map_err(|invalid| config.document.invalid_at("", config.spec.of_penalty(invalid)))?;
        let task = config.spec.task.task();
        let monitor = config.spec.monitor().and_then(|monitor| {
            let known = monitor.check(task.name(), &task.metric_args(model.output()));
            known.map_err(|message| Invalid::new("train.monitor", message))
        });
        monitor.map_err(|invalid| config.document.invalid_at("", invalid))?;
        for (at, name) in config.spec.train.metrics.iter().enumerate() {
            let known = config.spec.task.monitor(Some(name));
            let known = known.and_then(|one| one.check(task.name(), &task.metric_args(model.output())));
            let at = |message| Invalid::new(format!("train.metrics.{at}"), message);
            known.map_err(|message| config.document.invalid_at("", at(message)))?;
        }
        Ok(Self { model, groups })
    }

    /// The same of a run that was trained before.
    pub fn of_run(spec: &RunConfig) -> Result<Self> {
        let model = Model::from_spec(&spec.model)?;
        let groups =
            penalty_groups(&spec.penalty(), &model).map_err(|invalid| fail(ExitCode::Checkpoint, invalid))?;
        Ok(Self { model, groups })
    }

    /// The weights that the config's `init_from` names, checked to fit; None where it names none. The config
    /// gets what the file says of its inputs, where it wants that.
    pub fn initial(&self, config: &mut Config) -> Result<Option<InitialWeights>> {
        let init_from = config.spec.model.init_from.as_ref();
        let mut initial =
            init_from.map(|init_from| InitialWeights::read(&self.model, init_from)).transpose()?;
        if let Some(initial) = &mut initial {
            initial.settle_normalization(config)?;
        }
        Ok(initial)
    }

    /// The same to train from: with the optimiser's state, where the config wants it.
    pub fn initial_with_optimizer(&self, config: &mut Config) -> Result<Option<InitialWeights>> {
        let mut initial = self.initial(config)?;
        if let (Some(initial), Some(init_from)) = (&mut initial, &config.spec.model.init_from) {
            initial.take_optimizer(&self.model, init_from, &config.spec.optimizer, &self.groups)?;
        }
        Ok(initial)
    }
}

/// All parameters of the model, frozen ones too, and which of them gets which λ.
fn all_groups<'m>(
    penalty: &PenaltySpec,
    model: &'m Model,
) -> Result<(Vec<&'m Param>, Vec<ParamGroup>), Invalid> {
    let all: Vec<_> = model.params().iter().filter(|param| param.kind != ParamKind::Buffer).collect();
    let targets: Vec<_> = all
        .iter()
        .map(|param| PenaltyParam { name: &param.name, is_weight: param.kind == ParamKind::Weight })
        .collect();
    let groups = penalty.assign(&targets)?;
    Ok((all, groups))
}

/// Which of the model's trainable parameters gets which λ. Frozen ones count when patterns are matched, so
/// that freezing a layer makes no pattern wrong; no group holds them.
fn penalty_groups(penalty: &PenaltySpec, model: &Model) -> Result<Vec<ParamGroup>, Invalid> {
    let (all, mut groups) = all_groups(penalty, model)?;
    let mut trainable = 0..;
    let index: Vec<Option<usize>> =
        all.iter().map(|param| if param.is_trainable() { trainable.next() } else { None }).collect();
    for group in &mut groups {
        group.param_indices = group.param_indices.iter().filter_map(|&member| index[member]).collect();
    }
    groups.retain(|group| !group.param_indices.is_empty());
    if !groups.is_empty() && groups.iter().all(|group| group.freeze_until.is_some()) {
        let message =
            "`freeze_until` freezes everything at the start; leave something to train, such as the head";
        return Err(Invalid::new("groups", message));
    }
    Ok(groups)
}

pub struct Session {
    pub config: Config,
    pub device: Device,
    pub kind: Kind,
    pub model: Model,
    pub groups: Vec<ParamGroup>,
    pub task: Box<dyn Task>,
    /// The score on the validation set that decides.
    pub monitor: Monitor,
    /// The scores that the config names.
    pub wanted: Vec<String>,
    /// By class, where the config balances them.
    balanced: Vec<ClassBalance>,
    /// The processes that share the run, where there are several.
    pub ranks: Option<Rc<ProcessGroup>>,
    train: Option<Dataset>,
    validation: Option<Dataset>,
    test: Option<Dataset>,
}

impl Session {
    /// Opens all data, from `shelf` where it is there, and sees that data, network and task fit; nothing is
    /// trained or written.
    pub fn open(config: Config, plan: ModelPlan, device: Device, shelf: &mut DatasetCache) -> Result<Self> {
        let mut session = Self::without_data(config, plan, device)?;
        let spec = &session.config.spec;
        let Splits { train, validation, test } = spec.data.open_from(shelf, spec.seed)?;
        session.settle_normalization(&train)?;
        session.balance(&train)?;
        session.has_batches(train.len())?;
        can_normalize(&session.model, &session.config.spec, train.len())?;
        (session.train, session.validation, session.test) = (Some(train), validation, test);
        session.check()?;
        Ok(session)
    }

    /// Opens what it takes to evaluate on `split`, and no more. `classes` are the names that the network was
    /// trained on, where they are known.
    pub fn open_only(
        config: Config,
        plan: ModelPlan,
        device: Device,
        split: Split,
        classes: Option<&[String]>,
    ) -> Result<Self> {
        let mut session = Self::without_data(config, plan, device)?;
        let spec = &session.config.spec;
        let open = |split| spec.data.open_only(split, spec.seed, classes);
        let is_auto = [&spec.data.normalize, &spec.data.normalize_target].contains(&&NormalizeSpec::Auto);
        if is_auto && split != Split::Train {
            session.train = open(Split::Train)?;
        }
        let set = open(split)?;
        match split {
            Split::Train => session.train = set,
            Split::Validation => session.validation = set,
            Split::Test => session.test = set,
        }
        if let Some(set) = session.train.take() {
            session.settle_normalization(&set)?;
            session.train = Some(set);
        }
        session.check()?;
        Ok(session)
    }

    fn without_data(mut config: Config, plan: ModelPlan, device: Device) -> Result<Self> {
        let ModelPlan { model, groups } = plan;
        let spec = &mut config.spec;
        device::settle_threads(spec.threads);
        cuda::make_current(device)?;
        if let Some(tf32) = spec.train.tf32 {
            allow_tf32(tf32)?;
        }
        if spec.train.deterministic && device != Device::Cpu {
            be_deterministic()?;
        }
        spec.train.use_kernels();
        if spec.penalty.input_gradient.is_some() {
            // Ours have no second derivative.
            KernelSpec::Libtorch.apply();
        }
        // The run folder must not depend on a model file that may change.
        spec.model = spec.model.inlined()?;
        let (task, kind) = (spec.task.build(), spec.dtype.kind());
        let monitor = spec.monitor().map_err(|invalid| config.document.invalid_at("", invalid))?;
        let mut wanted = spec.train.metrics.clone();
        wanted.push(monitor.metric.clone());
        let (balanced, train, validation, test) = (Vec::new(), None, None, None);
        Ok(Self {
            config,
            device,
            kind,
            model,
            groups,
            task,
            monitor,
            wanted,
            balanced,
            ranks: None,
            train,
            validation,
            test,
        })
    }

    /// Tells the task what `balance` means for the classes of the training set.
    fn balance(&mut self, train: &Dataset) -> Result<()> {
        let outputs = self.model.output().iter().product::<i64>() as usize;
        self.balanced = self.config.spec.balance.of(train, outputs)?;
        self.task.balance(&self.balanced, self.kind, self.device);
        Ok(())
    }

    /// From here on the config says the numbers that `auto` stood for: an evaluation must not compute others.
    fn settle_normalization(&mut self, train: &Dataset) -> Result<()> {
        let data = &mut self.config.spec.data;
        let said = |resolved: Option<Normalize>| resolved.map_or(NormalizeSpec::None, NormalizeSpec::Given);
        data.normalize = said(data.normalize.resolve(train)?);
        data.normalize_target = said(data.normalize_target.resolve_targets(train)?);
        Ok(())
    }

    /// Training that makes no step would end as if it had gone well.
    fn has_batches(&self, samples: usize) -> Result<()> {
        let data = &self.config.spec.data;
        if !data.drop_last || samples >= data.batch_size {
            return Ok(());
        }
        let message = format!(
            "true leaves no batch to learn from: `data.batch_size` is {} and the training set has {samples} samples; \
             leave it out, or take a batch_size of at most {samples}",
            data.batch_size
        );
        Err(self.config.document.invalid_at("data", Invalid::new("drop_last", message)))
    }

    /// Auxiliary heads learn as the network does, in one piece with it.
    fn can_learn_heads(&self) -> Result<()> {
        let heads = self.model.auxiliary_heads();
        let Some(head) = heads.first() else { return Ok(()) };
        let name = &head.name;
        let message = match (self.task.takes_auxiliary(), self.config.spec.train.is_cut()) {
            (false, _) => format!(
                "the network has the auxiliary head `{name}`, from which {} cannot learn: classification, regression and \
                 segmentation can; leave `aux` out of the model",
                self.task.name()
            ),
            (_, true) => format!(
                "train.checkpoint_activations: the auxiliary head `{name}` takes features half-way, which a network that is \
                 cut into segments does not keep: leave it out"
            ),
            _ => return Ok(()),
        };
        Err(fail(ExitCode::Usage, message))
    }

    fn check(&self) -> Result<()> {
        self.can_learn_heads()?;
        for set in [&self.train, &self.validation, &self.test].into_iter().flatten() {
            self.task.check(&self.model, set)?;
            fits(&self.model, &self.task.input(&set.shape), &set.features)?;
        }
        Ok(())
    }

    /// Whether this process writes and judges: the only one, or rank 0.
    pub fn is_first_rank(&self) -> bool {
        self.ranks.as_ref().is_none_or(|ranks| ranks.is_first())
    }

    /// The number of processes that share the run.
    pub fn world_size(&self) -> usize {
        self.ranks.as_ref().map_or(1, |ranks| ranks.size())
    }

    /// Batches of one optimiser step, those of all processes.
    pub fn batches_per_step(&self) -> usize {
        self.config.spec.train.accumulate * self.world_size()
    }

    /// The set to learn from; only a session that was opened for evaluation lacks it.
    pub fn train(&self) -> Result<&Dataset> {
        self.train.as_ref().context("the training set is not open")
    }

    /// The network with fresh weights: the seed decides them.
    pub fn network(&self) -> Result<Network> {
        device::seed(self.config.spec.seed);
        let built = self.model.build(self.device, self.kind);
        if let Err(error) = &built
            && exit_code::code(error) == ExitCode::Memory as u8
        {
            let params: i64 =
                self.model.params().iter().map(|param| param.shape.iter().product::<i64>()).sum();
            let size = params as f64 * self.kind.elt_size_in_bytes() as f64 / f64::from(1 << 30);
            return built.with_exit_code(ExitCode::Memory, || {
                format!("the network does not fit into memory: its {params} numbers take {size:.1} GiB; take a smaller one")
            });
        }
        built.context("building the network")
    }

    /// The network with a checkpoint's weights: the averaged ones where there are any.
    pub fn trained(&self, loaded: &Loaded) -> Result<Network> {
        let network = self.network()?;
        let context = || format!("the weights of {}", loaded.folder.display());
        network.load_state(&loaded.weights()).with_context(context)?;
        Ok(network)
    }

    /// All parameters, and the penalty groups as they would be if none were frozen: indices into the former.
    pub fn groups_with_frozen(&self) -> Result<(Vec<&Param>, Vec<ParamGroup>)> {
        Ok(all_groups(&self.config.spec.penalty(), &self.model)?)
    }

    pub fn checkpoints(&self) -> Checkpoints {
        Checkpoints::of(&self.config.spec.output)
    }

    pub fn split(&self, split: Split) -> Option<&Dataset> {
        match split {
            Split::Train => self.train.as_ref(),
            Split::Validation => self.validation.as_ref(),
            Split::Test => self.test.as_ref(),
        }
    }

    /// Batches of `set`: shuffled and augmented to learn from, in order and untouched to judge by.
    pub fn loader(&self, set: &Dataset, train: bool) -> Result<Loader> {
        loader(&self.config.spec, self.device, set, train)
    }

    /// Batches of the validation set in random orders, untouched: a gradient of its loss wants every kind of
    /// sample in each.
    pub fn validation_in_random_order(&self) -> Result<Loader> {
        let set = self.validation.as_ref().context("the validation set is not open")?;
        let mut spec = self.config.spec.clone();
        spec.data.augment = Vec::new();
        spec.data.repeated_augmentation = 1;
        spec.balance.sampler = None;
        spec.data.drop_last = spec.data.batch_size < set.len();
        spec.seed = CounterRng::new(spec.seed, 0, 0, RngStream::Tune).bits();
        // Images of any size go one by one, in order.
        loader(&spec, self.device, set, set.shape.get(1) != Some(&0))
    }

    /// What the user should know of the data before training starts.
    pub fn notes(&self) -> Vec<String> {
        let sets = [
            ("train", self.train.as_ref()),
            ("validation", self.validation.as_ref()),
            ("test", self.test.as_ref()),
        ];
        let mut notes = self.config.notes.clone();
        let (threads, cores) = (tch::get_num_threads() as usize, device::cores());
        if threads > 4 * cores {
            notes
                .push(format!("threads: {threads} on {cores} cores wait for each other; {cores} are faster"));
        }
        for (name, set) in sets {
            let Some(set) = set else { continue };
            notes.extend(set.notes.iter().map(|note| format!("{name}: {note}")));
            for skipped in &set.skipped {
                notes.push(format!("{name}: {skipped}"));
            }
            notes.push(format!("{name}: {} samples of shape {:?}{}", set.len(), set.shape, classes(set)));
            notes.extend(self.mask_notes(name, set));
            notes.extend(set.sampled().map(|how| format!("{name}: {how}")));
        }
        if let (Some(train), [outputs]) = (&self.train, self.model.output())
            && let (Targets::Classes(_) | Targets::MultiLabel(_), classes) =
                (&train.targets, train.classes.len())
        {
            // The source of a folder has said why a class of it has none.
            let is_noted = |class: &str| {
                let start = format!("class `{class}` has 0 samples");
                train.notes.iter().any(|note| note.starts_with(&start))
            };
            let counts = train.classes.iter().zip(train.class_counts());
            let absent: Vec<_> = counts.filter(|(class, count)| *count == 0 && !is_noted(class)).collect();
            if let Some((first, _)) = absent.first() {
                let from_one = train.classes.first() == Some(first) && *first == "0" && absent.len() == 1;
                let hint = if from_one { ": do the labels begin at 1? Classes count from 0" } else { "" };
                let more = if absent.len() > 1 {
                    format!(" and {} others", absent.len() - 1)
                } else {
                    String::new()
                };
                notes.push(format!("train: no sample is of class `{first}`{more}{hint}"));
            }
            if classes == 1 && matches!(train.targets, Targets::Classes(_)) {
                notes.push(
                    "train: there is one class only: nothing can be learnt of what tells it from others"
                        .into(),
                );
            }
            if *outputs > classes as i64 {
                let more = outputs - classes as i64;
                notes.push(format!(
                    "the network has {outputs} outputs and the data {classes} classes: {more} of them answer for no \
                     class; most shipped models take `args: {{classes: {classes}}}`"
                ));
            }
        }
        notes.extend(balance::lines(&self.balanced).map(|line| format!("balance: {line}")));
        if self.validation.is_none() && self.test.is_none() {
            notes.push(
                "nothing judges this run: there is no validation set, as in `data: {validation: {fraction: 0.1}}`, \
                 and no test set"
                    .into(),
            );
        }
        if self.config.spec.penalty().tuned().is_some() {
            notes.push(
                "λ is tuned on the validation set: its scores are optimistic, those of the test set are not"
                    .into(),
            );
        }
        notes
    }

    /// What the masks of `set`, called `name`, hold; nothing of a part of the training set, whose masks were
    /// counted with it.
    pub fn mask_notes(&self, name: &str, set: &Dataset) -> Vec<String> {
        let Targets::Masks(masks) = &set.targets else { return Vec::new() };
        let with_another = match self.train.as_ref().map(|train| &train.targets) {
            Some(Targets::Masks(known)) => name != "train" && Arc::ptr_eq(known, masks),
            _ => false,
        };
        if with_another { Vec::new() } else { masks.notes(name, &set.classes) }
    }

    /// What was left out of each set so far, at the start and since.
    pub fn left_out(&self) -> [(&'static str, Vec<Skipped>); 3] {
        let of = |set: &Option<Dataset>| set.as_ref().map_or_else(Vec::new, Dataset::left_out);
        [("train", of(&self.train)), ("validation", of(&self.validation)), ("test", of(&self.test))]
    }
}

/// The classes of a set with their numbers of samples, as text.
fn classes(set: &Dataset) -> String {
    const FEW: usize = 12;
    let counts = set.class_counts();
    if counts.is_empty() {
        return String::new();
    }
    let each = set.classes.iter().zip(&counts).map(|(class, count)| format!("{class} {count}"));
    let listed: Vec<_> = each.take(if counts.len() > FEW { FEW - 2 } else { FEW }).collect();
    let rest = match (counts.iter().min(), counts.iter().max()) {
        (Some(least), Some(most)) if counts.len() > FEW => format!(", … ({least} to {most} each)"),
        _ => String::new(),
    };
    let plural = if counts.len() == 1 { "class" } else { "classes" };
    format!(", {} {plural}: {}{rest}", counts.len(), listed.join(", "))
}

/// Batches of `set` as `spec` prepares them; its `normalize` and `normalize_target` must be resolved.
pub fn loader(spec: &RunConfig, device: Device, set: &Dataset, train: bool) -> Result<Loader> {
    let data = &spec.data;
    let preparation = Preparation {
        normalize: data.normalize.resolve(set)?,
        normalize_target: data.normalize_target.resolve_targets(set)?,
        augment: data.augment.clone(),
        sampler: spec.balance.sampler,
        repeats: data.repeated_augmentation,
    };
    let options = LoaderOptions {
        batch_size: data.batch_size,
        train,
        drop_last: train && data.drop_last,
        seed: spec.seed,
        device,
        kind: spec.dtype.kind(),
        workers: data.workers,
    };
    Loader::new(set, &preparation, options)
}

/// A batch norm that sees one value per channel has no deviation to divide by.
fn can_normalize(model: &Model, spec: &RunConfig, samples: usize) -> Result<()> {
    let wanted = model.min_batch() as usize;
    let size = spec.data.batch_size.min(samples);
    let last = match samples % size {
        0 => size,
        _ if spec.data.drop_last => size,
        rest => rest,
    };
    if size.min(last) >= wanted {
        return Ok(());
    }
    let message = format!(
        "a batch of {} would reach a batch norm that needs {wanted} samples; say `data: {{drop_last: true}}` or \
         choose another `batch_size` than {} for {samples} samples",
        size.min(last),
        spec.data.batch_size
    );
    Err(fail(ExitCode::Usage, message))
}

/// A network whose output is an image is taken to be fully convolutional: it works at any size.
fn fits(model: &Model, shape: &[i64], features: &[String]) -> Result<()> {
    let wanted = model.input();
    let at_any_size = model.output().len() == 3 && shape.len() == 3 && wanted.first() == shape.first();
    (wanted == shape || at_any_size).then_some(()).with_exit_code(ExitCode::Usage, || {
        let columns = match features {
            [] => String::new(),
            all => {
                let few: Vec<_> = all.iter().take(12).map(String::as_str).collect();
                format!(" (the columns {}{})", few.join(", "), if all.len() > few.len() { ", …" } else { "" })
            }
        };
        format!(
            "the model wants samples of shape {wanted:?} and the data has {shape:?}{columns}; change the model's `input` \
             (or its args), or the size that the data is brought to"
        )
    })
}
