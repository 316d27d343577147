//! How long each phase of a training step takes. Off in ordinary training, because each lap waits for the
//! device.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use serde::Serialize;
use tch::{Cuda, Device};

/// What a step does, in this order; with `accumulate` the middle ones come several times.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Waiting for the loader.
    Data,
    /// Preparation of a batch on the device by the task, such as adding noise.
    Prepare,
    /// The network and the loss.
    Forward,
    Backward,
    /// Clipping, the penalty, the step, and the average of the weights.
    Optimizer,
    /// Logging, and everything else between two steps.
    Other,
}

impl Phase {
    pub const ALL: [Self; 6] =
        [Self::Data, Self::Prepare, Self::Forward, Self::Backward, Self::Optimizer, Self::Other];

    pub fn name(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::Prepare => "prepare",
            Self::Forward => "forward",
            Self::Backward => "backward",
            Self::Optimizer => "optimizer",
            Self::Other => "other",
        }
    }
}

/// A finished phase.
#[derive(Clone, Copy, Debug)]
pub struct Lap {
    pub phase: Phase,
    /// Since the stopwatch was started.
    pub start: Duration,
    pub took: Duration,
}

/// Takes laps once started; stopped, it costs a step nothing.
#[derive(Default)]
pub struct Stopwatch(Option<RefCell<Running>>);

struct Running {
    device: Device,
    began: Instant,
    last: Duration,
    laps: Vec<Lap>,
}

impl Stopwatch {
    /// Each lap waits for `device`, so that a phase is charged with its own kernels.
    pub fn start(device: Device) -> Self {
        settle(device);
        Self(Some(RefCell::new(Running {
            device,
            began: Instant::now(),
            last: Duration::ZERO,
            laps: Vec::new(),
        })))
    }

    pub fn is_running(&self) -> bool {
        self.0.is_some()
    }

    /// `phase` ends here; it began where the one before it ended.
    pub fn passed(&self, phase: Phase) {
        let Some(running) = &self.0 else { return };
        let mut running = running.borrow_mut();
        settle(running.device);
        let now = running.began.elapsed();
        let start = std::mem::replace(&mut running.last, now);
        running.laps.push(Lap { phase, start, took: now - start });
    }

    /// The laps since the last call.
    pub fn take(&self) -> Vec<Lap> {
        self.0.as_ref().map(|running| std::mem::take(&mut running.borrow_mut().laps)).unwrap_or_default()
    }
}

/// Waits for all kernels of `device`, as `torch.cuda.synchronize`.
pub fn settle(device: Device) {
    if let Device::Cuda(index) = device {
        Cuda::synchronize(index as i64);
    }
}
