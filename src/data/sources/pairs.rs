//! Pictures and the images that they should become: names by templates and BasicSR's lists, and the scale between
//! the two.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::images::ImagesSpec;
use super::masks::{Naming, upright};
use crate::data::image::picture::ImageFile;
use crate::util::exit_code::{ExitCode, WithExitCode, fail};
use crate::util::regular_file;
use crate::util::yaml::Invalid;

/// Bytes that a list of pairs may have.
const MAX_LIST: u64 = 256 << 20;
/// Missing files that a message lists.
const LISTED: usize = 100;

impl ImagesSpec {
    pub fn validate_pairs(&self) -> Result<(), Invalid> {
        let given = [
            ("filename_tmpl", self.filename_tmpl.is_some()),
            ("target_tmpl", self.target_tmpl.is_some()),
            ("meta_info", self.meta_info.is_some()),
            ("target_mode", self.target_mode.is_some()),
            ("scale", self.scale.is_some()),
        ];
        if let (None, Some((key, _))) = (&self.target, given.iter().find(|(_, given)| *given)) {
            let remedy =
                if self.mask.is_some() { "of masks: `suffix`, `image_suffix`" } else { "say `target`" };
            return Err(Invalid::new(*key, format!("is about the targets, and there are none; {remedy}")));
        }
        for (key, template) in [("filename_tmpl", &self.filename_tmpl), ("target_tmpl", &self.target_tmpl)] {
            if let Some(template) = template
                && (template.matches("{}").count() != 1 || template.contains('/'))
            {
                let message = format!("is a name with one `{{}}` in it, as `{{}}x4`, not `{template}`");
                return Err(Invalid::new(key, message));
            }
        }
        match self.target_mode {
            Some(mode) if mode.is_float() && !self.mode.is_float() => {
                let message = "is float32, and the pictures' `mode` has 8 bits: make that float32 too";
                return Err(Invalid::new("target_mode", message));
            }
            Some(mode) => mode.validate("target_mode")?,
            None => {}
        }
        if let Some(list) = &self.meta_info {
            list.file("meta_info")?;
        }
        match self.scale {
            Some(scale) if !(1..=16).contains(&scale) => {
                Err(Invalid::new("scale", format!("must be 1 to 16, not {scale}")))
            }
            _ => Ok(()),
        }
    }

    /// How names of pictures and of targets belong together.
    pub fn naming(&self) -> Naming<'_> {
        fn parts(template: &Option<String>) -> (&str, &str) {
            template.as_deref().and_then(|template| template.split_once("{}")).unwrap_or_default()
        }
        Naming { image: parts(&self.filename_tmpl), partner: parts(&self.target_tmpl) }
    }

    /// The pictures and the targets that `meta_info` lists, in its order. Exit 3 names all that are missing.
    pub fn pairs(&self, root: &Path) -> Result<Option<(Vec<PathBuf>, Vec<PathBuf>)>> {
        let (Some(list), Some(target)) = (&self.meta_info, &self.target) else { return Ok(None) };
        let (list, target) = (list.resolve()?, target.resolve()?);
        let unreadable = || format!("{}: cannot be read", list.display());
        let text = regular_file::read(&list, MAX_LIST).with_exit_code(ExitCode::Data, unreadable)?;
        let text = String::from_utf8(text).with_exit_code(ExitCode::Data, || {
            format!("{}: is no UTF-8 text; save the list as UTF-8", list.display())
        })?;
        let (mut pictures, mut targets, mut missing) = (Vec::new(), Vec::new(), Vec::new());
        for (line, text) in (1..).zip(text.lines()) {
            let text = text.trim();
            if text.is_empty() {
                continue;
            }
            let (name, picture) = match text.split_once(", ") {
                Some((name, picture)) => (name, root.join(picture)),
                // BasicSR writes the shape behind the name: `0001.png (480,480,3)`.
                None => {
                    let name = text.split(" (").next().unwrap_or(text);
                    (name, root.join(self.picture_of(Path::new(name))))
                }
            };
            for path in [&picture, &target.join(name)] {
                if !path.is_file() {
                    missing.push(format!("\n  {}:{line}: {}", list.display(), path.display()));
                }
            }
            pictures.push(picture);
            targets.push(target.join(name));
        }
        if let (count @ 1.., shown) =
            (missing.len(), missing.iter().take(LISTED).cloned().collect::<String>())
        {
            let more =
                if count > LISTED { format!("\n  and {} more", count - LISTED) } else { String::new() };
            let message = format!(
                "{count} files of the {} pairs in {} are not there; bring them, or remove their lines; names of \
                 pictures by those of targets: `filename_tmpl`:{shown}{more}",
                pictures.len(),
                list.display()
            );
            return Err(fail(ExitCode::Data, message));
        }
        if pictures.is_empty() {
            return Err(fail(ExitCode::Data, format!("{}: lists no pair", list.display())));
        }
        Ok(Some((pictures, targets)))
    }

    /// The path of a picture by that of its target, with the target's extension.
    fn picture_of(&self, target: &Path) -> PathBuf {
        let (before, after) = self.naming().image;
        let stem = target.file_stem().unwrap_or_default().to_string_lossy();
        let extension = target.extension().map_or(String::new(), |end| format!(".{}", end.to_string_lossy()));
        target.with_file_name(format!("{before}{stem}{after}{extension}"))
    }
}

/// How many times as large the first target is that can be read; 1 where that is no whole number.
pub fn scale_of(files: &[ImageFile], targets: &[ImageFile]) -> usize {
    let scale = |(file, target): (&ImageFile, &ImageFile)| {
        let ([width, height], _) = upright(file)?;
        let ([wide, high], _) = upright(target)?;
        let scale = wide / width.max(1);
        Some(if scale >= 1 && [width * scale, height * scale] == [wide, high] { scale } else { 1 })
    };
    files.iter().zip(targets).find_map(scale).unwrap_or(1)
}
