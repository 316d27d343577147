//! Normalisation: each channel or feature to zero mean and unit standard deviation, as torchvision's
//! `Normalize`.

use anyhow::{Result, ensure};
use schemars::JsonSchema;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use tch::{Device, Kind, Tensor};

use super::{Dataset, Files, Samples, Targets};
use crate::libtorch::catch_panics;
use crate::libtorch::constant::constant;
use crate::libtorch::device::cores;
use crate::libtorch::memory::Bytes;
use crate::util::exit_code::{ExitCode, WithExitCode, fail};
use crate::util::interrupt;
use crate::util::threads;
use crate::util::yaml::Invalid;

/// `auto`, `none`, `imagenet`, `inception`, `checkpoint`, or `{mean: [...], std: [...]}` with one number per
/// channel or feature.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NormalizeSpec {
    /// The mean and standard deviation of the training set.
    #[default]
    Auto,
    None,
    /// That of torchvision's ImageNet weights: mean 0.485, 0.456, 0.406, std 0.229, 0.224, 0.225.
    Imagenet,
    /// Mean and std 0.5, as of Inception and of many of timm's networks.
    Inception,
    /// That of `model.init_from`: what an exported file or a run says of itself.
    Checkpoint,
    #[serde(untagged)]
    Given(Normalize),
}

/// Mean and standard deviation per channel or feature; pictures are in [0, 1] before it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Normalize {
    /// Subtracted, per channel or feature.
    pub mean: Vec<f64>,
    /// Divided by, per channel or feature; above 0.
    pub std: Vec<f64>,
}

impl<'de> Deserialize<'de> for NormalizeSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Form;
        impl<'de> Visitor<'de> for Form {
            type Value = NormalizeSpec;

            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str(
                    "`auto`, `none`, `imagenet`, `inception`, `checkpoint` or {mean: [...], std: [...]}",
                )
            }

            fn visit_str<E: Error>(self, word: &str) -> Result<NormalizeSpec, E> {
                match word {
                    "auto" => Ok(NormalizeSpec::Auto),
                    "none" => Ok(NormalizeSpec::None),
                    "imagenet" => Ok(NormalizeSpec::Imagenet),
                    "inception" => Ok(NormalizeSpec::Inception),
                    "checkpoint" => Ok(NormalizeSpec::Checkpoint),
                    _ => Err(E::unknown_variant(
                        word,
                        &["auto", "none", "imagenet", "inception", "checkpoint"],
                    )),
                }
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<NormalizeSpec, A::Error> {
                Normalize::deserialize(MapAccessDeserializer::new(map)).map(NormalizeSpec::Given)
            }
        }
        deserializer.deserialize_any(Form)
    }
}

impl NormalizeSpec {
    /// The default of what is left as it is unless a config says otherwise.
    pub(super) fn none() -> Self {
        Self::None
    }

    pub(super) fn is_none(&self) -> bool {
        *self == Self::None
    }

    /// The numbers in the place of a name that always means the same ones.
    pub fn spelt_out(self) -> Self {
        let given =
            |mean: [f64; 3], std: [f64; 3]| Self::Given(Normalize { mean: mean.into(), std: std.into() });
        match self {
            Self::Imagenet => given([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
            Self::Inception => given([0.5; 3], [0.5; 3]),
            other => other,
        }
    }

    /// Checks that there are as many means as deviations, all finite, and that the deviations are above 0.
    pub fn validate(&self) -> Result<(), Invalid> {
        let NormalizeSpec::Given(Normalize { mean, std }) = self else { return Ok(()) };
        if mean.len() != std.len() {
            let message = format!("{} numbers, but `mean` has {}", std.len(), mean.len());
            return Err(Invalid::new("std", message));
        }
        if let Some(place) = mean.iter().position(|mean| !mean.is_finite()) {
            return Err(Invalid::new(format!("mean.{place}"), "a mean must be finite"));
        }
        if let Some(place) = std.iter().position(|std| !(*std > 0.0 && std.is_finite())) {
            return Err(Invalid::new(format!("std.{place}"), "a standard deviation must be above 0"));
        }
        Ok(())
    }

    /// The numbers to normalise with: the given ones, or those of `train`. Exit 2 where the given ones do not
    /// suit its channels, 3 where the data has none (NaN, nothing decodable).
    pub fn resolve(&self, train: &Dataset) -> Result<Option<Normalize>> {
        let channels = train.shape.first().map_or(0, |&channels| channels as usize);
        match &self.clone().spelt_out() {
            NormalizeSpec::None => Ok(None),
            NormalizeSpec::Checkpoint => Err(fail(
                ExitCode::Usage,
                "normalize: `checkpoint` is what `model.init_from` says, and there is none here; give the numbers",
            )),
            NormalizeSpec::Given(given) if given.mean.len() != channels => Err(fail(
                ExitCode::Usage,
                format!(
                    "normalize: {} numbers for samples of {channels} channels or features; give {channels}, or `auto`",
                    given.mean.len()
                ),
            )),
            NormalizeSpec::Given(given) => Ok(Some(given.clone())),
            _ => measure(train).map(Some),
        }
    }

    /// The same of the targets `[N, T]`; samples whose targets are unknown take the given numbers as they are.
    /// Exit 2 where these do not suit the columns.
    pub fn resolve_targets(&self, train: &Dataset) -> Result<Option<Normalize>> {
        match (self, &train.targets) {
            (Self::None, _) => Ok(None),
            (Self::Auto, Targets::Values(ys)) => {
                let (variance, mean) = ys.f_var_mean_correction(&[0i64][..], 0, false)?;
                let (mean, variance) = (Vec::<f64>::try_from(mean)?, Vec::<f64>::try_from(variance)?);
                Ok(Some(Normalize::from_moments(mean.into_iter().zip(variance))))
            }
            (Self::Given(given), Targets::Values(ys)) if given.mean.len() as i64 != ys.size()[1] => {
                let message = format!(
                    "normalize_target: {} numbers for {} columns of targets; give one for each, or `auto`",
                    given.mean.len(),
                    ys.size()[1]
                );
                Err(fail(ExitCode::Usage, message))
            }
            (Self::Given(given), _) => Ok(Some(given.clone())),
            (Self::Imagenet | Self::Inception | Self::Checkpoint, _) => {
                Err(fail(ExitCode::Usage, "normalize_target: is `auto`, `none` or `{mean: […], std: […]}`"))
            }
            (Self::Auto, _) => Err(fail(
                ExitCode::Usage,
                "normalize_target: `auto` is of the targets of a training set, and this set has none; give the run \
                 folder, whose config has the numbers, or `{mean: […], std: […]}`",
            )),
        }
    }
}

impl Normalize {
    /// (xs - mean) / std in the kind of `xs` `[B, C, ...]`.
    pub fn apply(&self, xs: &Tensor) -> Tensor {
        let mut shape = vec![1; xs.dim()];
        if let Some(channels) = shape.get_mut(1) {
            *channels = self.mean.len() as i64;
        }
        let column = |values: &[f64]| constant(values, &shape, (xs.kind(), xs.device()));
        (xs - column(&self.mean)).divide_(&column(&self.std))
    }

    /// What [`apply`](Self::apply) was given.
    pub fn undo(&self, xs: &Tensor) -> Tensor {
        let back = self.mean.iter().zip(&self.std).map(|(mean, std)| (-mean / std, 1.0 / std));
        let (mean, std) = back.unzip();
        Self { mean, std }.apply(xs)
    }

    /// From sums over all values of a channel. A constant channel gets the deviation 1: it becomes 0.
    fn from_moments(moments: impl Iterator<Item = (f64, f64)>) -> Self {
        let (mean, std) = moments
            .map(|(mean, variance)| (mean, if variance > 0.0 { variance.sqrt() } else { 1.0 }))
            .unzip();
        Self { mean, std }
    }
}

/// How many files `auto` looks at: enough for the third digit, and quick.
const FILES: usize = 512;

/// Mean and population standard deviation (numpy's `mean` and `std`) of every channel or feature. For files
/// that are decoded on demand, of 512 files evenly spread over the set.
fn measure(set: &Dataset) -> Result<Normalize> {
    ensure!(
        !set.is_empty(),
        fail(ExitCode::Data, "normalize: auto needs samples, and the training set is empty")
    );
    match &set.samples {
        Samples::Resident(xs) if xs.kind() == Kind::Uint8 => {
            let size = xs.size();
            let (channels, pixels) = (size[1] as usize, size[2..].iter().product::<i64>() as usize);
            let bytes = Bytes::new(xs)?;
            let sample = (channels * pixels).max(1);
            let shares = bytes.as_slice().chunks(sample * set.len().div_ceil(cores()).max(1));
            Ok(from_counts(&in_threads(shares, |samples| {
                let mut counts = vec![[0u64; 256]; channels];
                for (plane, values) in samples.chunks_exact(pixels.max(1)).enumerate() {
                    count(values, &mut counts[plane % channels]);
                }
                counts
            })?))
        }
        Samples::Resident(xs) => {
            let dims: Vec<i64> = (0..xs.dim() as i64).filter(|&dim| dim != 1).collect();
            let xs = xs.to_kind(Kind::Double).to_device(Device::Cpu);
            let (variance, mean) = xs.var_mean_correction(dims.as_slice(), 0, false);
            let mean = Vec::<f64>::try_from(mean)?;
            let variance = Vec::<f64>::try_from(variance)?;
            if let Some(feature) = variance.iter().position(|variance| !variance.is_finite()) {
                let name =
                    set.features.get(feature).map_or_else(|| feature.to_string(), |name| format!("`{name}`"));
                let message =
                    format!("normalize: feature {name} holds NaN or infinite values; clean the data");
                return Err(fail(ExitCode::Data, message));
            }
            Ok(Normalize::from_moments(mean.into_iter().zip(variance)))
        }
        Samples::Files(files) => {
            let mut measured = measure_files(files)?;
            // Targets travel in further channels.
            let channels = set.shape.first().map_or(0, |&channels| channels as usize);
            measured.mean.truncate(channels);
            measured.std.truncate(channels);
            Ok(measured)
        }
    }
}

/// The histogram of one plane. Four tables, since equal neighbours would wait for each other in one.
fn count(values: &[u8], counts: &mut [u64; 256]) {
    let mut tables = [[0u32; 256]; 4];
    for part in values.chunks(1 << 24) {
        for four in part.chunks(4) {
            for (table, &value) in tables.iter_mut().zip(four) {
                table[value as usize] += 1;
            }
        }
        for table in &mut tables {
            for (total, count) in counts.iter_mut().zip(table) {
                *total += u64::from(std::mem::take(count));
            }
        }
    }
}

/// Exact to the last bits: the sums of levels and of their squares are whole numbers.
fn from_counts(counts: &[[u64; 256]]) -> Normalize {
    Normalize::from_moments(counts.iter().map(|counts| {
        let (mut n, mut sum, mut squares) = (0u128, 0u128, 0u128);
        for (level, &count) in (0u128..).zip(counts) {
            n += u128::from(count);
            sum += u128::from(count) * level;
            squares += u128::from(count) * level * level;
        }
        let n = n.max(1);
        (sum as f64 / n as f64 / 255.0, (n * squares - sum * sum) as f64 / (n * n) as f64 / 255.0 / 255.0)
    }))
}

/// The sums of what the threads, one for each share, count; whole numbers add up the same in any order.
fn in_threads<'a, T: Sync + 'a>(
    shares: impl Iterator<Item = &'a [T]>,
    count: impl Fn(&'a [T]) -> Vec<[u64; 256]> + Sync,
) -> Result<Vec<[u64; 256]>> {
    let parts = threads::each(cores(), shares.collect(), |share| catch_panics(|| count(share)));
    let parts: Vec<_> = parts
        .into_iter()
        .collect::<Result<_>>()
        .with_exit_code(ExitCode::Data, || "normalize: a decoder panicked; give mean and std instead")?;
    let mut counts: Vec<[u64; 256]> = Vec::new();
    for part in parts {
        counts.resize(counts.len().max(part.len()), [0; 256]);
        for (total, part) in counts.iter_mut().zip(part) {
            total.iter_mut().zip(part).for_each(|(total, count)| *total += count);
        }
    }
    Ok(counts)
}

/// One after the other, so that the sums are the same.
fn measure_floats(files: &Files, chosen: &[usize]) -> Result<Normalize> {
    let mut sums: Vec<[f64; 3]> = Vec::new();
    for &index in chosen.iter().take_while(|_| !interrupt::is_requested()) {
        // What cannot be decoded is counted and named when its turn comes in training.
        let Ok(picture) = files.picture(index) else { continue };
        let values =
            picture.data.as_chunks::<4>().0.iter().map(|bytes| f64::from(f32::from_le_bytes(*bytes)));
        let channels = picture.channels / 4;
        sums.resize(channels, [0.0; 3]);
        for (place, value) in values.enumerate() {
            let [count, sum, squares] = &mut sums[place % channels];
            (*count, *sum, *squares) = (*count + 1.0, *sum + value, *squares + value * value);
        }
    }
    interrupt::check("the training set was being measured")?;
    ensure!(
        !sums.is_empty(),
        fail(ExitCode::Data, "normalize: auto found no decodable file in the training set; check the folder")
    );
    Ok(Normalize::from_moments(sums.into_iter().map(|[count, sum, squares]| {
        let mean = sum / count;
        (mean, (squares / count - mean * mean).max(0.0))
    })))
}

/// Decodes on every core.
fn measure_files(files: &Files) -> Result<Normalize> {
    let sample = files.files.len().min(FILES);
    let chosen: Vec<_> = (0..sample).map(|place| place * files.files.len() / sample).collect();
    if files.is_float() {
        return measure_floats(files, &chosen);
    }
    let counts = in_threads(chosen.chunks(sample.div_ceil(cores()).max(1)), |chosen| {
        let mut counts: Vec<[u64; 256]> = Vec::new();
        for &index in chosen.iter().take_while(|_| !interrupt::is_requested()) {
            // What cannot be decoded is counted and named when its turn comes in training.
            let Ok(mut picture) = files.picture(index) else { continue };
            if let Some(fit) = files.fit() {
                picture = fit.whole(&picture).into();
            }
            counts.resize(picture.channels, [0; 256]);
            for pixel in picture.data.chunks_exact(picture.channels) {
                for (counts, &value) in counts.iter_mut().zip(pixel) {
                    counts[value as usize] += 1;
                }
            }
        }
        counts
    })?;
    interrupt::check("the training set was being measured")?;
    ensure!(
        !counts.is_empty(),
        fail(ExitCode::Data, "normalize: auto found no decodable file in the training set; check the folder")
    );
    Ok(from_counts(&counts))
}
