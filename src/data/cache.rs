//! Data sets that one run leaves to the next of the same process: the trials of a sweep learn from the same
//! files.

use super::{Dataset, Samples, Targets};

/// Sets as they were read, before any split; they share their memory with those that are handed out.
#[derive(Default)]
pub struct DatasetCache(Vec<(String, Dataset)>);

impl DatasetCache {
    pub(super) fn holds(&self, key: &str) -> bool {
        self.0.iter().any(|(held, _)| held == key)
    }

    pub(super) fn get(&self, key: &str) -> Option<Dataset> {
        self.0.iter().find(|(held, _)| held == key).map(|(_, set)| set.share())
    }

    pub(super) fn put(&mut self, key: String, set: Dataset) {
        self.0.push((key, set));
    }

    pub(super) fn keep_only<'a>(&mut self, keys: impl Iterator<Item = &'a str>) {
        let keys: Vec<_> = keys.collect();
        self.0.retain(|(held, _)| keys.contains(&held.as_str()));
    }
}

impl Dataset {
    /// The same samples in the same memory, which nothing writes to; labels and names of its own.
    fn share(&self) -> Self {
        Self {
            samples: match &self.samples {
                Samples::Resident(xs) => Samples::Resident(xs.shallow_clone()),
                Samples::Files(files) => Samples::Files(files.clone()),
            },
            targets: match &self.targets {
                Targets::Classes(labels) => Targets::Classes(labels.clone()),
                Targets::Values(ys) => Targets::Values(ys.shallow_clone()),
                Targets::MultiLabel(ys) => Targets::MultiLabel(ys.shallow_clone()),
                Targets::Images { channels, scale } => Targets::Images { channels: *channels, scale: *scale },
                Targets::Masks(masks) => Targets::Masks(masks.clone()),
                Targets::Unknown => Targets::Unknown,
            },
            shape: self.shape.clone(),
            classes: self.classes.clone(),
            features: self.features.clone(),
            names: self.names.clone(),
            columns: self.columns.clone(),
            fingerprint: self.fingerprint.clone(),
            skipped: self.skipped.clone(),
            notes: self.notes.clone(),
        }
    }
}
