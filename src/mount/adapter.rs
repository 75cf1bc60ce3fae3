//! The tree as the kernel asks for it: one handler for each FUSE operation.

use std::ffi::OsStr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    KernelConfig, LockOwner, OpenAccMode, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyXattr,
    Request,
};
use log::{error, warn};

use super::drop_behind::DropBehind;
use super::errno::errno;
use super::handles::{Handles, Passthrough};
use super::inodes::{Inodes, ROOT};
use super::kernel;
use super::listings::Listings;
use super::prefault::Prefaulter;
use super::watch::{LONG, SHORT, Watch, Watcher};
use super::xattr;
use crate::source::Bytes;
use crate::view::{self, Attr, Kind, Listing, Node, OpenFile, View};

/// Nodes never share a number over time: the key decides it.
const GENERATION: Generation = Generation(0);

/// Bytes that `st_blocks` counts.
const BLOCK: u64 = 512;

pub struct Adapter {
    view: Arc<View>,
    inodes: Inodes<Node>,
    files: Handles<OpenFile>,
    listings: Listings<Listed>,
    /// None where nothing can be watched.
    watcher: Option<Arc<Watcher>>,
    no_opendir: bool,
    passthrough: Passthrough,
    prefaulter: Arc<Prefaulter>,
    drop_behind: Arc<DropBehind>,
}

/// The children of a directory, and the watch under which they were found out, if
/// they change with that directory alone.
struct Listed {
    listing: Listing,
    watch: Option<Watch>,
}

impl Adapter {
    /// # Errors
    /// The root of `view` cannot be looked at.
    pub fn new(view: Arc<View>, watcher: Option<Arc<Watcher>>) -> view::Result<Self> {
        Ok(Self {
            inodes: Inodes::new(view.root()?),
            view,
            files: Handles::default(),
            listings: Listings::new(|listed: &Listed| listed.listing.len()),
            watcher,
            no_opendir: false,
            passthrough: Passthrough::default(),
            prefaulter: Arc::default(),
            drop_behind: Arc::default(),
        })
    }

    /// Prefaults what is opened, once it is given the means.
    pub fn prefaulter(&self) -> Arc<Prefaulter> {
        self.prefaulter.clone()
    }

    fn node(&self, inode: INodeNo) -> Result<Node, Errno> {
        self.inodes.get(inode.0).ok_or(Errno::ESTALE)
    }

    /// The attributes of a name, for as long as the second and the name itself for as
    /// long as the third. Names that are not there are not remembered.
    fn lookup(
        &self,
        parent: INodeNo,
        name: &OsStr,
    ) -> Result<(FileAttr, Duration, Duration), Errno> {
        // Before it is found out.
        let watch = self.watcher.as_ref().and_then(|it| it.completed(parent.0));
        let node = self
            .view
            .lookup(&self.node(parent)?, name)
            .map_err(|error| failed("lookup", parent, &error))?;
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
        Ok((file_attr(number, &attr), of_attr, told))
    }

    fn getattr(&self, inode: INodeNo) -> Result<(FileAttr, Duration), Errno> {
        let (attr, ttl) = self.attr(inode.0, &self.node(inode)?);
        let attr = attr.map_err(|error| failed("getattr", inode, &error))?;
        Ok((file_attr(inode.0, &attr), ttl))
    }

    /// Attributes as of now, and for how long the kernel may answer with them.
    fn attr(&self, number: u64, node: &Node) -> (view::Result<Attr>, Duration) {
        let watch = self.watch(number, node);
        let attr = self.view.attr(node);
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

    fn open(&self, inode: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if flags.acc_mode() != OpenAccMode::O_RDONLY {
            return reply.error(Errno::EROFS);
        }
        let opened = self.node(inode).and_then(|node| {
            let file = self.view.open(&node);
            let file = file.map_err(|error| failed("open", inode, &error))?;
            if let Some(watcher) = &self.watcher
                && self.view.attr(&node).is_ok_and(|now| now != *node.attr())
            {
                watcher.changed(inode.0);
            }
            Ok((file, node.attr().size))
        });
        let (file, size) = match opened {
            Ok(opened) => opened,
            Err(errno) => return reply.error(errno),
        };
        let backing = self
            .passthrough
            .open(inode.0, file.backing(), |file| reply.open_backing(file));
        let cache = match self.inodes.keeps_pages(inode.0, file.contents()) {
            true => FopenFlags::FOPEN_KEEP_CACHE,
            false => FopenFlags::empty(),
        };
        let file = Arc::new(file);
        if backing.is_none() {
            self.prefaulter.opened(inode.0, &file, size);
        }
        // Nothing is ever written, so a close has nothing to flush.
        let flush = match file.minds_close() {
            true => FopenFlags::empty(),
            false => FopenFlags::FOPEN_NOFLUSH,
        };
        let handle = self.files.insert(file);
        match backing {
            Some(backing) => reply.opened_passthrough(handle, flush, &backing),
            None => reply.opened(handle, flush | cache),
        }
    }

    fn read(
        &self,
        inode: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        flags: OpenFlags,
        reply: ReplyData,
    ) {
        let Some(file) = self.files.get(handle) else {
            return reply.error(Errno::EBADF);
        };
        match file.read(offset, size as usize) {
            Ok(Bytes::Mapped(bytes)) => {
                let len = bytes.len() as u64;
                // SAFETY: the reply writes them to the device, and does nothing else.
                reply.data(unsafe { bytes.for_kernel() });
                // Direct reads leave nothing in the page cache of the mount.
                if flags.0 & libc::O_DIRECT == 0
                    && let Some((pages, bytes)) = file.source_extent(offset, len)
                {
                    self.drop_behind.note(pages, bytes);
                }
            }
            Ok(Bytes::Owned(bytes)) => reply.data(&bytes),
            Err(error) => reply.error(failed("read", inode, &error)),
        }
    }

    /// The children of a directory, as of now.
    fn list(&self, inode: INodeNo) -> Result<Listed, Errno> {
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
        Ok(Listed { listing, watch })
    }

    /// Hands the entries from `offset` on, each with the offset of the one after it,
    /// to `add` until that says it is full.
    fn entries(
        &self,
        inode: INodeNo,
        offset: u64,
        mut add: impl FnMut(u64, Option<Watch>, Entry<'_>) -> bool,
    ) -> Result<(), Errno> {
        const DOTS: [&str; 2] = [".", ".."];
        let (place, listed) = self.listings.get(offset, || self.list(inode))?;
        for position in place.position..u32::MAX {
            let next = place.offset(position + 1);
            let index = position as usize;
            let entry = match DOTS.get(index) {
                Some(name) => add(next, None, Entry::Dot(OsStr::new(name))),
                None => match listed.listing.entry(index - DOTS.len()) {
                    Some((name, node)) => add(next, listed.watch, Entry::Child(&name, node)),
                    None if position == place.position => {
                        // Whoever reads has got all of it.
                        self.listings.end(place);
                        if self.no_opendir
                            && let Some(watcher) = &self.watcher
                        {
                            watcher.listed(inode.0, listed.watch);
                        }
                        return Ok(());
                    }
                    None => return Ok(()),
                },
            };
            if entry {
                break;
            }
        }
        Ok(())
    }

    fn readdir(&self, inode: INodeNo, offset: u64, mut reply: ReplyDirectory) {
        let listed = self.entries(inode, offset, |next, _, entry| match entry {
            Entry::Dot(name) => reply.add(inode, next, FileType::Directory, name),
            Entry::Child(name, node) => {
                let number = INodeNo(self.inodes.number(&node));
                reply.add(number, next, file_type(node.kind()), name)
            }
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn readdirplus(&self, inode: INodeNo, offset: u64, mut reply: ReplyDirectoryPlus) {
        let mut add = |number, next, name: &OsStr, attr: Option<Attr>, kind, ttl| {
            // Attributes that cannot be had do not take the name out of the
            // listing: the kernel asks again as soon as somebody uses it.
            let (attr, ttl) = match attr {
                Some(attr) => (attr, ttl),
                None => (unknown(kind), Duration::ZERO),
            };
            let attr = file_attr(number, &attr);
            reply.add(attr.ino, next, name, &ttl, &attr, GENERATION)
        };
        let listed = self.entries(inode, offset, |next, watch, entry| match entry {
            // The kernel takes no reference for these two.
            Entry::Dot(name) => add(inode.0, next, name, None, Kind::Directory, SHORT),
            Entry::Child(name, node) => {
                let number = self.inodes.count(node.clone());
                let told = self.tells(watch, &node, number);
                let (attr, ttl) = self.attr(number, &node);
                let ttl = match self.view.source_directory(&node) {
                    // There is one time for the name and the attributes.
                    Some(_) if told => ttl,
                    None if told => LONG,
                    _ => SHORT,
                };
                let full = add(number, next, name, attr.ok(), node.kind(), ttl);
                if full {
                    self.inodes.forget(number, 1);
                }
                full
            }
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn xattrs(&self, inode: INodeNo) -> Result<Vec<(&'static str, Vec<u8>)>, Errno> {
        self.view
            .xattrs(&self.node(inode)?)
            .map_err(|error| failed("getxattr", inode, &error))
    }

    fn getxattr(&self, inode: INodeNo, name: &OsStr) -> Result<Vec<u8>, Errno> {
        if inode.0 == ROOT && name.as_encoded_bytes() == xattr::PID.to_bytes() {
            return Ok(process::id().to_string().into_bytes());
        }
        // Access control lists and security labels, which `ls -l` goes on asking for
        // of every file until it learns that there are none here.
        if !name.as_encoded_bytes().starts_with(b"user.") {
            return Err(Errno::EOPNOTSUPP);
        }
        if !name.as_encoded_bytes().starts_with(view::XATTRS.as_bytes()) {
            return Err(Errno::ENODATA);
        }
        self.xattrs(inode)?
            .into_iter()
            .find(|(known, _)| name == *known)
            .map(|(_, value)| value)
            .ok_or(Errno::ENODATA)
    }

    fn listxattr(&self, inode: INodeNo) -> Result<Vec<u8>, Errno> {
        let mut names = vec![];
        for (name, _) in self.xattrs(inode)? {
            names.extend_from_slice(name.as_bytes());
            names.push(0);
        }
        Ok(names)
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let granted = kernel::negotiate(config);
        self.passthrough.offer(granted.passthrough);
        // Listings that nobody can have forgotten are better not kept.
        self.no_opendir = granted.no_opendir && self.watcher.is_some();
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        answer("lookup", || match self.lookup(parent, name) {
            Ok((attr, of_attr, of_name)) => {
                reply.entry_with_ttls(&of_attr, &of_name, &attr, GENERATION);
            }
            Err(errno) => reply.error(errno),
        });
    }

    fn forget(&self, _: &Request, inode: INodeNo, lookups: u64) {
        answer("forget", || {
            if self.inodes.forget(inode.0, lookups) {
                self.prefaulter.forgotten(inode.0);
                if let Some(watcher) = &self.watcher {
                    watcher.forgotten(inode.0);
                }
            }
        });
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        answer("getattr", || match self.getattr(inode) {
            Ok((attr, ttl)) => reply.attr(&ttl, &attr),
            Err(errno) => reply.error(errno),
        });
    }

    fn open(&self, _: &Request, inode: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        answer("open", || self.open(inode, flags, reply));
    }

    fn read(
        &self,
        _: &Request,
        inode: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        answer("read", || {
            self.read(inode, handle, offset, size, flags, reply);
        });
    }

    /// A descriptor is closed.
    fn flush(&self, _: &Request, _: INodeNo, handle: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        answer("flush", || {
            if let Some(file) = self.files.get(handle) {
                file.closed();
            }
            reply.ok();
        });
    }

    fn release(
        &self,
        _: &Request,
        inode: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        answer("release", || {
            if self.files.remove(handle).is_some() {
                self.passthrough.close(inode.0);
            }
            reply.ok();
        });
    }

    /// The kernel does without from here on, and keeps listings, where it can.
    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.no_opendir {
            true => reply.error(Errno::ENOSYS),
            false => reply.opened(FileHandle(0), FopenFlags::empty()),
        }
    }

    fn readdir(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        answer("readdir", || self.readdir(inode, offset, reply));
    }

    fn readdirplus(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        answer("readdirplus", || self.readdirplus(inode, offset, reply));
    }

    fn statfs(&self, _: &Request, inode: INodeNo, reply: ReplyStatfs) {
        answer("statfs", || match self.view.space() {
            Ok(stats) => reply.statfs(
                stats.blocks,
                stats.blocks_free,
                stats.blocks_available,
                stats.files,
                stats.files_free,
                stats.block_size,
                stats.name_max,
                stats.fragment_size,
            ),
            Err(error) => reply.error(failed("statfs", inode, &error)),
        });
    }

    fn getxattr(&self, _: &Request, inode: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        answer("getxattr", || {
            reply_sized(self.getxattr(inode, name), size, reply);
        });
    }

    fn listxattr(&self, _: &Request, inode: INodeNo, size: u32, reply: ReplyXattr) {
        answer("listxattr", || {
            reply_sized(self.listxattr(inode), size, reply)
        });
    }

    /// The kernel finds holes by itself from here on: none.
    fn lseek(&self, _: &Request, _: INodeNo, _: FileHandle, _: i64, _: i32, reply: ReplyLseek) {
        reply.error(Errno::ENOSYS);
    }
}

/// Runs a handler. One that panics has dropped its reply on the way, which sends
/// `EIO`; the mount goes on.
fn answer(operation: &str, handler: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(handler)).is_err() {
        error!("{operation}: a defect in stfs; answered with an I/O error");
    }
}

/// The number for `error`, which is logged where it is not a usual outcome.
fn failed(operation: &str, inode: INodeNo, error: &view::Error) -> Errno {
    if let view::Error::Io(cause) = error {
        warn!("{operation} {inode}: {cause}");
    }
    errno(error)
}

/// The convention of getxattr(2): size zero asks how long the value is.
fn reply_sized(value: Result<Vec<u8>, Errno>, size: u32, reply: ReplyXattr) {
    match value {
        Err(errno) => reply.error(errno),
        Ok(value) => match u32::try_from(value.len()) {
            Ok(length) if size == 0 => reply.size(length),
            Ok(length) if length <= size => reply.data(&value),
            _ => reply.error(Errno::ERANGE),
        },
    }
}

/// What stands in a listing.
enum Entry<'a> {
    Dot(&'static OsStr),
    Child(&'a OsStr, Node),
}

fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::Directory => FileType::Directory,
        Kind::File => FileType::RegularFile,
    }
}

fn file_attr(number: u64, attr: &Attr) -> FileAttr {
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

fn unknown(kind: Kind) -> Attr {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mount::{device, unmount};
    use std::path::Path;
    use std::{fs, thread};

    /// A file system in which every name but the root's is a defect.
    struct Defective;

    impl Filesystem for Defective {
        fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
            reply.attr(&SHORT, &file_attr(inode.0, &unknown(Kind::Directory)));
        }

        fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
            answer("lookup", || {
                if !name.is_empty() {
                    panic!("on purpose");
                }
                reply.error(Errno::ENOENT);
            });
        }
    }

    #[test]
    fn a_panic_is_an_io_error_and_no_more() {
        if !Path::new("/dev/fuse").exists() {
            return crate::skip::skip("no /dev/fuse");
        }
        let dir = tempfile::tempdir().unwrap();
        let attributes = device::Attributes {
            source: "defective".into(),
            allow_other: false,
            noexec: false,
            noatime: false,
        };
        let device = device::attach(dir.path(), &attributes).unwrap();
        let settings = fuser::Config::default();
        let session =
            fuser::Session::from_fd(Defective, device, fuser::SessionACL::All, settings).unwrap();
        let requests = thread::spawn(|| session.run());
        // Of one thread; the second time shows that it lived on.
        let errors = [0, 1].map(|_| fs::metadata(dir.path().join("x")).unwrap_err());
        unmount::unmount(dir.path(), unmount::Manner::Lazy).unwrap();
        requests.join().unwrap().unwrap();
        assert_eq!(
            errors.map(|error| error.raw_os_error()),
            [Some(libc::EIO); 2]
        );
    }
}
