//! Where samples come from: a new format is one file, with its spec, and one row of the table below. `cell`, `path`,
//! `pairs`, `pictures` and `masks` are no formats: they serve several.

mod cell;
mod cifar;
mod csv;
pub mod folder;
mod idx;
mod images;
mod line;
mod masks;
pub mod npy;
mod pairs;
mod path;
mod pictures;
mod shapes;
mod table;

use std::collections::BTreeMap;
use std::fmt;

use anyhow::Result;
use regex::Regex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

pub use self::csv::CsvSpec;
pub use masks::MaskSpec;
pub use path::FilePath;

use super::split::Fold;
use super::{Dataset, Mode, Resize, Samples, Targets};
use crate::data::image::eval_transform::EvalTransform;
use crate::data::image::smooth::SmoothSpec;
use crate::util::exit_code::{ExitCode, WithExitCode, fail};
use crate::util::regular_file;
use crate::util::yaml::Invalid;

/// One declared place that samples come from.
pub(super) trait Source: Sync {
    /// Checks values and that files exist; key paths are relative to the source.
    fn validate(&self) -> Result<(), Invalid>;
    /// Reads or generates the samples. The fingerprint is left empty.
    fn open(&self, options: &OpenOptions) -> Result<Dataset>;
    /// Whether the samples decide which class has which index, so that two sets may disagree.
    fn finds_classes(&self) -> bool {
        false
    }
    /// Whether [`OpenOptions::eval`] is followed.
    fn fits_pictures(&self) -> bool {
        false
    }
    /// The shape of the samples, 0 for sides that differ, and the number of classes, where both are known
    /// without reading the samples.
    fn outline(&self) -> Option<(Vec<i64>, Option<usize>)> {
        None
    }
    /// How pictures are brought to the size of the samples, for prediction.
    fn resize(&self) -> Resize {
        Resize::default()
    }
    /// The channels of pictures.
    fn mode(&self) -> Mode {
        Mode::default()
    }
    /// Whether pictures are turned as their EXIF data says.
    fn exif(&self) -> bool {
        true
    }
    /// The group of each sample of `set`, which this source gave, or of each of its files: `what` is a
    /// regular expression on their names. Exit 2 where there are none, 3 where one of them has no group.
    fn groups(&self, set: &Dataset, what: &str) -> Result<Vec<String>> {
        if let Some(column) = set.columns.get(what) {
            return Ok(column.clone());
        }
        if set.names.is_empty() {
            let message =
                "data.validation.fold.group: these samples have neither columns nor file names to go by";
            return Err(fail(ExitCode::Usage, message));
        }
        let pattern = Regex::new(what).with_exit_code(ExitCode::Usage, || "data.validation.fold.group")?;
        let group = |name: &String| {
            let found = pattern.captures(name);
            let found = found.and_then(|found| {
                found.get(1).or_else(|| found.get(0)).map(|group| group.as_str().to_owned())
            });
            found.with_exit_code(ExitCode::Data, || {
                format!("`{what}` (data.validation.fold.group) finds no group in {name}")
            })
        };
        set.names.iter().map(group).collect()
    }
}

macro_rules! sources {
    ($($key:literal => $variant:ident($spec:ty),)*) => {
        /// Where the samples of one set come from.
        #[derive(Deserialize, Serialize, Clone, Debug, JsonSchema)]
        pub enum SourceSpec {
            $(#[serde(rename = $key)] $variant($spec),)*
        }

        /// A share of the training set, or a source of its own.
        #[derive(Deserialize, Serialize, Clone, Debug, JsonSchema)]
        pub enum ValidationSpec {
            /// This share of the training samples, drawn by the seed, class by class.
            #[serde(rename = "fraction")]
            Fraction(#[schemars(extend("exclusiveMinimum" = 0, "exclusiveMaximum" = 1))] f64),
            #[serde(rename = "fold")]
            Fold(Fold),
            $(#[serde(rename = $key)] $variant($spec),)*
        }

        impl SourceSpec {
            /// The key of the source, and the source.
            pub(in crate::data) fn source(&self) -> (&'static str, &dyn Source) {
                match self {
                    $(Self::$variant(spec) => ($key, spec),)*
                }
            }
        }

        impl ValidationSpec {
            /// The source with its key, where it is one of its own.
            pub(in crate::data) fn source(&self) -> Option<(&'static str, &dyn Source)> {
                match self {
                    Self::Fraction(_) | Self::Fold(_) => None,
                    $(Self::$variant(spec) => Some(($key, spec)),)*
                }
            }
        }
    };
}

sources! {
    "cifar10" => Cifar10(cifar::Cifar10Spec),
    "cifar100" => Cifar100(cifar::Cifar100Spec),
    "csv" => Csv(self::csv::CsvSpec),
    "folder" => Folder(folder::FolderSpec),
    "idx" => Idx(idx::IdxSpec),
    "images" => Images(images::ImagesSpec),
    "line" => Line(line::LineSpec),
    "linear" => Linear(line::LinearSpec),
    "npy" => Npy(npy::NpySpec),
    "shapes" => Shapes(shapes::ShapesSpec),
    "table" => Table(table::TableSpec),
}

/// One of the sets of a run, as configs, logs and the command line call it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
#[repr(u64)]
pub enum Split {
    Train = 0,
    Validation = 1,
    Test = 2,
}

/// What the `data:` section says beside the source.
pub(super) struct OpenOptions {
    pub part: Split,
    /// Bytes that decoded pictures may fill.
    pub memory: u64,
    /// The share of files that may be undecodable.
    pub max_skipped: f64,
    /// Pictures are cropped before they are resized, so they must stay files.
    pub keep_files: bool,
    pub smooth: Option<SmoothSpec>,
    /// How pictures become samples to judge by.
    pub eval: Option<EvalTransform>,
    /// What the folds group by: where it is a column, it is no feature.
    pub group: Option<String>,
    /// What the folds are stratified by.
    pub stratify: Option<String>,
}

impl Split {
    pub const ALL: [Split; 3] = [Split::Train, Split::Validation, Split::Test];

    pub fn key(self) -> &'static str {
        match self {
            Split::Train => "train",
            Split::Validation => "validation",
            Split::Test => "test",
        }
    }
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} set",
            match self {
                Split::Train => "training",
                Split::Validation => "validation",
                Split::Test => "test",
            }
        )
    }
}

/// Class names: a list, or a text file with one name per line.
#[derive(Deserialize, Serialize, Clone, Debug, JsonSchema)]
#[serde(
    untagged,
    expecting = "expected a list of class names, or a text file with one name per line (quote names that are numbers)"
)]
pub enum ClassNames {
    List(Vec<String>),
    File(FilePath),
}

/// Bytes that a file of class names may have.
const MAX_NAMES: u64 = 64 << 20;

impl ClassNames {
    fn validate(names: &Option<Self>) -> Result<(), Invalid> {
        match names {
            Some(Self::File(file)) => file.file("classes").map(|_| ()),
            _ => Ok(()),
        }
    }

    /// The names; blank lines of a file do not count.
    fn read(&self) -> Result<Vec<String>> {
        match self {
            Self::List(names) => Ok(names.clone()),
            Self::File(file) => {
                let path = file.resolve()?;
                let unreadable = || format!("{}: the class names cannot be read", path.display());
                let text = regular_file::read(&path, MAX_NAMES).with_exit_code(ExitCode::Data, unreadable)?;
                let text = String::from_utf8(text).with_exit_code(ExitCode::Data, unreadable)?;
                Ok(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect())
            }
        }
    }
}

/// The names of `count` classes: as declared (there may be more names than classes met), else their numbers.
fn class_names(declared: &Option<ClassNames>, count: usize) -> Result<Vec<String>> {
    let Some(declared) = declared else {
        return Ok((0..count).map(|class| class.to_string()).collect());
    };
    let names = declared.read()?;
    if names.len() < count {
        let message =
            format!("labels go up to {}, but only {} class names are declared", count - 1, names.len());
        return Err(fail(ExitCode::Data, message));
    }
    Ok(names)
}

/// One more than the greatest label.
fn class_count(labels: &[i64]) -> usize {
    labels.iter().max().map_or(0, |&label| label as usize + 1)
}

/// A set in memory; what is not given is empty.
fn resident(xs: Tensor, targets: Targets, classes: Vec<String>) -> Dataset {
    Dataset {
        shape: xs.size()[1..].to_vec(),
        samples: Samples::Resident(xs),
        targets,
        classes,
        features: Vec::new(),
        names: Vec::new(),
        columns: BTreeMap::new(),
        fingerprint: String::new(),
        skipped: Vec::new(),
        notes: Vec::new(),
    }
}

/// An empty vector with room for `count` values; exit 6, with what to make smaller, where the memory does not
/// give it.
fn try_with_capacity<T>(count: Option<usize>, smaller: &str) -> Result<Vec<T>> {
    let mut values = Vec::new();
    let reserved = count.is_some_and(|count| values.try_reserve_exact(count).is_ok());
    reserved.then_some(values).with_exit_code(ExitCode::Memory, || {
        let size = count.and_then(|count| count.checked_mul(size_of::<T>()));
        let size = size.map_or_else(
            || "more than can be addressed".into(),
            |size| format!("{:.1} GiB", size as f64 / f64::from(1 << 30)),
        );
        format!("out of memory: the samples would need {size}; {smaller}")
    })
}

/// A key that is on unless a config says otherwise.
fn yes() -> bool {
    true
}

fn is_yes(value: &bool) -> bool {
    *value
}

/// Refuses zero where at least one is needed.
fn positive(key: &str, value: usize) -> Result<(), Invalid> {
    if value == 0 { Err(Invalid::new(key, "must be at least 1")) } else { Ok(()) }
}

fn positive_limit(limit: Option<usize>) -> Result<(), Invalid> {
    positive("limit", limit.unwrap_or(1))
}
