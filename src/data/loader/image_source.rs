//! Samples in files: decoded, brought to the size of the samples and written into batches.

use std::sync::Arc;

use anyhow::{Result, anyhow};
use tch::{Kind, Tensor};

use super::batch_writer::{BatchWriter, Buffer, PixelData};
use super::{LoaderContext, RawBatch};
use crate::data::{Damaged, Files, Fit, Framing, Picture, Skipped};
use crate::libtorch::catch_panics;
use crate::libtorch::device::upload;
use crate::libtorch::stream::AsyncUpload;
use crate::util::exit_code::{ExitCode, Failure, WithExitCode, fail};

/// The files of a loader and how they become samples. Undecodable ones are counted in [`Files`].
pub struct ImageSource {
    files: Arc<Files>,
    framing: Framing,
    writer: BatchWriter,
    context: LoaderContext,
    /// Copies batches to the GPU while it computes.
    pub upload: Option<AsyncUpload>,
    names: Vec<String>,
}

/// Which sample a slot of a batch holds, and its augmentation parameters.
pub struct Sample {
    pub index: i64,
    pub params: Vec<f64>,
}

impl ImageSource {
    /// `shape` is that of a sample and its target, where that is an image, stacked.
    pub fn new(
        files: Arc<Files>,
        shape: &[i64],
        names: Vec<String>,
        context: &LoaderContext,
    ) -> Result<Self> {
        let decoded = context.pipeline.decoded(shape);
        let &[_, height, width] = decoded.as_slice() else {
            return Err(fail(ExitCode::Data, format!("pictures cannot have the shape {shape:?}")));
        };
        let writer = BatchWriter::collecting(&decoded, context)?;
        let framing = match &files.framing {
            Framing::Fit(fit) => {
                let fit = if context.train { fit.clone() } else { fit.judging() };
                Framing::Fit(Fit { height: height as usize, width: width as usize, ..fit })
            }
            framing => framing.clone(),
        };
        let upload = AsyncUpload::to(context.device)?;
        Ok(Self { files, framing, writer, context: context.clone(), upload, names })
    }

    pub fn skipped(&self) -> Vec<Skipped> {
        self.files.damaged().reasons.iter().map(|(&index, reason)| self.skip(index, reason)).collect()
    }

    fn skip(&self, index: usize, reason: &str) -> Skipped {
        let name = self.names.get(index).cloned();
        let name = name.unwrap_or_else(|| self.files.files[index].place());
        Skipped { name, reason: reason.to_owned() }
    }

    /// Whether batches come out of [`write_into`](Self::write_into) normalised and augmented.
    pub fn finishes(&self) -> bool {
        self.writer.finishes()
    }

    /// An empty batch of `samples`.
    pub fn buffer(&self, samples: usize, pinned: bool) -> Result<Buffer> {
        self.writer.buffer(samples, pinned)
    }

    /// The index and the picture of file `index`. In training, one that cannot be decoded is replaced by the
    /// next that can, in the order of the set; otherwise it is left out: None. Exit 3 where there are more of
    /// them than `data.max_skipped` allows.
    fn decode(&self, index: usize) -> Result<Option<(usize, Arc<Picture>)>> {
        let count = self.files.files.len();
        for index in (index..count).chain(0..index) {
            if !self.is_damaged(index)? {
                match catch_panics(|| self.picture(index)).and_then(|picture| picture) {
                    Ok(picture) => return Ok(Some((index, picture))),
                    // An error with an exit code of its own is not about a damaged file.
                    Err(error) if error.is::<Failure>() => return Err(error),
                    Err(error) => self.record(index, &error)?,
                }
            }
            if !self.context.train {
                return Ok(None);
            }
        }
        Err(fail(ExitCode::Data, format!("none of the {count} files could be decoded")))
    }

    fn picture(&self, index: usize) -> Result<Arc<Picture>> {
        let picture = self.files.picture(index)?;
        if let Framing::Patches { size, .. } = self.framing
            && picture.height.min(picture.width) < size * self.files.scale
        {
            let [width, height] = [picture.width, picture.height].map(|side| side / self.files.scale);
            return Err(anyhow!("is {width}x{height}, smaller than the patches of {size}x{size}"));
        }
        Ok(picture)
    }

    /// File `index` as a batch of its own, at its own size.
    pub fn whole(&self, index: usize) -> Result<Option<RawBatch>> {
        let Some((index, picture)) = self.decode(index)? else { return Ok(None) };
        let size = [1, picture.channels as i64, picture.height as i64, picture.width as i64];
        let levels = Tensor::f_from_data_size(&picture.planes(), &size, Kind::Uint8)?;
        let xs = self.context.finish(upload(&levels, self.context.device), &[]);
        Ok(Some(RawBatch { xs, indices: vec![index as i64] }))
    }

    fn record(&self, index: usize, error: &anyhow::Error) -> Result<()> {
        let mut damaged = self.files.damaged();
        if damaged.reasons.insert(index, format!("{error:#}")).is_none() {
            damaged.found.push(index);
        }
        self.check_budget(&damaged)
    }

    /// Whether file `index` is known to be damaged; exit 3 where it is one of too many.
    fn is_damaged(&self, index: usize) -> Result<bool> {
        let damaged = self.files.damaged();
        match damaged.reasons.contains_key(&index) {
            true => self.check_budget(&damaged).map(|()| true),
            false => Ok(false),
        }
    }

    /// Exit 3 where there are more damaged files than `data.max_skipped` allows.
    fn check_budget(&self, damaged: &Damaged) -> Result<()> {
        let damaged = &damaged.reasons;
        if damaged.len() <= self.files.forgiven {
            return Ok(());
        }
        let listed: Vec<String> = damaged
            .iter()
            .take(5)
            .map(|(&index, reason)| {
                let Skipped { name, reason } = self.skip(index, reason);
                format!("\n  {name}: {reason}")
            })
            .collect();
        let message = format!(
            "{} of {} files cannot be decoded, {} more than forgiven:{}\nrepair or remove them, or raise \
             data.max_skipped",
            damaged.len(),
            self.files.files.len(),
            damaged.len() - self.files.forgiven,
            listed.concat(),
        );
        Err(fail(ExitCode::Data, message))
    }

    /// Where a random resized crop is made from the file and the rest of it is not needed: the sample and its
    /// augmentation parameters.
    fn part(&self, index: usize, draw: usize, epoch: u64) -> Option<(Picture, Vec<f64>)> {
        let (Framing::Fit(fit), []) = (&self.framing, self.files.partners.as_slice()) else { return None };
        if !self.context.pipeline.crops_files() {
            return None;
        }
        let mut params = Vec::with_capacity(self.context.pipeline.num_params());
        let part = self.files.files[index].decode_part(|sides| {
            let mut rng = self.context.augment_rng(epoch, draw as u64);
            self.context.pipeline.sample(&mut rng, sides, &mut params);
            params.first_chunk().map(|corner: &[f64; 4]| corner.map(|edge| edge as usize))
        })?;
        Some((fit.part(&part), params))
    }

    /// Decodes the sample of a draw of an epoch, crops or resizes it, and writes it into a slot of a batch. None
    /// for a file that is left out.
    pub fn write_into(
        &self,
        buffer: &Buffer,
        slot: usize,
        draw: usize,
        epoch: u64,
    ) -> Result<Option<Sample>> {
        let index = draw % self.context.samples;
        // Also of a file that was found damaged: this part of it may be whole, and the sample must not depend
        // on what was decoded before.
        if let Some((picture, params)) = self.part(index, draw, epoch) {
            return self.write_sample(buffer, slot, index, &picture, params);
        }
        let per_image = self.files.per_image();
        let Some((file, picture)) = self.decode(index / per_image)? else { return Ok(None) };
        let (again, index) = (draw - index, file * per_image + index % per_image);
        let pipeline = &self.context.pipeline;
        let mut params = Vec::with_capacity(pipeline.num_params());
        let mut rng = self.context.augment_rng(epoch, (index + again) as u64);
        let picture = match &self.framing {
            Framing::Patches { size, .. } => {
                // A pixel of the picture is `scale` pixels of its target, down and across.
                let scale = self.files.scale;
                let mut place = |side: usize| rng.below((side / scale - size) as u64 + 1) as usize * scale;
                let (top, left) = (place(picture.height), place(picture.width));
                let side = size * scale;
                pipeline.sample(&mut rng, [side, side], &mut params);
                &picture.crop(top, left, side, side)
            }
            Framing::Fit(fit) => {
                pipeline.sample(&mut rng, [picture.height, picture.width], &mut params);
                match (pipeline.crops_files(), params.as_slice()) {
                    (true, &[top, left, height, width, ..]) => {
                        let corner = (top as usize, left as usize);
                        &fit.region(&picture, corner.0, corner.1, height as usize, width as usize)
                    }
                    _ => &fit.whole(&picture),
                }
            }
            Framing::Whole => &picture,
        };
        self.write_sample(buffer, slot, index, picture, params)
    }

    fn write_sample(
        &self,
        buffer: &Buffer,
        slot: usize,
        index: usize,
        picture: &Picture,
        params: Vec<f64>,
    ) -> Result<Option<Sample>> {
        let file = || self.files.files[index / self.files.per_image()].place();
        let pipeline = &self.context.pipeline;
        let changed = pipeline.has_levels().then(|| pipeline.levels(picture.planes(), &params));
        let pixels = changed.as_deref().map_or(PixelData::Picture(picture), PixelData::Planes);
        self.writer
            .write(buffer, slot, pixels, &self.context, &params)
            .with_exit_code(ExitCode::Data, || format!("{}: not a sample", file()))?;
        Ok(Some(Sample { index: index as i64, params }))
    }
}
