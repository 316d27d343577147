//! Batches of a data set: ordered, augmented and normalised, each a pure function of (seed, epoch, step).

mod batch_writer;
mod image_source;
mod image_targets;
mod prefetcher;
mod resident;
mod sampler;

use std::ops::Range;
use std::panic::panic_any;
use std::sync::Arc;

use anyhow::{Result, ensure};
use tch::{Device, Kind, Tensor};

use super::augment::{Augment, OwnTarget, Pipeline, Pixels, check_own_targets, soft};
use super::balance::Sampling;
use super::normalize::Normalize;
use super::{Dataset, Framing, Samples, Skipped, Targets};
use crate::data::image::floats;
use crate::libtorch::catch_panics;
use crate::libtorch::device::upload;
use crate::util::exit_code::{ExitCode, fail};
use crate::util::rng::{CounterRng, RngStream};
use image_source::ImageSource;
use prefetcher::Prefetcher;
use resident::Resident;
use sampler::Sampler;

/// One step's worth of samples, on the loader's device.
pub struct Batch {
    /// `[B, ...shape]` in the loader's kind, normalised.
    pub xs: Tensor,
    /// Image targets `[B, C, H, W]` in the loader's kind, masks int64 `[B, H, W]`, -100 where they are
    /// ignored; else int64 `[B]` classes, or `[B, K]` probabilities after mixup or CutMix, or `[B, T]`
    /// values, or `[B, K]` zeros and ones where a sample has any number of classes, the latter three in the
    /// loader's kind. -100 for every sample of a set whose targets are unknown.
    pub ys: Tensor,
    /// Which samples of the set these are.
    pub indices: Vec<i64>,
}

impl Batch {
    /// The same tensors once more.
    pub fn shallow_clone(&self) -> Self {
        Self { xs: self.xs.shallow_clone(), ys: self.ys.shallow_clone(), indices: self.indices.clone() }
    }
}

/// What happens to samples on their way.
#[derive(Clone, Debug, Default)]
pub struct Preparation {
    pub normalize: Option<Normalize>,
    /// Of targets that are values.
    pub normalize_target: Option<Normalize>,
    /// For training only.
    pub augment: Vec<Augment>,
    /// The same, of targets that are classes.
    pub sampler: Option<Sampling>,
    /// How often a sample that is drawn comes, each time augmented otherwise; 0 is 1. For training only.
    pub repeats: usize,
}

#[derive(Clone, Debug)]
pub struct LoaderOptions {
    pub batch_size: usize,
    /// Shuffled and augmented; otherwise in order and untouched.
    pub train: bool,
    /// Leaves out the last batch of an epoch if it is smaller than the others.
    pub drop_last: bool,
    pub seed: u64,
    pub device: Device,
    /// `Kind::Float` or `Kind::Double`.
    pub kind: Kind,
    /// Threads that decode files; with 0 the caller's thread does it. Samples in memory need none.
    pub workers: usize,
}

/// Makes the batches of one set.
pub struct Loader {
    source: Source,
    context: LoaderContext,
    samples: usize,
    workers: usize,
    drop_last: bool,
    /// How often a sample that is drawn comes, one time after the other.
    repeats: usize,
    /// Where not every sample comes once per epoch.
    sampler: Option<Sampler>,
    targets: DeviceTargets,
    normalize_target: Option<Normalize>,
    classes: Vec<String>,
}

enum Source {
    Resident(Resident),
    Files(Arc<ImageSource>),
    /// Images of their own sizes, a batch each.
    Whole(Box<ImageSource>),
}

/// What every source uses.
#[derive(Clone)]
struct LoaderContext {
    pipeline: Arc<Pipeline>,
    normalize: Option<Normalize>,
    train: bool,
    seed: u64,
    batch_size: usize,
    samples: usize,
    device: Device,
    kind: Kind,
    classes: usize,
    /// Threads that compute levels of samples in memory.
    workers: usize,
    /// Samples come as the bytes of float32.
    floats: bool,
}

/// Targets where the batches are.
enum DeviceTargets {
    /// So many channels of a sample are its target, which is `scale` times as large.
    Stacked {
        channels: i64,
        scale: i64,
    },
    /// The last channel of a sample is its mask.
    Mask,
    /// The CPU's own, gathered without an operation of libtorch.
    Classes(Vec<i64>),
    Tensor(Tensor),
    Unknown,
}

/// Samples before mixing, and their indices in the set.
struct RawBatch {
    xs: Tensor,
    indices: Vec<i64>,
}

impl Loader {
    /// `prep.augment` is ignored unless `options.train`. Exit 2 where a step of it does not suit the samples,
    /// 3 where the set is empty, 6 where it does not fit on the device.
    pub fn new(set: &Dataset, prep: &Preparation, options: LoaderOptions) -> Result<Self> {
        let LoaderOptions { batch_size, train, drop_last, seed, device, kind, workers } = options;
        ensure!(!set.is_empty(), fail(ExitCode::Data, "the data set holds no sample"));
        ensure!(batch_size > 0, fail(ExitCode::Usage, "batch_size: a batch needs at least one sample"));
        ensure!(
            matches!(kind, Kind::Float | Kind::Double),
            fail(ExitCode::Usage, format!("samples are made as float32 or float64, not {kind:?}"))
        );
        if let Some(Normalize { mean, std }) = &prep.normalize {
            let channels = set.shape.first().map_or(0, |&channels| channels as usize);
            ensure!(
                mean.len() == channels && std.len() == channels,
                fail(ExitCode::Usage, format!("normalize: {} numbers for {channels} channels", mean.len()))
            );
        }
        if let (Some(Normalize { mean, .. }), Targets::Values(ys)) = (&prep.normalize_target, &set.targets) {
            let (given, columns) = (mean.len(), ys.size()[1]);
            ensure!(
                given as i64 == columns,
                fail(ExitCode::Usage, format!("normalize_target: {given} numbers for {columns} columns"))
            );
        }
        let augment = if train { prep.augment.as_slice() } else { &[] };
        let target = own_target(&set.targets);
        let stacked = target.channels() as i64;
        let mut shape = set.shape.clone();
        let scale = match set.targets {
            Targets::Images { scale, .. } => scale as i64,
            _ => 1,
        };
        if stacked > 0 {
            check_own_targets(augment, target).map_err(|message| fail(ExitCode::Usage, message))?;
            check_scale(augment, scale)?;
            // The sample travels at the size of its target, each of its pixels repeated.
            shape[0] += stacked;
            shape[1..].iter_mut().for_each(|side| *side *= scale);
        }
        takes_levels(set, augment)?;
        let is_whole = set.shape.get(1) == Some(&0);
        ensure!(
            !(is_whole && train),
            fail(
                ExitCode::Usage,
                "images of any size make no batches: cut them, as in `images: {patch: 64}`"
            )
        );
        let is_fitted =
            matches!(&set.samples, Samples::Files(files) if matches!(files.framing, Framing::Fit(_)));
        let pipeline = Pipeline::with_targets(augment, &shape, is_fitted, target)?.with_levels();
        let pipeline = Arc::new(pipeline);
        let batch_size = if is_whole { 1 } else { batch_size };
        let classes = class_count(set);
        ensure!(
            !pipeline.mixes() || !matches!(set.targets, Targets::Unknown),
            fail(ExitCode::Usage, "augment: mixup and cutmix need targets, and this set has none")
        );
        let context = LoaderContext {
            pipeline,
            normalize: prep
                .normalize
                .clone()
                .map(|normalize| image_targets::leave_targets(normalize, stacked)),
            train,
            seed,
            batch_size,
            samples: set.len(),
            device,
            kind,
            classes,
            workers,
            floats: matches!(&set.samples, Samples::Files(files) if files.is_float()),
        };
        let (source, targets) = catch_panics(|| -> Result<_> {
            let source = match &set.samples {
                Samples::Resident(xs) => Source::Resident(Resident::new(xs, &context)?),
                Samples::Files(files) => {
                    let source = ImageSource::new(files.clone(), &shape, set.names.clone(), &context)?;
                    if is_whole { Source::Whole(Box::new(source)) } else { Source::Files(Arc::new(source)) }
                }
            };
            let targets = match &set.targets {
                Targets::Classes(ys) if device == Device::Cpu => DeviceTargets::Classes(ys.clone()),
                Targets::Classes(ys) => DeviceTargets::Tensor(Tensor::from_slice(ys).to_device(device)),
                Targets::Values(ys) => {
                    // Before they are shortened to float32: a deviation may be far below the mean.
                    let scaled = prep.normalize_target.as_ref().map(|normalize| normalize.apply(ys));
                    DeviceTargets::Tensor(scaled.as_ref().unwrap_or(ys).to_kind(kind).to_device(device))
                }
                Targets::MultiLabel(ys) => DeviceTargets::Tensor(ys.to_kind(kind).to_device(device)),
                Targets::Images { .. } => DeviceTargets::Stacked { channels: stacked, scale },
                Targets::Masks(_) => DeviceTargets::Mask,
                Targets::Unknown => DeviceTargets::Unknown,
            };
            Ok((source, targets))
        })??;
        let normalize_target = prep.normalize_target.clone();
        let (samples, classes) = (set.len(), set.classes.clone());
        let sampling = prep.sampler.filter(|_| train);
        let repeats = if train { prep.repeats.max(1) } else { 1 };
        let sampler = sampling.map(|sampling| Sampler::new(&set.targets, sampling, samples));
        Ok(Self {
            source,
            context,
            samples,
            workers,
            drop_last,
            repeats,
            sampler,
            targets,
            normalize_target,
            classes,
        })
    }

    /// The names of the set's classes, in the order of their numbers.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// Targets, or a network's answers `[N, T]`, in the units of the data: float64 where `normalize_target` had
    /// brought them to others, else as they are.
    pub fn in_data_units(&self, values: &Tensor) -> Tensor {
        match &self.normalize_target {
            Some(normalize) => normalize.undo(&values.to_kind(Kind::Double)),
            None => values.shallow_clone(),
        }
    }

    /// How many batches an epoch has. With `drop_last` and a batch larger than the set there is none.
    pub fn steps(&self) -> usize {
        if self.drop_last {
            self.samples / self.context.batch_size
        } else {
            self.samples.div_ceil(self.context.batch_size)
        }
    }

    /// The shape of one sample of a batch, which crops may have changed; targets that are images come on top.
    pub fn shape(&self) -> &[i64] {
        self.context.pipeline.output()
    }

    /// The files that turned out to be undecodable so far, in the order of the set.
    pub fn skipped(&self) -> Vec<Skipped> {
        match &self.source {
            Source::Resident(_) => Vec::new(),
            Source::Files(source) => source.skipped(),
            Source::Whole(source) => source.skipped(),
        }
    }

    /// The batches of an epoch from batch `from_step` on. A batch is the same wherever one starts.
    pub fn epoch(&self, epoch: u64, from_step: usize) -> Batches<'_> {
        self.batches(epoch, from_step..self.steps())
    }

    /// The samples `indices` in batches of their own, as they are made in an epoch.
    pub fn samples(&self, epoch: u64, indices: Vec<i64>) -> Batches<'_> {
        let steps = 0..indices.len().div_ceil(self.context.batch_size);
        self.drawn(epoch, indices, steps)
    }

    /// Of the batches of an epoch from batch `from_step` on every `ranks`-th, `rank` batches later: the share of one of
    /// several processes.
    pub fn share(&self, epoch: u64, from_step: usize, rank: usize, ranks: usize) -> Batches<'_> {
        if ranks == 1 {
            return self.epoch(epoch, from_step);
        }
        let numbers = (from_step + rank..self.steps()).step_by(ranks);
        let (order, steps) = (self.order(epoch), numbers.len());
        let own: Vec<i64> = numbers.flat_map(|step| &order[self.range(step..step + 1)]).copied().collect();
        Batches { first: from_step + rank, stride: ranks, ..self.drawn(epoch, own, 0..steps) }
    }

    /// How many samples the batches `steps` hold.
    pub fn samples_in(&self, steps: Range<usize>) -> i64 {
        self.range(steps).len() as i64
    }

    /// The samples of the batches `steps`, by their places in the order of an epoch.
    fn range(&self, steps: Range<usize>) -> Range<usize> {
        let place = |step: usize| (step * self.context.batch_size).min(self.samples);
        place(steps.start)..place(steps.end)
    }

    /// The samples of an epoch in its order: the index of each, plus the number of samples for each time that it
    /// came before.
    pub fn order(&self, epoch: u64) -> Vec<i64> {
        let seed = self.context.seed;
        let order = match &self.sampler {
            Some(sampler) => sampler.epoch(seed, epoch),
            None if self.context.train => {
                CounterRng::new(seed, epoch, 0, RngStream::Order).permutation(self.samples)
            }
            None => (0..self.samples as i64).collect(),
        };
        self.repeated(order)
    }

    /// One batch of an epoch; None behind its end, or where all its files were undecodable, within the
    /// budget.
    pub fn batch(&self, epoch: u64, step: usize) -> Result<Option<Batch>> {
        self.batches(epoch, step..self.steps().min(step + 1)).next().transpose()
    }

    /// The first draws of an epoch, each several times in a row: as many as before. Hoffer et al. 2020, "Augment
    /// your batch"; timm's `RepeatAugSampler`.
    fn repeated(&self, draws: Vec<i64>) -> Vec<i64> {
        let (repeats, samples) = (self.repeats as i64, self.samples as i64);
        if repeats == 1 {
            return draws;
        }
        let again = |draw: i64| {
            let (index, earlier) = (draw % samples, draw / samples);
            (0..repeats).map(move |time| index + (earlier * repeats + time) * samples)
        };
        draws.iter().flat_map(|&draw| again(draw)).take(draws.len()).collect()
    }

    fn batches(&self, epoch: u64, steps: Range<usize>) -> Batches<'_> {
        self.drawn(epoch, self.order(epoch), steps)
    }

    fn drawn(&self, epoch: u64, order: Vec<i64>, steps: Range<usize>) -> Batches<'_> {
        let order = Arc::new(order);
        let prefetcher = match &self.source {
            Source::Resident(_) | Source::Whole(_) => None,
            Source::Files(source) => {
                let (order, steps) = (order.clone(), steps.clone());
                Some(Prefetcher::start(source, &self.context, order, epoch, steps, self.workers))
            }
        };
        Batches { loader: self, order, epoch, steps, first: 0, stride: 1, prefetcher }
    }
}

/// The number of classes of a set: of its names, or of the labels themselves.
fn class_count(set: &Dataset) -> usize {
    match &set.targets {
        Targets::Classes(ys) => set.classes.len().max(ys.iter().max().map_or(0, |&most| most as usize + 1)),
        _ => 0,
    }
}

/// What samples carry of their own targets.
fn own_target(targets: &Targets) -> OwnTarget {
    match targets {
        Targets::Images { channels, .. } => OwnTarget::Image(*channels),
        Targets::Masks(_) => OwnTarget::Mask,
        _ => OwnTarget::None,
    }
}

/// Refuses augmentations that would part a sample from a target that is `scale` times as large.
fn check_scale(augment: &[Augment], scale: i64) -> Result<()> {
    let step = augment.iter().find(|step| !["flip", "dihedral"].contains(&step.name()));
    match step {
        Some(step) if scale > 1 => {
            let message = format!(
                "augment: `{}` does not go with targets that are {scale} times as large; flip and dihedral do",
                step.name()
            );
            Err(fail(ExitCode::Usage, message))
        }
        _ => Ok(()),
    }
}

/// Refuses augmentations that would round samples to 8 bits.
fn takes_levels(set: &Dataset, augment: &[Augment]) -> Result<()> {
    let kind = match &set.samples {
        Samples::Resident(xs) if xs.dim() == 4 => xs.kind(),
        Samples::Files(files) if files.is_float() => Kind::Float,
        _ => return Ok(()),
    };
    let step = augment.iter().enumerate().find(|(_, step)| step.takes_levels());
    match step {
        Some((place, step)) if kind != Kind::Uint8 => {
            let name = step.name();
            let message = format!(
                "augment.{place}.{name}: computes 8-bit levels, and the samples are {kind:?}: remove it"
            );
            Err(fail(ExitCode::Usage, message))
        }
        _ => Ok(()),
    }
}

/// The batches of one epoch. After an error there are no more.
pub struct Batches<'a> {
    loader: &'a Loader,
    /// Draws: the index of a sample, plus the number of samples for each time that it came before.
    order: Arc<Vec<i64>>,
    epoch: u64,
    steps: Range<usize>,
    /// Step k is the batch `first` + k·`stride` of the epoch.
    first: usize,
    stride: usize,
    prefetcher: Option<Prefetcher>,
}

impl Iterator for Batches<'_> {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Result<Batch>> {
        loop {
            let step = self.steps.next()?;
            // libtorch's own failures, such as a full GPU, arrive as panics of tch.
            match catch_panics(|| self.batch(step)).and_then(|batch| batch) {
                Ok(Some(batch)) => return Some(Ok(batch)),
                // Every file of the batch was undecodable, within the budget.
                Ok(None) => {}
                Err(error) => {
                    self.steps.start = self.steps.end;
                    self.prefetcher = None;
                    return Some(Err(error));
                }
            }
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let least = if self.prefetcher.is_some() { 0 } else { self.steps.len() };
        (least, Some(self.steps.len()))
    }
}

impl Batches<'_> {
    fn batch(&mut self, step: usize) -> Result<Option<Batch>> {
        let Loader { source, context, .. } = self.loader;
        let first = step * context.batch_size;
        let draws = &self.order[first..self.order.len().min(first + context.batch_size)];
        let RawBatch { xs, indices } = match (source, &mut self.prefetcher) {
            (Source::Resident(resident), _) => resident.assemble(context, self.epoch, draws)?,
            (Source::Files(_), Some(prefetcher)) => prefetcher.next(context)?,
            (Source::Whole(source), _) => match source.whole(draws[0] as usize)? {
                Some(batch) => batch,
                None => return Ok(None),
            },
            (Source::Files(_), None) => return Ok(None),
        };
        if indices.is_empty() {
            return Ok(None);
        }
        let (xs, ys) = self.loader.targets.gather(xs, &indices, context)?;
        let (xs, ys) = if context.pipeline.mixes() {
            let number = self.first + step * self.stride;
            let mut rng = CounterRng::new(context.seed, self.epoch, number as u64, RngStream::Mix);
            context.pipeline.mix(xs, soft(&ys, context.classes, context.kind), self.epoch, &mut rng)
        } else {
            (xs, ys)
        };
        Ok(Some(Batch { xs, ys, indices }))
    }
}

impl DeviceTargets {
    /// The samples `xs` without what they hold of their targets, and their targets.
    fn gather(&self, xs: Tensor, indices: &[i64], context: &LoaderContext) -> Result<(Tensor, Tensor)> {
        let ys = match self {
            DeviceTargets::Stacked { channels, scale } => {
                let (xs, ys) = image_targets::part(&xs, *channels);
                return Ok((image_targets::shrink(xs, *scale), ys));
            }
            DeviceTargets::Mask => {
                let (xs, levels) = image_targets::part(&xs, 1);
                return Ok((xs, image_targets::mask(&levels)));
            }
            DeviceTargets::Classes(ys) => {
                let ys: Vec<i64> = indices.iter().map(|&index| ys[index as usize]).collect();
                Tensor::from_slice(&ys)
            }
            DeviceTargets::Tensor(ys) => context.rows(ys, indices),
            DeviceTargets::Unknown => {
                Tensor::full([indices.len() as i64], -100, (Kind::Int64, context.device))
            }
        };
        Ok((xs, ys))
    }
}

impl LoaderContext {
    /// The rows `indices` of a tensor on the device: a view of it where they follow each other.
    fn rows(&self, tensor: &Tensor, indices: &[i64]) -> Tensor {
        match indices {
            [first, rest @ ..] if rest.iter().zip(first + 1..).all(|(&index, next)| index == next) => {
                tensor.narrow(0, *first, indices.len() as i64)
            }
            _ => tensor.index_select(0, &upload(&Tensor::from_slice(indices), self.device)),
        }
    }

    /// The sample of a draw.
    fn index(&self, draw: i64) -> i64 {
        draw % self.samples as i64
    }

    /// The random numbers of a draw's augmentation.
    fn augment_rng(&self, epoch: u64, draw: u64) -> CounterRng {
        CounterRng::new(self.seed, epoch, draw, RngStream::Augment)
    }

    /// Everything between raw samples and mixtures by operations of libtorch, on the device. `xs`
    /// `[B, C, H, W]` uint8 or floating point; `params` those of the augmentation, sample after sample.
    fn finish(&self, xs: Tensor, params: &[f64]) -> Tensor {
        let xs = match self.floats && xs.kind() == Kind::Uint8 {
            // Caught as the panics of tch's operations are.
            true => floats::tensor(&xs).unwrap_or_else(|error| panic_any(error)),
            false => xs,
        };
        let pixels = self.pipeline.pixels(Pixels::new(xs, self.kind), params);
        self.pipeline.normalized(self.normalized(pixels.into_unit()), params)
    }

    fn normalized(&self, xs: Tensor) -> Tensor {
        match &self.normalize {
            Some(normalize) => normalize.apply(&xs),
            None => xs,
        }
    }
}
