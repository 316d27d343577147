//! One checkpoint: a folder of tensor files and the state that holds their sums, written whole and read only
//! when it is.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, anyhow, bail, ensure};
use tch::Tensor;

use super::state::{Newer, State};
use crate::libtorch::device::cores;
use crate::optim::keep_zeros;
use crate::pytorch::weights::read_weights;
use crate::pytorch::writer::safetensors::Contents;
use crate::util::exit_code::{ExitCode, WithExitCode};
use crate::util::sha256::{self, PIECE};
use crate::util::threads::{both, each, share, unpoisoned};

/// What an average of weights says of itself, among its tensors, as PyTorch's `AveragedModel` does.
const EMA_UPDATES: &str = "n_averaged";

/// The file of the state, which is in every checkpoint.
pub(super) const STATE: &str = "state.json";

/// A checkpoint in memory: PyTorch's names, shallow tensors.
pub struct Snapshot {
    pub state: State,
    pub model: Vec<(String, Tensor)>,
    pub optimizer: Vec<(String, Tensor)>,
    pub ema: Option<Vec<(String, Tensor)>>,
}

/// A checkpoint as read: tensors on the CPU, by name.
pub struct Loaded {
    pub folder: PathBuf,
    pub state: State,
    pub model: BTreeMap<String, Tensor>,
    pub optimizer: BTreeMap<String, Tensor>,
    pub ema: Option<BTreeMap<String, Tensor>>,
}

impl Loaded {
    /// The weights to be used: the averaged ones where there are any, with the zeros that a soft threshold
    /// made.
    pub fn weights(&self) -> BTreeMap<String, Tensor> {
        let saved = self.ema.as_ref().unwrap_or(&self.model).iter();
        let tensors = saved.filter(|(name, _)| *name != EMA_UPDATES);
        let mut weights = tensors.map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect();
        if self.ema.is_some() {
            keep_zeros(&mut weights, &self.state.sparse, |name| self.model.get(name));
        }
        weights
    }

    /// Which weights [`weights`](Self::weights) gives, as a message says it: nothing where the run has one kind only.
    pub fn kind(&self) -> &'static str {
        match (&self.ema, &self.state.config["train"]["ema"]) {
            (Some(_), _) => " (averaged weights)",
            (None, serde_json::Value::Null) => "",
            (None, _) => " (raw weights)",
        }
    }
}

/// Fills the folder `draft`, which becomes a checkpoint by its next name.
pub(super) fn write(snapshot: Snapshot, draft: &Path) -> Result<()> {
    remove_if_there(draft)?;
    fs::create_dir(draft)?;
    let mut state = snapshot.state;
    let mut parts = vec![("model", &snapshot.model), ("optimizer", &snapshot.optimizer)];
    parts.extend(snapshot.ema.as_ref().map(|ema| ("ema", ema)));
    let parts = parts
        .into_iter()
        .map(|(part, tensors)| Ok((format!("{part}.safetensors"), Contents::of(tensors, &[])?)));
    let parts = parts.collect::<Result<Vec<_>>>()?;
    let twins = parts.iter().map(|(file, contents)| (file.clone(), contents.share())).collect();
    // All files are on their way to the disk at once, and their sums are taken meanwhile; the draft becomes a
    // checkpoint only when all of it is there and reads back as it is in memory.
    let write = |file: &str, contents: Contents| {
        contents.write_synced(&draft.join(file)).with_context(|| file.to_owned())
    };
    let (files, state) = both(
        || at_once(parts, write),
        || -> Result<State> {
            let sums = at_once(twins, |_, contents| contents.sums())?;
            state.files = sums.iter().map(|(file, sums)| (file.clone(), sums.whole.clone())).collect();
            state.pieces = sums.into_iter().map(|(file, sums)| (file, sums.pieces)).collect();
            let mut file = File::create(draft.join(STATE))?;
            file.write_all(&state.to_file()?)?;
            file.sync_all()?;
            Ok(state)
        },
    );
    files?;
    // What went wrong in writing it says more than that it is not there.
    let state = state?;
    if read_state(draft)?.files != state.files {
        bail!("state.json does not read back as written");
    }
    Ok(sync_folder(draft)?)
}

/// Whether `folder` is a checkpoint's, whole or not.
pub fn is_checkpoint(folder: &Path) -> bool {
    folder.join(STATE).is_file()
}

/// Reads a checkpoint folder and checks every hash; exit code 4 where something is off.
pub fn load(folder: &Path) -> Result<Loaded> {
    read_whole(folder)
        .with_exit_code(ExitCode::Checkpoint, || format!("checkpoint {} is not usable", folder.display()))
}

fn read_whole(folder: &Path) -> Result<Loaded> {
    let state = read_state(folder)?;
    for name in ["model.safetensors", "optimizer.safetensors"] {
        state.files.get(name).with_context(|| format!("state.json does not list {name}"))?;
    }
    let read = |name: &str| -> Result<BTreeMap<String, Tensor>> {
        Ok(read_weights(&folder.join(name), None)?.tensors.into_iter().collect())
    };
    // Read by this thread, whose memory is at hand, while others verify; what they find wrong counts first.
    let (intact, tensors) = both(
        || verify(folder, &state),
        || -> Result<_> {
            let ema =
                || state.files.contains_key("ema.safetensors").then(|| read("ema.safetensors")).transpose();
            Ok((read("model.safetensors")?, read("optimizer.safetensors")?, ema()?))
        },
    );
    intact?;
    let (model, optimizer, ema) = tensors?;
    Ok(Loaded { folder: folder.into(), model, optimizer, ema, state })
}

/// Whether every file is what `state` says. Of several that are not, the error names the first by name.
pub(super) fn verify(folder: &Path, state: &State) -> Result<()> {
    let mut jobs = Vec::new();
    for (name, whole) in &state.files {
        let path = folder.join(name);
        let found = path.metadata().with_context(|| name.to_owned())?;
        ensure!(found.is_file(), "{name} is no regular file");
        let len = found.len();
        match state.pieces.get(name) {
            Some(pieces) if len.div_ceil(PIECE as u64) == pieces.len() as u64 => {
                jobs.extend((0..).zip(pieces).map(|(number, sum)| (name, Some(number), sum)));
            }
            _ => jobs.push((name, None, whole)),
        }
    }
    let threads = cores().min(jobs.len());
    let (jobs, failures) = (Mutex::new(jobs.into_iter()), Mutex::new(BTreeMap::new()));
    let work = || loop {
        let Some((name, number, wanted)) = unpoisoned(&jobs).next() else { return };
        let path = folder.join(name);
        let sum = number.map_or_else(|| sha256::of_file(&path), |number| sha256::of_piece(&path, number));
        let failure = match sum {
            Ok(sum) if sum == *wanted => continue,
            Ok(_) => anyhow!("{name} is damaged: its SHA-256 is not the one in state.json"),
            Err(error) => error.context(name.to_owned()),
        };
        unpoisoned(&failures).entry(name).or_insert(failure);
    };
    share(threads, work);
    let failures = failures.into_inner().unwrap_or_else(PoisonError::into_inner);
    failures.into_values().next().map_or(Ok(()), Err)
}

/// Does the work for all files at once; of several errors the first in the order of the files is returned.
fn at_once<T: Send, R: Send>(
    files: Vec<(String, T)>,
    work: impl Fn(&str, T) -> Result<R> + Sync,
) -> Result<BTreeMap<String, R>> {
    let done = each(files.len(), files, |(file, with)| work(&file, with).map(|made| (file, made)));
    done.into_iter().collect()
}

pub(super) fn read_state(folder: &Path) -> Result<State> {
    let path = folder.join(STATE);
    ensure!(path.metadata().context(STATE)?.is_file(), "{STATE} is no regular file");
    let bytes = fs::read(path).context(STATE)?;
    State::of_file(&bytes)
}

/// Whether `error` says that a checkpoint has a layout that this program does not know yet.
pub(super) fn is_newer(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Newer>().is_some()
}

pub(super) fn remove_if_there(folder: &Path) -> std::io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A rename is on the disk only when the folder that holds the name is.
pub(super) fn sync_folder(folder: &Path) -> std::io::Result<()> {
    File::open(folder)?.sync_all()
}
