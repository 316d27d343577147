//! Worker threads that decode files into batches, a few batches ahead of the training.
//!
//! Workers take one sample after the other, so that all of them work on the batch that is needed next; each
//! writes into its own slot of the batch, and the one that fills the last slot sends the batch. What a sample
//! becomes depends on (seed, epoch, index) alone, so the number of workers changes nothing but the time.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow};
use tch::{Device, Tensor};

use super::batch_writer::Buffer;
use super::image_source::{ImageSource, Sample};
use super::{LoaderContext, RawBatch};
use crate::libtorch::catch_panics;
use crate::libtorch::stream::PendingTensor;
use crate::util::threads::unpoisoned;

/// How many batches are made ahead of the one that the training requested.
const AHEAD: usize = 2;

/// The threads and channels of one epoch. Dropping it stops the threads and waits for them.
pub struct Prefetcher {
    queue: Arc<Queue>,
    workers: Vec<JoinHandle<()>>,
    finished: Receiver<(usize, Result<Finished>)>,
    /// Batches that came before their turn.
    early: BTreeMap<usize, Finished>,
    /// The pixels of the next batch, where they are on their way to the GPU already.
    sent: Option<PendingTensor>,
    steps: Range<usize>,
}

/// What is to be decoded, shared by the workers.
struct Queue {
    source: Arc<ImageSource>,
    device: Device,
    order: Arc<Vec<i64>>,
    epoch: u64,
    batch_size: usize,
    steps: Range<usize>,
    next: Mutex<NextJob>,
    wake: Condvar,
}

/// The next job, and how far workers may go.
struct NextJob {
    step: usize,
    slot: usize,
    /// The batch of the next slot, once its first slot was handed out.
    batch: Option<Arc<PendingBatch>>,
    /// The batch that the training waits for or works on.
    requested: usize,
    stopped: bool,
}

/// A batch some of whose slots are not filled yet.
struct PendingBatch {
    step: usize,
    buffer: OnceLock<Buffer>,
    /// Held by the worker that makes the buffer.
    making: Mutex<()>,
    samples: Vec<Mutex<Option<Sample>>>,
    /// A sample could not be made: its worker has sent the error, and the batch is not sent.
    failed: AtomicBool,
}

impl PendingBatch {
    fn new(step: usize, count: usize) -> Self {
        let samples = (0..count).map(|_| Mutex::new(None)).collect();
        Self {
            step,
            buffer: OnceLock::new(),
            making: Mutex::new(()),
            samples,
            failed: AtomicBool::new(false),
        }
    }
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
    draw: usize,
}

impl Prefetcher {
    /// Starts `workers` threads on the batches `steps` of an epoch; with 0 [`next`](Self::next) does the work.
    pub fn start(
        source: &Arc<ImageSource>,
        context: &LoaderContext,
        order: Arc<Vec<i64>>,
        epoch: u64,
        steps: Range<usize>,
        workers: usize,
    ) -> Self {
        let next =
            NextJob { step: steps.start, slot: 0, batch: None, requested: steps.start, stopped: false };
        let queue = Arc::new(Queue {
            source: source.clone(),
            device: context.device,
            order,
            epoch,
            batch_size: context.batch_size,
            steps: steps.clone(),
            next: Mutex::new(next),
            wake: Condvar::new(),
        });
        let (sender, finished) = channel();
        let spawn = |worker: usize| {
            let (queue, sender) = (queue.clone(), sender.clone());
            let thread = std::thread::Builder::new().name(format!("loader {worker}"));
            // Where the system refuses threads, the others do the work, at worst the caller's own.
            thread.spawn(move || queue.work(&sender)).ok()
        };
        let workers = (0..workers).filter_map(spawn).collect();
        Self { queue, workers, finished, early: BTreeMap::new(), sent: None, steps }
    }

    /// The next batch of the epoch, all but mixed.
    pub fn next(&mut self, context: &LoaderContext) -> Result<RawBatch> {
        let step = self.steps.next().context("the epoch is over")?;
        self.queue.request(step);
        let finished = loop {
            if let Some(finished) = self.early.remove(&step) {
                break finished;
            }
            let (done, finished) = if self.workers.is_empty() {
                match self.queue.one_batch() {
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
        let (mut indices, mut params) = (Vec::with_capacity(kept.len()), Vec::new());
        for sample in samples.into_iter().flatten() {
            indices.push(sample.index);
            params.extend(sample.params);
        }
        if self.queue.source.finishes() || indices.is_empty() {
            return Ok(RawBatch { xs, indices });
        }
        let xs = match self.sent.take() {
            Some(sent) => sent.receive()?,
            None => xs.to_device_(context.device, xs.kind(), true, false),
        };
        self.send_ahead(step + 1)?;
        Ok(RawBatch { xs: context.finish(xs, &params), indices })
    }

    /// Starts to copy batch `step` to the GPU, if it is made already.
    fn send_ahead(&mut self, step: usize) -> Result<()> {
        let Some(upload) = &self.queue.source.upload else { return Ok(()) };
        while let Ok((done, finished)) = self.finished.try_recv() {
            self.early.insert(done, finished?);
        }
        if let Some(next) = self.early.get(&step)
            && next.samples.iter().all(Option::is_some)
        {
            self.sent = Some(upload.send(&next.xs)?);
        }
        Ok(())
    }
}

impl Drop for Prefetcher {
    fn drop(&mut self) {
        self.queue.stop();
        for worker in self.workers.drain(..) {
            // A worker turns its panics into errors; there is nothing left to report here.
            let _ = worker.join();
        }
    }
}

impl Queue {
    fn work(&self, sender: &Sender<(usize, Result<Finished>)>) {
        while let Some(job) = self.next_job(true) {
            let Some((step, done)) = self.run_job(job) else { continue };
            let failed = done.is_err();
            if sender.send((step, done)).is_err() || failed {
                self.stop();
            }
        }
    }

    /// Without workers: makes samples until a batch is finished.
    fn one_batch(&self) -> Option<(usize, Result<Finished>)> {
        loop {
            let job = self.next_job(false)?;
            if let Some(done) = self.run_job(job) {
                return Some(done);
            }
        }
    }

    /// The next sample to be made, None when there is none left; waits while enough is made ahead.
    fn next_job(&self, wait: bool) -> Option<Job> {
        let mut next = unpoisoned(&self.next);
        while wait && !next.stopped && next.step > next.requested + AHEAD {
            next = self.wake.wait(next).unwrap_or_else(PoisonError::into_inner);
        }
        if next.stopped || next.step >= self.steps.end {
            return None;
        }
        let (step, slot) = (next.step, next.slot);
        let first = step * self.batch_size;
        let count = self.batch_size.min(self.order.len() - first);
        let batch = next.batch.take().unwrap_or_else(|| Arc::new(PendingBatch::new(step, count)));
        if slot + 1 < count {
            next.slot += 1;
            next.batch = Some(batch.clone());
        } else {
            next.step += 1;
            next.slot = 0;
        }
        Some(Job { batch, slot, draw: self.order[first + slot] as usize })
    }

    /// The memory of a batch, made for its first sample: page-locked memory takes a while, and workers on other
    /// batches do not wait for it.
    fn buffer<'b>(&self, batch: &'b PendingBatch) -> Result<&'b Buffer> {
        let _making = unpoisoned(&batch.making);
        if let Some(buffer) = batch.buffer.get() {
            return Ok(buffer);
        }
        let buffer = self.source.buffer(batch.samples.len(), self.device != Device::Cpu)?;
        Ok(batch.buffer.get_or_init(|| buffer))
    }

    /// Makes one sample; returns the batch if that was its last, or what went wrong.
    fn run_job(&self, job: Job) -> Option<(usize, Result<Finished>)> {
        let step = job.batch.step;
        let written = catch_panics(|| {
            let buffer = self.buffer(&job.batch)?;
            self.source.write_into(buffer, job.slot, job.draw, self.epoch)
        });
        match written.and_then(|written| written) {
            Ok(sample) => *unpoisoned(&job.batch.samples[job.slot]) = sample,
            Err(error) => {
                job.batch.failed.store(true, Ordering::Relaxed);
                return Some((step, Err(error)));
            }
        }
        // Only the last worker to drop its reference gets the batch; the drop also orders the others' writes
        // before this.
        let mut batch = Arc::into_inner(job.batch)?;
        if *batch.failed.get_mut() {
            return None;
        }
        let unlock = |sample: Mutex<_>| sample.into_inner().unwrap_or_else(PoisonError::into_inner);
        let samples = batch.samples.into_iter().map(unlock).collect();
        let xs = batch.buffer.into_inner()?.into_tensor();
        Some((step, Ok(Finished { xs, samples })))
    }

    fn request(&self, step: usize) {
        unpoisoned(&self.next).requested = step;
        self.wake.notify_all();
    }

    fn stop(&self) {
        unpoisoned(&self.next).stopped = true;
        self.wake.notify_all();
    }
}
