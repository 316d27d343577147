//! Which mask or target goes with which picture, and how the masks of a set are to be read: decided once,
//! over all of them, so that no file means something else than its neighbour.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Result;
use image::ImageFormat;
use image::metadata::Orientation;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::FilePath;
use super::folder::walk;
use super::pictures::on_all_cores;
use crate::data::format::pictures_of;
use crate::data::image::picture::{Header, ImageFile, Mode};
use crate::data::mask::{Encoding, IGNORED, Level, MaskImage, Masks, Unclaimed};
use crate::util::exit_code::{ExitCode, fail};
use crate::util::yaml::Invalid;

/// Masks that are read before training starts; of more, so many evenly spread. All of them are checked when
/// their turn comes.
const LOOKED_AT: usize = 512;

/// Where the masks are, and what their pixels mean.
#[derive(Deserialize, Serialize, Clone, Debug, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MaskSpec {
    /// The folder of the masks.
    pub root: FilePath,
    /// Names of the classes, 2 to 255.
    pub classes: Vec<String>,
    /// The value of each class in a mask, in the order of `classes`: numbers (class numbers, palette indices,
    /// grey levels of 8 or 16 bits), or colours. When absent: the class numbers 0 to n − 1, or levels evenly
    /// from 0 to 255 where the masks hold those.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub levels: Vec<Level>,
    /// The value, or values, of pixels that count neither in the loss nor in a metric.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ignore: Option<Ignore>,
    /// How far a pixel may be from the value of its class. JPEG masks are always read by the nearest value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tolerance: Option<u16>,
    /// What a mask's name has after the picture's: `_mask` for `x.jpg` and `x_mask.gif`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub suffix: String,
    /// What a picture's name has that its mask's has not: `_leftImg8bit`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub image_suffix: String,
}

/// `255`, `"#ffffff"`, or a list of those.
#[derive(Deserialize, Serialize, Clone, Debug, JsonSchema)]
#[serde(untagged, expecting = "expected a level such as `255` or \"#ffffff\", or a list of levels")]
pub enum Ignore {
    One(Level),
    Many(Vec<Level>),
}

impl MaskSpec {
    pub fn validate(&self) -> Result<(), Invalid> {
        self.root.folder("root")?;
        if !(2..=usize::from(IGNORED)).contains(&self.classes.len()) {
            return Err(Invalid::new("classes", "name 2 to 255 classes"));
        }
        let distinct = |levels: &[Level]| {
            let mut sorted = levels.to_vec();
            sorted.sort_unstable();
            sorted.dedup();
            sorted.len()
        };
        let colours = self.levels.iter().filter(|level| matches!(level, Level::Colour(_))).count();
        if !self.levels.is_empty()
            && (distinct(&self.levels) != self.classes.len() || self.levels.len() != self.classes.len())
        {
            let message = format!("must be {} different levels, one for each class", self.classes.len());
            return Err(Invalid::new("levels", message));
        }
        if colours != 0 && colours != self.levels.len() {
            return Err(Invalid::new("levels", "are numbers or colours, not some of each"));
        }
        let ignore = self.ignore();
        if let Some(level) = ignore.iter().find(|level| self.levels.contains(level)) {
            return Err(Invalid::new("ignore", format!("{level} is the level of a class, too")));
        }
        if let (Some(level), Some(Level::Number(_))) = (
            ignore.iter().find(|level| matches!(level, Level::Colour(_))),
            self.levels.first().or(Some(&Level::Number(0))),
        ) {
            let message = format!("{level} is a colour and the levels are numbers; give colours for both");
            return Err(Invalid::new("ignore", message));
        }
        Ok(())
    }

    fn ignore(&self) -> Vec<Level> {
        let as_declared = |level: &Level| match (self.levels.first(), level) {
            // Beside colours, a grey is one of them.
            (Some(Level::Colour(_)), Level::Number(grey @ 0..=255)) => Level::Colour([*grey as u8; 3]),
            _ => *level,
        };
        match &self.ignore {
            None => Vec::new(),
            Some(Ignore::One(level)) => vec![as_declared(level)],
            Some(Ignore::Many(levels)) => levels.iter().map(as_declared).collect(),
        }
    }

    /// What the masks may mean, the likeliest first, with words for it.
    fn readings(&self) -> Vec<(Encoding, String)> {
        let (classes, ignore) = (self.classes.len(), self.ignore());
        let with = |mut encoding: Encoding| {
            encoding.tolerance = self.tolerance.unwrap_or(encoding.tolerance);
            encoding
        };
        if !self.levels.is_empty() {
            let encoding = Encoding { levels: self.levels.clone(), ignore, tolerance: 0 };
            return vec![(with(encoding), "levels as declared".into())];
        }
        vec![
            (with(Encoding::numbers(classes, ignore.clone())), format!("class numbers 0 to {}", classes - 1)),
            (with(Encoding::spread(classes, true, ignore.clone())), "levels evenly from 0 to 255".into()),
            (with(Encoding::spread(classes, false, ignore)), "levels evenly from 0 to 255".into()),
        ]
    }

    /// Reads the masks, all or 512 of them, and decides what they mean. Exit 3 where they hold what no class
    /// claims.
    pub fn look(&self, masks: &[ImageFile]) -> Result<Masks> {
        let sample = masks.len().min(LOOKED_AT);
        let chosen: Vec<&ImageFile> = (0..sample).map(|place| &masks[place * masks.len() / sample]).collect();
        let mut readings = self.readings();
        let mut seen: Vec<Vec<Result<Vec<u64>, Unclaimed>>> = vec![Vec::new(); sample];
        // What cannot be decoded is counted and named when its turn comes.
        on_all_cores(chosen.iter().zip(&mut seen), sample, |(file, seen)| {
            let image = MaskImage::read(file)?;
            for (encoding, _) in &readings {
                seen.push(encoding.classes(&image)?.map(|(_, pixels)| pixels));
            }
            Ok(())
        });
        seen.iter_mut().for_each(|seen| seen.truncate(readings.len()));
        let fits = |reading: &usize| seen.iter().all(|file| file.get(*reading).is_none_or(Result::is_ok));
        let Some(reading) = (0..readings.len()).find(fits) else {
            return Err(self.refuse(&readings, &chosen, &seen));
        };
        let mut pixels = vec![0u64; self.classes.len()];
        let mut ignored = 0;
        for counts in seen.iter().filter_map(|file| file.get(reading)?.as_ref().ok()) {
            pixels.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
            ignored += counts[usize::from(IGNORED)];
        }
        let (encoding, words) = readings.swap_remove(reading);
        Ok(Masks { encoding, pixels, ignored, looked_at: [sample, masks.len()], reading: words })
    }

    /// Says what the masks hold and what would make sense of it.
    fn refuse(
        &self,
        readings: &[(Encoding, String)],
        files: &[&ImageFile],
        seen: &[Vec<Result<Vec<u64>, Unclaimed>>],
    ) -> anyhow::Error {
        let mut all = Unclaimed::default();
        let mut example = Path::new("");
        for (file, seen) in files.iter().zip(seen) {
            // The first reading decides; where it fits a file, the file still counts among the pixels.
            match seen.first() {
                Some(Err(unclaimed)) => {
                    if all.levels.is_empty() {
                        example = &file.path;
                    }
                    for (level, count) in &unclaimed.levels {
                        *all.levels.entry(*level).or_default() += count;
                    }
                    all.pixels += unclaimed.pixels;
                }
                Some(Ok(counts)) => all.pixels += counts.iter().sum::<u64>(),
                None => {}
            }
        }
        let most = all.most();
        let is_colour = |level: &Level| matches!(level, Level::Colour(_));
        let colours: Vec<_> = most.iter().filter(|(level, _)| is_colour(level)).collect();
        let place = example.display();
        let undeclared = self.levels.is_empty();
        if !colours.is_empty() && !self.levels.iter().any(is_colour) {
            let shown: Vec<_> = colours.iter().map(|(level, _)| format!("\"{level}\"")).collect();
            let message = format!(
                "{place}: the masks are colours: {all}; say which is which class, as in `mask: {{levels: [\"#000000\", {}]}}`",
                shown.join(", ")
            );
            return fail(ExitCode::Data, message);
        }
        let mut message = format!("{place}: {}", readings[0].0.complaint(&all));
        if undeclared {
            let spread: Vec<_> = readings[1].0.levels.iter().map(Level::to_string).collect();
            message += &format!(
                " (read as class numbers; they are not the levels {} either)",
                spread.iter().take(8).cloned().collect::<Vec<_>>().join(", ")
            );
        }
        if all.levels.keys().eq([&Level::Number(255)]) && self.ignore.is_none() {
            message += "; 255 usually marks what counts nowhere: `mask: {ignore: 255}`";
        }
        fail(ExitCode::Data, message)
    }
}

/// The files below `root`; an empty folder is exit 3.
pub fn found(root: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    walk(root, &mut Vec::new(), &mut paths)?;
    match paths.is_empty() {
        true => Err(fail(ExitCode::Data, format!("{}: holds no file", root.display()))),
        false => Ok(paths),
    }
}

/// The path below `root` without its extension.
fn stem(path: &Path, root: &Path) -> PathBuf {
    path.strip_prefix(root).unwrap_or(path).with_extension("")
}

/// How the names of pictures and their targets or masks are made of one name: what comes before and after it.
#[derive(Clone, Copy, Default)]
pub struct Naming<'a> {
    pub image: (&'a str, &'a str),
    pub partner: (&'a str, &'a str),
}

impl Naming<'_> {
    /// Whether a file is called as a picture, and not as a partner.
    pub fn is_picture(&self, path: &Path) -> bool {
        let fits = |(before, after): (&str, &str)| {
            let stem = path.file_stem().unwrap_or_default().to_string_lossy();
            stem.strip_prefix(before).is_some_and(|rest| rest.ends_with(after))
        };
        fits(self.image) && (self.partner == ("", "") || !fits(self.partner))
    }

    /// The name of the partner of the picture `path`, both without extension; None where the picture is called
    /// otherwise.
    fn partner(&self, path: &Path, root: &Path) -> Option<PathBuf> {
        let stem = stem(path, root);
        let name = stem.file_name()?.to_string_lossy();
        let name = name.strip_prefix(self.image.0)?.strip_suffix(self.image.1)?;
        Some(stem.with_file_name(format!("{}{name}{}", self.partner.0, self.partner.1)))
    }
}

/// The file below `others` that goes with each of `files`. Exit 3 lists those that have none, or names two
/// that both could be it.
pub fn partners(files: &[ImageFile], root: &Path, others: &Path, naming: Naming) -> Result<Vec<PathBuf>> {
    let mut known: BTreeMap<PathBuf, Vec<PathBuf>> = BTreeMap::new();
    let (all, _) = pictures_of(found(others)?, Mode::Float32(1));
    for path in &all {
        known.entry(stem(path, others)).or_default().push(path.clone());
    }
    let is_picture = |path: &&PathBuf| ImageFormat::from_path(path).is_ok();
    let (mut chosen, mut lonely) = (Vec::new(), Vec::new());
    for file in files {
        let names = naming.partner(&file.path, root).and_then(|name| known.get(&name));
        let names = names.map(Vec::as_slice).unwrap_or_default();
        let pictures: Vec<_> = names.iter().filter(is_picture).collect();
        match (pictures.as_slice(), names) {
            (&[one, two, ..], _) => {
                let message = format!(
                    "{} and {} both go with {}; remove one of them",
                    one.display(),
                    two.display(),
                    file.path.display()
                );
                return Err(fail(ExitCode::Data, message));
            }
            (&[one], _) | (&[], [one, ..]) => chosen.push(one.clone()),
            (&[], []) => lonely.push(file),
        }
    }
    if lonely.is_empty() {
        return Ok(chosen);
    }
    let few: String = lonely.iter().take(5).map(|file| format!("\n  {}", file.path.display())).collect();
    let wanted = match (naming.partner, naming.image) {
        (("", ""), ("", "")) => "of the same name".to_owned(),
        (("", suffix), ("", "")) => format!("of the same name and `{suffix}`"),
        (("", ""), ("", suffix)) => format!("of the same name less `{suffix}`"),
        (("", suffix), ("", own)) => format!("of the same name with `{suffix}` in place of `{own}`"),
        (partner, own) => {
            format!("`{}{{}}{}` for `{}{{}}{}`", partner.0, partner.1, own.0, own.1)
        }
    };
    let there = all.first().map(|path| path.file_name().unwrap_or_default().to_string_lossy().into_owned());
    let message = format!(
        "{} of {} images have no file {wanted} in {}, which holds `{}` and the like; other names: \
         `suffix` and `image_suffix` of masks, `filename_tmpl` and `target_tmpl` of targets:{few}",
        lonely.len(),
        files.len(),
        others.display(),
        there.unwrap_or_default()
    );
    Err(fail(ExitCode::Data, message))
}

/// Exit 3 where a picture and its mask or target differ in size; both are named, with what EXIF says of them.
/// A target may be `scale` times as large.
pub fn same_sizes(files: &[ImageFile], partners: &[ImageFile], what: &str, scale: usize) -> Result<()> {
    let mut problems: Vec<Option<String>> = vec![None; files.len()];
    let pairs = files.iter().zip(partners).zip(&mut problems);
    on_all_cores(pairs, files.len(), |((file, partner), problem)| {
        *problem = differ(file, partner, scale);
        Ok(())
    });
    let problems: Vec<String> = problems.into_iter().flatten().collect();
    if problems.is_empty() {
        return Ok(());
    }
    let shown: String = problems.iter().take(5).map(|problem| format!("\n  {problem}")).collect();
    let wanted = match scale {
        1 => "have another size than".to_owned(),
        scale => format!("are not {scale} times as large as"),
    };
    let crop = match what {
        "target" => " (a target may be a whole number of times as large: crop it to a multiple)",
        _ => "",
    };
    let message = format!(
        "{} of {} {what}s {wanted} their picture; mend or remove those pairs{crop}:{shown}",
        problems.len(),
        files.len()
    );
    Err(fail(ExitCode::Data, message))
}

/// Width and height of a picture as it is turned, and how that is, by its header.
pub fn upright(file: &ImageFile) -> Option<([usize; 2], Orientation)> {
    let Header { height, width, turn, .. } = file.header().ok()?;
    use Orientation::{Rotate90, Rotate90FlipH, Rotate270, Rotate270FlipH};
    let turned = matches!(turn, Rotate90 | Rotate270 | Rotate90FlipH | Rotate270FlipH);
    Some((if turned { [height, width] } else { [width, height] }, turn))
}

/// What is wrong between the two, where their sizes differ; what has no header is left to the decoder.
fn differ(file: &ImageFile, partner: &ImageFile, scale: usize) -> Option<String> {
    let ((own, turn), (other, other_turn)) = (upright(file)?, upright(partner)?);
    if own.map(|side| side * scale) == other {
        return None;
    }
    // A header may lie, or hide its EXIF data far behind.
    let decoded = |file: &ImageFile| file.decode().ok().map(|picture| [picture.width, picture.height]);
    let ([width, height], [w, h]) = (decoded(file)?, decoded(partner)?);
    if [width, height].map(|side| side * scale) == [w, h] {
        return None;
    }
    let describe = |turn: Orientation| match turn {
        Orientation::NoTransforms => String::new(),
        turn => format!(" after its EXIF orientation {}", turn.to_exif()),
    };
    let advice = match turn == other_turn {
        true => "",
        false => ": where the mask was drawn on the picture as stored, say `exif: false` beside `root`",
    };
    Some(format!(
        "{} is {width}x{height}{}, {} is {w}x{h}{}{advice}",
        file.path.display(),
        describe(turn),
        partner.path.display(),
        describe(other_turn)
    ))
}
