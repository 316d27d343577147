//! Takes a validation set out of the training set.

use std::sync::Arc;

use anyhow::Result;
use tch::Tensor;

use super::draw::{Draw, Purpose};
use super::{Dataset, Framing, Samples, Targets, fingerprint};
use crate::exit::{Exit, fail};

/// Splits a set into (rest, taken) with `fraction` of each class, rounded to nearest, in the second; without classes,
/// of all samples. Which samples is a pure function of `seed`; both parts keep the order of the whole.
pub(super) fn split(set: Dataset, fraction: f64, seed: u64) -> Result<(Dataset, Dataset)> {
    let groups = match &set.targets {
        Targets::Classes(labels) => {
            let mut groups = vec![Vec::new(); set.classes.len()];
            for (index, &label) in labels.iter().enumerate() {
                groups[label as usize].push(index);
            }
            groups
        }
        _ => vec![(0..units(&set)).collect()],
    };
    let mut is_taken = vec![false; units(&set)];
    for (class, members) in groups.iter().enumerate() {
        let count = (members.len() as f64 * fraction).round() as usize;
        let order = Draw::new(seed, 0, class as u64, Purpose::Split).permutation(members.len());
        for &member in order.iter().take(count) {
            is_taken[members[member as usize]] = true;
        }
    }
    let (taken, rest): (Vec<i64>, Vec<i64>) =
        (0..units(&set) as i64).partition(|&index| is_taken[index as usize]);
    if taken.is_empty() || rest.is_empty() {
        let message = format!(
            "a validation fraction of {fraction} leaves {} of {} samples for training; choose another fraction",
            rest.len(),
            set.len()
        );
        return Err(fail(Exit::Data, message));
    }
    let taken = select(&set, &taken, true)?;
    let mut rest = select(&set, &rest, false)?;
    // What was skipped is told once, with the training set.
    rest.skipped = set.skipped;
    Ok((rest, taken))
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
        Targets::Images { channels } => Targets::Images { channels: *channels },
        Targets::Masks { levels } => Targets::Masks { levels: levels.clone() },
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
        fingerprint: fingerprint::of_part(&set.fingerprint, indices),
        skipped: Vec::new(),
    })
}
