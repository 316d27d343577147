//! The temperature that `tikhonov calibrate` found for the weights of a run, in a file of the run folder.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::checkpoint::Loaded;
use crate::config::CALIBRATION_FILE;
use crate::util::atomic_file;
use crate::util::console::print_err;
use crate::util::exit_code::{ExitCode, WithExitCode, fail};

/// `calibration.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Calibration {
    /// Logits are divided by it.
    pub temperature: f64,
    /// The name of the checkpoint.
    pub checkpoint: String,
    /// SHA-256 of the file of its weights.
    pub weights: String,
    /// Of the validation set.
    pub samples: usize,
    /// Scores on it without the temperature, and with it.
    pub before: Calibrated,
    pub after: Calibrated,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Calibrated {
    pub loss: f64,
    pub ece: f64,
    pub brier_score: f64,
}

/// Which checkpoint, and the SHA-256 of those of its weights that are used.
pub fn fingerprint(loaded: &Loaded) -> (String, String) {
    let file = if loaded.ema.is_some() { "ema.safetensors" } else { "model.safetensors" };
    let name = loaded.folder.canonicalize().unwrap_or_else(|_| loaded.folder.clone());
    let name = name.file_name().unwrap_or_default().to_string_lossy().into_owned();
    (name, loaded.state.files.get(file).cloned().unwrap_or_default())
}

impl Calibration {
    pub fn write(&self, run: &Path) -> Result<()> {
        let path = run.join(CALIBRATION_FILE);
        atomic_file::write_bytes(&path, serde_json::to_string_pretty(self)?.as_bytes())
            .with_exit_code(ExitCode::Storage, || format!("writing {}", path.display()))
    }

    /// The temperature of the weights `loaded` of the run in the folder `run`; None where there is none, or with a
    /// line where it is of other weights. Exit 4 where the file is damaged.
    pub fn of(run: &Path, loaded: &Loaded) -> Result<Option<f64>> {
        let path = run.join(CALIBRATION_FILE);
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            bytes => bytes.with_exit_code(ExitCode::Storage, || path.display())?,
        };
        let damaged =
            || format!("{} is damaged: remove it, or run `tikhonov calibrate` again", path.display());
        let own: Self = serde_json::from_slice(&bytes).with_exit_code(ExitCode::Checkpoint, damaged)?;
        if !(own.temperature > 0.0 && own.temperature.is_finite()) {
            return Err(fail(ExitCode::Checkpoint, damaged()));
        }
        let (name, weights) = fingerprint(loaded);
        if own.weights != weights {
            print_err!(
                "{} is of other weights ({}) than these of {name}: no temperature is applied; `tikhonov calibrate` finds theirs",
                path.display(),
                own.checkpoint
            );
            return Ok(None);
        }
        Ok(Some(own.temperature))
    }
}

/// The thresholds of probabilities as those of logits that are divided by `temperature`: the same classes are found.
pub fn at_temperature(thresholds: &[f64], temperature: Option<f64>) -> Vec<f64> {
    let Some(temperature) = temperature else { return thresholds.to_vec() };
    let moved = |threshold: &f64| {
        let logit = (threshold / (1.0 - threshold)).ln();
        1.0 / (1.0 + (-logit / temperature).exp())
    };
    thresholds.iter().map(moved).collect()
}
