//! Our own checkpoints: folders that are either whole or not there.
//!
//! `checkpoints/step-00000500/` (within an epoch) or `epoch-0003/` (at its end) hold `model.safetensors`,
//! `optimizer.safetensors`, `ema.safetensors` where there is one, and `state.json` with the SHA-256 of each.
//! `last` and `best` are links. A folder is written under another name, synced, checked and renamed; the old
//! one goes only afterwards.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::folder::{Loaded, STATE, Snapshot, load, read_state, remove_if_there, sync_folder, verify, write};
use super::state::State;
use crate::exit::{Exit, OrExit, fail};

/// The checkpoints of one run.
pub struct Checkpoints {
    folder: PathBuf,
}

impl Checkpoints {
    /// Those of the run in the folder `run`, in its `checkpoints`, which is made at the first save.
    pub fn of(run: &Path) -> Self {
        Self { folder: run.join("checkpoints") }
    }

    /// Whether the run has a folder for them.
    pub fn are_kept(&self) -> bool {
        self.folder.is_dir()
    }

    /// Whether there is anything to resume.
    pub fn exist(&self) -> Result<bool> {
        Ok(!self.newest_first()?.is_empty())
    }

    /// Tidies up after a process that was killed while it saved: drafts go, and `best` is what `state` says.
    pub fn settle(&self, state: &State) -> Result<()> {
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with('.') && entry.file_type()?.is_dir() {
                fs::remove_dir_all(entry.path())?;
            }
        }
        if let Some(best) = &state.best {
            let name = format!("epoch-{:04}", best.epoch);
            if self.resolve(&name).is_some() && self.resolve("best") != self.resolve(&name) {
                self.link("best", &name)?;
            }
        }
        Ok(())
    }

    /// Writes `snapshot`, points `last` (and `best`, if asked) at it. What was there stays until this is safe.
    pub fn save(&self, snapshot: Snapshot, is_best: bool) -> Result<PathBuf> {
        let state = &snapshot.state;
        let name = match state.batch {
            0 => format!("epoch-{:04}", state.epoch),
            _ => format!("step-{:08}", state.step),
        };
        let target = self.folder.join(&name);
        let draft = self.folder.join(format!(".{name}.draft"));
        let written = write(snapshot, &draft).and_then(|()| self.place(&draft, &target));
        if written.is_err() {
            // A full disk must not stay full of drafts; the error that is reported is the first one.
            let _ = remove_if_there(&draft);
        }
        let context = || format!("saving the checkpoint {}", target.display());
        written.or_exit(Exit::Storage, context)?;
        // `best` first: a process that dies between the two resumes from `last`, which then still is the older one.
        for link in [is_best.then_some("best"), Some("last")].into_iter().flatten() {
            self.link(link, &name).or_exit(Exit::Storage, context)?;
        }
        Ok(target)
    }

    /// Puts a whole draft, which was read back, in its place; what was there goes when the new one reads back there too.
    fn place(&self, draft: &Path, target: &Path) -> Result<()> {
        let old = target.with_file_name(format!(".{}.old", short_name(target)));
        remove_if_there(&old)?;
        let replaces = target.exists();
        if replaces {
            fs::rename(target, &old)?;
        }
        fs::rename(draft, target)?;
        sync_folder(&self.folder)?;
        if replaces {
            read_state(target)
                .and_then(|state| verify(target, &state))
                .with_context(|| format!("{} does not read back as written", target.display()))?;
        }
        Ok(remove_if_there(&old)?)
    }

    /// Removes checkpoints that are neither `last`, nor `best`, nor among the `keep` best by score (by age where
    /// nothing was scored).
    pub fn prune(&self, keep: usize, higher_is_better: bool) -> Result<()> {
        let linked: Vec<_> = ["last", "best"].iter().filter_map(|link| self.resolve(link)).collect();
        let mut others = Vec::new();
        for folder in self.newest_first()? {
            if !linked.contains(&folder) {
                let state = read_state(&folder).ok();
                let score =
                    state.and_then(|state| state.score).map(|s| if higher_is_better { s } else { -s });
                others.push((score.unwrap_or(f64::NEG_INFINITY), folder));
            }
        }
        // Stable: among equals the newest stays first.
        others.sort_by(|a, b| b.0.total_cmp(&a.0));
        for (_, folder) in others.into_iter().skip(keep) {
            fs::remove_dir_all(&folder).with_context(|| format!("removing {}", folder.display()))?;
        }
        Ok(())
    }

    /// The newest checkpoint that is whole, and what was wrong with newer ones.
    pub fn last(&self) -> Result<(Loaded, Vec<String>)> {
        let mut candidates: Vec<_> = self.resolve("last").into_iter().collect();
        for folder in self.newest_first()? {
            if !candidates.contains(&folder) {
                candidates.push(folder);
            }
        }
        let mut complaints = Vec::new();
        for folder in &candidates {
            match load(folder) {
                Ok(loaded) => return Ok((loaded, complaints)),
                Err(error) => complaints.push(format!("{error:#}")),
            }
        }
        let found = if complaints.is_empty() { "none found".into() } else { complaints.join("; ") };
        let message = format!("no usable checkpoint in {}: {found}", self.folder.display());
        Err(fail(Exit::Checkpoint, message))
    }

    /// The checkpoint called `name`: `last`, `best`, or a folder's name.
    pub fn named(&self, name: &str) -> Result<Loaded> {
        let folder = self.resolve(name).or_exit(Exit::Checkpoint, || {
            let known: Vec<_> =
                self.newest_first().unwrap_or_default().iter().map(|f| short_name(f)).collect();
            let links = ["last", "best"].iter().filter(|link| self.resolve(link).is_some());
            let known: Vec<_> = links.map(|link| (*link).to_owned()).chain(known).collect();
            format!("no checkpoint `{name}` in {}; there are: {}", self.folder.display(), known.join(", "))
        })?;
        load(&folder)
    }

    /// The checkpoint called `name`; without a name the best, else the last.
    pub fn chosen(&self, name: Option<&str>) -> Result<Loaded> {
        let default = if self.resolve("best").is_some() { "best" } else { "last" };
        self.named(name.unwrap_or(default))
    }

    /// The real folder behind a name.
    fn resolve(&self, name: &str) -> Option<PathBuf> {
        let path = self.folder.join(name);
        let real = match fs::read_link(&path) {
            Ok(target) => self.folder.join(target.file_name()?),
            Err(_) => path,
        };
        real.join(STATE).exists().then_some(real)
    }

    fn link(&self, link: &str, name: &str) -> std::io::Result<()> {
        let draft = self.folder.join(format!(".{link}.draft"));
        match fs::remove_file(&draft) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        std::os::unix::fs::symlink(name, &draft)?;
        fs::rename(&draft, self.folder.join(link))?;
        sync_folder(&self.folder)
    }

    /// Real checkpoint folders by the step that their state tells, newest first.
    fn newest_first(&self) -> Result<Vec<PathBuf>> {
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).with_context(|| format!("reading {}", self.folder.display())),
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry?;
            let hidden = entry.file_name().to_string_lossy().starts_with('.');
            if hidden || !entry.file_type()?.is_dir() {
                continue;
            }
            let state = read_state(&entry.path()).ok();
            let age = state.map(|state| (state.step, state.epoch, state.batch == 0));
            found.push((age, entry.path()));
        }
        found.sort();
        Ok(found.into_iter().rev().map(|(_, folder)| folder).collect())
    }
}

fn short_name(folder: &Path) -> String {
    folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, Tensor};

    use super::*;
    use crate::digest::PIECE;

    fn snapshot(step: u64, batch: usize, score: Option<f64>) -> Snapshot {
        let mut state = State::new("data".into());
        (state.step, state.epoch, state.batch, state.score) = (step, step / 10, batch, score);
        let weight = Tensor::from_slice(&[step as f32, 0.1]);
        Snapshot { state, model: vec![("w".into(), weight)], optimizer: vec![], ema: None }
    }

    #[test]
    fn a_damaged_last_checkpoint_falls_back_to_the_one_before() {
        let home = tempfile::tempdir().unwrap();
        let store = Checkpoints::of(home.path());
        store.save(snapshot(10, 0, None), false).unwrap();
        let newest = store.save(snapshot(15, 5, None), false).unwrap();
        let file = newest.join("model.safetensors");
        let mut bytes = fs::read(&file).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&file, bytes).unwrap();
        let (loaded, complaints) = store.last().unwrap();
        assert_eq!(loaded.state.step, 10);
        assert!(complaints[0].contains("model.safetensors is damaged"), "{complaints:?}");
        assert!(store.named("last").is_err());
    }

    #[test]
    fn damage_anywhere_in_a_large_file_is_found_and_so_is_a_missing_or_another_end() {
        let home = tempfile::tempdir().unwrap();
        let store = Checkpoints::of(home.path());
        let mut large = snapshot(10, 0, None);
        large.model = vec![("w".into(), Tensor::arange(5 << 20, (Kind::Float, Device::Cpu)))];
        let folder = store.save(large, false).unwrap();
        assert_eq!(load(&folder).unwrap().state.pieces["model.safetensors"].len(), 3);
        let file = folder.join("model.safetensors");
        let intact = fs::read(&file).unwrap();
        for at in [0, PIECE - 1, PIECE, 2 * PIECE + 5, intact.len() - 1] {
            let mut bytes = intact.clone();
            bytes[at] ^= 1;
            fs::write(&file, bytes).unwrap();
            let error = format!("{:#}", load(&folder).err().unwrap());
            assert!(error.contains("model.safetensors is damaged"), "{at}: {error}");
        }
        for len in [intact.len() - 1, 2 * PIECE, 0] {
            fs::write(&file, &intact[..len]).unwrap();
            assert!(load(&folder).is_err(), "{len}");
        }
        fs::write(&file, [&intact[..], &[0; PIECE]].concat()).unwrap();
        assert!(load(&folder).is_err());
        fs::write(&file, intact).unwrap();
        assert!(load(&folder).is_ok());
    }

    #[test]
    fn pruning_keeps_last_best_and_the_best_others() {
        let home = tempfile::tempdir().unwrap();
        let store = Checkpoints::of(home.path());
        for (step, score) in [(10, 0.5), (20, 0.9), (30, 0.7), (40, 0.6), (50, 0.1)] {
            store.save(snapshot(step, 0, Some(score)), step == 20).unwrap();
            store.prune(1, true).unwrap();
        }
        let mut names: Vec<_> =
            store.newest_first().unwrap().iter().map(|folder| short_name(folder)).collect();
        names.sort();
        assert_eq!(names, ["epoch-0002", "epoch-0003", "epoch-0005"]);
        assert_eq!(store.named("best").unwrap().state.step, 20);
        let error = store.named("bets").err().unwrap();
        assert_eq!(crate::exit::code(&error), Exit::Checkpoint as u8);
    }

    #[test]
    fn state_and_tensors_come_back_as_they_were() {
        let home = tempfile::tempdir().unwrap();
        let store = Checkpoints::of(home.path());
        let mut saved = snapshot(7, 3, None);
        saved.state.loss_sum = 0.1 + 0.2;
        saved.ema = Some(vec![("w".into(), Tensor::from_slice(&[1i64, -1]))]);
        store.save(saved, false).unwrap();
        let (loaded, _) = store.last().unwrap();
        assert_eq!(loaded.state.loss_sum.to_bits(), (0.1f64 + 0.2).to_bits());
        assert_eq!(Vec::<f32>::try_from(&loaded.model["w"]).unwrap(), [7.0, 0.1]);
        assert_eq!(Vec::<i64>::try_from(&loaded.ema.unwrap()["w"]).unwrap(), [1, -1]);
    }
}
