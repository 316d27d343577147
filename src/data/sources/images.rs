//! Images without classes: restored, compressed, generated, or answered with another image or a mask.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::masks::{MaskSpec, Naming, found, partners, same_sizes};
use super::pairs::scale_of;
use super::pictures::{budget, depth_note, over_budget, probe_all};
use super::{FilePath, OpenOptions, Source, Split, is_yes, positive, positive_limit, yes};
use crate::data::format::pictures_of;
use crate::data::image::picture::{ImageFile, Mode};
use crate::data::{Dataset, Files, Framing, Samples, Skipped, Targets};
use crate::util::exit_code::{ExitCode, fail};
use crate::util::yaml::Invalid;

/// `{images: {root: DIR, patch: 64}}`: every picture below `root`, at any depth, sorted by folder and name.
///
/// With `patch` an epoch has `per_image` squares of each, cut at random places; without, each is one sample
/// at its own size, in a batch of its own, which is for evaluation. Decoded pictures are kept within the
/// budget `memory_gib`.
#[derive(Deserialize, Serialize, Clone, Debug, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a mapping, such as `{root: photos, patch: 64}`")]
pub struct ImagesSpec {
    /// The folder of the pictures.
    pub root: FilePath,
    /// The channels that every picture is converted to.
    #[serde(default)]
    pub mode: Mode,
    /// Side of the random squares in pixels. Targets' are `scale` times as large. Whole images when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 8192))]
    pub patch: Option<usize>,
    /// Squares per image and epoch.
    #[serde(default = "one")]
    #[schemars(range(min = 1))]
    pub per_image: usize,
    /// Turn pictures, targets and masks as their EXIF orientation says; `false` leaves their pixels as they are
    /// stored.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    #[schemars(extend("default" = true))]
    pub exif: bool,
    /// A folder with the image that each should become: of the same name, extensions apart, and of the same size
    /// or a whole number of times as large.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<FilePath>,
    /// The name of a picture by that of its target, as BasicSR's: `{}x4` for `0001x4.png` and `0001.png`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filename_tmpl: Option<String>,
    /// The name of a target by that of its picture: `{}_clean` for `0001.png` and `0001_clean.png`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_tmpl: Option<String>,
    /// BasicSR's list of the pairs: a line for each, with the target's path below `target` and, after a comma, the
    /// picture's below `root` where no template tells it. Other files do not count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub meta_info: Option<FilePath>,
    /// The channels that every target is converted to; those of the pictures when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_mode: Option<Mode>,
    /// How many times as large as the pictures the targets are: found where it is not said, and checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 16))]
    pub scale: Option<usize>,
    /// A folder with the segmentation mask of each image, by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask: Option<MaskSpec>,
    /// Use only the first so many files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub limit: Option<usize>,
    /// Leave out so many files at the start.
    #[serde(default)]
    pub skip: usize,
}

fn one() -> usize {
    1
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
        self.mode.validate("mode")?;
        self.validate_pairs()?;
        match (&self.target, &self.mask) {
            (Some(_), Some(_)) => Err(Invalid::new("mask", "an image has a `target` or a `mask`, not both")),
            (Some(target), None) => target.folder("target").map(drop),
            (None, Some(mask)) => mask.validate().map_err(|invalid| invalid.under("mask")),
            (None, None) => Ok(()),
        }
    }

    fn outline(&self) -> Option<(Vec<i64>, Option<usize>)> {
        let side = self.patch.unwrap_or(0) as i64;
        let classes = self.mask.as_ref().map(|mask| mask.classes.len());
        Some((vec![self.mode.channels() as i64, side, side], classes))
    }

    fn mode(&self) -> Mode {
        self.mode
    }

    fn exif(&self) -> bool {
        self.exif
    }

    fn open(&self, options: &OpenOptions) -> Result<Dataset> {
        if options.smooth.is_some() {
            return Err(fail(ExitCode::Usage, "data.smooth does not go with `images`; remove it"));
        }
        let root = self.root.resolve()?;
        let chosen = |paths: Vec<PathBuf>| -> Vec<PathBuf> {
            paths.into_iter().skip(self.skip).take(self.limit.unwrap_or(usize::MAX)).collect()
        };
        let (mut listed, pairs) = (found(&root)?, self.pairs(&root)?);
        if let Some((pictures, _)) = &pairs {
            listed.clone_from(pictures);
        }
        let (mut paths, note) = pictures_of(listed, self.mode);
        if let Some(mask) = &self.mask
            && !mask.suffix.is_empty()
            && mask.root.resolve()?.canonicalize().ok() == root.canonicalize().ok()
        {
            // Pictures and masks in one folder: what has the suffix is no picture.
            let is_mask = |path: &Path| {
                path.file_stem().is_some_and(|stem| stem.to_string_lossy().ends_with(&mask.suffix))
            };
            paths.retain(|path| !is_mask(path));
        }
        if let (Some(target), None) = (&self.target, &pairs)
            && target.resolve()?.canonicalize().ok() == root.canonicalize().ok()
        {
            // Pictures and targets in one folder: what is called as a target is no picture.
            paths.retain(|path| self.naming().is_picture(path));
        }
        let paths = chosen(paths);
        if paths.is_empty() {
            let (why, place) = (note.map_or(String::new(), |note| format!("; {note}")), root.display());
            let message = format!("{place}: holds no picture (after `skip` and `limit`){why}");
            return Err(fail(ExitCode::Data, message));
        }
        let mut notes: Vec<_> = note.into_iter().collect();
        let all = self.files(&paths, self.mode);
        let name = |path: &Path| path.strip_prefix(&root).unwrap_or(path).to_string_lossy().into_owned();
        notes.extend(depth_note(&all, |index| name(&all[index].path)));
        let read = probe_all(&all);
        let allowed = budget(all.len(), options.max_skipped);
        let forgiven = match allowed.checked_sub(read.failures().count()) {
            Some(forgiven) if read.failures().count() < all.len() => forgiven,
            _ => return Err(over_budget(&root, &all, &read, allowed)),
        };
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

        let mut scale = 1;
        let (others, targets, classes, encoding) = match (&self.target, &self.mask) {
            (Some(target), _) => {
                let others = match pairs {
                    Some((pictures, targets)) => {
                        let known: HashMap<PathBuf, PathBuf> = pictures.into_iter().zip(targets).collect();
                        files.iter().filter_map(|file| known.get(&*file.path).cloned()).collect()
                    }
                    None => partners(&files, &root, &target.resolve()?, self.naming())?,
                };
                let mode = self.target_mode.unwrap_or(self.mode);
                let others = self.files(&others, mode);
                notes.extend(
                    depth_note(&others, |index| others[index].place()).map(|note| format!("targets: {note}")),
                );
                scale = self.scale.unwrap_or_else(|| scale_of(&files, &others));
                same_sizes(&files, &others, "target", scale)?;
                if scale > 1 && self.scale.is_none() {
                    notes.push(format!("targets are {scale} times as large as the pictures"));
                }
                (others, Targets::Images { channels: mode.channels(), scale }, Vec::new(), None)
            }
            (None, Some(mask)) => {
                let naming = Naming { image: ("", &mask.image_suffix), partner: ("", &mask.suffix) };
                let others = partners(&files, &root, &mask.root.resolve()?, naming)?;
                let others = self.files(&others, Mode::Grey);
                same_sizes(&files, &others, "mask", 1)?;
                let masks = mask.look(&others)?;
                if options.part == Split::Train
                    && masks.absent(&mask.classes).count() + 1 == mask.classes.len()
                {
                    let message = format!(
                        "{}: {}; there is nothing to tell apart: see `mask: {{levels: …}}`",
                        mask.root.resolve()?.display(),
                        masks.notes("train", &mask.classes).join("; ")
                    );
                    return Err(fail(ExitCode::Data, message));
                }
                let encoding = Arc::new(masks.encoding.clone());
                (others, Targets::Masks(Arc::new(masks)), mask.classes.clone(), Some(encoding))
            }
            (None, None) => (Vec::new(), Targets::Unknown, Vec::new(), None),
        };
        let names = files.iter().map(|file| name(&file.path)).collect();
        let side = self.patch.unwrap_or(0) as i64;
        let framing = match self.patch {
            Some(size) => Framing::Patches { size, per_image: self.per_image },
            None => Framing::Whole,
        };
        let files = Files::new(files, others, framing, forgiven, options.memory);
        let files = files.with_masks(encoding).with_scale(scale);
        Ok(Dataset {
            samples: Samples::Files(Arc::new(files)),
            targets,
            shape: vec![self.mode.channels() as i64, side, side],
            classes,
            features: Vec::new(),
            names,
            columns: BTreeMap::new(),
            fingerprint: String::new(),
            skipped,
            notes,
        })
    }
}

impl ImagesSpec {
    fn files(&self, paths: &[PathBuf], mode: Mode) -> Vec<ImageFile> {
        paths.iter().map(|path| ImageFile { exif: self.exif, ..ImageFile::new(path, mode) }).collect()
    }
}
