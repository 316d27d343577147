//! A folder of pictures with one folder per class, as torchvision's `ImageFolder`; and pictures without
//! classes.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::pictures::{PictureFiles, Size, assemble, decode_all, depth_note, first_few, probe_all};
use super::{FilePath, OpenOptions, Source, is_yes, positive_limit, yes};
use crate::data::format::pictures_of;
use crate::data::image::picture::{Fit, ImageFile, Mode, Resize};
use crate::data::{Dataset, Targets};
use crate::util::exit_code::{ExitCode, WithExitCode, fail};
use crate::util::yaml::Invalid;

/// `{folder: {root: DIR, size: 64}}`: pictures `[N, 3, H, W]` or, with `mode: grey`, `[N, 1, H, W]`.
///
/// The folders in `root` are the classes, in the order of their names; every file below them is a picture, at
/// any depth. Files beside the class folders, hidden files, Thumbs.db, desktop.ini and what is no picture by
/// its extension are passed over; what else cannot be decoded is skipped within the budget `max_skipped` and
/// listed.
#[derive(Deserialize, Serialize, Clone, Debug, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a mapping, such as `{root: im/train, size: 64}`")]
pub struct FolderSpec {
    /// The folder that holds one folder per class.
    pub root: FilePath,
    /// The size of the samples in pixels, at most 8192: N for N × N, or [height, width].
    pub size: Size,
    /// The channels that every picture is converted to.
    #[serde(default)]
    pub mode: Mode,
    /// How a picture of another size becomes one of `size`.
    #[serde(default)]
    pub resize: Resize,
    /// Turn pictures as their EXIF orientation says; `false` leaves their pixels as they are stored.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    #[schemars(extend("default" = true))]
    pub exif: bool,
    /// Use only the first so many files of each class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub limit_per_class: Option<usize>,
}

impl Source for FolderSpec {
    fn finds_classes(&self) -> bool {
        true
    }

    fn fits_pictures(&self) -> bool {
        true
    }

    fn validate(&self) -> Result<(), Invalid> {
        self.root.folder("root")?;
        self.size.validate()?;
        self.mode.validate("mode")?;
        positive_limit(self.limit_per_class).map_err(|error| Invalid::new("limit_per_class", error.message))
    }

    fn outline(&self) -> Option<(Vec<i64>, Option<usize>)> {
        let classes = entries(&self.root.resolve().ok()?).ok()?.iter().filter(|path| path.is_dir()).count();
        (classes > 0).then(|| (self.size.shape(self.mode), Some(classes)))
    }

    fn mode(&self) -> Mode {
        self.mode
    }

    fn exif(&self) -> bool {
        self.exif
    }

    fn resize(&self) -> Resize {
        self.resize
    }

    fn open(&self, options: &OpenOptions) -> Result<Dataset> {
        let root = self.root.resolve()?;
        let (mut files, mut labels, mut classes) = (Vec::new(), Vec::new(), Vec::new());
        let mut notes = Vec::new();
        let place = fs::canonicalize(&root)
            .with_exit_code(ExitCode::Data, || format!("{}: cannot be read", root.display()))?;
        for folder in entries(&root)?.into_iter().filter(|path| path.is_dir()) {
            let mut members = Vec::new();
            walk(&folder, &mut vec![place.clone()], &mut members)?;
            let (mut members, note) = pictures_of(members, self.mode);
            if members.is_empty() {
                let what = note.map_or("no file".into(), |note| format!("no picture: {note}"));
                let message =
                    format!("{}: the class folder holds {what}; remove it or fill it", folder.display());
                return Err(fail(ExitCode::Data, message));
            }
            notes.extend(note.map(|note| format!("class `{}`: {note}", file_name(&folder))));
            members.truncate(self.limit_per_class.unwrap_or(usize::MAX));
            labels.resize(labels.len() + members.len(), classes.len() as i64);
            classes.push(file_name(&folder));
            let file = |path| ImageFile { exif: self.exif, ..ImageFile::new(path, self.mode) };
            files.extend(members.into_iter().map(file));
        }
        if classes.is_empty() {
            let message =
                format!("{}: holds no folder; each class is a folder of pictures in it", root.display());
            return Err(fail(ExitCode::Data, message));
        }
        let name =
            |file: &ImageFile| file.path.strip_prefix(&root).unwrap_or(&file.path).display().to_string();
        let pictures = PictureFiles {
            place: &root,
            names: files.iter().map(name).collect(),
            files,
            mode: self.mode,
            size: self.size,
            resize: self.resize,
        };
        let (mut set, kept) = pictures.read(options)?;
        set.targets = Targets::Classes(kept.into_iter().map(|index| labels[index]).collect());
        set.classes = classes;
        for (class, count) in set.classes.iter().zip(set.class_counts()).filter(|(_, count)| *count == 0) {
            notes.push(format!("class `{class}` has {count} samples: none of its files can be decoded"));
        }
        notes.append(&mut set.notes);
        set.notes = notes;
        Ok(set)
    }
}

/// Bytes of decoded pictures for prediction that are held at once.
const RESIDENT_PICTURES: u64 = 1 << 30;

/// Pictures for prediction: files, and folders of files at any depth, without classes. They are decoded at
/// once, but for more than 1 GiB of samples, which stay files. Undecodable ones are listed in `skipped`;
/// there is no budget, but it is exit 3 when none can be decoded.
pub fn pictures(paths: &[PathBuf], mode: Mode, fit: &Fit, exif: bool) -> Result<Dataset> {
    let (mut files, mut notes) = (Vec::new(), Vec::new());
    for path in paths {
        let (found, note) = pictures_in(path, mode)?;
        files.extend(found.into_iter().map(|path| ImageFile { exif, ..ImageFile::new(path, mode) }));
        notes.extend(note);
    }
    notes.extend(depth_note(&files, |index| files[index].place()));
    let bytes = files.len() as u64 * (mode.bytes() * fit.height * fit.width) as u64;
    let read = if bytes <= RESIDENT_PICTURES || mode.is_float() {
        decode_all(&files, fit)?
    } else {
        probe_all(&files)
    };
    if read.failures().count() == files.len() {
        let message = format!("no picture among {} files{}", files.len(), first_few(&files, &read));
        return Err(fail(ExitCode::Data, message));
    }
    let names = files.iter().map(|file| file.path.display().to_string()).collect();
    let mut set = assemble(&files, names, read, fit, mode, files.len())?;
    set.notes = notes;
    set.seal()?;
    Ok(set)
}

/// The file `path`, whatever it is, or all pictures below the folder, sorted by folder and name; and a line
/// on what else lies there.
pub fn pictures_at(path: &Path) -> Result<(Vec<PathBuf>, Option<String>)> {
    pictures_in(path, Mode::Rgb)
}

/// The same of pictures for `mode`, which may be numpy's arrays.
pub fn pictures_in(path: &Path, mode: Mode) -> Result<(Vec<PathBuf>, Option<String>)> {
    let files = files_at(path)?;
    Ok(if path.is_dir() { pictures_of(files, mode) } else { (files, None) })
}

/// The file `path`, or all files below the folder, sorted by folder and name. A missing file is
/// noticed when it is read.
pub fn files_at(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    walk(path, &mut Vec::new(), &mut files)?;
    Ok(files)
}

/// All files below `folder`, sorted by folder, then by name. `above` holds the folders that lead here, so
/// that a link back to one of them ends.
pub(super) fn walk(folder: &Path, above: &mut Vec<PathBuf>, files: &mut Vec<PathBuf>) -> Result<()> {
    let place = fs::canonicalize(folder)
        .with_exit_code(ExitCode::Data, || format!("{}: cannot be read", folder.display()))?;
    if above.contains(&place) {
        return Ok(());
    }
    above.push(place);
    let (folders, plain): (Vec<_>, Vec<_>) = entries(folder)?.into_iter().partition(|path| path.is_dir());
    files.extend(plain);
    for folder in folders {
        walk(&folder, above, files)?;
    }
    above.pop();
    Ok(())
}

/// What is in a folder, sorted by name, but for hidden files and those that file managers leave behind.
fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let unreadable = || format!("{}: cannot be read", folder.display());
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).with_exit_code(ExitCode::Data, unreadable)? {
        let path = entry.with_exit_code(ExitCode::Data, unreadable)?.path();
        let name = file_name(&path);
        let is_litter = name.eq_ignore_ascii_case("thumbs.db") || name.eq_ignore_ascii_case("desktop.ini");
        if !name.starts_with('.') && !is_litter {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
