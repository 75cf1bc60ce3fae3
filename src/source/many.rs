//! Many short ranges of a file: those that lie close are read together, and the
//! reads run at the same time where the file is far away.

use std::ops::Range;
use std::time::{Duration, Instant};

use super::Result;
use crate::workers::at_once;

/// Bytes between two ranges that are read rather than left out: what one more
/// request costs is more than they do.
const GAP: u64 = 16 << 10;
/// Bytes of one read, besides the longest range in it.
const READ: u64 = 1 << 20;
/// A read that takes longer does not come from memory or a disk of this machine: the
/// others need not wait for each other.
const SLOW: Duration = Duration::from_micros(500);
/// Reads at the same time.
const THREADS: usize = 32;

/// The bytes of each of the `ranges`, which may stand in any order. `read` gives so
/// many bytes from an offset on.
///
/// # Errors
/// The first that `read` gives.
pub fn read_many(
    ranges: &[Range<u64>],
    read: impl Fn(u64, u64) -> Result<Vec<u8>> + Sync,
) -> Result<Vec<Vec<u8>>> {
    let mut pieces = vec![Vec::new(); ranges.len()];
    let batches = batches(ranges);
    let read = |batch: &Batch| -> Result<Vec<(usize, Vec<u8>)>> {
        let bytes = read(batch.start, batch.end - batch.start)?;
        Ok(batch.cut(&bytes, ranges))
    };
    let mut left = batches.as_slice();
    while let Some((batch, rest)) = left.split_first() {
        let began = Instant::now();
        let mut cut = read(batch)?;
        left = rest;
        if began.elapsed() > SLOW && left.len() > 1 {
            cut.extend(at_once(left, THREADS, read)?.into_iter().flatten());
            left = &[];
        }
        for (number, piece) in cut {
            pieces[number] = piece;
        }
    }
    Ok(pieces)
}

/// What is read in one piece.
struct Batch {
    start: u64,
    end: u64,
    /// The ranges in it, by number.
    ranges: Vec<usize>,
}

impl Batch {
    /// The ranges in what was read, with their numbers.
    fn cut(&self, bytes: &[u8], ranges: &[Range<u64>]) -> Vec<(usize, Vec<u8>)> {
        let inside = |offset: u64| usize::try_from(offset.saturating_sub(self.start)).ok();
        let piece = |number: &usize| {
            let range = &ranges[*number];
            let piece = bytes.get(inside(range.start)?..inside(range.end)?)?;
            Some((*number, piece.to_vec()))
        };
        self.ranges.iter().filter_map(piece).collect()
    }
}

fn batches(ranges: &[Range<u64>]) -> Vec<Batch> {
    let mut order: Vec<usize> = (0..ranges.len()).collect();
    order.sort_unstable_by_key(|number| ranges[*number].start);
    let mut batches: Vec<Batch> = Vec::new();
    let mut longest = 0;
    for number in order {
        let Range { start, end } = ranges[number];
        let end = end.max(start);
        if let Some(batch) = batches.last_mut() {
            let together = end.max(batch.end);
            let longest_of_both = longest.max(end - start);
            if start.saturating_sub(batch.end) <= GAP
                && together - batch.start <= READ.saturating_add(longest_of_both)
            {
                batch.end = together;
                batch.ranges.push(number);
                longest = longest_of_both;
                continue;
            }
        }
        longest = end - start;
        batches.push(Batch {
            start,
            end,
            ranges: vec![number],
        });
    }
    batches
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::thread::sleep;

    use super::*;
    use crate::source::Error;

    /// Byte `n` of the file is the lowest byte of `n / 1000`.
    fn bytes(offset: u64, len: u64) -> Vec<u8> {
        (offset..offset + len).map(|at| (at / 1000) as u8).collect()
    }

    fn wanted(ranges: &[Range<u64>]) -> Vec<Vec<u8>> {
        let ranges = ranges.iter();
        ranges
            .map(|range| bytes(range.start, range.end - range.start))
            .collect()
    }

    #[test]
    fn what_lies_close_is_read_together() {
        // In no order, overlapping, empty, and twice.
        let ranges = [
            5000..5010,
            100..200,
            150..300,
            7000..7000,
            5000..5010,
            1 << 30..(1 << 30) + 5,
        ];
        let reads = Mutex::new(Vec::new());
        let read = |offset, len| {
            reads.lock().unwrap().push((offset, len));
            Ok(bytes(offset, len))
        };
        assert_eq!(read_many(&ranges, read).unwrap(), wanted(&ranges));
        assert_eq!(*reads.lock().unwrap(), [(100, 6900), (1 << 30, 5)]);
        assert!(
            read_many(&[], |_, _| panic!("nothing to read"))
                .unwrap()
                .is_empty()
        );
    }

    #[test]
    fn slow_reads_run_at_the_same_time_and_stay_short() {
        let ranges: Vec<_> = (0..200).map(|at| at * 100_000..at * 100_000 + 90).collect();
        let began = Instant::now();
        let read = |offset, len| {
            assert!(len <= READ + 90);
            sleep(Duration::from_millis(10));
            Ok(bytes(offset, len))
        };
        assert_eq!(read_many(&ranges, read).unwrap(), wanted(&ranges));
        // One after the other they take two seconds.
        assert!(began.elapsed() < Duration::from_millis(1000));
    }

    #[test]
    fn one_failure_is_that_of_all() {
        let ranges: Vec<_> = (0..200).map(|at| at * 100_000..at * 100_000 + 90).collect();
        for fails in [0, 150 * 100_000] {
            let read = |offset, len| match offset == fails {
                true => Err(Error::Changed),
                false => {
                    sleep(Duration::from_millis(1));
                    Ok(bytes(offset, len))
                }
            };
            assert!(matches!(read_many(&ranges, read), Err(Error::Changed)));
        }
    }
}
