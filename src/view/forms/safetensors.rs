//! `NAME.safetensors`: a checkpoint, converted while it is read, or the file that it
//! was promoted to.

use std::ffi::OsStr;
use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use super::{Claim, Form, Node, Output, Result, View, Xattr};
use crate::cache::{Promoted, Stamp};
use crate::convert::{Extent, Planned, Reader, Segment, names};
use crate::source::Bytes;
use crate::view::file::{OpenFile, Opened, Pages};
use crate::view::folder::{Derived, Folder, strip_suffix, with};
use crate::view::node::{Attr, Id, NodeKey};
use crate::view::origin::Origin;
use crate::view::promoter::{Promote, Wish};
use crate::view::reading::Reading;
use crate::view::usage::{InUse, Tier};
use crate::view::{Error, source_pages, source_xattr, tier_xattr};

pub const OUTPUT: Output = Output { list, find };

fn list(folder: &Folder, name: &OsStr) -> Result<Vec<Claim>> {
    Ok(match folder.derived(name)? {
        Derived::Converted(base, origin) => {
            let name = with(&base, names::SAFETENSORS);
            vec![Claim::new(name, 1, node(folder.view, origin))]
        }
        _ => Vec::new(),
    })
}

fn find(folder: &Folder, name: &OsStr) -> Result<Option<Node>> {
    let Some(base) = strip_suffix(name, names::SAFETENSORS) else {
        return Ok(None);
    };
    let origin = folder.converted(base)?;
    Ok(origin.map(|origin| node(folder.view, origin)))
}

/// The converted form of `origin`: the file that it was promoted to, where there is one.
fn node(view: &View, origin: Arc<Origin>) -> Node {
    let attr = origin.attr;
    let key = |form, of| NodeKey {
        form,
        place: None,
        of,
        part: 0,
    };
    let promoter = view.promoter();
    match promoter.and_then(|promoter| promoter.peek(&origin)) {
        Some(stamp) => {
            // Which file it is counts too: the kernel holds one for each node.
            let id = Id::of(&[&origin.id.to_bytes(), &stamp.to_bytes()]);
            Node::new(key("promoted", id), attr, Kept { origin, stamp })
        }
        None => Node::new(key("streamed", origin.id), attr, Streamed(origin)),
    }
}

/// Converted while it is read.
#[derive(Debug)]
struct Streamed(Arc<Origin>);

impl Form for Streamed {
    fn open(&self, view: &View, _: &Attr) -> Result<OpenFile> {
        let Streamed(origin) = self;
        let reader = Arc::new(view.sources().reader(origin)?);
        let wish = view.wish(origin);
        if wish.policy() == Some(Promote::Always) {
            wish.make();
        }
        let pages = source_pages(view, origin, &reader);
        Ok(OpenFile::new(OpenStreamed {
            in_use: view.usage().opened(origin.location.clone(), Tier::Stream),
            reading: Reading::new(reader.plan().size()),
            settled: origin.key.is_settled(),
            reader,
            pages,
            wish,
        }))
    }

    fn xattrs(&self, _: &View) -> Result<Vec<Xattr>> {
        Ok(vec![
            source_xattr(&self.0.location),
            tier_xattr(Tier::Stream),
        ])
    }

    fn origin(&self) -> Option<&Origin> {
        Some(&self.0)
    }
}

/// The same, in a promoted file.
#[derive(Debug)]
struct Kept {
    origin: Arc<Origin>,
    stamp: Stamp,
}

impl Form for Kept {
    fn open(&self, view: &View, _: &Attr) -> Result<OpenFile> {
        // Whoever looks the name up again finds what there is now.
        let promoted = view.promoted(&self.origin);
        let promoted = promoted.filter(|promoted| promoted.stamp() == self.stamp);
        let promoted = promoted.ok_or(Error::Stale)?;
        let in_use = view
            .usage()
            .opened(self.origin.location.clone(), Tier::Promoted);
        Ok(OpenFile::new(OpenPromoted { promoted, in_use }))
    }

    fn xattrs(&self, _: &View) -> Result<Vec<Xattr>> {
        let source = source_xattr(&self.origin.location);
        Ok(vec![source, tier_xattr(Tier::Promoted)])
    }

    fn origin(&self) -> Option<&Origin> {
        Some(&self.origin)
    }
}

/// A checkpoint that is converted while it is read.
struct OpenStreamed {
    reader: Arc<Reader>,
    in_use: InUse,
    reading: Reading,
    pages: Arc<dyn Pages>,
    wish: Wish,
    settled: bool,
}

impl Opened for OpenStreamed {
    fn read(&self, offset: u64, len: usize) -> Result<Bytes<'_>> {
        let bytes = self.reader.read(offset, len)?;
        self.in_use.served(bytes.len() as u64);
        if self.wish.policy().is_some() {
            self.wish.note_read();
            let used = self.reading.note(offset, bytes.len() as u64).is_some();
            let plan = self.reader.plan();
            let computed = || {
                let end = offset.saturating_add(bytes.len() as u64);
                plan.is_computed() && end > plan.header().len() as u64
            };
            if used || computed() {
                self.wish.make();
            }
        }
        Ok(bytes)
    }

    fn read_ahead(&self, offset: u64, len: usize) -> Result<Bytes<'_>> {
        Ok(self.reader.read(offset, len)?)
    }

    /// What was read before may have been other bytes under the same stamps.
    fn keeps_pages(&self) -> bool {
        self.settled
    }

    fn minds_close(&self) -> bool {
        self.wish.policy().is_some()
    }

    fn closed(&self) {
        self.reading.close();
    }

    /// The header, and the first byte of each tensor. Without those that would have
    /// to be computed.
    fn touched(&self) -> Vec<Range<u64>> {
        let plan = self.reader.plan();
        let header = plan.header().len() as u64;
        let lies_there =
            |tensor: &&Planned| tensor.len > 0 && matches!(tensor.extent, Extent::Direct(_));
        let starts = plan.tensors().iter().filter(lies_there);
        std::iter::once(0..header)
            .chain(starts.map(|tensor| tensor.start..tensor.start + 1))
            .collect()
    }

    fn source_extent(&self, offset: u64, len: u64) -> Option<(Arc<dyn Pages>, Range<u64>)> {
        match self.reader.segment(offset, len) {
            Segment::Direct { from, len } => Some((self.pages.clone(), from..from + len)),
            Segment::Assembled { .. } => None,
        }
    }
}

struct OpenPromoted {
    promoted: Promoted,
    in_use: InUse,
}

impl Opened for OpenPromoted {
    fn read(&self, offset: u64, len: usize) -> Result<Bytes<'_>> {
        let size = self.promoted.source().size();
        let bytes = self.promoted.read(0, size, offset, len)?;
        self.in_use.served(bytes.len() as u64);
        Ok(bytes)
    }

    fn backing(&self) -> Option<&File> {
        self.promoted.source().file()
    }
}
