//! What each operation finds out about the tree, in the kernel's terms: inode numbers,
//! error numbers, and how long an answer holds. Any of it may take as long as the source
//! does.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use fuser::{BackingId, Errno, FileAttr, FileHandle, FileType, FopenFlags, INodeNo};
use log::warn;

use super::drop_behind::DropBehind;
use super::errno::errno;
use super::handles::{Handles, Passthrough};
use super::inodes::{Inodes, ROOT};
use super::listings::{Cursor, Listings};
use super::names::Names;
use super::prefault::{Prefaulter, Turn};
use super::watch::{LONG, SHORT, Watch, Watcher};
use super::xattr;
use crate::source::Space;
use crate::view::{self, Attr, Kind, Listing, Node, OpenFile, View};
use crate::workers::Lane;

/// Bytes that `st_blocks` counts.
const BLOCK: u64 = 512;

pub struct Operations {
    view: Arc<View>,
    inodes: Inodes<Node>,
    files: Arc<Handles<Open>>,
    listings: Listings<Listed>,
    /// What was told lately, for when the source does not answer.
    names: Names,
    space: Mutex<Space>,
    /// None where nothing can be watched.
    watcher: Option<Arc<Watcher>>,
    keeps_listings: AtomicBool,
    passthrough: Passthrough,
    prefaulter: Arc<Prefaulter>,
    drop_behind: Arc<DropBehind>,
}

/// A file that is open, and what has to be waited for to read it.
pub struct Open {
    pub file: OpenFile,
    pub lane: Lane,
}

/// How the kernel is told of an open file. Others who open it wait until this goes.
pub struct Opened<'a> {
    pub handle: FileHandle,
    pub flags: FopenFlags,
    /// What it reads by itself.
    pub backing: Option<Arc<BackingId>>,
    _turn: Turn<'a>,
}

/// A listing from some entry on.
pub struct Part {
    place: Cursor,
    listed: Arc<Listed>,
    /// Nothing may be asked of the source.
    is_known: bool,
}

/// What is told of a name.
pub struct Entry {
    pub attr: FileAttr,
    /// For how long the attributes hold, and the name.
    pub of_attr: Duration,
    pub of_name: Duration,
}

/// The children of a directory, and the watch under which they were found out, if
/// they change with that directory alone.
struct Listed {
    listing: Listing,
    watch: Option<Watch>,
}

impl Operations {
    /// # Errors
    /// The root of `view` cannot be looked at.
    pub fn new(view: Arc<View>, watcher: Option<Arc<Watcher>>) -> view::Result<Self> {
        Ok(Self {
            inodes: Inodes::new(view.root()?),
            space: Mutex::new(view.space()?),
            view,
            files: Arc::default(),
            listings: Listings::new(|listed: &Listed| listed.listing.len()),
            names: Names::default(),
            watcher,
            keeps_listings: AtomicBool::new(false),
            passthrough: Passthrough::default(),
            prefaulter: Arc::default(),
            drop_behind: Arc::default(),
        })
    }

    /// Whether the kernel keeps listings where it may. Those that nobody can have it forget
    /// are better not kept.
    pub fn offer_keeping_listings(&self, offered: bool) {
        let keeps = offered && self.watcher.is_some();
        self.keeps_listings.store(keeps, Ordering::Relaxed);
    }

    pub fn keeps_listings(&self) -> bool {
        self.keeps_listings.load(Ordering::Relaxed)
    }

    /// Never closes what is open at the end: the process does that when it ends.
    pub fn keep_what_is_open(&self) {
        std::mem::forget(self.files.clone());
    }

    /// Whether the kernel may read files by itself.
    pub fn offer_passthrough(&self, offered: bool) {
        self.passthrough.offer(offered);
    }

    /// Prefaults what is opened, once it is given the means.
    pub fn prefaulter(&self) -> Arc<Prefaulter> {
        self.prefaulter.clone()
    }

    /// The node behind a number that the kernel knows.
    ///
    /// # Errors
    /// It does not know it any more.
    pub fn node(&self, inode: INodeNo) -> Result<Node, Errno> {
        self.inodes.get(inode.0).ok_or(Errno::ESTALE)
    }

    /// What has to be waited for to find out about `node`.
    pub fn lane(&self, node: &Node) -> Lane {
        self.view.lane(node)
    }

    /// Whether [`Operations::getattr`] answers at once.
    pub fn knows_attr(&self, node: &Node) -> bool {
        self.view.knows_attr(node)
    }

    /// What is told of a name. Names that are not there are not remembered.
    pub fn lookup(&self, parent: INodeNo, name: &OsStr) -> Result<Entry, Errno> {
        // Before it is found out.
        let watch = self.watcher.as_ref().and_then(|it| it.completed(parent.0));
        let node = self
            .view
            .lookup(&self.node(parent)?, name)
            .map_err(|error| failed("lookup", parent, &error));
        let node = node.inspect_err(|_| self.names.forget(parent.0, name))?;
        let number = self.inodes.count(node.clone());
        let told = match self.tells(watch, &node, number) {
            true => LONG,
            false => SHORT,
        };
        let (attr, of_attr) = match self.view.source_directory(&node) {
            Some(_) => self.attr(number, &node),
            None => (Ok(*node.attr()), told),
        };
        let attr = attr.map_err(|error| failed("lookup", parent, &error));
        let attr = attr.inspect_err(|_| {
            self.inodes.forget(number, 1);
        })?;
        if !node.is_near() {
            self.names.put(parent.0, name, number);
        }
        Ok(Entry {
            attr: file_attr(number, &attr),
            of_attr,
            of_name: told,
        })
    }

    /// The node that the name stood for lately, if that is far away.
    pub fn known_node(&self, parent: INodeNo, name: &OsStr) -> Option<Node> {
        self.inodes.get(self.names.get(parent.0, name)?)
    }

    /// What was told of the name lately, or holds whatever the source says.
    pub fn known(&self, parent: INodeNo, name: &OsStr) -> Option<Entry> {
        let node = match self.known_node(parent, name) {
            Some(node) => node,
            None if parent.0 == ROOT && name == view::CONTROL => self.view.control().ok()?,
            None => return None,
        };
        let attr = *node.attr();
        let number = self.inodes.count(node);
        Some(Entry {
            attr: file_attr(number, &attr),
            of_attr: SHORT,
            of_name: SHORT,
        })
    }

    /// Nobody was told of `entry` by this: something else was told of the name before.
    pub fn withdraw(&self, parent: INodeNo, name: &OsStr, entry: &Entry) {
        self.inodes.forget(entry.attr.ino.0, 1);
        // Until that has been asked for anew, it is not told again.
        self.names.forget(parent.0, name);
    }

    pub fn getattr(&self, inode: INodeNo) -> Result<(FileAttr, Duration), Errno> {
        let (attr, ttl) = self.attr(inode.0, &self.node(inode)?);
        let attr = attr.map_err(|error| failed("getattr", inode, &error))?;
        Ok((file_attr(inode.0, &attr), ttl))
    }

    /// The attributes that were found last.
    pub fn known_attr(&self, inode: INodeNo) -> Option<(FileAttr, Duration)> {
        let node = self.inodes.get(inode.0)?;
        Some((file_attr(inode.0, node.attr()), SHORT))
    }

    /// Others than the attributes of now may have been told.
    pub fn correct(&self, inode: INodeNo) {
        if let Some(watcher) = &self.watcher {
            watcher.changed(inode.0);
        }
    }

    /// Attributes as of now, and for how long the kernel may answer with them.
    fn attr(&self, number: u64, node: &Node) -> (view::Result<Attr>, Duration) {
        let watch = self.watch(number, node);
        let attr = self.view.attr(node);
        if let Ok(attr) = &attr
            && attr != node.attr()
        {
            self.inodes.renew(number, node.with_attr(*attr));
        }
        let held = self.watcher.as_ref().zip(watch);
        match held.is_some_and(|(watcher, watch)| watcher.holds(watch)) {
            true => (attr, LONG),
            false => (attr, SHORT),
        }
    }

    /// Watches the directory of the source behind `node`, if there is one.
    fn watch(&self, number: u64, node: &Node) -> Option<Watch> {
        self.view.source_directory(node)?;
        let watcher = self.watcher.as_ref()?;
        watcher.watch(number, || self.view.enter(node))
    }

    /// Whether a name found under `watch` may be told for long. What may change
    /// without a trace soon gets another node.
    fn tells(&self, watch: Option<Watch>, node: &Node, number: u64) -> bool {
        let told = self.watcher.as_ref().zip(watch);
        let told = told.filter(|_| self.view.is_settled(node));
        told.is_some_and(|(watcher, watch)| watcher.tell(watch, number))
    }

    /// Opens a file, and has the page cache filled with what is touched first. That is
    /// over before the kernel is told.
    pub fn open(
        &self,
        inode: INodeNo,
        register: impl FnOnce(&File) -> io::Result<BackingId>,
    ) -> Result<Opened<'_>, Errno> {
        let node = self.node(inode)?;
        let file = self.view.open(&node);
        let file = file.map_err(|error| failed("open", inode, &error))?;
        if let Some(watcher) = &self.watcher
            && self.view.attr(&node).is_ok_and(|now| now != *node.attr())
        {
            watcher.changed(inode.0);
        }
        let turn = self.prefaulter.turn(inode.0);
        let (backing, is_first) = self.passthrough.open(inode.0, file.backing(), register);
        let cache = match self.inodes.keeps_pages(inode.0, file.contents()) {
            true => FopenFlags::FOPEN_KEEP_CACHE,
            false => FopenFlags::empty(),
        };
        if backing.is_none() && is_first {
            self.prefaulter.fill(inode.0, &file, node.attr().size);
        }
        // Nothing is ever written, so a close has nothing to flush.
        let flush = match file.minds_close() {
            true => FopenFlags::empty(),
            false => FopenFlags::FOPEN_NOFLUSH,
        };
        let flags = match backing {
            Some(_) => flush,
            None => flush | cache,
        };
        let lane = self.view.lane(&node);
        let handle = self.files.insert(Open { file, lane });
        Ok(Opened {
            handle,
            flags,
            backing,
            _turn: turn,
        })
    }

    pub fn opened(&self, handle: FileHandle) -> Option<Arc<Open>> {
        self.files.get(handle)
    }

    /// The last use of a handle is over. What is left of it takes as long to close as
    /// the source takes.
    #[must_use]
    pub fn release(&self, inode: INodeNo, handle: FileHandle) -> Option<Arc<Open>> {
        let open = self.files.remove(handle)?;
        self.passthrough.close(inode.0);
        Some(open)
    }

    /// Reads from an open file, for `send`, and takes note of what was read twice.
    pub fn read(
        &self,
        inode: INodeNo,
        file: &OpenFile,
        span: Span,
        send: impl FnOnce(Result<&[u8], Errno>),
    ) {
        let bytes = match file.read(span.offset, span.len as usize) {
            Ok(bytes) => bytes,
            Err(error) => return send(Err(failed("read", inode, &error))),
        };
        let len = bytes.len() as u64;
        // SAFETY: they are written to the device, and nothing else is done with them.
        send(Ok(unsafe { bytes.for_kernel() }));
        // Whoever wants to write to the source waits for this.
        drop(bytes);
        // Direct reads leave nothing in the page cache of the mount.
        if !span.is_direct
            && let Some((pages, bytes)) = file.source_extent(span.offset, len)
        {
            self.drop_behind.note(pages, bytes);
        }
    }

    /// The kernel gives back so many references.
    pub fn forget(&self, inode: INodeNo, lookups: u64) {
        if self.inodes.forget(inode.0, lookups) {
            self.prefaulter.forgotten(inode.0);
            if let Some(watcher) = &self.watcher {
                watcher.forgotten(inode.0);
            }
        }
    }

    /// The figures of the source's file system.
    pub fn space(&self, inode: INodeNo) -> Result<Space, Errno> {
        let space = self.view.space();
        let space = space.map_err(|error| failed("statfs", inode, &error))?;
        *self.last_space() = space;
        Ok(space)
    }

    /// Those of the last time.
    pub fn known_space(&self) -> Space {
        *self.last_space()
    }

    fn last_space(&self) -> MutexGuard<'_, Space> {
        self.space.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The listing that `offset` counts in, or a new one of `inode`.
    pub fn listing(&self, inode: INodeNo, offset: u64) -> Result<Part, Errno> {
        let (place, listed) = self.listings.get(offset, || self.list(inode))?;
        Ok(Part {
            place,
            listed,
            is_known: false,
        })
    }

    /// The same, as far as it needs nothing of the source: as of the last time.
    pub fn known_listing(&self, inode: INodeNo, offset: u64) -> Option<Part> {
        let last = || self.listings.last(inode.0).ok_or(());
        let (place, listed) = self.listings.get(offset, last).ok()?;
        Some(Part {
            place,
            listed,
            is_known: true,
        })
    }

    /// Whether to list a directory is to ask another machine.
    pub fn lists_far(&self, inode: INodeNo, directory: &Node, offset: u64) -> bool {
        !self.listings.has(offset)
            && (!directory.is_near() || self.listings.last(inode.0).is_some())
    }

    /// The children of a directory, as of now.
    fn list(&self, inode: INodeNo) -> Result<Arc<Listed>, Errno> {
        let node = self.node(inode)?;
        // Before anything is found out.
        let watch = self.watch(inode.0, &node);
        let watch = watch.filter(|_| self.view.stands_alone(&node));
        if let Some((watcher, watch)) = self.watcher.as_ref().zip(watch) {
            watcher.complete(watch);
        }
        let listing = self
            .view
            .list(&node)
            .map_err(|error| failed("readdir", inode, &error))?;
        let watch = watch.filter(|_| !listing.is_passing());
        let is_far = !node.is_near() || listing.has_far();
        let listed = Arc::new(Listed { listing, watch });
        if is_far {
            self.listings.keep(inode.0, &listed);
        }
        Ok(listed)
    }

    /// Hands the entries of a part, each with the offset of the one after it, to `add`
    /// until that says it is full.
    fn entries(
        &self,
        inode: INodeNo,
        part: &Part,
        mut add: impl FnMut(u64, Option<Watch>, Child<'_>) -> bool,
    ) {
        const DOTS: [&str; 2] = [".", ".."];
        let Part { place, listed, .. } = part;
        for position in place.position..u32::MAX {
            let next = place.offset(position + 1);
            let index = position as usize;
            let entry = match DOTS.get(index) {
                Some(name) => add(next, None, Child::Dot(OsStr::new(name))),
                None => match listed.listing.entry(index - DOTS.len()) {
                    Some((name, node)) => add(next, listed.watch, Child::Node(&name, node)),
                    None if position == place.position => {
                        // Whoever reads has got all of it.
                        self.listings.end(*place);
                        if self.keeps_listings()
                            && let Some(watcher) = &self.watcher
                        {
                            watcher.listed(inode.0, listed.watch);
                        }
                        return;
                    }
                    None => return,
                },
            };
            if entry {
                break;
            }
        }
    }

    /// Hands number, offset, type and name of each child to `add` until that is full.
    pub fn readdir(
        &self,
        inode: INodeNo,
        part: &Part,
        mut add: impl FnMut(INodeNo, u64, FileType, &OsStr) -> bool,
    ) {
        self.entries(inode, part, |next, _, child| match child {
            Child::Dot(name) => add(inode, next, FileType::Directory, name),
            Child::Node(name, node) => {
                let number = INodeNo(self.inodes.number(&node));
                add(number, next, file_type(node.kind()), name)
            }
        })
    }

    /// Hands offset, name, attributes and for how long both hold of each child to `add`
    /// until that is full. Of what is far away they are those of the listing.
    pub fn readdirplus(
        &self,
        inode: INodeNo,
        part: &Part,
        mut add: impl FnMut(u64, &OsStr, &FileAttr, Duration) -> bool,
    ) {
        let mut add = |number, next, name: &OsStr, attr: Option<Attr>, kind, ttl| {
            // Attributes that cannot be had do not take the name out of the
            // listing: the kernel asks again as soon as somebody uses it.
            let (attr, ttl) = match attr {
                Some(attr) => (attr, ttl),
                None => (unknown(kind), Duration::ZERO),
            };
            add(next, name, &file_attr(number, &attr), ttl)
        };
        self.entries(inode, part, |next, watch, child| match child {
            // The kernel takes no reference for these two.
            Child::Dot(name) => add(inode.0, next, name, None, Kind::Directory, SHORT),
            Child::Node(name, node) => {
                let number = self.inodes.count(node.clone());
                let told = self.tells(watch, &node, number);
                let (attr, ttl) = match node.is_near() && !part.is_known {
                    true => self.attr(number, &node),
                    false => (Ok(*node.attr()), SHORT),
                };
                let ttl = match self.view.source_directory(&node) {
                    // There is one time for the name and the attributes.
                    Some(_) if told => ttl,
                    None if told => LONG,
                    _ => SHORT,
                };
                let full = add(number, next, name, attr.ok(), node.kind(), ttl);
                match full {
                    true => drop(self.inodes.forget(number, 1)),
                    false if !node.is_near() => self.names.put(inode.0, name, number),
                    false => {}
                }
                full
            }
        })
    }

    fn xattrs(&self, inode: INodeNo) -> Result<Vec<(&'static str, Vec<u8>)>, Errno> {
        self.view
            .xattrs(&self.node(inode)?)
            .map_err(|error| failed("getxattr", inode, &error))
    }

    /// The attribute, unless the name alone tells that there is none.
    pub fn getxattr(&self, inode: INodeNo, name: &OsStr) -> Result<Vec<u8>, Errno> {
        self.xattrs(inode)?
            .into_iter()
            .find(|(known, _)| name == *known)
            .map(|(_, value)| value)
            .ok_or(Errno::ENODATA)
    }

    pub fn listxattr(&self, inode: INodeNo) -> Result<Vec<u8>, Errno> {
        let mut names = vec![];
        for (name, _) in self.xattrs(inode)? {
            names.extend_from_slice(name.as_bytes());
            names.push(0);
        }
        Ok(names)
    }
}

/// The number for `error`, which is logged where it is not a usual outcome.
fn failed(operation: &str, inode: INodeNo, error: &view::Error) -> Errno {
    if let view::Error::Io(cause) = error {
        warn!("{operation} {inode}: {cause}");
    }
    errno(error)
}

/// Which bytes of a file are read, and whether past the page cache.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    pub offset: u64,
    /// Bytes.
    pub len: u32,
    pub is_direct: bool,
}

/// The answer about an extended attribute that needs nothing of the file.
pub fn xattr_by_name(inode: INodeNo, name: &OsStr) -> Option<Result<Vec<u8>, Errno>> {
    let name = name.as_encoded_bytes();
    if inode.0 == ROOT && name == xattr::PID.to_bytes() {
        return Some(Ok(process::id().to_string().into_bytes()));
    }
    // Access control lists and security labels, which `ls -l` goes on asking for
    // of every file until it learns that there are none here.
    if !name.starts_with(b"user.") {
        return Some(Err(Errno::EOPNOTSUPP));
    }
    (!name.starts_with(view::XATTRS.as_bytes())).then_some(Err(Errno::ENODATA))
}

/// What stands in a listing.
enum Child<'a> {
    Dot(&'static OsStr),
    Node(&'a OsStr, Node),
}

fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::Directory => FileType::Directory,
        Kind::File => FileType::RegularFile,
    }
}

pub fn file_attr(number: u64, attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(number),
        size: attr.size,
        blocks: attr.size.div_ceil(BLOCK),
        atime: attr.atime,
        mtime: attr.mtime,
        ctime: attr.ctime,
        crtime: SystemTime::UNIX_EPOCH,
        kind: file_type(attr.kind),
        perm: attr.mode & 0o7777,
        nlink: match attr.kind {
            Kind::Directory => 2,
            Kind::File => 1,
        },
        uid: attr.uid,
        gid: attr.gid,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

pub fn unknown(kind: Kind) -> Attr {
    Attr {
        kind,
        size: 0,
        mode: 0,
        uid: 0,
        gid: 0,
        atime: SystemTime::UNIX_EPOCH,
        mtime: SystemTime::UNIX_EPOCH,
        ctime: SystemTime::UNIX_EPOCH,
    }
}
