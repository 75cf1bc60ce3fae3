//! Many reads of one source: one after the other where each is a matter of
//! microseconds, at once where each waits for a disk or a network.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::Result;

/// Reads that are under way at once, at most.
const AT_ONCE: usize = 32;
/// A read that takes longer waits for something else than memory.
const SLOW: Duration = Duration::from_micros(500);

/// What `read` gives for each of `ranges`, in their order, or the first error.
pub(super) fn read(
    ranges: &[Range<u64>],
    read: impl Fn(&Range<u64>) -> Result<Vec<u8>> + Sync,
) -> Result<Vec<Vec<u8>>> {
    let mut done = Vec::with_capacity(ranges.len());
    let mut rest = ranges;
    while let [range, others @ ..] = rest {
        let began = Instant::now();
        done.push(read(range)?);
        rest = others;
        if began.elapsed() > SLOW && rest.len() > 1 {
            break;
        }
    }
    if rest.is_empty() {
        return Ok(done);
    }
    let next = AtomicUsize::new(0);
    let found = Mutex::new(Vec::with_capacity(rest.len()));
    let work = || {
        while let Some((at, range)) = {
            let at = next.fetch_add(1, Ordering::Relaxed);
            rest.get(at).map(|range| (at, range))
        } {
            let bytes = read(range);
            let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
            found.push((at, bytes));
        }
    };
    thread::scope(|scope| {
        for _ in 1..AT_ONCE.min(rest.len()) {
            // With fewer threads it takes longer, and that is all.
            let _ = thread::Builder::new()
                .name("read".into())
                .spawn_scoped(scope, work);
        }
        work();
    });
    let mut found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    found.sort_unstable_by_key(|(at, _)| *at);
    for (_, bytes) in found {
        done.push(bytes?);
    }
    Ok(done)
}
