//! The `data:` section of a run config.

use anyhow::Result;
use schemars::{JsonSchema, Schema};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::augment::{self, Augment};
use super::normalize::NormalizeSpec;
use super::sources::{OpenOptions, Source, SourceSpec, Split, ValidationSpec};
use super::split::Share;
use super::{Dataset, DatasetCache, Fit, Mode, Resize, Splits, Targets, split};
use crate::data::image::eval_transform::EvalTransform;
use crate::data::image::smooth::SmoothSpec;
use crate::libtorch::device::cores;
use crate::util::exit_code::{ExitCode, WithExitCode, fail};
use crate::util::interrupt;
use crate::util::threads::each;
use crate::util::yaml::Invalid;

/// Where the samples come from and how they are prepared.
#[derive(Deserialize, Serialize, Clone, Debug, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DataSpec {
    /// The training set.
    pub train: SourceSpec,
    /// The validation set, which chooses the checkpoint `best` and stops early.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation: Option<ValidationSpec>,
    /// The test set, evaluated once, at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test: Option<SourceSpec>,
    /// Samples per batch.
    #[serde(default = "default_batch_size")]
    #[schemars(range(min = 1))]
    pub batch_size: usize,
    /// Leave out an epoch's last training batch when it is smaller than the others.
    #[serde(default)]
    pub drop_last: bool,
    /// Normalisation of the inputs.
    #[serde(default)]
    pub normalize: NormalizeSpec,
    /// Normalisation of a regression's targets as the network learns them, (y - mean) / std. Predictions and
    /// metrics are in the units of the data, the loss is not. Off unless given.
    #[serde(default = "NormalizeSpec::none", skip_serializing_if = "NormalizeSpec::is_none")]
    pub normalize_target: NormalizeSpec,
    /// How pictures of a `folder` become samples to judge by: in validation and test sets and in prediction.
    /// As the source's `resize` says when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eval_transform: Option<EvalTransform>,
    /// A filter that every image of every set passes through once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub smooth: Option<SmoothSpec>,
    /// Augmentation of the training set, applied in this order.
    #[serde(default)]
    pub augment: Vec<Augment>,
    /// How often each drawn training sample comes in a row, each time augmented otherwise; an epoch has as many
    /// samples as before, and so a share of the set only (timm's `RepeatAugSampler`).
    #[serde(default = "once", skip_serializing_if = "is_once")]
    #[schemars(range(min = 1))]
    pub repeated_augmentation: usize,
    /// Threads that decode and augment while the network computes, as `num_workers` of PyTorch's DataLoader.
    /// The number of CPU cores, at least 2 and at most 8, when absent.
    #[serde(default = "default_workers")]
    #[schemars(range(min = 0, max = 1024), transform = no_default)]
    pub workers: usize,
    /// A folder whose decoded images need at most so many GiB is decoded once and kept in memory.
    #[serde(default = "default_memory_gib")]
    #[schemars(range(min = 0))]
    pub memory_gib: f64,
    /// The share of a folder's files that may be undecodable, rounded down; above 0, one file may always be.
    #[serde(default = "default_max_skipped")]
    #[schemars(range(min = 0, max = 1))]
    pub max_skipped: f64,
}

fn once() -> usize {
    1
}

fn is_once(repeats: &usize) -> bool {
    *repeats == 1
}

fn default_batch_size() -> usize {
    128
}

/// Not that of the machine on which the schema is written.
fn no_default(schema: &mut Schema) {
    schema.remove("default");
}

fn default_workers() -> usize {
    cores().clamp(2, 8)
}

fn default_memory_gib() -> f64 {
    2.0
}

fn default_max_skipped() -> f64 {
    0.01
}

impl DataSpec {
    /// Checks the values, and that the files and folders declared for `splits` exist.
    pub fn validate(&self, splits: &[Split]) -> Result<(), Invalid> {
        if self.batch_size == 0 {
            return Err(Invalid::new("batch_size", "must be at least 1"));
        }
        if self.repeated_augmentation == 0 {
            return Err(Invalid::new("repeated_augmentation", "must be at least 1: each sample once"));
        }
        if self.workers > 1024 {
            return Err(Invalid::new("workers", format!("must be 1024 or fewer, not {}", self.workers)));
        }
        if !(self.memory_gib.is_finite() && self.memory_gib >= 0.0) {
            return Err(Invalid::new(
                "memory_gib",
                format!("must be a number of GiB, 0 or more, not {}", self.memory_gib),
            ));
        }
        if !(0.0..=1.0).contains(&self.max_skipped) {
            return Err(Invalid::new(
                "max_skipped",
                format!("must be a share from 0 to 1, not {}", self.max_skipped),
            ));
        }
        self.normalize.validate().map_err(|error| error.under("normalize"))?;
        self.normalize_target.validate().map_err(|error| error.under("normalize_target"))?;
        augment::validate(&self.augment).map_err(|error| error.under("augment"))?;
        if let Some(smooth) = &self.smooth {
            smooth.validate().map_err(|error| error.under("smooth"))?;
        }
        if let Some(transform) = &self.eval_transform {
            let here = |invalid: Invalid| invalid.under("eval_transform");
            for (_, key, source) in self.sources() {
                let Some((shape, _)) = source.outline().filter(|_| source.fits_pictures()) else {
                    let message = format!("is for a `folder` of classes, and `{key}` is none: leave it out");
                    return Err(here(Invalid::new("", message)));
                };
                let sides = [shape[1] as usize, shape[2] as usize];
                transform.validate(sides).map_err(here)?;
            }
        }
        if let Some(ValidationSpec::Fold(fold)) = &self.validation {
            fold.validate().map_err(|error| error.under("validation.fold"))?;
        }
        if let Some(ValidationSpec::Fraction(fraction)) = self.validation
            && !(fraction > 0.0 && fraction < 1.0)
        {
            return Err(Invalid::new(
                "validation.fraction",
                format!("must lie between 0 and 1, not {fraction}"),
            ));
        }
        for (split, key, source) in self.sources().into_iter().filter(|(split, ..)| splits.contains(split)) {
            source.validate().map_err(|error| error.under(key).under(split.key()))?;
        }
        Ok(())
    }

    /// The shape of the training samples, 0 for sides that differ, and their number of classes, where the
    /// declaration tells.
    pub fn outline(&self) -> Option<(Vec<i64>, Option<usize>)> {
        self.train.source().1.outline()
    }

    /// Reads the sets. `seed` decides which samples a validation fraction takes.
    pub fn open(&self, seed: u64) -> Result<Splits> {
        self.open_from(&mut DatasetCache::default(), seed)
    }

    /// The same, taking what `cache` has, and leaving there what this run has read and nothing else.
    pub fn open_from(&self, cache: &mut DatasetCache, seed: u64) -> Result<Splits> {
        let open = |part, source: &dyn Source| self.open_source(part, source);
        let declared: Vec<_> = (self.sources().into_iter())
            .map(|(part, _, source)| Ok((part, self.cache_key(part)?, source)))
            .collect::<Result<_>>()?;
        cache.keep_only(declared.iter().map(|(_, key, _)| key.as_str()));
        let missing: Vec<_> = declared.iter().filter(|(_, key, _)| !cache.holds(key)).collect();
        // Reading is bound by one core for most formats: the sets are read beside each other.
        let read = each(missing.len(), missing.clone(), |&(part, _, source)| open(part, source));
        for ((_, key, _), set) in missing.into_iter().zip(read) {
            cache.put(key.clone(), set?);
        }
        let (mut train, mut validation, mut test) = (None, None, None);
        for (part, key, _) in &declared {
            let set = cache.get(key);
            match part {
                Split::Train => train = set,
                Split::Validation => validation = set,
                Split::Test => test = set,
            }
        }
        let mut train = train.with_exit_code(ExitCode::Data, || "there is no training set")?;
        if let Some(share) = self.share() {
            let (rest, taken) = self.divide(train, share, seed)?;
            (train, validation) = (rest, Some(taken));
        }
        for (part, set) in [(Split::Validation, &mut validation), (Split::Test, &mut test)] {
            if let Some(set) = set {
                set.align(&train, part)?;
            }
        }
        Ok(Splits { train, validation, test })
    }

    /// Reads one set alone. `classes` are the names that the network was trained on, where it is known;
    /// otherwise the training set is read too where its classes matter. None where the set is not declared.
    pub fn open_only(&self, split: Split, seed: u64, classes: Option<&[String]>) -> Result<Option<Dataset>> {
        let declared = self.sources().into_iter().find(|(declared, ..)| *declared == split);
        let mut set = match (declared, split, self.share()) {
            (Some((Split::Train, _, source)), _, Some(share)) => {
                self.divide(self.open_source(split, source)?, share, seed)?.0
            }
            (Some((_, _, source)), ..) => self.open_source(split, source)?,
            (None, Split::Validation, Some(share)) => {
                self.divide(self.open_source(Split::Train, self.train.source().1)?, share, seed)?.1
            }
            (None, ..) => return Ok(None),
        };
        match classes {
            Some(classes) => set.align_classes(classes, split)?,
            None if split != Split::Train
                && matches!(set.targets, Targets::Classes(_) | Targets::MultiLabel(_))
                && self.train.source().1.finds_classes() =>
            {
                let train = self.open_source(Split::Train, self.train.source().1)?;
                set.align(&train, split)?;
            }
            None => {}
        }
        Ok(Some(set))
    }

    /// How a picture becomes a sample of `shape` `[C, H, W]`, as the training folder says it, for prediction.
    pub fn picture_rules(&self, shape: &[i64]) -> Result<(Mode, Fit)> {
        let &[channels, height, width] = shape else {
            return Err(fail(
                ExitCode::Data,
                format!("pictures do not fit a network whose input is {shape:?}"),
            ));
        };
        let own = self.mode();
        let mode = match channels {
            _ if own.is_float() && own.channels() as i64 == channels => own,
            1 => Mode::Grey,
            3 => Mode::Rgb,
            _ => {
                return Err(fail(
                    ExitCode::Data,
                    format!("pictures have 1 or 3 channels, the network wants {channels}"),
                ));
            }
        };
        let resize = self.train.source().1.resize();
        let (height, width) = (height as usize, width as usize);
        let fit = Fit { height, width, resize, smooth: self.smooth, eval: self.eval_transform };
        Ok((mode, fit.judging()))
    }

    /// The names of the classes of the training set's masks; none where it has no masks.
    pub fn mask_classes(&self) -> &[String] {
        match &self.train {
            SourceSpec::Images(images) => images.mask.as_ref().map_or(&[], |mask| &mask.classes),
            _ => &[],
        }
    }

    /// Whether pictures are turned as their EXIF data says, as the training set's are.
    pub fn exif(&self) -> bool {
        self.train.source().1.exif()
    }

    /// The channels of the training set's pictures.
    pub fn mode(&self) -> Mode {
        self.train.source().1.mode()
    }

    /// How pictures become samples to judge by, for programs that take them at any size.
    pub fn resize(&self) -> Resize {
        self.eval_transform.map_or(self.train.source().1.resize(), Resize::Shorter)
    }

    fn divide(&self, train: Dataset, share: Share, seed: u64) -> Result<(Dataset, Dataset)> {
        let Share::Fold(fold) = share else { return split::split(train, share, seed) };
        if fold.group.is_none() && fold.stratify.is_none() {
            return split::split(train, share, seed);
        }
        let source = self.train.source().1;
        let column =
            |name: &Option<String>| name.as_ref().map(|name| source.groups(&train, name)).transpose();
        let (groups, strata) = (column(&fold.group)?, column(&fold.stratify)?);
        split::split(train, Share::ByColumn(fold, groups.as_deref(), strata.as_deref()), seed)
    }

    /// The part of the training set that is the validation set, where it is one.
    fn share(&self) -> Option<Share<'_>> {
        match &self.validation {
            Some(ValidationSpec::Fraction(fraction)) => Some(Share::Fraction(*fraction)),
            Some(ValidationSpec::Fold(fold)) => Some(Share::Fold(fold)),
            _ => None,
        }
    }

    /// The declared sources, the training set first.
    fn sources(&self) -> Vec<(Split, &'static str, &dyn Source)> {
        let named = |part| move |(key, source)| (part, key, source);
        let mut sources = vec![named(Split::Train)(self.train.source())];
        sources
            .extend(self.validation.as_ref().and_then(ValidationSpec::source).map(named(Split::Validation)));
        sources.extend(self.test.as_ref().map(SourceSpec::source).map(named(Split::Test)));
        sources
    }

    /// Everything that decides what [`Self::open_source`] gives.
    fn cache_key(&self, part: Split) -> Result<String> {
        let source = match part {
            Split::Train => serde_json::to_value(&self.train)?,
            Split::Validation => serde_json::to_value(&self.validation)?,
            Split::Test => serde_json::to_value(&self.test)?,
        };
        let OpenOptions { memory, max_skipped, keep_files, smooth, eval, group, stratify, .. } =
            self.open_options(part);
        Ok(json!([part.key(), source, memory, max_skipped, keep_files, smooth, group, stratify, eval])
            .to_string())
    }

    fn open_options(&self, part: Split) -> OpenOptions {
        OpenOptions {
            part,
            memory: (self.memory_gib * f64::from(1 << 30)) as u64,
            max_skipped: self.max_skipped,
            // A part of the training set may be judged by.
            keep_files: part == Split::Train
                && (self.eval_transform.is_some() || self.augment.iter().any(Augment::crops_original)),
            smooth: self.smooth,
            eval: self.eval_transform,
            group: match self.share() {
                Some(Share::Fold(fold)) => fold.group.clone(),
                _ => None,
            },
            stratify: match self.share() {
                Some(Share::Fold(fold)) => fold.stratify.clone(),
                _ => None,
            },
        }
    }

    fn open_source(&self, part: Split, source: &dyn Source) -> Result<Dataset> {
        let set = source.open(&self.open_options(part));
        // What was read halfway means nothing.
        interrupt::check(&format!("the {part} was being read"))?;
        let mut set = set?;
        if set.is_empty() {
            return Err(fail(ExitCode::Data, format!("the {part} is empty")));
        }
        set.smooth(self.smooth)?;
        set.seal()?;
        Ok(set)
    }
}
