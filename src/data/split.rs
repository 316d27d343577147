//! Takes a validation set out of the training set.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::{Dataset, Framing, Samples, Targets, fingerprint};
use crate::util::exit_code::{ExitCode, fail};
use crate::util::rng::{CounterRng, RngStream};
use crate::util::yaml::Invalid;

/// One of `of` equal parts of the training set is the validation set: k-fold cross-validation, a fold at a
/// time.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Fold {
    /// The number of folds, k.
    #[schemars(range(min = 2))]
    pub of: usize,
    /// Which fold is the validation set, from 0.
    pub index: usize,
    /// Whether samples are assigned to folds by the seed. Otherwise the folds are those of scikit-learn's
    /// `KFold` and `StratifiedKFold`.
    #[serde(default = "yes")]
    pub shuffle: bool,
    /// Samples of one group are in one fold: the column of a table that names the group, or a regular
    /// expression whose first parenthesis (else the whole match) finds it in a file's name below the root.
    /// Without shuffling the folds are scikit-learn's `GroupKFold`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// The column of a table whose values every fold has in equal shares, in the place of the classes. With
    /// `group` the folds are scikit-learn's `StratifiedGroupKFold`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stratify: Option<String>,
}

fn yes() -> bool {
    true
}

impl Fold {
    pub fn validate(&self) -> Result<(), Invalid> {
        if self.of < 2 {
            return Err(Invalid::new("of", format!("{} folds are none: say 2 or more", self.of)));
        }
        if self.index >= self.of {
            return Err(Invalid::new("index", format!("the folds are 0 to {}", self.of - 1)));
        }
        Ok(())
    }

    /// The fold of each sample: the largest group first, always into the smallest fold. Groups of one size go
    /// by name, the last one first, or as the seed has it.
    fn of_groups(&self, groups: &[String], seed: u64) -> Result<Vec<usize>> {
        let mut sizes: BTreeMap<&str, usize> = BTreeMap::new();
        groups.iter().for_each(|group| *sizes.entry(group).or_default() += 1);
        if sizes.len() < self.of {
            let message = format!("{} groups cannot fill {} folds; say fewer folds", sizes.len(), self.of);
            return Err(fail(ExitCode::Data, message));
        }
        let mut order: Vec<(&str, usize)> = sizes.into_iter().rev().collect();
        if self.shuffle {
            let drawn = CounterRng::new(seed, 0, 0, RngStream::Split).permutation(order.len());
            order = drawn.into_iter().map(|index| order[index as usize]).collect();
        }
        order.sort_by_key(|&(_, size)| std::cmp::Reverse(size));
        let (mut fold_of, mut filled) = (HashMap::new(), vec![0; self.of]);
        for (group, size) in order {
            let fold = (0..self.of).min_by_key(|&fold| filled[fold]).unwrap_or_default();
            filled[fold] += size;
            fold_of.insert(group, fold);
        }
        Ok(groups.iter().map(|group| fold_of[group.as_str()]).collect())
    }

    /// The fold of each sample: group after group, the most uneven first, into the fold that leaves the shares of
    /// the strata most alike over the folds, the smaller one where two do.
    fn of_stratified_groups(&self, groups: &[String], strata: &[i64], seed: u64) -> Result<Vec<usize>> {
        let group_of = numbered_by_name(groups);
        let group_count = group_of.iter().max().map_or(0, |&last| last as usize + 1);
        if group_count < self.of {
            let message = format!("{group_count} groups cannot fill {} folds; say fewer folds", self.of);
            return Err(fail(ExitCode::Data, message));
        }
        let width = strata.iter().max().map_or(0, |&last| last as usize + 1);
        let mut counts = vec![vec![0.0; width]; group_count];
        let mut totals = vec![0.0; width];
        for (&group, &stratum) in group_of.iter().zip(strata) {
            counts[group as usize][stratum as usize] += 1.0;
            totals[stratum as usize] += 1.0;
        }
        let mut order: Vec<usize> = (0..group_count).collect();
        if self.shuffle {
            let drawn = CounterRng::new(seed, 0, 0, RngStream::Split).permutation(group_count);
            order = drawn.into_iter().map(|index| index as usize).collect();
        }
        order.sort_by(|&a, &b| deviation(&counts[b]).total_cmp(&deviation(&counts[a])));
        let (mut fold_of, mut filled) = (vec![0; group_count], vec![vec![0.0; width]; self.of]);
        for group in order {
            let (mut best, mut least, mut fewest) = (0, f64::INFINITY, f64::INFINITY);
            for fold in 0..self.of {
                let shares = |stratum: usize| {
                    let with = |other: usize| {
                        let own = if other == fold { counts[group][stratum] } else { 0.0 };
                        (filled[other][stratum] + own) / totals[stratum]
                    };
                    deviation(&(0..self.of).map(with).collect::<Vec<_>>())
                };
                let uneven = (0..width).map(shares).sum::<f64>() / width as f64;
                let samples: f64 = filled[fold].iter().sum();
                // As numpy's `isclose`.
                let is_close = (uneven - least).abs() <= 1e-8 + 1e-5 * least.abs();
                if uneven < least || is_close && samples < fewest {
                    (best, least, fewest) = (fold, uneven, samples);
                }
            }
            filled[best].iter_mut().zip(&counts[group]).for_each(|(sum, count)| *sum += count);
            fold_of[group] = best;
        }
        Ok(group_of.into_iter().map(|group| fold_of[group as usize]).collect())
    }

    /// The fold of each sample, class by class in equal shares as far as they go.
    fn of_each(&self, units: usize, labels: Option<&[i64]>, seed: u64) -> Vec<usize> {
        let mut order: Vec<usize> = (0..units).collect();
        if self.shuffle {
            let drawn = CounterRng::new(seed, 0, 0, RngStream::Split).permutation(units);
            order = drawn.into_iter().map(|index| index as usize).collect();
        }
        let mut folds = vec![0; units];
        let Some(labels) = labels else {
            // The first `units % k` folds have one more.
            for (place, &index) in order.iter().enumerate() {
                let (small, more) = (units / self.of, units % self.of);
                let large = more * (small + 1);
                folds[index] =
                    if place < large { place / (small + 1) } else { more + (place - large) / small.max(1) };
            }
            return folds;
        };
        // Classes in the order of their first sample; sorted labels are dealt out in turn, which says how
        // many of each class a fold gets; then each class fills its folds one after the other.
        let mut classes: Vec<i64> = Vec::new();
        for &index in &order {
            if !classes.contains(&labels[index]) {
                classes.push(labels[index]);
            }
        }
        let mut place = 0;
        for class in classes {
            let members: Vec<usize> = order.iter().copied().filter(|&index| labels[index] == class).collect();
            let mut shares = vec![0; self.of];
            for _ in &members {
                shares[place % self.of] += 1;
                place += 1;
            }
            let mut fold = 0;
            for index in members {
                while shares[fold] == 0 {
                    fold += 1;
                }
                shares[fold] -= 1;
                folds[index] = fold;
            }
        }
        folds
    }
}

/// Which part of a training set its validation set is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Share<'a> {
    /// This share of each class, rounded to nearest; without classes, of all samples.
    Fraction(f64),
    Fold(&'a Fold),
    /// With the value of each sample, or of each file, in the columns `group` and `stratify`, where the fold has
    /// them.
    ByColumn(&'a Fold, Option<&'a [String]>, Option<&'a [String]>),
}

/// Splits a set into (rest, taken). Which samples is a pure function of `seed`; both parts keep the order of
/// the whole.
pub(super) fn split(set: Dataset, share: Share, seed: u64) -> Result<(Dataset, Dataset)> {
    let is_taken = match share {
        Share::Fraction(fraction) => fraction_of(&set, fraction, seed),
        Share::Fold(fold) => {
            let labels = match &set.targets {
                Targets::Classes(labels) => Some(labels.as_slice()),
                _ => None,
            };
            fold.of_each(units(&set), labels, seed).into_iter().map(|of| of == fold.index).collect()
        }
        Share::ByColumn(fold, groups, strata) => {
            let folds = match (groups, strata.map(numbered_by_name)) {
                (Some(groups), Some(strata)) => fold.of_stratified_groups(groups, &strata, seed)?,
                (Some(groups), None) => fold.of_groups(groups, seed)?,
                (None, strata) => fold.of_each(units(&set), strata.as_deref(), seed),
            };
            folds.into_iter().map(|of| of == fold.index).collect()
        }
    };
    let (taken, rest): (Vec<i64>, Vec<i64>) =
        (0..units(&set) as i64).partition(|&index| is_taken[index as usize]);
    if taken.is_empty() || rest.is_empty() {
        let what = match share {
            Share::Fraction(fraction) => format!("a validation fraction of {fraction}"),
            Share::Fold(fold) | Share::ByColumn(fold, ..) => format!("fold {} of {}", fold.index, fold.of),
        };
        let message = format!(
            "{what} leaves {} of {} samples for training; choose another share",
            rest.len(),
            units(&set)
        );
        return Err(fail(ExitCode::Data, message));
    }
    let taken = select(&set, &taken, true)?;
    let mut rest = select(&set, &rest, false)?;
    // Skipped files are reported once, with the training set.
    (rest.skipped, rest.notes) = (set.skipped, set.notes);
    Ok((rest, taken))
}

/// The standard deviation, dividing by the number of values.
fn deviation(values: &[f64]) -> f64 {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    (values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / count).sqrt()
}

/// A number for each value, in the order of the values.
fn numbered_by_name(values: &[String]) -> Vec<i64> {
    let known: BTreeMap<&str, ()> = values.iter().map(|value| (value.as_str(), ())).collect();
    let index: HashMap<&str, i64> = known.into_keys().zip(0..).collect();
    values.iter().map(|value| index[value.as_str()]).collect()
}

fn fraction_of(set: &Dataset, fraction: f64, seed: u64) -> Vec<bool> {
    let groups = match &set.targets {
        Targets::Classes(labels) => {
            let mut groups = vec![Vec::new(); set.classes.len()];
            for (index, &label) in labels.iter().enumerate() {
                groups[label as usize].push(index);
            }
            groups
        }
        _ => vec![(0..units(set)).collect()],
    };
    let mut is_taken = vec![false; units(set)];
    for (class, members) in groups.iter().enumerate() {
        let count = (members.len() as f64 * fraction).round() as usize;
        let order = CounterRng::new(seed, 0, class as u64, RngStream::Split).permutation(members.len());
        for &member in order.iter().take(count) {
            is_taken[members[member as usize]] = true;
        }
    }
    is_taken
}

/// What cannot be divided: files, where several samples are cut from one, else samples.
fn units(set: &Dataset) -> usize {
    match &set.samples {
        Samples::Files(files) => files.files.len(),
        Samples::Resident(_) => set.len(),
    }
}

/// The samples at `indices`, in that order; of files, all their samples, or each as a whole to judge by.
fn select(set: &Dataset, indices: &[i64], to_judge: bool) -> Result<Dataset> {
    let index = Tensor::f_from_slice(indices)?;
    let samples = match &set.samples {
        Samples::Resident(xs) => Samples::Resident(xs.f_index_select(0, &index)?),
        Samples::Files(files) => {
            let indices: Vec<_> = indices.iter().map(|&index| index as usize).collect();
            Samples::Files(Arc::new(files.select(&indices, to_judge)))
        }
    };
    let mut shape = set.shape.clone();
    if let (Samples::Files(files), [_, height, width]) = (&samples, shape.as_mut_slice())
        && matches!(files.framing, Framing::Whole)
    {
        (*height, *width) = (0, 0);
    }
    let targets = match &set.targets {
        Targets::Classes(labels) => {
            Targets::Classes(indices.iter().map(|&index| labels[index as usize]).collect())
        }
        Targets::Values(ys) => Targets::Values(ys.f_index_select(0, &index)?),
        Targets::MultiLabel(ys) => Targets::MultiLabel(ys.f_index_select(0, &index)?),
        Targets::Images { channels, scale } => Targets::Images { channels: *channels, scale: *scale },
        Targets::Masks(masks) => Targets::Masks(masks.clone()),
        Targets::Unknown => Targets::Unknown,
    };
    let names = match set.names.as_slice() {
        [] => Vec::new(),
        names => indices.iter().map(|&index| names[index as usize].clone()).collect(),
    };
    Ok(Dataset {
        samples,
        targets,
        shape,
        classes: set.classes.clone(),
        features: set.features.clone(),
        names,
        // Folds go by them once.
        columns: BTreeMap::new(),
        fingerprint: fingerprint::of_part(&set.fingerprint, indices),
        skipped: Vec::new(),
        notes: Vec::new(),
    })
}
