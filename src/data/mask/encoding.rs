//! Maps what a mask's pixels hold ([`Level`]) to indices of classes; files are decoded in `mask_image.rs`.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use anyhow::Result;

use super::{IGNORED, Level, MaskImage, percent};
use crate::data::image::picture::{ImageFile, Picture};
use crate::util::exit_code::{ExitCode, fail};

/// Which level is which class.
#[derive(Clone, Debug, PartialEq)]
pub struct Encoding {
    /// In the order of the classes.
    pub levels: Vec<Level>,
    pub ignore: Vec<Level>,
    /// How far a pixel of a lossless file may lie from its level.
    pub tolerance: u16,
}

/// Pixels that no class claims: which levels, how often, of how many pixels.
#[derive(Clone, Debug, Default)]
pub struct Unclaimed {
    pub levels: BTreeMap<Level, u64>,
    pub pixels: u64,
}

impl Unclaimed {
    /// The levels that occur most, at most eight.
    pub fn most(&self) -> Vec<(Level, u64)> {
        let mut levels: Vec<_> = self.levels.iter().map(|(level, count)| (*level, *count)).collect();
        levels.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        levels.truncate(8);
        levels
    }
}

impl fmt::Display for Unclaimed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let most = self.most();
        let shown: Vec<_> = most
            .iter()
            .map(|(level, count)| format!("{level} ({})", percent(*count as f64 / self.pixels.max(1) as f64)))
            .collect();
        let more = if most.len() < self.levels.len() { ", …" } else { "" };
        write!(f, "{}{more}", shown.join(", "))
    }
}

impl Encoding {
    /// Class numbers 0 to `classes` − 1.
    pub fn numbers(classes: usize, ignore: Vec<Level>) -> Self {
        Self { levels: (0..classes as u16).map(Level::Number).collect(), ignore, tolerance: 0 }
    }

    /// Levels evenly from 0 to 255: rounded down, or else to the nearest.
    pub fn spread(classes: usize, down: bool, ignore: Vec<Level>) -> Self {
        let last = classes.max(2) - 1;
        let half = if down { 0 } else { last / 2 };
        let levels = (0..=last).map(|class| Level::Number(((class * 255 + half) / last) as u16)).collect();
        Self { levels, ignore, tolerance: 0 }
    }

    /// The classes of a mask as a picture of one channel, [`IGNORED`] where it is ignored, and how many
    /// pixels each has.
    pub fn classes(&self, image: &MaskImage) -> Result<Result<(Picture, Vec<u64>), Unclaimed>> {
        let counts = image.counts()?;
        let palette = image.palette.as_deref();
        let grey = |[r, g, b]: [u8; 3]| (r == g && g == b).then_some(Level::Number(r.into()));
        let colour = |level: Level| match level {
            Level::Number(index) if palette.is_some() => {
                palette.and_then(|colours| colours.get(usize::from(index)).copied())
            }
            Level::Number(number) => u8::try_from(number).ok().map(|grey| [grey; 3]),
            Level::Colour(colour) => Some(colour),
        };
        let in_colours = self.levels.iter().any(|level| matches!(level, Level::Colour(_)));
        let as_colour = |level: Level| colour(level).map_or(level, Level::Colour);
        // A colour file of greys alone is a grey file.
        let as_number = |level: Level| match level {
            Level::Colour(colour) => grey(colour).unwrap_or(level),
            number => number,
        };
        let table = match in_colours {
            true => self.table(&counts, as_colour, image.lossy),
            false => {
                let read = self.table(&counts, as_number, image.lossy);
                // Some formats have no other way to store greys than a palette of them.
                let as_grey = |level: Level| colour(level).and_then(grey).unwrap_or(level);
                let is_grey = || counts.keys().all(|level| colour(*level).and_then(grey).is_some());
                match read {
                    Err(_) if palette.is_some() && is_grey() => {
                        self.table(&counts, as_grey, image.lossy).or(read)
                    }
                    read => read,
                }
            }
        };
        let table = match table {
            Ok(table) => table,
            Err(unclaimed) => return Ok(Err(unclaimed)),
        };
        let mut per_class = vec![0; usize::from(IGNORED) + 1];
        for (level, count) in &counts {
            per_class[usize::from(table[level])] += count;
        }
        let mut data = Vec::with_capacity(image.levels.len());
        for run in image.levels.chunk_by(|a, b| a == b) {
            data.resize(data.len() + run.len(), table[&run[0]]);
        }
        let picture = Picture { channels: 1, height: image.height, width: image.width, data };
        Ok(Ok((picture, per_class)))
    }

    /// The class of each level of `counts`, read by `reading`.
    fn table(
        &self,
        counts: &BTreeMap<Level, u64>,
        reading: impl Fn(Level) -> Level,
        lossy: bool,
    ) -> Result<HashMap<Level, u8>, Unclaimed> {
        /// The share of a lossy file's pixels that may lie further from every level than a quarter of their
        /// distance: edges.
        const EDGES: f64 = 0.05;
        let claims: Vec<(Level, u8)> = (self.ignore.iter().map(|level| (*level, IGNORED)))
            .chain(self.levels.iter().copied().zip(0..))
            .collect();
        let between = |(at, (a, _)): (usize, &(Level, u8))| {
            claims[at + 1..].iter().filter_map(|(b, _)| a.distance(*b)).min()
        };
        let gap = claims.iter().enumerate().filter_map(between).min().unwrap_or(1);
        let near = if lossy { self.tolerance.max(gap / 4) } else { self.tolerance };
        let (mut table, mut unclaimed) = (HashMap::new(), Unclaimed::default());
        for (&level, &count) in counts {
            let read = reading(level);
            let nearest = claims.iter().filter_map(|(at, class)| Some((read.distance(*at)?, *class)));
            let nearest = nearest.min_by_key(|(distance, _)| *distance);
            unclaimed.pixels += count;
            match nearest {
                Some((distance, class)) => {
                    table.insert(level, class);
                    if distance > near {
                        unclaimed.levels.insert(read, count);
                    }
                }
                None => {
                    unclaimed.levels.insert(read, count);
                }
            }
        }
        let missed: u64 = unclaimed.levels.values().sum();
        let forgiven = if lossy && table.len() == counts.len() { EDGES } else { 0.0 };
        if missed as f64 > forgiven * unclaimed.pixels as f64 { Err(unclaimed) } else { Ok(table) }
    }

    /// The classes of a file. Exit 3 where it holds what no class claims; any other error says why it cannot
    /// be decoded.
    pub fn read(&self, file: &ImageFile) -> Result<Picture> {
        match self.classes(&MaskImage::read(file)?)? {
            Ok((picture, _)) => Ok(picture),
            Err(unclaimed) => {
                let message = format!("{}: {}", file.path.display(), self.complaint(&unclaimed));
                Err(fail(ExitCode::Data, message))
            }
        }
    }

    /// What to say of pixels that no class claims.
    pub fn complaint(&self, unclaimed: &Unclaimed) -> String {
        let list = |levels: &[Level]| {
            let shown: Vec<_> = levels.iter().take(32).map(Level::to_string).collect();
            let more = if levels.len() > shown.len() { ", …" } else { "" };
            format!("{}{more}", shown.join(", "))
        };
        let furthest = unclaimed.levels.keys().filter_map(|level| {
            self.levels.iter().chain(&self.ignore).filter_map(|at| level.distance(*at)).min()
        });
        let noise = match furthest.max() {
            Some(furthest) if furthest <= 64 => format!(", or say `tolerance: {furthest}` if it is noise"),
            _ => String::new(),
        };
        let ignore = match self.ignore.as_slice() {
            [] => String::new(),
            ignore => format!(" or ignored ({})", list(ignore)),
        };
        format!(
            "pixels of no class: {unclaimed}; the classes are {}{ignore}. Declare them in `mask.levels`, or as \
             `mask.ignore`{noise}",
            list(&self.levels)
        )
    }
}
