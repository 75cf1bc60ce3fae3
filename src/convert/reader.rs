//! Reads a converted file, or one tensor of it, by ranges.

use std::num::NonZeroUsize;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};

use lru::LruCache;

use super::decoded::Decoding;
use super::extent::{Assembled, Extent, Inputs};
use super::files::Files;
use super::plan::{Plan, Planned};
use super::scratch::Scratch;
use crate::source::{Bytes, Result, Rights, Source};

/// Assembled tensors are put together in blocks of about this many bytes, so that
/// reads in sequence visit each stretch of the source once.
pub const BLOCK: u64 = 4 << 20;
/// Blocks kept for the reads that follow.
const BLOCKS: NonZeroUsize = NonZeroUsize::new(3).unwrap();
/// Blocks kept by all readers together: those that were not used for longest go first.
const ALL_BLOCKS: NonZeroUsize = NonZeroUsize::new(16).unwrap();

/// A plan with its sources held open. Reads may run from many threads at once.
#[derive(Debug)]
pub struct Reader {
    files: Files,
    plan: Arc<Plan>,
    decoding: Arc<Decoding>,
    blocks: Arc<Blocks>,
}

/// An assembled tensor and the number of a block of it.
type BlockKey = (usize, u64);
type Blocks = Mutex<LruCache<BlockKey, Block>>;
/// Blocks of all readers, in the order of their use.
type Used = Mutex<LruCache<(usize, BlockKey), Weak<Blocks>>>;
type Block = Arc<Vec<u8>>;

/// Bytes of the source that lie together are told of as a [`Segment`] of their own
/// from this many on.
const DIRECT: u64 = 256 << 10;

/// How the bytes from some offset on come about, as far as all do so alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segment {
    /// They lie in the source as they are, from byte `from` on.
    Direct { from: u64, len: u64 },
    /// They are put together: [`Reader::read_to`] does that.
    Assembled { len: u64 },
}

/// A stretch of the converted file that comes from one place.
enum Piece<'a> {
    Header(&'a [u8]),
    /// Bytes from the start of the source.
    Source(u64, u64),
    /// Tensor, first byte, bytes.
    Assembled(usize, &'a Assembled, u64, u64),
}

impl Reader {
    /// `files` must be those that `plan` was made from.
    pub fn new(files: Files, plan: Arc<Plan>) -> Reader {
        Reader {
            files,
            decoding: plan.decoding(),
            plan,
            blocks: Arc::new(Mutex::new(LruCache::new(BLOCKS))),
        }
    }

    /// Lends it room for what it decodes, which goes when nobody reads by the same plan
    /// any more. Without it only the last few megabytes need not be decoded again.
    pub fn lend(&self, scratch: Box<dyn Scratch>) {
        self.decoding.lend(scratch);
    }

    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    pub fn source(&self) -> &Source {
        self.files.main()
    }

    /// Who may read what is made of the sources: whoever may read all of them.
    pub fn rights(&self) -> Rights {
        self.files.rights()
    }

    /// The companion with this number, in the order of [`Plan::companions`].
    pub fn companion(&self, number: u32) -> Option<&Source> {
        self.files.companion(number).ok()
    }

    /// Bytes `[offset, offset + len)` of the converted file, cut at its end.
    pub fn read(&self, offset: u64, len: usize) -> Result<Bytes<'_>> {
        let end = offset.saturating_add(len as u64).min(self.plan.size());
        self.read_span(offset.min(end), end)
    }

    /// Bytes `[offset, offset + len)` of one tensor, cut at its end.
    pub fn read_tensor(&self, index: usize, offset: u64, len: usize) -> Result<Bytes<'_>> {
        let Some(tensor) = self.plan.tensors().get(index) else {
            return Ok(Bytes::Owned(Vec::new()));
        };
        let end = offset.saturating_add(len as u64).min(tensor.len);
        self.read_span(tensor.start + offset.min(end), tensor.start + end)
    }

    /// As [`Reader::read`], but the bytes are never those of a mapping: they take
    /// the place of what is in `out`.
    pub fn read_to(&self, offset: u64, len: usize, out: &mut Vec<u8>) -> Result<()> {
        let end = offset.saturating_add(len as u64).min(self.plan.size());
        out.clear();
        self.put_together(offset.min(end), end, out)
    }

    /// Bytes `[offset, offset + len)` of a tensor of the plan, in `buffer`, which is
    /// kept from call to call: nothing is allocated or cleared for bytes that lie in
    /// the source. They are right only if [`Reader::check`] succeeds afterwards.
    pub fn read_unchecked<'b>(
        &self,
        tensor: &Planned,
        offset: u64,
        len: usize,
        buffer: &'b mut Vec<u8>,
    ) -> Result<&'b [u8]> {
        match tensor.extent {
            Extent::Direct(from) => {
                if buffer.len() < len {
                    buffer.resize(len, 0);
                }
                let bytes = &mut buffer[..len];
                self.source()
                    .read_exact_at(bytes, from.saturating_add(offset))?;
                Ok(bytes)
            }
            Extent::Assembled(_) => {
                self.read_to(tensor.start.saturating_add(offset), len, buffer)?;
                Ok(buffer)
            }
        }
    }

    /// How the bytes `[offset, offset + len)` of the converted file begin, cut at
    /// its end.
    pub fn segment(&self, offset: u64, len: u64) -> Segment {
        let end = offset.saturating_add(len).min(self.plan.size());
        let start = offset.min(end);
        let mut at = start;
        while at < end {
            at += match self.piece(at, end) {
                Piece::Source(from, len) if len >= DIRECT => {
                    if at == start {
                        return Segment::Direct { from, len };
                    }
                    break;
                }
                Piece::Source(_, len) | Piece::Assembled(_, _, _, len) => len,
                Piece::Header(bytes) => bytes.len() as u64,
            };
        }
        Segment::Assembled { len: at - start }
    }

    /// Whether the bytes `[offset, offset + len)` of the converted file lie in the source
    /// as they are, all of them, if in several places.
    pub fn lies_there(&self, offset: u64, len: usize) -> bool {
        let end = offset.saturating_add(len as u64).min(self.plan.size());
        let mut at = offset;
        while at < end {
            at += match self.piece(at, end) {
                Piece::Assembled(..) => return false,
                Piece::Source(_, len) => len,
                Piece::Header(bytes) => bytes.len() as u64,
            };
        }
        true
    }

    /// Fails with [`Error::Changed`](crate::source::Error::Changed) when one of the
    /// files no longer holds the bytes that it was opened with, and as
    /// [`Plan::check`]. What is copied past the reader, by its segments, is right only
    /// if this succeeds afterwards.
    pub fn check(&self) -> Result<()> {
        self.files.check()?;
        self.plan.check(&self.files)
    }

    /// The same when anything about one of their inodes moved since they were
    /// opened, their names included.
    pub fn check_version(&self) -> Result<()> {
        self.files.check_version()
    }

    fn read_span(&self, start: u64, end: u64) -> Result<Bytes<'_>> {
        if start >= end {
            return Ok(Bytes::Owned(Vec::new()));
        }
        self.begin(end)?;
        let first = self.piece(start, end);
        if let Piece::Source(from, len) = first
            && len == end - start
        {
            return self.source().reply(from, len as usize);
        }
        let mut out = Vec::with_capacity((end - start) as usize);
        self.put_together(start, end, &mut out)?;
        Ok(Bytes::Owned(out))
    }

    /// To be called before bytes up to `end` are read.
    fn begin(&self, end: u64) -> Result<()> {
        match end <= self.plan.header().len() as u64 {
            true => self.files.check(),
            false => self.check(),
        }
    }

    /// Appends the bytes `[start, end)` to `out`, which is empty.
    fn put_together(&self, start: u64, end: u64, out: &mut Vec<u8>) -> Result<()> {
        self.begin(end)?;
        let mut at = start;
        while at < end {
            self.append(&self.piece(at, end), out)?;
            at = start + out.len() as u64;
        }
        // The pieces were read one after the other; together they are the old
        // file only if it is still there.
        self.files.check()
    }

    /// What the bytes from `at` on come from, as far as one place goes. `at` lies
    /// before `end`, and `end` inside the file.
    fn piece(&self, at: u64, end: u64) -> Piece<'_> {
        let header = self.plan.header();
        if let Some(rest) = usize::try_from(at).ok().and_then(|at| header.get(at..))
            && !rest.is_empty()
        {
            let len = (end - at).min(rest.len() as u64) as usize;
            return Piece::Header(&rest[..len]);
        }
        let tensors = self.plan.tensors();
        // Empty tensors begin where the next one does.
        let index = tensors.partition_point(|tensor| tensor.start + tensor.len <= at);
        let Some(tensor) = tensors.get(index).filter(|tensor| tensor.start <= at) else {
            // The header of a native file.
            return Piece::Source(at, end - at);
        };
        let skip = at - tensor.start;
        let len = (end - at).min(tensor.len - skip);
        match &tensor.extent {
            Extent::Direct(from) => Piece::Source(from + skip, len),
            Extent::Assembled(assembled) => Piece::Assembled(index, assembled, skip, len),
        }
    }

    fn append(&self, piece: &Piece, out: &mut Vec<u8>) -> Result<()> {
        match piece {
            Piece::Header(bytes) => out.extend_from_slice(bytes),
            Piece::Source(from, len) => {
                let filled = out.len();
                out.resize(filled + *len as usize, 0);
                self.source().read_exact_at(&mut out[filled..], *from)?;
            }
            Piece::Assembled(tensor, assembled, skip, len) => {
                if let Some((storage, start)) = assembled.decoded() {
                    let filled = out.len();
                    out.resize(filled + *len as usize, 0);
                    let (from, out) = (start.saturating_add(*skip), &mut out[filled..]);
                    let source = self.source();
                    return self.decoding.read_exact_at(source, storage, out, from);
                }
                let block_len = BLOCK - BLOCK % assembled.element();
                let number = skip / block_len;
                let block = self.block(*tensor, assembled, number, block_len)?;
                let from = (skip - number * block_len) as usize;
                let part = &block[from..];
                out.extend_from_slice(&part[..part.len().min(*len as usize)]);
            }
        }
        Ok(())
    }

    /// Block `number` of an assembled tensor.
    fn block(
        &self,
        tensor: usize,
        assembled: &Assembled,
        number: u64,
        block_len: u64,
    ) -> Result<Block> {
        let key = (tensor, number);
        let known = lock(&self.blocks).get(&key).cloned();
        if let Some(block) = known {
            keep(&self.blocks, key);
            return Ok(block);
        }
        let start = number * block_len;
        let len = self.plan.tensors()[tensor].len - start;
        let mut block = vec![0; len.min(block_len) as usize];
        let inputs = Inputs {
            files: &self.files,
            decoding: &self.decoding,
        };
        assembled.read(inputs, start / assembled.element(), &mut block)?;
        let block = Arc::new(block);
        lock(&self.blocks).put(key, block.clone());
        keep(&self.blocks, key);
        Ok(block)
    }
}

/// Takes note that a block of `blocks` was used, and forgets that of all readers which was
/// not used for longest, where there are too many.
fn keep(blocks: &Arc<Blocks>, key: BlockKey) {
    static USED: LazyLock<Used> = LazyLock::new(|| Mutex::new(LruCache::new(ALL_BLOCKS)));
    // Where it lies tells it from others: the reference keeps the place.
    let reader = Arc::as_ptr(blocks).addr();
    let used = (reader, key);
    let pushed = lock(&USED).push(used, Arc::downgrade(blocks));
    if let Some((other, owner)) = pushed
        && other != used
        && let Some(owner) = owner.upgrade()
    {
        lock(&owner).pop(&other.1);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
