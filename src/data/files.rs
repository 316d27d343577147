//! Sets of image files that are decoded when their turn comes, and how each file becomes samples.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use anyhow::{Context, Result};

use super::image::floats;
use super::mask::Encoding;
use super::{Fit, ImageFile, Picture};
use crate::util::exit_code::{ExitCode, Failure, WithExitCode};
use crate::util::threads::unpoisoned;

/// Image files and how each becomes samples.
pub struct Files {
    pub files: Vec<ImageFile>,
    /// The target of each file, where targets are images: of the file's size.
    pub partners: Vec<ImageFile>,
    /// How the targets are read where they are masks.
    masks: Option<Arc<Encoding>>,
    /// How many times as large the targets are.
    pub scale: usize,
    pub framing: Framing,
    /// How many of them may still turn out to be undecodable before the run ends with exit code 3.
    pub forgiven: usize,
    cache: Cache,
    damaged: Mutex<Damaged>,
}

/// The files that turned out to be unusable, by their index.
#[derive(Default)]
pub struct Damaged {
    pub reasons: BTreeMap<usize, String>,
    /// In which order they were found.
    pub found: Vec<usize>,
}

/// How a picture becomes samples.
#[derive(Clone, Debug)]
pub enum Framing {
    /// One sample: the whole picture, brought to one size.
    Fit(Fit),
    /// `per_image` squares of `size` pixels in every epoch, each cut at a random place.
    Patches { size: usize, per_image: usize },
    /// One sample, at its own size.
    Whole,
}

impl Files {
    /// `memory`: bytes that decoded pictures may fill. Pictures that are fitted are not kept: those that
    /// would fit into memory are no files any more.
    pub fn new(
        files: Vec<ImageFile>,
        partners: Vec<ImageFile>,
        framing: Framing,
        forgiven: usize,
        memory: u64,
    ) -> Self {
        let cache = match framing {
            Framing::Fit(_) => Cache::new(0, 0),
            _ => Cache::new(files.len(), memory),
        };
        Self { files, partners, masks: None, scale: 1, framing, forgiven, cache, damaged: Mutex::default() }
    }

    /// The same whose targets are masks, where there is an encoding.
    pub fn with_masks(self, masks: Option<Arc<Encoding>>) -> Self {
        Self { masks, ..self }
    }

    /// The same whose targets are `scale` times as large.
    pub fn with_scale(self, scale: usize) -> Self {
        Self { scale, ..self }
    }

    /// What was found so far, by every loader of this set.
    pub fn damaged(&self) -> MutexGuard<'_, Damaged> {
        unpoisoned(&self.damaged)
    }

    /// Whether a value is four bytes in four channels.
    pub fn is_float(&self) -> bool {
        self.files.first().is_some_and(|file| file.mode.is_float())
    }

    /// Samples of an epoch.
    pub fn samples(&self) -> usize {
        self.files.len() * self.per_image()
    }

    /// Samples of one file.
    pub fn per_image(&self) -> usize {
        match self.framing {
            Framing::Patches { per_image, .. } => per_image,
            _ => 1,
        }
    }

    /// How each file is brought to one size, where it is.
    pub fn fit(&self) -> Option<&Fit> {
        match &self.framing {
            Framing::Fit(fit) => Some(fit),
            _ => None,
        }
    }

    /// Some of the files; whole pictures for evaluation, where training cuts them into patches.
    pub fn select(&self, indices: &[usize], whole: bool) -> Self {
        let select =
            |list: &[ImageFile]| indices.iter().filter_map(|&index| list.get(index).cloned()).collect();
        let framing = match &self.framing {
            Framing::Patches { .. } if whole => Framing::Whole,
            framing => framing.clone(),
        };
        Self::new(select(&self.files), select(&self.partners), framing, self.forgiven, self.cache.budget)
            .with_masks(self.masks.clone())
            .with_scale(self.scale)
    }

    /// The picture of file `index`, decoded once as long as the memory lasts. That of its target lies in
    /// further channels, so that whatever is cut and turned is cut and turned for both. Exit 3 where the two
    /// differ in size or a mask holds what no class claims; any other error says why a file cannot be
    /// decoded.
    pub fn picture(&self, index: usize) -> Result<Arc<Picture>> {
        let slot = self.cache.slots.get(index);
        if let Some(kept) = slot.and_then(OnceLock::get) {
            return Ok(kept.clone());
        }
        let mut picture = self.files[index].decode()?;
        if let Some(partner) = self.partners.get(index) {
            let target = match &self.masks {
                Some(masks) => masks.read(partner),
                None => partner.decode(),
            };
            let mut target = match target {
                Err(error) if error.is::<Failure>() => return Err(error),
                target => target.with_context(|| format!("its target {}", partner.place()))?,
            };
            if self.is_float() && !(self.masks.is_none() && partner.mode.is_float()) {
                target = floats::widened(&target);
            }
            if self.scale > 1 {
                picture = picture.repeated(self.scale);
            }
            picture = picture.stack(&target).with_exit_code(ExitCode::Data, || {
                format!("{}: its target {}", self.files[index].place(), partner.place())
            })?;
        }
        let picture = Arc::new(picture);
        let bytes = picture.data.len() as i64;
        if let Some(slot) = slot
            && self.cache.left.fetch_sub(bytes, Ordering::Relaxed) >= bytes
        {
            // Another worker may have been faster; its copy is the same.
            let _ = slot.set(picture.clone());
        }
        Ok(picture)
    }
}

/// Decoded pictures, by the index of their file.
struct Cache {
    slots: Vec<OnceLock<Arc<Picture>>>,
    budget: u64,
    left: AtomicI64,
}

impl Cache {
    fn new(files: usize, budget: u64) -> Self {
        let slots = std::iter::repeat_with(OnceLock::new).take(files).collect();
        Self { slots, budget, left: AtomicI64::new(i64::try_from(budget).unwrap_or(i64::MAX)) }
    }
}
