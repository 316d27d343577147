//! Samples in files: worker threads decode them into batches, a few batches ahead of the training.
//!
//! Workers take one sample after the other, so that all of them work on the batch that is needed next; each
//! writes into its own slot of the batch, and whoever finishes a batch sends it. What a sample becomes
//! depends on (seed, epoch, index) alone, so the number of workers changes nothing but the time.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow};
use tch::{Device, Kind, Tensor};

use super::fill::{BatchWriter, Buffer, PixelData};
use super::{LoaderContext, RawBatch};
use crate::data::{Damaged, Files, Fit, Framing, Picture, Skipped};
use crate::libtorch::catch_panics;
use crate::libtorch::stream::{AsyncUpload, PendingTensor};
use crate::util::exit_code::{ExitCode, Failure, WithExitCode, fail};
use crate::util::rng::{CounterRng, RngStream};
use crate::util::threads::unpoisoned;

/// How many batches are made ahead of the one that is asked for.
const AHEAD: usize = 2;

/// The files of a loader, and which of them were found to be undecodable.
pub struct ImageSource {
    files: Arc<Files>,
    framing: Framing,
    fill: BatchWriter,
    common: LoaderContext,
    /// Copies batches to the GPU while it computes.
    courier: Option<AsyncUpload>,
    names: Vec<String>,
}

/// The threads and channels of one epoch. Dropping it stops the threads and waits for them.
pub struct Prefetcher {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    finished: Receiver<(usize, Result<Finished>)>,
    /// Batches that came before their turn.
    early: BTreeMap<usize, Finished>,
    /// The pixels of the next batch, where they are on their way to the GPU already.
    sent: Option<PendingTensor>,
    steps: Range<usize>,
}

struct Shared {
    stream: Arc<ImageSource>,
    order: Arc<Vec<i64>>,
    epoch: u64,
    batch_size: usize,
    steps: Range<usize>,
    schedule: Mutex<Schedule>,
    wake: Condvar,
}

/// What is handed out next.
struct Schedule {
    step: usize,
    slot: usize,
    /// The batch of the next slot, once its first slot was handed out.
    batch: Option<Arc<PendingBatch>>,
    /// The batch that the training waits for or works on.
    wanted: usize,
    stopped: bool,
}

/// A batch some of whose slots are not filled yet.
struct PendingBatch {
    step: usize,
    buffer: Buffer,
    samples: Vec<Mutex<Option<Sample>>>,
    /// A sample could not be made; whoever tried says so, and the batch is not sent.
    failed: AtomicBool,
}

/// Who a slot holds, and its augmentation's numbers.
struct Sample {
    index: i64,
    numbers: Vec<f64>,
}

/// A batch as the workers leave it; slots of undecodable samples are empty where the set is not for training.
struct Finished {
    xs: Tensor,
    samples: Vec<Option<Sample>>,
}

/// One sample to be made.
struct Job {
    batch: Arc<PendingBatch>,
    slot: usize,
    index: usize,
}

impl ImageSource {
    /// `shape` is that of a sample and its target, where that is an image, stacked.
    pub fn new(files: Arc<Files>, shape: &[i64], names: Vec<String>, common: &LoaderContext) -> Result<Self> {
        let decoded = common.pipeline.decoded(shape);
        let &[channels, height, width] = decoded.as_slice() else {
            return Err(fail(ExitCode::Data, format!("pictures cannot have the shape {shape:?}")));
        };
        let fill = BatchWriter::new(&[channels, height, width], common)?;
        let framing = match &files.framing {
            Framing::Fit(fit) => {
                Framing::Fit(Fit { height: height as usize, width: width as usize, ..fit.clone() })
            }
            framing => framing.clone(),
        };
        let courier = AsyncUpload::to(common.device)?;
        Ok(Self { files, framing, fill, common: common.clone(), courier, names })
    }

    pub fn skipped(&self) -> Vec<Skipped> {
        self.files.damaged().reasons.iter().map(|(&index, reason)| self.skip(index, reason)).collect()
    }

    fn skip(&self, index: usize, reason: &str) -> Skipped {
        let name = self.names.get(index).cloned();
        let name = name.unwrap_or_else(|| self.files.files[index].path.display().to_string());
        Skipped { name, reason: reason.to_owned() }
    }

    /// The picture of file `index`. One that cannot be decoded is replaced by the next that can, in the order
    /// of the set, in training, and left out otherwise. Exit 3 where there are more of them than forgiven.
    pub fn decode(&self, index: usize) -> Result<Option<(usize, Arc<Picture>)>> {
        let count = self.files.files.len();
        for index in (index..count).chain(0..index) {
            if !self.is_damaged(index)? {
                match catch_panics(|| self.picture(index)).and_then(|picture| picture) {
                    Ok(picture) => return Ok(Some((index, picture))),
                    // Of one picture alone: no file that is damaged, and not to be forgiven.
                    Err(error) if error.is::<Failure>() => return Err(error),
                    Err(error) => self.record(index, &error)?,
                }
            }
            if !self.common.train {
                return Ok(None);
            }
        }
        Err(fail(ExitCode::Data, format!("none of the {count} files could be decoded")))
    }

    fn picture(&self, index: usize) -> Result<Arc<Picture>> {
        let picture = self.files.picture(index)?;
        if let Framing::Patches { size, .. } = self.framing
            && picture.height.min(picture.width) < size
        {
            let (width, height) = (picture.width, picture.height);
            return Err(anyhow!("is {width}x{height}, smaller than the patches of {size}x{size}"));
        }
        Ok(picture)
    }

    /// File `index` as a batch of its own, at its own size.
    pub fn whole(&self, index: usize) -> Result<Option<RawBatch>> {
        let Some((index, picture)) = self.decode(index)? else { return Ok(None) };
        let size = [1, picture.channels as i64, picture.height as i64, picture.width as i64];
        let levels = Tensor::f_from_data_size(&picture.planes(), &size, Kind::Uint8)?;
        let xs = self.common.finish(levels.to_device(self.common.device), &[]);
        Ok(Some(RawBatch { xs, indices: vec![index as i64] }))
    }

    fn record(&self, index: usize, error: &anyhow::Error) -> Result<()> {
        let mut damaged = self.files.damaged();
        if damaged.reasons.insert(index, format!("{error:#}")).is_none() {
            damaged.found.push(index);
        }
        self.forgive(&damaged)
    }

    /// Whether file `index` is known to be damaged; exit 3 where it is one of too many.
    fn is_damaged(&self, index: usize) -> Result<bool> {
        let damaged = self.files.damaged();
        match damaged.reasons.contains_key(&index) {
            true => self.forgive(&damaged).map(|()| true),
            false => Ok(false),
        }
    }

    fn forgive(&self, damaged: &Damaged) -> Result<()> {
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
    /// numbers.
    fn part(&self, index: usize, epoch: u64) -> Option<(Picture, Vec<f64>)> {
        let (Framing::Fit(fit), [], Some(_)) =
            (&self.framing, self.files.partners.as_slice(), self.common.pipeline.decoder_crop())
        else {
            return None;
        };
        let mut numbers = Vec::with_capacity(self.common.pipeline.num_params());
        let part = self.files.files[index].decode_part(|sides| {
            let mut draw = CounterRng::new(self.common.seed, epoch, index as u64, RngStream::Augment);
            self.common.pipeline.draw(&mut draw, sides, &mut numbers);
            numbers.first_chunk().map(|corner: &[f64; 4]| corner.map(|number| number as usize))
        })?;
        Some((fit.part(&part), numbers))
    }

    /// Decodes, crops or resizes, and fills the slot.
    fn make(&self, job: &Job, epoch: u64) -> Result<()> {
        // A file that was found damaged is asked again: its parts may be whole, and what becomes of a sample
        // must not depend on what was seen before.
        if let Some((picture, numbers)) = self.part(job.index, epoch) {
            return self.write_sample(job, job.index, &picture, numbers);
        }
        let per_image = self.files.per_image();
        let Some((file, picture)) = self.decode(job.index / per_image)? else { return Ok(()) };
        let index = file * per_image + job.index % per_image;
        let pipeline = &self.common.pipeline;
        let mut numbers = Vec::with_capacity(pipeline.num_params());
        let mut draw = CounterRng::new(self.common.seed, epoch, index as u64, RngStream::Augment);
        let picture = match &self.framing {
            Framing::Patches { size, .. } => {
                let mut place = |side: usize| draw.below((side - size) as u64 + 1) as usize;
                let (top, left) = (place(picture.height), place(picture.width));
                pipeline.draw(&mut draw, [*size, *size], &mut numbers);
                &picture.crop(top, left, *size, *size)
            }
            Framing::Fit(fit) => {
                pipeline.draw(&mut draw, [picture.height, picture.width], &mut numbers);
                match (pipeline.decoder_crop(), numbers.as_slice()) {
                    (Some(_), &[top, left, height, width, ..]) => {
                        let corner = (top as usize, left as usize);
                        &fit.region(&picture, corner.0, corner.1, height as usize, width as usize)
                    }
                    _ => &fit.whole(&picture),
                }
            }
            Framing::Whole => &picture,
        };
        self.write_sample(job, index, picture, numbers)
    }

    fn write_sample(&self, job: &Job, index: usize, picture: &Picture, numbers: Vec<f64>) -> Result<()> {
        let file = || self.files.files[index / self.files.per_image()].path.display();
        self.fill
            .write(&job.batch.buffer, job.slot, PixelData::Picture(picture), &self.common, &numbers)
            .with_exit_code(ExitCode::Data, || format!("{}: not a sample", file()))?;
        *unpoisoned(&job.batch.samples[job.slot]) = Some(Sample { index: index as i64, numbers });
        Ok(())
    }
}

impl Prefetcher {
    /// Starts `workers` threads on the batches `steps` of an epoch.
    pub fn start(
        stream: &Arc<ImageSource>,
        order: Arc<Vec<i64>>,
        epoch: u64,
        steps: Range<usize>,
        batch_size: usize,
        workers: usize,
    ) -> Self {
        let schedule =
            Schedule { step: steps.start, slot: 0, batch: None, wanted: steps.start, stopped: false };
        let shared = Arc::new(Shared {
            stream: stream.clone(),
            order,
            epoch,
            batch_size,
            steps: steps.clone(),
            schedule: Mutex::new(schedule),
            wake: Condvar::new(),
        });
        let (sender, finished) = channel();
        let spawn = |worker: usize| {
            let (shared, sender) = (shared.clone(), sender.clone());
            let thread = std::thread::Builder::new().name(format!("loader {worker}"));
            // Where the system refuses threads, the others do the work, at worst the caller's own.
            thread.spawn(move || shared.work(&sender)).ok()
        };
        let workers = (0..workers).filter_map(spawn).collect();
        Self { shared, workers, finished, early: BTreeMap::new(), sent: None, steps }
    }

    /// The next batch of the epoch, all but mixed.
    pub fn next(&mut self, common: &LoaderContext) -> Result<RawBatch> {
        let step = self.steps.next().context("the epoch is over")?;
        self.shared.request(step);
        let finished = loop {
            if let Some(finished) = self.early.remove(&step) {
                break finished;
            }
            let (done, finished) = if self.workers.is_empty() {
                match self.shared.one_batch() {
                    Some(finished) => finished,
                    None => return Err(anyhow!("the loader has no batch {step}")),
                }
            } else {
                // Every worker sends before it ends, so a closed channel means that one died.
                self.finished.recv().context("the loader's threads have ended early")?
            };
            // An error ends the epoch whichever batch it belongs to: the workers have stopped.
            self.early.insert(done, finished?);
        };
        let Finished { xs, samples } = finished;
        let kept: Vec<i64> =
            (0..).zip(&samples).filter(|(_, sample)| sample.is_some()).map(|(slot, _)| slot).collect();
        let xs = if kept.len() < samples.len() { xs.index_select(0, &Tensor::from_slice(&kept)) } else { xs };
        let (mut indices, mut numbers) = (Vec::with_capacity(kept.len()), Vec::new());
        for sample in samples.into_iter().flatten() {
            indices.push(sample.index);
            numbers.extend(sample.numbers);
        }
        if self.shared.stream.fill.finishes() || indices.is_empty() {
            return Ok(RawBatch { xs, indices });
        }
        let xs = match self.sent.take() {
            Some(sent) => sent.receive()?,
            None => xs.to_device_(common.device, xs.kind(), true, false),
        };
        self.send_ahead(step + 1)?;
        Ok(RawBatch { xs: common.finish(xs, &numbers), indices })
    }

    /// Starts to copy batch `step` to the GPU, if it is made already.
    fn send_ahead(&mut self, step: usize) -> Result<()> {
        let Some(courier) = &self.shared.stream.courier else { return Ok(()) };
        while let Ok((done, finished)) = self.finished.try_recv() {
            self.early.insert(done, finished?);
        }
        if let Some(next) = self.early.get(&step)
            && next.samples.iter().all(Option::is_some)
        {
            self.sent = Some(courier.send(&next.xs)?);
        }
        Ok(())
    }
}

impl Drop for Prefetcher {
    fn drop(&mut self) {
        self.shared.stop();
        for worker in self.workers.drain(..) {
            // A worker turns its panics into errors; there is nothing left to report here.
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn work(&self, sender: &Sender<(usize, Result<Finished>)>) {
        while let Some(job) = self.next_job(true) {
            let (step, done) = match job {
                Ok(job) => match self.run_job(job) {
                    Some(done) => done,
                    None => continue,
                },
                Err((step, error)) => (step, Err(error)),
            };
            let failed = done.is_err();
            if sender.send((step, done)).is_err() || failed {
                self.stop();
            }
        }
    }

    /// Without workers: makes samples until a batch is finished.
    fn one_batch(&self) -> Option<(usize, Result<Finished>)> {
        loop {
            match self.next_job(false)? {
                Ok(job) => {
                    if let Some(done) = self.run_job(job) {
                        return Some(done);
                    }
                }
                Err((step, error)) => return Some((step, Err(error))),
            }
        }
    }

    /// The next sample to be made, None when there is none left; waits while enough is made ahead.
    fn next_job(&self, wait: bool) -> Option<Result<Job, (usize, anyhow::Error)>> {
        let mut schedule = unpoisoned(&self.schedule);
        while wait && !schedule.stopped && schedule.step > schedule.wanted + AHEAD {
            schedule = self.wake.wait(schedule).unwrap_or_else(PoisonError::into_inner);
        }
        if schedule.stopped || schedule.step >= self.steps.end {
            return None;
        }
        let (step, slot) = (schedule.step, schedule.slot);
        let first = step * self.batch_size;
        let count = self.batch_size.min(self.order.len() - first);
        let batch = match schedule.batch.take() {
            Some(batch) => batch,
            None => match self.batch(step, count) {
                Ok(batch) => Arc::new(batch),
                Err(error) => return Some(Err((step, error))),
            },
        };
        if slot + 1 < count {
            schedule.slot += 1;
            schedule.batch = Some(batch.clone());
        } else {
            schedule.step += 1;
            schedule.slot = 0;
        }
        Some(Ok(Job { batch, slot, index: self.order[first + slot] as usize }))
    }

    fn batch(&self, step: usize, count: usize) -> Result<PendingBatch> {
        let pinned = self.stream.common.device != Device::Cpu;
        let buffer = self.stream.fill.buffer(count, pinned)?;
        let samples = (0..count).map(|_| Mutex::new(None)).collect();
        Ok(PendingBatch { step, buffer, samples, failed: AtomicBool::new(false) })
    }

    /// Makes one sample; returns the batch if that was its last, or what went wrong.
    fn run_job(&self, job: Job) -> Option<(usize, Result<Finished>)> {
        let step = job.batch.step;
        if let Err(error) = catch_panics(|| self.stream.make(&job, self.epoch)).and_then(|made| made) {
            job.batch.failed.store(true, Ordering::Relaxed);
            return Some((step, Err(error)));
        }
        // Only the last to let go of a batch gets it; letting go also orders what the others wrote before it.
        let mut batch = Arc::into_inner(job.batch)?;
        if *batch.failed.get_mut() {
            return None;
        }
        let unlock = |sample: Mutex<_>| sample.into_inner().unwrap_or_else(PoisonError::into_inner);
        let samples = batch.samples.into_iter().map(unlock).collect();
        Some((step, Ok(Finished { xs: batch.buffer.into_tensor(), samples })))
    }

    fn request(&self, step: usize) {
        unpoisoned(&self.schedule).wanted = step;
        self.wake.notify_all();
    }

    fn stop(&self) {
        unpoisoned(&self.schedule).stopped = true;
        self.wake.notify_all();
    }
}
