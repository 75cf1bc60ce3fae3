//! `NAME.safetensors`: a checkpoint, converted while it is read, or the file that it
//! was promoted to.

use std::ffi::OsStr;
use std::fs::File;
use std::ops::Range;
use std::sync::{Arc, Weak};

use super::output::{Claim, Output};
use super::rooted;
use crate::cache::{Promoted, Stamp};
use crate::convert::{Extent, Planned, Reader, Segment, names};
use crate::source::{Bytes, Tree};
use crate::view::attr::Attr;
use crate::view::context::Context;
use crate::view::error::Result;
use crate::view::file::{Contents, OpenFile, Opened, Pages};
use crate::view::folder::{Derived, Folder, Outcome, strip_suffix, with};
use crate::view::key::{Id, NodeKey};
use crate::view::node::{Form, Home, Node};
use crate::view::origin::Origin;
use crate::view::promoter::{Promote, Wish};
use crate::view::reading::Reading;
use crate::view::usage::{InUse, Tier};
use crate::view::xattrs::{self, Xattr};

pub const OUTPUT: Output = Output { list, find };

fn list(folder: &Folder, name: &OsStr) -> Result<Vec<Claim>> {
    Ok(match folder.derived(name)? {
        Derived::Converted(base, origin) => {
            let name = with(&base, names::SAFETENSORS);
            vec![Claim::new(name, 1, node(folder.context, origin))]
        }
        _ => Vec::new(),
    })
}

fn find(folder: &Folder, name: &OsStr) -> Result<Option<Node>> {
    let Some(base) = strip_suffix(name, names::SAFETENSORS) else {
        return Ok(None);
    };
    let origin = match folder.converted(base)? {
        Some(origin) => Some(origin),
        None => rooted::origin(folder, base)?,
    };
    Ok(origin.map(|origin| node(folder.context, origin)))
}

/// The converted form of the value at the dotted path `root` in the checkpoint `name`.
pub fn at_root(folder: &Folder, name: &OsStr, root: &Arc<str>) -> Result<Option<Node>> {
    Ok(match folder.outcome_at(name, root)? {
        Outcome::Converted(origin) => Some(node(folder.context, origin)),
        Outcome::Nothing | Outcome::Refused(..) => None,
    })
}

/// The converted form of `origin`: the file that it was promoted to, where there is one.
fn node(context: &Context, origin: Arc<Origin>) -> Node {
    let attr = origin.attr;
    let key = |form, of| NodeKey {
        form,
        place: None,
        of,
        part: 0,
    };
    let promoter = context.promoter();
    match promoter.and_then(|promoter| promoter.peek(&origin)) {
        Some(stamp) => {
            // Which file it is counts too: the kernel holds one for each node.
            let id = Id::of(&[&origin.id.to_bytes(), &stamp.to_bytes()]);
            Node::new(key("promoted", id), attr, PromotedFile { origin, stamp })
        }
        None => Node::new(key("streamed", origin.id), attr, Streamed(origin)),
    }
}

fn attributes(context: &Context, origin: &Origin, tier: Tier) -> Result<Vec<Xattr>> {
    let plan = context.sources().plan(origin)?;
    let mut attributes = vec![xattrs::source(&origin.location), xattrs::tier(tier)];
    attributes.extend(xattrs::roots(plan.roots()));
    Ok(attributes)
}

/// Converted while it is read.
#[derive(Debug)]
struct Streamed(Arc<Origin>);

impl Form for Streamed {
    fn open(&self, context: &Context, _: &Attr) -> Result<OpenFile> {
        let Streamed(origin) = self;
        let reader = Arc::new(context.sources().ranges(origin)?);
        let wish = context.wish(origin);
        if wish.policy() == Some(Promote::Always) {
            wish.make();
        }
        let pages = Arc::new(SourcePages {
            tree: context.tree().clone(),
            origin: origin.clone(),
            reader: Arc::downgrade(&reader),
        });
        Ok(OpenFile::new(OpenStreamed {
            in_use: context
                .usage()
                .opened(origin.location.clone(), Tier::Stream),
            reading: Reading::new(reader.plan().size()),
            settled: origin.key.is_settled(),
            reader,
            pages,
            wish,
        }))
    }

    fn home(&self) -> Option<Home> {
        Some(self.0.home())
    }

    fn xattrs(&self, context: &Context) -> Result<Vec<Xattr>> {
        attributes(context, &self.0, Tier::Stream)
    }

    fn origin(&self) -> Option<&Origin> {
        Some(&self.0)
    }
}

/// The same, in a promoted file.
#[derive(Debug)]
struct PromotedFile {
    origin: Arc<Origin>,
    stamp: Stamp,
}

impl Form for PromotedFile {
    fn open(&self, context: &Context, attr: &Attr) -> Result<OpenFile> {
        let promoted = context.promoted(&self.origin);
        let promoted = promoted.filter(|promoted| promoted.stamp() == self.stamp);
        let Some(promoted) = promoted else {
            // It was evicted a moment ago. The bytes are the same.
            return Streamed(self.origin.clone()).open(context, attr);
        };
        let in_use = context
            .usage()
            .opened(self.origin.location.clone(), Tier::Promoted);
        Ok(OpenFile::new(OpenPromoted { promoted, in_use }))
    }

    fn home(&self) -> Option<Home> {
        Some(self.origin.home())
    }

    fn xattrs(&self, context: &Context) -> Result<Vec<Xattr>> {
        attributes(context, &self.origin, Tier::Promoted)
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

    fn is_near(&self) -> bool {
        self.reader.source().is_near()
    }

    fn is_at_hand(&self, offset: u64, len: usize) -> bool {
        self.is_near() && self.reader.lies_there(offset, len)
    }

    /// What was read before may have been other bytes under the same stamps.
    fn contents(&self) -> Option<Contents> {
        self.settled.then_some(Contents::OF_NODE)
    }

    fn minds_close(&self) -> bool {
        self.wish.policy().is_some()
    }

    fn closed(&self) {
        self.reading.close();
    }

    fn parts(&self) -> Vec<Range<u64>> {
        let plan = self.reader.plan();
        let header = plan.header().len() as u64;
        let lies_there =
            |tensor: &&Planned| tensor.len > 0 && matches!(tensor.extent, Extent::Direct(_));
        let tensors = plan.tensors().iter().filter(lies_there);
        std::iter::once(0..header)
            .chain(tensors.map(|tensor| tensor.start..tensor.start + tensor.len))
            .collect()
    }

    fn source_extent(&self, offset: u64, len: u64) -> Option<(Arc<dyn Pages>, Range<u64>)> {
        match self.reader.segment(offset, len) {
            Segment::Direct { from, len } => Some((self.pages.clone(), from..from + len)),
            Segment::Assembled { .. } => None,
        }
    }
}

struct SourcePages {
    tree: Arc<dyn Tree>,
    origin: Arc<Origin>,
    /// As long as it is open: it has its own mapping of the source.
    reader: Weak<Reader>,
}

impl Pages for SourcePages {
    fn drop_pages(&self, extent: Range<u64>) {
        if let Some(reader) = self.reader.upgrade() {
            return reader.source().drop_pages(extent);
        }
        // If it is another file by now, that one is read again: no harm is done.
        let directory = self.tree.enter(&self.origin.directory);
        if let Ok(source) = directory.and_then(|directory| directory.open(&self.origin.name)) {
            source.drop_pages(extent);
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

    fn is_near(&self) -> bool {
        self.promoted.source().is_near()
    }

    fn backing(&self) -> Option<&File> {
        self.promoted.source().file()
    }
}
