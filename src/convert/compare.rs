//! Two files held against each other tensor by tensor: what only one of them has, what
//! is of another type or shape, and what has other bytes.
//!
//! All names of tied weights stand for one tensor, whichever of them a file has kept. A
//! tensor of one file is held against each tensor that the other has under one of its
//! names, and is missing there only if there is none.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use safetensors::Dtype;

use super::Error;
use super::extent::Extent;
use super::plan::Planned;
use super::reader::{BLOCK, Reader};
use crate::budget::Budget;
use crate::checkpoint::native_ties;
use crate::source;

pub use super::elements::{Distance, Tally, Unit};

/// Bytes that one thread takes on at a time: a whole block of what is put together, so
/// that none is put together twice.
const STRETCH: u64 = BLOCK;
/// Bytes read at a time of what lies in the source, little enough to stay in a
/// processor's cache until they are compared.
const PIECE: u64 = 256 << 10;
/// Threads that read. Each holds two stretches at most.
const MAX_THREADS: usize = 16;

/// Which of the two files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    A,
    B,
}

/// A file that could not be read to its end, or changed meanwhile.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct Failed {
    pub side: Side,
    pub error: Error,
}

/// What was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// Pairs of tensors with the same bytes, type and shape.
    pub equal: usize,
    /// Bytes of these, on either side.
    pub equal_bytes: u64,
    /// By name.
    pub differences: Vec<Difference>,
}

/// A tensor that is not the same on both sides.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// Those that both sides have for it; or all, of a tensor that only one has. In byte
    /// order, and never empty.
    pub names: Vec<String>,
    pub what: What,
}

#[derive(Clone, Debug, PartialEq)]
pub enum What {
    /// Only this side has it.
    Only(Side, Type),
    /// Types or shapes differ. The bytes were not looked at.
    Type(Type, Type),
    Bytes {
        of: Type,
        tally: Tally,
        /// What is counted in the tally, and how many there are in the tensor.
        unit: Unit,
        count: u64,
    },
}

/// The type of a tensor's elements, and its shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Type {
    pub dtype: Dtype,
    /// As a safetensors header has it.
    pub shape: Box<[u64]>,
}

impl Comparison {
    pub fn is_equal(&self) -> bool {
        self.differences.is_empty()
    }
}

impl Type {
    fn of(tensor: &Planned) -> Type {
        Type {
            dtype: tensor.dtype,
            shape: tensor.shape.clone(),
        }
    }
}

/// The tensors of two files that have to be the same, before their bytes are compared.
#[derive(Debug)]
pub struct Pairs<'a> {
    a: &'a Reader,
    b: &'a Reader,
    /// Of one type and shape, in the order of their bytes in A.
    pairs: Vec<Pair<'a>>,
    /// Stretches of all of them.
    stretches: u64,
    /// What is known without looking at bytes.
    differences: Vec<Difference>,
}

/// A tensor of A and one of B.
#[derive(Debug)]
struct Pair<'a> {
    names: Vec<String>,
    a: &'a Planned,
    b: &'a Planned,
    /// The number of its first stretch.
    first: u64,
}

impl<'a> Pairs<'a> {
    /// Finds out which tensors of `a` and `b` stand for each other.
    pub fn find(a: &'a Reader, b: &'a Reader) -> Result<Pairs<'a>, Failed> {
        let (in_a, in_b) = (Named::of(a, Side::A)?, Named::of(b, Side::B)?);
        let mut named: BTreeMap<(usize, usize), Vec<String>> = BTreeMap::new();
        for (name, a) in &in_a.names {
            if let Some(b) = in_b.find(name) {
                named.entry((*a, b)).or_default().push(name.clone());
            }
        }
        let mut differences = in_a.without(named.keys().map(|(a, _)| *a));
        differences.extend(in_b.without(named.keys().map(|(_, b)| *b)));
        let (mut pairs, mut stretches) = (Vec::new(), 0_u64);
        for ((in_a, in_b), names) in named {
            let tensors = (a.plan().tensors().get(in_a), b.plan().tensors().get(in_b));
            let (Some(a), Some(b)) = tensors else {
                continue;
            };
            if (a.dtype, &a.shape, a.len) != (b.dtype, &b.shape, b.len) {
                let what = What::Type(Type::of(a), Type::of(b));
                differences.push(Difference { names, what });
                continue;
            }
            let first = stretches;
            stretches = stretches.saturating_add(a.len.div_ceil(STRETCH));
            pairs.push(Pair { names, a, b, first });
        }
        Ok(Pairs {
            a,
            b,
            pairs,
            stretches,
            differences,
        })
    }

    /// Bytes that [`Pairs::compare`] compares.
    pub fn bytes(&self) -> u64 {
        let lens = self.pairs.iter().map(|pair| pair.a.len);
        lens.fold(0, u64::saturating_add)
    }

    /// Compares the bytes, with several threads. `done` is told of every few of them how
    /// many more have been.
    pub fn compare(self, done: &(dyn Fn(u64) + Sync)) -> Result<Comparison, Failed> {
        self.check()?;
        // They are taken in order, by whoever is free: so both files are read from
        // beginning to end, as disks and read-ahead like it.
        let next = AtomicU64::new(0);
        let found: Mutex<BTreeMap<usize, Tally>> = Mutex::default();
        let work = || {
            let mut buffers = (Vec::new(), Vec::new());
            loop {
                let stretch = next.fetch_add(1, Ordering::Relaxed);
                let before = self.pairs.partition_point(|pair| pair.first <= stretch);
                let number = before.checked_sub(1).filter(|_| stretch < self.stretches);
                let Some((number, pair)) = number.and_then(|n| Some((n, self.pairs.get(n)?)))
                else {
                    return Ok(());
                };
                let tally = self
                    .stretch(pair, stretch - pair.first, &mut buffers, done)
                    // Nobody needs the rest.
                    .inspect_err(|_| next.store(self.stretches, Ordering::Relaxed))?;
                if tally.different > 0 {
                    let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
                    let before = found.entry(number).or_default();
                    *before = before.and(tally);
                }
            }
        };
        let ended = rayon::broadcast(|thread| match thread.index() < MAX_THREADS {
            true => work(),
            false => Ok(()),
        });
        ended.into_iter().collect::<Result<(), Failed>>()?;
        // What was read belongs together only if the files are still the same.
        self.check()?;
        let found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok(self.conclude(&found))
    }

    /// Compares stretch number `number` of two tensors.
    fn stretch(
        &self,
        pair: &Pair,
        number: u64,
        buffers: &mut (Vec<u8>, Vec<u8>),
        done: &(dyn Fn(u64) + Sync),
    ) -> Result<Tally, Failed> {
        let Pair { a, b, .. } = pair;
        let assembled = [a, b].map(|tensor| matches!(tensor.extent, Extent::Assembled(_)));
        let most = match assembled {
            [false, false] => PIECE,
            _ => STRETCH,
        };
        let mut at = number.saturating_mul(STRETCH);
        let end = at.saturating_add(STRETCH).min(a.len);
        let mut tally = Tally::default();
        while at < end {
            let len = most.min(end - at) as usize;
            let bytes_a = self.a.read_unchecked(a, at, len, &mut buffers.0);
            let bytes_a = bytes_a.map_err(|error| Failed::new(Side::A, error))?;
            let bytes_b = self.b.read_unchecked(b, at, len, &mut buffers.1);
            let bytes_b = bytes_b.map_err(|error| Failed::new(Side::B, error))?;
            tally = tally.and(Tally::of(a.dtype, bytes_a, bytes_b));
            at += len as u64;
            done(len as u64);
        }
        Ok(tally)
    }

    /// Fails when one of the files is no longer what it was when it was opened.
    fn check(&self) -> Result<(), Failed> {
        let a = self.a.check();
        a.map_err(|error| Failed::new(Side::A, error))?;
        let b = self.b.check();
        b.map_err(|error| Failed::new(Side::B, error))
    }

    fn conclude(self, found: &BTreeMap<usize, Tally>) -> Comparison {
        let mut comparison = Comparison {
            equal: 0,
            equal_bytes: 0,
            differences: self.differences,
        };
        for (number, pair) in self.pairs.into_iter().enumerate() {
            let Some(tally) = found.get(&number) else {
                comparison.equal += 1;
                comparison.equal_bytes = comparison.equal_bytes.saturating_add(pair.a.len);
                continue;
            };
            let unit = Unit::of(pair.a.dtype);
            let what = What::Bytes {
                of: Type::of(pair.a),
                tally: *tally,
                unit,
                count: match unit {
                    Unit::Elements => pair.a.len.saturating_mul(8) / pair.a.dtype.bitsize() as u64,
                    Unit::Bytes => pair.a.len,
                },
            };
            let names = pair.names;
            comparison.differences.push(Difference { names, what });
        }
        let differences = &mut comparison.differences;
        differences.sort_by(|a, b| a.names.cmp(&b.names));
        comparison
    }
}

impl Failed {
    fn new(side: Side, error: source::Error) -> Failed {
        let error = error.into();
        Failed { side, error }
    }
}

/// The tensors of a file under all of their names.
struct Named<'a> {
    side: Side,
    reader: &'a Reader,
    /// With the index of the tensor in the plan, in byte order.
    names: Vec<(String, usize)>,
}

impl<'a> Named<'a> {
    fn of(reader: &'a Reader, side: Side) -> Result<Named<'a>, Failed> {
        let plan = reader.plan();
        let dropped = |(name, kept): (String, String)| Some((name, plan.find(&kept)?));
        let kept = plan.sorted();
        let mut names: Vec<_> = kept
            .map(|(index, tensor)| (tensor.name.to_string(), index))
            .collect();
        let ties = plan.dropped();
        names.extend(ties.filter_map(|(name, kept)| dropped((name.into(), kept.into()))));
        if plan.is_native() {
            let share = Budget::default().share();
            let ties =
                native_ties(reader.source(), &share).map_err(|error| Failed { side, error })?;
            names.extend(ties.into_iter().filter_map(dropped));
        }
        names.sort_unstable();
        Ok(Named {
            side,
            reader,
            names,
        })
    }

    /// The index of the tensor called `name`.
    fn find(&self, name: &str) -> Option<usize> {
        let rank = self
            .names
            .binary_search_by(|(other, _)| (**other).cmp(name));
        Some(self.names.get(rank.ok()?)?.1)
    }

    /// The tensors that are none of `matched`.
    fn without(&self, matched: impl Iterator<Item = usize>) -> Vec<Difference> {
        let tensors = self.reader.plan().tensors();
        let mut is_matched = vec![false; tensors.len()];
        for index in matched {
            if let Some(is_matched) = is_matched.get_mut(index) {
                *is_matched = true;
            }
        }
        let mut names: BTreeMap<usize, Vec<String>> = BTreeMap::new();
        for (name, index) in &self.names {
            if is_matched.get(*index) == Some(&false) {
                names.entry(*index).or_default().push(name.clone());
            }
        }
        let only = names.into_iter().filter_map(|(index, names)| {
            let what = What::Only(self.side, Type::of(tensors.get(index)?));
            Some(Difference { names, what })
        });
        only.collect()
    }
}
