//! Files of the tree, open for reading.

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use super::behind::Behind;
use super::node::{Origin, Text};
use super::promoter::{Promote, Promoter};
use super::reading::Reading;
use super::usage::{Opened, Tier, Usage};
use super::{Error, Result};
use crate::cache::Kept;
use crate::convert::{Extent, Planned, Reader, Segment};
use crate::source::{Bytes, Source};

/// A file open for reading. Reads may run from many threads at once.
pub struct OpenFile(Open);

pub(super) enum Open {
    Plain(Source, Opened),
    Converted(Arc<Converted>),
    Kept(Kept, Opened),
    Tensor(Box<Tensor>),
    /// Bytes from the start of the kept file, and bytes.
    KeptTensor(Kept, u64, u64, Opened),
    Text(Arc<Text>),
}

/// A checkpoint that is converted while it is read.
pub(super) struct Converted {
    reader: Reader,
    opened: Opened,
    reading: Reading,
    behind: Arc<Behind>,
    promotion: Promotion,
}

/// A tensor of one.
pub(super) struct Tensor {
    reader: Reader,
    index: usize,
    opened: Opened,
    promotion: Promotion,
}

/// How an open file comes to be promoted, if it does.
pub(super) struct Promotion {
    origin: Arc<Origin>,
    /// None when nothing is.
    promoter: Option<Arc<Promoter>>,
}

impl Promotion {
    pub fn new(origin: &Arc<Origin>, promoter: Option<&Arc<Promoter>>) -> Promotion {
        let promoter = promoter.filter(|promoter| promoter.policy() != Promote::Never);
        Promotion {
            origin: origin.clone(),
            promoter: promoter.cloned(),
        }
    }

    fn want(&self) {
        if let Some(promoter) = &self.promoter {
            promoter.want(&self.origin);
        }
    }
}

impl Tensor {
    pub fn new(reader: Reader, index: usize, opened: Opened, promotion: Promotion) -> Tensor {
        Tensor {
            reader,
            index,
            opened,
            promotion,
        }
    }

    fn read(&self, offset: u64, len: usize) -> Result<Bytes<'_>> {
        let plan = self.reader.plan();
        let tensor = plan.tensors().get(self.index);
        if plan.is_computed()
            && tensor.is_some_and(|tensor| matches!(tensor.extent, Extent::Assembled(_)))
        {
            // What is computed now is not to be computed again.
            self.promotion.want();
        }
        Ok(self.reader.read_tensor(self.index, offset, len)?)
    }
}

impl OpenFile {
    pub(super) fn new(open: Open) -> OpenFile {
        OpenFile(open)
    }

    pub(super) fn converted(
        reader: Reader,
        origin: &Arc<Origin>,
        usage: &Arc<Usage>,
        behind: &Arc<Behind>,
        promoter: Option<&Arc<Promoter>>,
    ) -> OpenFile {
        let promotion = Promotion::new(origin, promoter);
        if promoter.is_some_and(|promoter| promoter.policy() == Promote::Always) {
            promotion.want();
        }
        OpenFile(Open::Converted(Arc::new(Converted {
            opened: usage.opened(origin.path.clone(), Tier::Stream),
            reading: Reading::new(reader.plan().size()),
            behind: behind.clone(),
            promotion,
            reader,
        })))
    }

    /// The file, when its bytes are this file's bytes from first to last: the
    /// kernel may then read it by itself.
    pub fn backing(&self) -> Option<&File> {
        match &self.0 {
            Open::Plain(source, _) => Some(source.file()),
            Open::Kept(kept, _) => Some(kept.source().file()),
            _ => None,
        }
    }

    /// Whether pages of earlier opens of the same node are still right. Those of
    /// a plain file are as old as its attributes, with which the kernel drops them.
    pub fn keep_cache(&self) -> bool {
        true
    }

    /// Whether it is worth knowing when a descriptor of the file is closed.
    pub fn minds_close(&self) -> bool {
        matches!(&self.0, Open::Converted(converted) if converted.promotion.promoter.is_some())
    }

    /// A descriptor of the file was closed. It may still be mapped.
    pub fn closed(&self) {
        if let Open::Converted(converted) = &self.0 {
            converted.reading.close();
        }
    }

    /// The page cache of the mount has got these bytes, which were read from here.
    pub fn passed(&self, offset: u64, len: u64) {
        if let Open::Converted(converted) = &self.0 {
            converted.passed(offset, len);
        }
    }

    /// The stretches that a loader touches when it makes the tensors of the file:
    /// its header, and the first byte of each tensor. In order, and without those
    /// that would have to be computed.
    pub fn touched(&self) -> Vec<Range<u64>> {
        let Open::Converted(converted) = &self.0 else {
            return Vec::new();
        };
        let plan = converted.reader.plan();
        let header = plan.header().len() as u64;
        let lies_there =
            |tensor: &&Planned| tensor.len > 0 && matches!(tensor.extent, Extent::Direct(_));
        let starts = plan.tensors().iter().filter(lies_there);
        std::iter::once(0..header)
            .chain(starts.map(|tensor| tensor.start..tensor.start + 1))
            .collect()
    }

    /// Bytes `[offset, offset + len)` for the page cache of the mount, of which no
    /// reader is known to want them yet.
    pub fn read_ahead(&self, offset: u64, len: usize) -> Result<Bytes<'_>> {
        match &self.0 {
            Open::Converted(converted) => Ok(converted.reader.read(offset, len)?),
            _ => self.read(offset, len),
        }
    }

    /// Bytes `[offset, offset + len)`, cut at the end of the file and nowhere else.
    ///
    /// # Errors
    /// [`Error::Io`] when the source behind a derived file changed: its bytes are
    /// gone.
    pub fn read(&self, offset: u64, len: usize) -> Result<Bytes<'_>> {
        let (bytes, opened) = match &self.0 {
            Open::Plain(source, opened) => (Bytes::Owned(read_plain(source, offset, len)?), opened),
            Open::Converted(converted) => (converted.read(offset, len)?, &converted.opened),
            Open::Kept(kept, opened) => (
                read_kept(kept, 0, kept.source().size(), offset, len)?,
                opened,
            ),
            Open::Tensor(tensor) => (tensor.read(offset, len)?, &tensor.opened),
            Open::KeptTensor(kept, start, size, opened) => {
                (read_kept(kept, *start, *size, offset, len)?, opened)
            }
            Open::Text(text) => {
                let start = usize::try_from(offset)
                    .unwrap_or(usize::MAX)
                    .min(text.body.len());
                let end = start.saturating_add(len).min(text.body.len());
                return Ok(Bytes::Owned(text.body[start..end].to_vec()));
            }
        };
        opened.served(bytes.len() as u64);
        Ok(bytes)
    }
}

impl Converted {
    fn read(&self, offset: u64, len: usize) -> Result<Bytes<'_>> {
        let bytes = self.reader.read(offset, len)?;
        if let Some(promoter) = &self.promotion.promoter {
            promoter.note_read();
            let used = self.reading.note(offset, bytes.len() as u64).is_some();
            let plan = self.reader.plan();
            let computed =
                || plan.is_computed() && offset + bytes.len() as u64 > plan.header().len() as u64;
            if used || computed() {
                self.promotion.want();
            }
        }
        Ok(bytes)
    }

    /// The page cache has these bytes now, and need not have them twice.
    fn passed(self: &Arc<Self>, offset: u64, len: u64) {
        if let Segment::Direct { from, len } = self.reader.segment(offset, len) {
            let path = &self.promotion.origin.path;
            self.behind.pass(self, path, from, len);
        }
    }

    pub fn source(&self) -> &Source {
        self.reader.source()
    }
}

/// Bytes of the stretch of `size` bytes from `start` on of a file that is kept.
fn read_kept(kept: &Kept, start: u64, size: u64, offset: u64, len: usize) -> Result<Bytes<'_>> {
    let end = offset.saturating_add(len as u64).min(size);
    let offset = offset.min(end);
    kept.source().check()?;
    Ok(kept
        .source()
        .reply(start + offset, (end - offset) as usize)?)
}

/// A plain file has the size that it has now.
fn read_plain(source: &Source, offset: u64, len: usize) -> Result<Vec<u8>> {
    use std::io::ErrorKind;
    use std::os::unix::fs::FileExt;
    let mut buffer = vec![0; len];
    let mut filled = 0;
    while filled < len {
        match source
            .file()
            .read_at(&mut buffer[filled..], offset + filled as u64)
        {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::Io(error)),
        }
    }
    buffer.truncate(filled);
    Ok(buffer)
}
