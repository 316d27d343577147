//! The binary form of CIFAR-10 and CIFAR-100 (Krizhevsky 2009): label bytes, then 3x32x32 pixels, per record.

use std::path::Path;

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::path::FilePaths;
use super::{ClassNames, OpenOptions, Source, class_names, positive_limit, resident};
use crate::data::{Dataset, Targets};
use crate::util::exit_code::{ExitCode, WithExitCode, fail};
use crate::util::regular_file;
use crate::util::yaml::Invalid;

const SHAPE: [i64; 3] = [3, 32, 32];
const PIXELS: usize = 3 * 32 * 32;

/// `{cifar10: {files: [data_batch_1.bin, …]}}`: RGB pictures `[N, 3, 32, 32]` of 10 classes.
#[derive(Deserialize, Serialize, Clone, Debug, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a mapping, such as `{files: [data_batch_1.bin]}`")]
pub struct Cifar10Spec {
    /// The files of the binary version, in order.
    pub files: FilePaths,
    /// Class names: a list, or a file such as batches.meta.txt. Numbers when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classes: Option<ClassNames>,
    /// Use only the first so many samples.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub limit: Option<usize>,
}

/// `{cifar100: {files: train.bin, labels: fine}}`: RGB pictures `[N, 3, 32, 32]` of 100 or 20 classes.
#[derive(Deserialize, Serialize, Clone, Debug, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a mapping, such as `{files: train.bin, labels: fine}`")]
pub struct Cifar100Spec {
    /// The files of the binary version, in order.
    pub files: FilePaths,
    /// Which of the two labels is the class.
    #[serde(default)]
    pub labels: Labels,
    /// Class names: a list, or a file such as fine_label_names.txt. Numbers when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classes: Option<ClassNames>,
    /// Use only the first so many samples.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub limit: Option<usize>,
}

/// Which of the two labels of CIFAR-100.
#[derive(Deserialize, Serialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Labels {
    /// 100 classes.
    #[default]
    Fine,
    /// 20 superclasses.
    Coarse,
}

/// How a record starts.
struct Record {
    /// Label bytes before the pixels.
    labels: usize,
    /// Which of them counts.
    label: usize,
    classes: u8,
}

impl Source for Cifar10Spec {
    fn validate(&self) -> Result<(), Invalid> {
        self.files.validate("files")?;
        ClassNames::validate(&self.classes)?;
        positive_limit(self.limit)
    }

    fn outline(&self) -> Option<(Vec<i64>, Option<usize>)> {
        Some((SHAPE.to_vec(), Some(10)))
    }

    fn open(&self, _: &OpenOptions) -> Result<Dataset> {
        read(&self.files, &Record { labels: 1, label: 0, classes: 10 }, &self.classes, self.limit)
    }
}

impl Source for Cifar100Spec {
    fn validate(&self) -> Result<(), Invalid> {
        self.files.validate("files")?;
        ClassNames::validate(&self.classes)?;
        positive_limit(self.limit)
    }

    fn outline(&self) -> Option<(Vec<i64>, Option<usize>)> {
        Some((SHAPE.to_vec(), Some(if matches!(self.labels, Labels::Coarse) { 20 } else { 100 })))
    }

    fn open(&self, _: &OpenOptions) -> Result<Dataset> {
        let record = match self.labels {
            Labels::Coarse => Record { labels: 2, label: 0, classes: 20 },
            Labels::Fine => Record { labels: 2, label: 1, classes: 100 },
        };
        read(&self.files, &record, &self.classes, self.limit)
    }
}

/// Bytes that one file may have; those of CIFAR have 30 to 180 MB.
const MAX_FILE: u64 = 8 << 30;

fn read(
    files: &FilePaths,
    record: &Record,
    names: &Option<ClassNames>,
    limit: Option<usize>,
) -> Result<Dataset> {
    let limit = limit.unwrap_or(usize::MAX);
    let (mut labels, mut pixels) = (Vec::new(), Vec::new());
    for file in files.iter() {
        let path = file.resolve()?;
        let bytes = regular_file::read(&path, MAX_FILE)
            .with_exit_code(ExitCode::Data, || format!("{}: cannot be read", path.display()))?;
        check(&path, &bytes, record)?;
        for sample in bytes.chunks_exact(record.labels + PIXELS).take(limit - labels.len()) {
            labels.push(i64::from(sample[record.label]));
            pixels.extend_from_slice(&sample[record.labels..]);
        }
    }
    let [channels, height, width] = SHAPE;
    let xs = Tensor::f_from_data_size(&pixels, &[labels.len() as i64, channels, height, width], Kind::Uint8)?;
    let classes = class_names(names, usize::from(record.classes))?;
    Ok(resident(xs, Targets::Classes(labels), classes))
}

fn check(path: &Path, bytes: &[u8], record: &Record) -> Result<()> {
    let (name, size) = (path.display(), record.labels + PIXELS);
    // Pickles start with 0x80, a byte that no label has; so do gzipped archives with 0x1f 0x8b.
    if bytes.starts_with(&[0x80]) || bytes.starts_with(&[0x1f, 0x8b]) {
        let message =
            format!("{name}: is the Python or the packed version; unpack the binary version (*.bin)");
        return Err(fail(ExitCode::Data, message));
    }
    if bytes.is_empty() || !bytes.len().is_multiple_of(size) {
        let message = format!(
            "{name}: {} bytes are no whole number of records of {size} bytes: it is truncated or of another data set; fetch it again",
            bytes.len()
        );
        return Err(fail(ExitCode::Data, message));
    }
    let wrong = bytes.chunks_exact(size).position(|sample| sample[record.label] >= record.classes);
    if let Some(index) = wrong {
        let label = bytes[index * size + record.label];
        let message = format!(
            "{name}: record {index} has label {label}, there are {} classes: it is damaged or of another data set; fetch it again",
            record.classes
        );
        return Err(fail(ExitCode::Data, message));
    }
    Ok(())
}
