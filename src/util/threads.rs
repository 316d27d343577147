//! Parallel work on as many threads as the system allows: if it refuses a new thread (pids.max of a cgroup,
//! `ulimit -u`), the existing ones do the work, at least the caller's.

use std::panic::resume_unwind;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle, scope};

use anyhow::Result;

use crate::util::exit_code::{ExitCode, WithExitCode};

/// Runs `work` on up to `threads` threads, of which the caller's is one; each is to take from a common list
/// until that is empty.
pub fn share(threads: usize, work: impl Fn() + Sync) {
    scope(|scope| {
        for _ in 1..threads {
            if Builder::new().spawn_scoped(scope, &work).is_err() {
                break;
            }
        }
        work();
    });
}

/// Does `work` for every item on up to `threads` threads, whichever comes first; the results in the order of
/// the items.
pub fn each<T: Send, R: Send>(threads: usize, items: Vec<T>, work: impl Fn(T) -> R + Sync) -> Vec<R> {
    let mut results: Vec<Option<R>> = items.iter().map(|_| None).collect();
    let threads = threads.min(items.len());
    let queue = Mutex::new(items.into_iter().zip(&mut results));
    // `next` alone runs under the lock.
    let next = || unpoisoned(&queue).next();
    share(threads, || {
        while let Some((item, result)) = next() {
            *result = Some(work(item));
        }
    });
    drop(queue);
    results.into_iter().flatten().collect()
}

/// Does `beside` in another thread while `here` runs in this one; where there is no other, after it.
pub fn both<A: Send, B>(beside: impl FnOnce() -> A + Send, here: impl FnOnce() -> B) -> (A, B) {
    let work = Mutex::new(Some(beside));
    let run = || unpoisoned(&work).take().map(|work| work());
    scope(|scope| {
        let thread = Builder::new().spawn_scoped(scope, run).ok();
        let made_here = here();
        let made_beside =
            thread.and_then(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)));
        // The thread was refused: the work is still there.
        let made_beside = made_beside.or_else(run);
        (made_beside.expect("the work was done by one of the two"), made_here)
    })
}

/// A thread of its own, which cannot be done without: exit 6 where the system refuses it.
pub fn spawn<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>> {
    Builder::new().name(name.into()).spawn(work).with_exit_code(ExitCode::Memory, || REFUSED)
}

/// Why a thread or a process could not be made, and what to do.
pub const REFUSED: &str = "the system makes no more threads or processes: raise the limit (`ulimit -u`, pids.max of the cgroup), or end other processes";

/// How many of `wanted` threads, this one included, the system makes now.
pub fn available(wanted: usize) -> usize {
    let gate = Mutex::new(());
    scope(|scope| {
        let closed = unpoisoned(&gate);
        let wait = || drop(unpoisoned(&gate));
        let made =
            (1..wanted).take_while(|_| Builder::new().stack_size(64 << 10).spawn_scoped(scope, wait).is_ok());
        let made = 1 + made.count();
        drop(closed);
        made
    })
}

/// The lock, also after a panic of its holder: what it guards is never left half done.
pub fn unpoisoned<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_the_order_of_the_items_from_any_number_of_threads() {
        for threads in [0, 1, 2, 7, 100] {
            let squares = each(threads, (0..50).collect(), |n: u64| n * n);
            assert_eq!(squares, (0..50).map(|n| n * n).collect::<Vec<_>>());
        }
        assert_eq!(both(|| 1, || 2), (1, 2));
        assert_eq!(available(3), 3);
    }
}
