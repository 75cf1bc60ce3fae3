//! Files of the tree, open for reading.

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use super::error::Result;
use super::key::Id;
use crate::source::{Bytes, Version};

/// What an open file can do. Reads may run from many threads at once.
pub(super) trait Opened: Send + Sync {
    fn read(&self, offset: u64, len: usize) -> Result<Bytes<'_>>;

    /// As [`Opened::read`], of bytes that no reader is known to want yet.
    fn read_ahead(&self, offset: u64, len: usize) -> Result<Bytes<'_>> {
        self.read(offset, len)
    }

    /// Whether it lies on this machine: nothing that is done with it takes long.
    fn is_near(&self) -> bool {
        true
    }

    fn is_at_hand(&self, offset: u64, len: usize) -> bool {
        let _ = (offset, len);
        self.is_near()
    }

    fn backing(&self) -> Option<&File> {
        None
    }

    fn contents(&self) -> Option<Contents> {
        Some(Contents::OF_NODE)
    }

    fn minds_close(&self) -> bool {
        false
    }

    fn closed(&self) {}

    fn parts(&self) -> Vec<Range<u64>> {
        Vec::new()
    }

    fn source_extent(&self, offset: u64, len: u64) -> Option<(Arc<dyn Pages>, Range<u64>)> {
        let _ = (offset, len);
        None
    }
}

/// The pages of a source file, which the page cache may hold beside those of the mount.
pub trait Pages: Send + Sync {
    /// Lets the page cache forget the bytes of `extent`.
    fn drop_pages(&self, extent: Range<u64>);
}

/// What tells the contents of a node from those that it had before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contents(Option<Id>);

impl Contents {
    /// Those of a node that never has any others.
    pub(super) const OF_NODE: Contents = Contents(None);

    pub(crate) fn of(version: &Version) -> Contents {
        Contents(Some(Id::of(&[&version.to_bytes()])))
    }
}

/// A file open for reading.
pub struct OpenFile(Box<dyn Opened>);

impl OpenFile {
    pub(super) fn new(opened: impl Opened + 'static) -> OpenFile {
        OpenFile(Box::new(opened))
    }

    /// Bytes `[offset, offset + len)`, cut at the end of the file and nowhere else.
    ///
    /// # Errors
    /// The source behind a derived file changed: its bytes are gone.
    pub fn read(&self, offset: u64, len: usize) -> Result<Bytes<'_>> {
        self.0.read(offset, len)
    }

    /// The same for the page cache of the mount, of bytes that no reader is known to
    /// want yet.
    pub fn read_ahead(&self, offset: u64, len: usize) -> Result<Bytes<'_>> {
        self.0.read_ahead(offset, len)
    }

    /// Whether it lies on this machine: to close it takes no time.
    pub fn is_near(&self) -> bool {
        self.0.is_near()
    }

    /// Whether [`OpenFile::read`] only has to fetch these bytes, from this machine.
    pub fn is_at_hand(&self, offset: u64, len: usize) -> bool {
        self.0.is_at_hand(offset, len)
    }

    /// The file, when its bytes are this file's bytes from first to last: the
    /// kernel may then read it by itself.
    pub fn backing(&self) -> Option<&File> {
        self.0.backing()
    }

    /// What the file holds: pages of an earlier open of the same node are right if they
    /// are of the same contents. None while nothing can tell.
    pub fn contents(&self) -> Option<Contents> {
        self.0.contents()
    }

    /// Whether it is worth knowing when a descriptor of the file is closed.
    pub fn minds_close(&self) -> bool {
        self.0.minds_close()
    }

    /// A descriptor of the file was closed. It may still be mapped.
    pub fn closed(&self) {
        self.0.closed();
    }

    /// Where in the file its header lies, and after that each of its tensors, as far as
    /// nothing has to be computed for it. In order.
    pub fn parts(&self) -> Vec<Range<u64>> {
        self.0.parts()
    }

    /// Where the bytes `[offset, offset + len)` lie in a source file that the page
    /// cache holds too, when they lie there as they are.
    pub fn source_extent(&self, offset: u64, len: u64) -> Option<(Arc<dyn Pages>, Range<u64>)> {
        self.0.source_extent(offset, len)
    }
}

/// A small file made up here.
pub(super) struct OpenText(pub Arc<[u8]>);

impl Opened for OpenText {
    fn read(&self, offset: u64, len: usize) -> Result<Bytes<'_>> {
        let text = &self.0;
        let start = usize::try_from(offset)
            .unwrap_or(usize::MAX)
            .min(text.len());
        let end = start.saturating_add(len).min(text.len());
        Ok(Bytes::Owned(text[start..end].to_vec()))
    }
}
