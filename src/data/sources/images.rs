//! Images without classes: restored, compressed, generated, or answered with another image or a mask.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::folder::{budget, over_budget, probe_all, walk};
use super::{FilePath, Opening, Source, positive, positive_limit};
use crate::data::picture::{ImageFile, Mode};
use crate::data::{Dataset, Files, Framing, Samples, Skipped, Targets};
use crate::exit::{Exit, fail};
use crate::yaml::Invalid;

/// `{images: {root: DIR, patch: 64}}`: every picture below `root`, at any depth, sorted by folder and name.
///
/// With `patch` an epoch has `per_image` squares of each, cut at random places; without, each is one sample at its own
/// size, in a batch of its own, which is for evaluation. Decoded pictures are kept within the budget `memory_gib`.
#[derive(Deserialize, Serialize, Clone, Debug)]
#[serde(deny_unknown_fields, expecting = "a mapping, such as `{root: photos, patch: 64}`")]
pub struct ImagesSpec {
    pub root: FilePath,
    #[serde(default)]
    pub mode: Mode,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patch: Option<usize>,
    #[serde(default = "one")]
    pub per_image: usize,
    /// A folder with the image that each should become: of the same name, extensions apart, and the same size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<FilePath>,
    /// A folder with the mask of each, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask: Option<MaskSpec>,
    /// Only the first files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// Passes over so many files first.
    #[serde(default)]
    pub skip: usize,
}

/// Where the masks are, and what their grey levels mean.
#[derive(Deserialize, Serialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct MaskSpec {
    pub root: FilePath,
    /// Names of the classes.
    pub classes: Vec<String>,
    /// The level of each class, 0 to 255; a pixel belongs to the nearest. Evenly from 0 to 255 where absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub levels: Vec<u8>,
}

fn one() -> usize {
    1
}

impl MaskSpec {
    fn validate(&self) -> Result<(), Invalid> {
        self.root.folder("root")?;
        if !(2..=256).contains(&self.classes.len()) {
            return Err(Invalid::new("classes", "name 2 to 256 classes"));
        }
        let mut sorted = self.levels.clone();
        sorted.sort_unstable();
        sorted.dedup();
        if !self.levels.is_empty()
            && (sorted.len() != self.levels.len() || sorted.len() != self.classes.len())
        {
            let message = format!("must be {} different levels, one for each class", self.classes.len());
            return Err(Invalid::new("levels", message));
        }
        Ok(())
    }

    fn levels(&self) -> Vec<u8> {
        if !self.levels.is_empty() {
            return self.levels.clone();
        }
        let last = self.classes.len() - 1;
        (0..=last).map(|class| (class * 255 / last) as u8).collect()
    }
}

impl Source for ImagesSpec {
    fn validate(&self) -> Result<(), Invalid> {
        self.root.folder("root")?;
        positive("per_image", self.per_image)?;
        positive_limit(self.limit)?;
        match self.patch {
            Some(size) if !(1..=8192).contains(&size) => {
                return Err(Invalid::new("patch", format!("must be 1 to 8192 pixels, not {size}")));
            }
            None if self.per_image > 1 => {
                return Err(Invalid::new("per_image", "counts patches: say their size, as in `patch: 64`"));
            }
            _ => {}
        }
        match (&self.target, &self.mask) {
            (Some(_), Some(_)) => Err(Invalid::new("mask", "an image has a `target` or a `mask`, not both")),
            (Some(target), None) => target.folder("target").map(drop),
            (None, Some(mask)) => mask.validate().map_err(|invalid| invalid.under("mask")),
            (None, None) => Ok(()),
        }
    }

    fn open(&self, opening: &Opening) -> Result<Dataset> {
        if opening.smooth.is_some() {
            return Err(fail(Exit::Usage, "data.smooth does not go with `images`; remove it"));
        }
        if opening.keep_files {
            let message = "data.augment: `random_resized_crop` does not go with `images`, which `patch` cuts";
            return Err(fail(Exit::Usage, message));
        }
        let root = self.root.resolve()?;
        let chosen = |paths: Vec<PathBuf>| -> Vec<PathBuf> {
            paths.into_iter().skip(self.skip).take(self.limit.unwrap_or(usize::MAX)).collect()
        };
        let paths = chosen(found(&root)?);
        let all = as_files(&paths, self.mode);
        let read = probe_all(&all);
        let allowed = budget(all.len(), opening.max_skipped);
        let forgiven = match allowed.checked_sub(read.failures().count()) {
            Some(forgiven) if read.failures().count() < all.len() => forgiven,
            _ => return Err(over_budget(&root, &all, &read, allowed)),
        };
        let name = |path: &Path| path.strip_prefix(&root).unwrap_or(path).to_string_lossy().into_owned();
        let skipped = read
            .failures()
            .map(|(index, reason)| Skipped { name: name(&all[index].path), reason: reason.to_owned() })
            .collect();
        let files: Vec<ImageFile> = all
            .into_iter()
            .enumerate()
            .filter(|(index, _)| read.is_fine(*index))
            .map(|(_, file)| file)
            .collect();

        let (partners, targets, classes) = match (&self.target, &self.mask) {
            (Some(target), _) => {
                let partners = partners(&files, &root, &target.resolve()?, self.mode)?;
                (partners, Targets::Images { channels: self.mode.channels() }, Vec::new())
            }
            (None, Some(mask)) => {
                let partners = partners(&files, &root, &mask.root.resolve()?, Mode::Grey)?;
                (partners, Targets::Masks { levels: mask.levels() }, mask.classes.clone())
            }
            (None, None) => (Vec::new(), Targets::Unknown, Vec::new()),
        };
        let names = files.iter().map(|file| name(&file.path)).collect();
        let side = self.patch.unwrap_or(0) as i64;
        let framing = match self.patch {
            Some(size) => Framing::Patches { size, per_image: self.per_image },
            None => Framing::Whole,
        };
        let files = Files::new(files, partners, framing, forgiven, opening.memory);
        Ok(Dataset {
            samples: Samples::Files(Arc::new(files)),
            targets,
            shape: vec![self.mode.channels() as i64, side, side],
            classes,
            features: Vec::new(),
            names,
            fingerprint: String::new(),
            skipped,
        })
    }
}

fn as_files(paths: &[PathBuf], mode: Mode) -> Vec<ImageFile> {
    paths.iter().map(|path| ImageFile { path: path.clone(), mode }).collect()
}

/// The files below `root`; an empty folder is exit 3.
fn found(root: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    walk(root, &mut Vec::new(), &mut paths)?;
    match paths.is_empty() {
        true => Err(fail(Exit::Data, format!("{}: holds no file", root.display()))),
        false => Ok(paths),
    }
}

/// The path below `root` without its extension.
fn stem(path: &Path, root: &Path) -> PathBuf {
    path.strip_prefix(root).unwrap_or(path).with_extension("")
}

/// The file below `others` that goes with each of `files`. Exit 3 lists those that have none.
fn partners(files: &[ImageFile], root: &Path, others: &Path, mode: Mode) -> Result<Vec<ImageFile>> {
    let known: BTreeMap<PathBuf, PathBuf> =
        found(others)?.into_iter().map(|path| (stem(&path, others), path)).collect();
    let of = |file: &ImageFile| known.get(&stem(&file.path, root)).cloned();
    let lonely: Vec<_> = files.iter().filter(|file| of(file).is_none()).collect();
    if !lonely.is_empty() {
        let few: String = lonely.iter().take(5).map(|file| format!("\n  {}", file.path.display())).collect();
        let message = format!(
            "{} of {} images have no file of the same name in {}:{few}",
            lonely.len(),
            files.len(),
            others.display()
        );
        return Err(fail(Exit::Data, message));
    }
    Ok(files.iter().filter_map(of).map(|path| ImageFile { path, mode }).collect())
}
