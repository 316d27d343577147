//! Whether a run may go on from a checkpoint: the same data, and what of its config is another.

use std::collections::BTreeMap;

use anyhow::Result;

use super::Session;
use crate::checkpoint::State;
use crate::config::{PROGRAM_FILE, differences};
use crate::data::{JPEG_PIXELS, Samples, Split};
use crate::nn::model::ModelSource;
use crate::util::exit_code::{ExitCode, WithExitCode, fail};

impl Session {
    /// The fingerprints of the sets, by their keys.
    pub fn fingerprints(&self) -> BTreeMap<String, String> {
        let of = |split: Split| Some((split.key().to_owned(), self.split(split)?.fingerprint.clone()));
        Split::ALL.into_iter().filter_map(of).collect()
    }

    /// Refuses other data than the run was started with: exit 3. The order of the samples would be another,
    /// and the best of two validation sets is none. What could not be compared is returned as lines.
    pub fn is_same_data(&self, state: &State) -> Result<Vec<String>> {
        let mut unknown = Vec::new();
        if state.fingerprints.is_empty() {
            // Layout 1 knew the training set alone, of files that are read at need their names and sizes.
            let train = self.train()?;
            match &train.samples {
                Samples::Files(_) => unknown.push("training"),
                Samples::Resident(_) if state.data_fingerprint != train.fingerprint => {
                    return self.refuse("training", state);
                }
                Samples::Resident(_) => {}
            }
            let others = [(Split::Validation, "validation"), (Split::Test, "test")];
            unknown.extend(
                others.iter().filter(|(split, _)| self.split(*split).is_some()).map(|(_, name)| name),
            );
        }
        let now = self.fingerprints();
        for (name, then) in &state.fingerprints {
            if now.get(name).is_some_and(|now| now != then) {
                return self.refuse(if name == "train" { "training" } else { name }, state);
            }
        }
        let tell = |sets: &[&str]| {
            format!(
                "an earlier version saved this checkpoint: whether the {} data is what the run was started with is not known",
                sets.join(", ")
            )
        };
        let unknown = (!unknown.is_empty()).then(|| tell(&unknown));
        let pixels = self.other_pixels(state).map(|why| format!("{why}; the run goes on with today's"));
        Ok(unknown.into_iter().chain(pixels).collect())
    }

    fn refuse(&self, set: &str, state: &State) -> Result<Vec<String>> {
        let changed = self.changed(state)?;
        let mut changed: Vec<_> = changed.iter().map(|(path, change)| another(path, change)).collect();
        changed.extend(self.other_pixels(state).map(|why| format!("{why}; that version can resume it")));
        let message = format!(
            "the {set} data is not what this run was started with; start a new run for other data\n{}",
            changed.join("\n")
        );
        Err(fail(ExitCode::Data, message.trim_end()))
    }

    /// That JPEG files had other pixels, where there are any.
    fn other_pixels(&self, state: &State) -> Option<&'static str> {
        let has_jpegs = |split: &Split| self.split(*split).is_some_and(|set| set.has_jpegs());
        (state.jpeg_pixels != JPEG_PIXELS && Split::ALL.iter().any(has_jpegs)).then_some(
            "an earlier version saved this checkpoint, and decoded JPEG files to pixels that differ by a few levels of 255",
        )
    }

    fn changed(&self, state: &State) -> Result<Vec<(String, String)>> {
        Ok(differences(&state.config, &serde_json::to_value(&self.config.spec)?))
    }

    /// Whether this config's network or optimizer is another than the one that `state` was saved under, so
    /// that its tensors do not fit for that reason.
    pub fn is_redesigned(&self, state: &State) -> Result<bool> {
        let design = |path: &str| path.starts_with("model") || path.starts_with("optimizer");
        Ok(self.changed(state)?.iter().any(|(path, _)| design(path)))
    }

    /// How this config differs from the one that `state` was saved under, as lines.
    pub fn differences(&self, state: &State) -> Result<Vec<String>> {
        let changed = self.changed(state)?;
        let program =
            |(path, change): &(String, String)| path == "model.sha256" && !change.starts_with("was null");
        if let (true, ModelSource::Program { file, .. }) =
            (changed.iter().any(program), &self.config.spec.model.source)
        {
            let folder = self.config.spec.output.display();
            let message = format!(
                "{file} is not the program that this run was started with, which is {folder}/{PROGRAM_FILE}: go on with \
                 `tikhonov train {folder} --resume`, or start a new run with --output FOLDER"
            );
            return Err(fail(ExitCode::Checkpoint, message));
        }
        // Within an epoch these say which samples are learnt already.
        const ORDER: [&str; 7] = [
            "data.batch_size",
            "data.drop_last",
            "data.repeated_augmentation",
            "seed",
            "train.accumulate",
            "balance",
            "balance.sampler",
        ];
        let accumulated = state.config["train"]["accumulate"].as_u64().unwrap_or(1) * state.ranks as u64;
        let ranks = self.world_size();
        let is_step_alike = accumulated == (self.config.spec.train.accumulate * ranks) as u64;
        let is_order = |path: &str| ORDER.contains(&path) && !(path == "train.accumulate" && is_step_alike);
        let order = changed.iter().find(|(path, _)| is_order(path));
        if let (Some((path, change)), true) = (order, state.batch > 0) {
            let message =
                format!("`{path}` cannot change in the middle of an epoch ({change}); change it back");
            return Err(fail(ExitCode::Usage, message));
        }
        let mut notes: Vec<_> = changed.iter().map(|(path, change)| another(path, change)).collect();
        if state.ranks != ranks {
            let keeps = match is_step_alike {
                true => "a step has as many batches as before".to_owned(),
                false => format!(
                    "a step has {} batches instead of {accumulated}, in the same order; `train.accumulate` can make up for it",
                    self.config.spec.train.accumulate * ranks
                ),
            };
            notes.push(format!("resuming with {ranks} processes instead of {}: {keeps}", state.ranks));
        }
        let threads = tch::get_num_threads() as usize;
        if let (Some(then), tch::Device::Cpu) = (state.threads, self.device)
            && then != threads
        {
            notes.push(format!(
                "resuming with {threads} CPU threads instead of {then}: sums are added in another order, and the weights will \
                 differ from those of {then} in their last bits (--threads {then} keeps them)"
            ));
        }
        Ok(notes)
    }

    /// Refuses, with exit 4, a position that this run cannot have: numbers that no sum covers may be damaged.
    pub fn is_reachable(&self, state: &State, steps_per_epoch: usize) -> Result<()> {
        let batches = steps_per_epoch.saturating_mul(self.batches_per_step());
        let changed = self.changed(state)?;
        let is_same =
            !changed.iter().any(|(path, _)| path.starts_with("data.") || path.starts_with("train."))
                && state.ranks == self.world_size();
        let total = self.config.spec.train.budget().steps(steps_per_epoch as u64).unwrap_or(u64::MAX);
        let fits = state.batch <= batches && (state.is_summed() || !is_same || state.step <= total);
        fits.then_some(()).with_exit_code(ExitCode::Checkpoint, || {
            format!(
                "state.json is damaged: it is at step {}, after {} batches of epoch {}; the run has {total} steps, and an epoch \
                 at most {batches} batches",
                state.step,
                state.batch,
                state.epoch + 1
            )
        })
    }
}

fn another(path: &str, change: &str) -> String {
    format!("resuming with another {path}: {change}")
}
