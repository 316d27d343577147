//! Sharing the cores with other processes. libtorch's threads wait for each other by spinning; where another process takes a
//! core, they spin for a thread that has none, and a step takes twenty times as long.

use std::sync::Once;
use std::thread;
use std::time::{Duration, Instant};

unsafe extern "C" {
    fn tikhonov_preemptions() -> u64;
    fn tikhonov_crowd();
}

/// How often the process looks at how it fares.
const LOOK: Duration = Duration::from_millis(200);
/// Preemptions per second that tell of another process at work.
const MANY: f64 = 40.0;
/// Looks without them after which the cores are its own again.
const CALM: u32 = 25;

/// Has libtorch's threads sleep instead of spin as long as other processes want the cores, from now to the end of the
/// process. On a quiet machine nothing changes.
pub fn share_cores() {
    static WATCH: Once = Once::new();
    WATCH.call_once(|| {
        // Where the system refuses a thread, libtorch spins as it would in Python.
        let _ = thread::Builder::new().name("cores".into()).spawn(watch);
    });
}

fn watch() {
    let mut meter = Meter::new();
    loop {
        if meter.is_crowded() {
            // Its end lets go of the idle workers.
            let yielding = thread::Builder::new().name("crowd".into()).spawn(yield_cores);
            let _ = yielding.map(thread::JoinHandle::join);
            meter = Meter::new();
        }
    }
}

fn yield_cores() {
    // SAFETY: opens and closes an empty parallel region.
    unsafe { tikhonov_crowd() };
    let (mut meter, mut calm) = (Meter::new(), 0);
    while calm < CALM {
        calm = if meter.is_crowded() { 0 } else { calm + 1 };
    }
}

struct Meter {
    since: Instant,
    count: u64,
}

impl Meter {
    fn new() -> Self {
        Self { since: Instant::now(), count: preemptions() }
    }

    /// Waits for a [`LOOK`], then tells.
    fn is_crowded(&mut self) -> bool {
        thread::sleep(LOOK);
        let before = std::mem::replace(self, Self::new());
        let seconds = (self.since - before.since).as_secs_f64();
        self.count.saturating_sub(before.count) as f64 > MANY * seconds
    }
}

fn preemptions() -> u64 {
    // SAFETY: reads a counter of the system's.
    unsafe { tikhonov_preemptions() }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn more_busy_threads_than_cores_are_noticed() {
        let cores = thread::available_parallelism().map_or(1, |cores| cores.get());
        let over = AtomicBool::new(false);
        let is_crowded = thread::scope(|scope| {
            for _ in 0..4 * cores {
                scope.spawn(|| while !over.load(Ordering::Relaxed) {});
            }
            let mut meter = Meter::new();
            let is_crowded = (0..10).any(|_| meter.is_crowded());
            over.store(true, Ordering::Relaxed);
            is_crowded
        });
        assert!(is_crowded || cfg!(not(unix)));
    }
}
