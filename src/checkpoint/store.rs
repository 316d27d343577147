//! Our own checkpoints: folders that are either whole or not there.
//!
//! `checkpoints/step-00000500/` (within an epoch) or `epoch-0003/` (at its end) hold `model.safetensors`,
//! `optimizer.safetensors`, `ema.safetensors` where there is one, and `state.json` with the SHA-256 of each.
//! `last`, `best` and `stable` are links. A folder is written under another name, synced, checked and renamed, or
//! exchanged with one that has its name already; the old one goes only afterwards.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::folder::{
    Loaded, STATE, Snapshot, is_newer, load, read_state, remove_if_there, sync_folder, verify, write,
};
use super::state::State;
use crate::metrics::Monitor;
use crate::util::atomic_file;
use crate::util::exit_code::{ExitCode, WithExitCode, fail};

/// The link to the checkpoint from before the decay of `schedule: wsd`.
pub const STABLE: &str = "stable";

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

    /// Whether there is a checkpoint of this name, whole or not.
    pub fn has(&self, name: &str) -> bool {
        self.resolve(name).is_some()
    }

    /// Where `last` or `best` points, if nothing is there.
    pub fn dangling(&self, link: &str) -> Option<String> {
        let target = self.target(link).filter(|_| !self.has(link))?;
        Some(format!(
            "{} points to {}, which is not there",
            self.folder.join(link).display(),
            short_name(&target)
        ))
    }

    /// Where a process was killed, on a file system that cannot exchange two folders, between the renaming of
    /// a checkpoint that it was about to replace and that of the new one: the old one gets its name back.
    pub fn recover(&self) -> Result<Vec<String>> {
        let mut notes = Vec::new();
        for (name, path) in self.hidden()? {
            let Some(name) = name.strip_prefix('.').and_then(|name| name.strip_suffix(".old")) else {
                continue;
            };
            let target = self.folder.join(name);
            if !target.exists() && path.join(STATE).exists() {
                let context = || format!("giving {} its name back", target.display());
                fs::rename(&path, &target)
                    .and_then(|()| sync_folder(&self.folder))
                    .with_exit_code(ExitCode::Storage, context)?;
                notes.push(format!(
                    "{} was being replaced when the run was killed; the old one is back",
                    target.display()
                ));
            }
        }
        Ok(notes)
    }

    /// Tidies up after a process that was killed while it saved: drafts go, and `best` is what `state` says.
    pub fn settle(&self, state: Option<&State>) -> Result<()> {
        for (_, path) in self.hidden()? {
            match path.symlink_metadata()?.is_dir() {
                true => fs::remove_dir_all(path)?,
                false => fs::remove_file(path)?,
            }
        }
        if let Some(best) = state.and_then(|state| state.best.as_ref()) {
            let name = best.checkpoint();
            if self.has(&name) && self.resolve("best") != self.resolve(&name) {
                self.link("best", &name)?;
            }
        }
        Ok(())
    }

    /// What lies there under a name of its own for the time of its writing.
    fn hidden(&self) -> Result<Vec<(String, PathBuf)>> {
        let hidden = self.entries()?.into_iter().filter(|(name, _)| name.starts_with('.'));
        Ok(hidden.collect())
    }

    /// All that is in the folder, by name; nothing where it is not there.
    fn entries(&self) -> Result<Vec<(String, PathBuf)>> {
        let read = || -> std::io::Result<Vec<_>> {
            let named =
                |entry: fs::DirEntry| (entry.file_name().to_string_lossy().into_owned(), entry.path());
            fs::read_dir(&self.folder)?.map(|entry| entry.map(named)).collect()
        };
        match read() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            entries => {
                entries.with_exit_code(ExitCode::Checkpoint, || format!("reading {}", self.folder.display()))
            }
        }
    }

    /// Writes `snapshot`, points `last` (and `best`, if asked) at it. What was there stays until this is
    /// safe.
    pub fn save(&self, snapshot: Snapshot, is_best: bool) -> Result<PathBuf> {
        let state = &snapshot.state;
        let name = match state.batch {
            0 => format!("epoch-{:04}", state.epoch),
            _ => format!("step-{:08}", state.step),
        };
        let target = self.folder.join(&name);
        let draft = self.folder.join(format!(".{name}.draft"));
        let context = || {
            let kept = match self.target("last") {
                Some(last) => format!("the checkpoint before it, {}, is kept", short_name(&last)),
                None => "there is none before it".into(),
            };
            format!("saving the checkpoint {} ({kept})", target.display())
        };
        let written =
            self.make().and_then(|()| write(snapshot, &draft)).and_then(|()| self.place(&draft, &target));
        if written.is_err() {
            // A full disk must not stay full of drafts; the error that is reported is the first one.
            let _ = remove_if_there(&draft);
        }
        written.with_exit_code(ExitCode::Storage, context)?;
        // `best` first: a process that dies between the two resumes from `last`, which then still is the
        // older one.
        for link in [is_best.then_some("best"), Some("last")].into_iter().flatten() {
            self.link(link, &name).with_exit_code(ExitCode::Storage, || {
                format!("pointing {} to the new checkpoint {name}", self.folder.join(link).display())
            })?;
        }
        Ok(target)
    }

    /// Points `stable` at the checkpoint that `last` is: a longer run goes on from there.
    pub fn mark_stable(&self) -> Result<()> {
        let Some(last) = self.target("last") else { return Ok(()) };
        self.link(STABLE, &short_name(&last))
            .with_exit_code(ExitCode::Storage, || format!("pointing {STABLE} to {}", last.display()))
    }

    /// Makes the folder for the first checkpoint. That of the run must be there: one that was removed is not
    /// made anew.
    fn make(&self) -> Result<()> {
        if self.folder.is_dir() {
            return Ok(());
        }
        let run = self.folder.parent().unwrap_or(Path::new("."));
        fs::create_dir(&self.folder).with_context(|| match run.is_dir() {
            true => format!("making {}", self.folder.display()),
            false => format!("the run folder {} was removed or renamed while the run went on", run.display()),
        })?;
        Ok(sync_folder(run)?)
    }

    /// Puts a whole draft, which was read back, in its place. What was there goes when the new one reads back
    /// there too, and comes back where it does not.
    fn place(&self, draft: &Path, target: &Path) -> Result<()> {
        if !target.exists() {
            fs::rename(draft, target)?;
            return Ok(sync_folder(&self.folder)?);
        }
        // At any moment one of them has the name.
        let exchange = || renameat_with(CWD, draft, CWD, target, RenameFlags::EXCHANGE);
        if exchange().is_err() {
            return self.place_aside(draft, target);
        }
        let read_back = sync_folder(&self.folder).map_err(Into::into).and_then(|()| reads_back(target));
        if read_back.is_err() {
            let _ = exchange();
        }
        read_back?;
        Ok(remove_if_there(draft)?)
    }

    /// The same where the file system cannot exchange two folders.
    fn place_aside(&self, draft: &Path, target: &Path) -> Result<()> {
        let old = target.with_file_name(format!(".{}.old", short_name(target)));
        remove_if_there(&old)?;
        fs::rename(target, &old)?;
        let placed = fs::rename(draft, target)
            .and_then(|()| sync_folder(&self.folder))
            .map_err(Into::into)
            .and_then(|()| reads_back(target));
        if placed.is_err() {
            let _ = fs::rename(target, draft);
            let _ = fs::rename(&old, target);
        }
        placed?;
        Ok(remove_if_there(&old)?)
    }

    /// Removes checkpoints that are neither `last`, nor `best`, nor among the `keep` best by the score that
    /// `monitor` names (by age where they have none).
    pub fn prune(&self, keep: usize, monitor: &Monitor) -> Result<()> {
        let linked: Vec<_> = ["last", "best", STABLE].iter().filter_map(|link| self.resolve(link)).collect();
        for folder in self.surplus(&linked, keep, monitor)? {
            fs::remove_dir_all(&folder)
                .with_exit_code(ExitCode::Storage, || format!("removing {}", folder.display()))?;
        }
        Ok(())
    }

    /// On a disk that was full when a checkpoint was to be saved, removes drafts, temporary files of dead
    /// processes, and what [`prune`](Self::prune) would remove after the save: `last` and `best` stay. The names
    /// of the checkpoints that went; what cannot be removed stays.
    pub fn make_room(&self, keep: usize, monitor: &Monitor, is_best: bool) -> Vec<String> {
        for (_, path) in self.hidden().unwrap_or_default() {
            let _ = remove_if_there(&path);
        }
        atomic_file::sweep(self.folder.parent().unwrap_or(Path::new(".")));
        let [last, best] = ["last", "best"].map(|link| self.resolve(link));
        // After the save `last` is an older one, and `best` where the new one is better.
        let linked: Vec<_> = best.iter().filter(|_| !is_best).cloned().chain(self.resolve(STABLE)).collect();
        let surplus = self.surplus(&linked, keep, monitor).unwrap_or_default();
        let safe = [last, best];
        let surplus = surplus.into_iter().filter(|folder| !safe.contains(&Some(folder.clone())));
        surplus
            .filter(|folder| fs::remove_dir_all(folder).is_ok())
            .map(|folder| short_name(&folder))
            .collect()
    }

    /// The checkpoints that are neither `linked` nor among the `keep` best of the others.
    fn surplus(&self, linked: &[PathBuf], keep: usize, monitor: &Monitor) -> Result<Vec<PathBuf>> {
        let mut others = Vec::new();
        for (state, folder) in self.newest_first()? {
            if !linked.contains(&folder) {
                let is_by = |state: &State| state.best.as_ref().is_some_and(|b| b.metric == monitor.metric);
                let score = state.filter(is_by).and_then(|state| state.score);
                let gain = score.map(|score| if monitor.higher_is_better { score } else { -score });
                others.push((gain.unwrap_or(f64::NEG_INFINITY), folder));
            }
        }
        // Stable: among equals the newest stays first.
        others.sort_by(|a, b| b.0.total_cmp(&a.0));
        Ok(others.into_iter().skip(keep).map(|(_, folder)| folder).collect())
    }

    /// The newest checkpoint that is whole, and what was wrong with newer ones. One of a newer layout is exit
    /// 4: to go on from an older one would overwrite what was learnt since.
    pub fn last(&self) -> Result<(Loaded, Vec<String>)> {
        let found = self.newest_first()?;
        // Those whose state cannot be read may be the newest.
        let (unreadable, readable): (Vec<_>, Vec<_>) =
            found.into_iter().partition(|(state, _)| state.is_none());
        let mut candidates: Vec<_> = self.target("last").into_iter().collect();
        for (_, folder) in unreadable.into_iter().chain(readable) {
            if !candidates.contains(&folder) {
                candidates.push(folder);
            }
        }
        let mut complaints = Vec::new();
        for folder in &candidates {
            match load(folder) {
                Ok(loaded) => return Ok((loaded, complaints)),
                Err(error) if is_newer(&error) => return Err(error),
                Err(error) => complaints.push(format!("{error:#}")),
            }
        }
        let found = if complaints.is_empty() { "none found".into() } else { complaints.join("; ") };
        let message = format!("no usable checkpoint in {}: {found}", self.folder.display());
        Err(fail(ExitCode::Checkpoint, message))
    }

    /// The checkpoint called `name`: `last`, `best`, or a folder's name.
    pub fn named(&self, name: &str) -> Result<Loaded> {
        let folder = self.resolve(name).with_exit_code(ExitCode::Checkpoint, || {
            let known: Vec<_> =
                self.newest_first().unwrap_or_default().iter().map(|(_, f)| short_name(f)).collect();
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
        let real = self.target(name).unwrap_or_else(|| self.folder.join(name));
        real.join(STATE).exists().then_some(real)
    }

    /// Where a link points, whether something is there or not; None for what is no link.
    fn target(&self, link: &str) -> Option<PathBuf> {
        let target = fs::read_link(self.folder.join(link)).ok()?;
        Some(self.folder.join(target.file_name()?))
    }

    fn link(&self, link: &str, name: &str) -> std::io::Result<()> {
        let draft = self.folder.join(format!(".{link}.draft"));
        match fs::remove_file(&draft) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        std::os::unix::fs::symlink(name, &draft)?;
        let renamed = fs::rename(&draft, self.folder.join(link));
        if renamed.is_err() {
            let _ = fs::remove_file(&draft);
        }
        renamed?;
        sync_folder(&self.folder)
    }

    /// Real checkpoint folders by the step that their state tells, newest first; those without a state that
    /// can be read last.
    fn newest_first(&self) -> Result<Vec<(Option<State>, PathBuf)>> {
        let mut found = Vec::new();
        for (name, path) in self.entries()? {
            if !name.starts_with('.') && path.symlink_metadata().is_ok_and(|found| found.is_dir()) {
                found.push((read_state(&path).ok(), path));
            }
        }
        found.sort_by_cached_key(|(state, path)| {
            let age = state.as_ref().map(|state| (state.step, state.epoch, state.batch == 0));
            std::cmp::Reverse((age, path.clone()))
        });
        Ok(found)
    }
}

/// Whether a checkpoint is whole where it lies now.
fn reads_back(folder: &Path) -> Result<()> {
    read_state(folder)
        .and_then(|state| verify(folder, &state))
        .with_context(|| format!("{} does not read back as written", folder.display()))
}

fn short_name(folder: &Path) -> String {
    folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, Tensor};

    use super::*;
    use crate::checkpoint::Best;
    use crate::util::sha256::PIECE;

    fn snapshot(step: u64, batch: usize, score: Option<f64>) -> Snapshot {
        let mut state = State::new("data".into());
        (state.step, state.epoch, state.batch, state.score) = (step, step / 10, batch, score);
        let best = |value| Best {
            metric: "accuracy".into(),
            higher_is_better: None,
            value,
            epoch: step / 10,
            within: None,
        };
        state.best = score.map(best);
        let weight = Tensor::from_slice(&[step as f32, 0.1]);
        Snapshot { state, model: vec![("w".into(), weight)], optimizer: vec![], ema: None }
    }

    #[test]
    fn a_damaged_last_checkpoint_falls_back_to_the_one_before() {
        let home = tempfile::tempdir().unwrap();
        let store = Checkpoints::of(home.path());
        store.save(snapshot(5, 5, None), false).unwrap();
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
    fn a_link_to_the_best_that_a_kill_left_behind_is_mended_by_what_the_state_says() {
        let home = tempfile::tempdir().unwrap();
        let store = Checkpoints::of(home.path());
        store.save(snapshot(10, 0, None), true).unwrap();
        store.save(snapshot(20, 0, None), false).unwrap();
        let mut state = State::new("data".into());
        state.best =
            Some(Best { metric: "loss".into(), higher_is_better: None, value: 1.0, epoch: 2, within: None });
        store.settle(Some(&state)).unwrap();
        assert_eq!(store.named("best").unwrap().state.step, 20);
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
        let monitor = Monitor { metric: "accuracy".into(), higher_is_better: true };
        for (step, score) in [(10, 0.5), (20, 0.9), (30, 0.7), (40, 0.6), (50, 0.1)] {
            store.save(snapshot(step, 0, Some(score)), step == 20).unwrap();
            store.prune(1, &monitor).unwrap();
        }
        let mut names: Vec<_> =
            store.newest_first().unwrap().iter().map(|(_, folder)| short_name(folder)).collect();
        names.sort();
        assert_eq!(names, ["epoch-0002", "epoch-0003", "epoch-0005"]);
        assert_eq!(store.named("best").unwrap().state.step, 20);
        let error = store.named("bets").err().unwrap();
        assert_eq!(crate::util::exit_code::code(&error), ExitCode::Checkpoint as u8);
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
