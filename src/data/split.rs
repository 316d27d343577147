//! Takes a validation set out of the training set.

use std::sync::Arc;

use anyhow::Result;
use tch::Tensor;

use super::draw::{Draw, Purpose};
use super::{Dataset, Files, Samples, Targets, fingerprint};
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
        Targets::Values(_) | Targets::Unknown => vec![(0..set.len()).collect()],
    };
    let mut is_taken = vec![false; set.len()];
    for (class, members) in groups.iter().enumerate() {
        let count = (members.len() as f64 * fraction).round() as usize;
        let order = Draw::new(seed, 0, class as u64, Purpose::Split).permutation(members.len());
        for &member in order.iter().take(count) {
            is_taken[members[member as usize]] = true;
        }
    }
    let (taken, rest): (Vec<i64>, Vec<i64>) =
        (0..set.len() as i64).partition(|&index| is_taken[index as usize]);
    if taken.is_empty() || rest.is_empty() {
        let message = format!(
            "a validation fraction of {fraction} leaves {} of {} samples for training; choose another fraction",
            rest.len(),
            set.len()
        );
        return Err(fail(Exit::Data, message));
    }
    let taken = select(&set, &taken)?;
    let mut rest = select(&set, &rest)?;
    // What was skipped is told once, with the training set.
    rest.skipped = set.skipped;
    Ok((rest, taken))
}

/// The samples at `indices`, in that order.
fn select(set: &Dataset, indices: &[i64]) -> Result<Dataset> {
    let index = Tensor::f_from_slice(indices)?;
    let samples = match &set.samples {
        Samples::Resident(xs) => Samples::Resident(xs.f_index_select(0, &index)?),
        Samples::Files(files) => Samples::Files(Arc::new(Files {
            files: indices.iter().map(|&index| files.files[index as usize].clone()).collect(),
            fit: files.fit.clone(),
            forgiven: files.forgiven,
        })),
    };
    let targets = match &set.targets {
        Targets::Classes(labels) => {
            Targets::Classes(indices.iter().map(|&index| labels[index as usize]).collect())
        }
        Targets::Values(ys) => Targets::Values(ys.f_index_select(0, &index)?),
        Targets::Unknown => Targets::Unknown,
    };
    let names = match set.names.as_slice() {
        [] => Vec::new(),
        names => indices.iter().map(|&index| names[index as usize].clone()).collect(),
    };
    Ok(Dataset {
        samples,
        targets,
        shape: set.shape.clone(),
        classes: set.classes.clone(),
        features: set.features.clone(),
        names,
        fingerprint: fingerprint::of_part(&set.fingerprint, indices),
        skipped: Vec::new(),
    })
}
