//! The tree as the kernel asks for it: one handler for each FUSE operation. What is
//! known is answered by the thread that took the request. What may block is handed over
//! with its reply, so that there is always somebody to take the next request.

use std::ffi::OsStr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use fuser::{
    Errno, FileAttr, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, KernelConfig,
    LockOwner, OpenAccMode, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyXattr, Request,
};
use log::error;

use super::deadlines::{Deadlines, Pending};
use super::inodes::ROOT;
use super::kernel;
use super::operations::{Entry, Operations, Part, Span, xattr_by_name};
use super::prefault::Prefaulter;
use super::watch::Watcher;
use crate::source::Space;
use crate::view::{self, View};
use crate::workers::{self, Lane, Workers};

/// Nodes never share a number over time: the key decides it.
const GENERATION: Generation = Generation(0);

/// Threads for what may block that are there before there is anything to do.
const READY: usize = 2;
/// How long the source has to say what is known of it already, before that is told.
const PATIENCE: Duration = Duration::from_secs(1);
/// The same for what everything else begins with, and of a source that does not answer.
const SHORT_PATIENCE: Duration = Duration::from_millis(20);

pub struct Adapter {
    operations: Arc<Operations>,
    workers: Workers,
    deadlines: Deadlines,
}

impl Adapter {
    /// `threads`: how many may be blocked at once.
    ///
    /// # Errors
    /// The root of `view` cannot be looked at.
    pub fn new(
        view: Arc<View>,
        watcher: Option<Arc<Watcher>>,
        threads: usize,
    ) -> view::Result<Self> {
        Ok(Self {
            operations: Arc::new(Operations::new(view, watcher)?),
            workers: Workers::new("work", threads, READY, || {}),
            deadlines: Deadlines::default(),
        })
    }

    /// Keeps what is open until the process ends: to close a file of a source that hangs
    /// takes as long as that does.
    pub fn keep_what_is_open(&self) {
        self.operations.keep_what_is_open();
    }

    /// Prefaults what is opened, once it is given the means.
    pub fn prefaulter(&self) -> Arc<Prefaulter> {
        self.operations.prefaulter()
    }

    /// Has `work` done by a thread that may block. Where that panics, its reply has been
    /// dropped, which sends `EIO`.
    fn hand_over(&self, lane: Lane, work: impl FnOnce(&Operations) + Send + 'static) {
        let operations = self.operations.clone();
        self.workers.add(lane, move || work(&operations));
    }

    /// The same of work that gives a reply which may have been given.
    fn hand_over_pending<R: Send + 'static>(
        &self,
        lane: Lane,
        pending: Arc<Pending<R>>,
        work: impl FnOnce(&Operations, &Pending<R>) + Send + 'static,
    ) {
        let operations = self.operations.clone();
        let given = pending.clone();
        self.workers.add_unless(
            lane,
            move || given.is_given(),
            move || work(&operations, &pending),
        );
    }

    /// Has the reply given by `end` from what is known, unless that is given soon.
    fn in_time<R: Send + 'static>(
        &self,
        pending: &Arc<Pending<R>>,
        lane: Lane,
        is_root: bool,
        end: impl FnOnce(&Operations, &Pending<R>) + Send + 'static,
    ) {
        let patience = match is_root || self.workers.is_stalled(lane) {
            true => SHORT_PATIENCE,
            false => PATIENCE,
        };
        let operations = self.operations.clone();
        self.deadlines
            .add(pending, patience, move |pending| end(&operations, pending));
    }

    fn lookup(&self, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let directory = match self.operations.node(parent) {
            Ok(directory) => directory,
            Err(errno) => return reply.error(errno),
        };
        let name = name.to_os_string();
        // A link may have led far away.
        let home = self.operations.known_node(parent, &name);
        let home = home.filter(|home| !home.is_near());
        let home = home.unwrap_or(directory);
        let lane = Lane {
            file: workers::number(&(parent.0, &name)),
            directory: parent.0,
            ..self.operations.lane(&home)
        };
        let pending = Pending::new(reply);
        let is_first = parent.0 == ROOT && name == view::CONTROL;
        if is_first || !home.is_near() {
            let name = name.clone();
            self.in_time(&pending, lane, is_first, move |operations, pending| {
                if let Some(entry) = operations.known(parent, &name) {
                    match pending.take() {
                        Some(reply) => reply_entry(reply, &entry),
                        None => operations.withdraw(parent, &name, &entry),
                    }
                }
            });
        }
        self.hand_over_pending(lane, pending, move |operations, pending| {
            let found = operations.lookup(parent, &name);
            match (pending.take(), found) {
                (Some(reply), Ok(entry)) => reply_entry(reply, &entry),
                (Some(reply), Err(errno)) => reply.error(errno),
                (None, Ok(entry)) => operations.withdraw(parent, &name, &entry),
                (None, Err(_)) => {}
            }
        });
    }

    fn getattr(&self, inode: INodeNo, reply: ReplyAttr) {
        let node = match self.operations.node(inode) {
            Ok(node) => node,
            Err(errno) => return reply.error(errno),
        };
        if self.operations.knows_attr(&node) {
            return reply_attr(reply, self.operations.getattr(inode));
        }
        let lane = self.operations.lane(&node);
        let pending = Pending::new(reply);
        let is_root = inode.0 == ROOT;
        self.in_time(&pending, lane, is_root, move |operations, pending| {
            if let Some(known) = operations.known_attr(inode)
                && let Some(reply) = pending.take()
            {
                reply_attr(reply, Ok(known));
            }
        });
        self.hand_over_pending(lane, pending, move |operations, pending| {
            let found = operations.getattr(inode);
            match pending.take() {
                Some(reply) => reply_attr(reply, found),
                None => operations.correct(inode),
            }
        });
    }

    fn open(&self, inode: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if flags.acc_mode() != OpenAccMode::O_RDONLY {
            return reply.error(Errno::EROFS);
        }
        let node = match self.operations.node(inode) {
            Ok(node) => node,
            Err(errno) => return reply.error(errno),
        };
        self.hand_over(self.operations.lane(&node), move |operations| {
            let opened = operations.open(inode, |file| reply.open_backing(file));
            match &opened {
                Ok(opened) => match &opened.backing {
                    Some(backing) => reply.opened_passthrough(opened.handle, opened.flags, backing),
                    None => reply.opened(opened.handle, opened.flags),
                },
                Err(errno) => reply.error(*errno),
            }
        });
    }

    fn read(&self, inode: INodeNo, handle: FileHandle, span: Span, reply: ReplyData) {
        let Some(open) = self.operations.opened(handle) else {
            return reply.error(Errno::EBADF);
        };
        let send = |bytes: Result<&[u8], Errno>| match bytes {
            Ok(bytes) => reply.data(bytes),
            Err(errno) => reply.error(errno),
        };
        if open.file.is_at_hand(span.offset, span.len as usize) {
            return self.operations.read(inode, &open.file, span, send);
        }
        self.hand_over(open.lane, move |operations| {
            operations.read(inode, &open.file, span, send);
        });
    }

    fn release(&self, inode: INodeNo, handle: FileHandle) {
        if let Some(open) = self.operations.release(inode, handle)
            && !open.file.is_near()
        {
            self.workers.add(open.lane, move || drop(open));
        }
    }

    /// Has a part of a listing found, and the reply filled with it by `fill`, or given by
    /// `fail` where there is none.
    fn list<R: Send + 'static>(
        &self,
        inode: INodeNo,
        offset: u64,
        reply: R,
        fail: fn(R, Errno),
        fill: fn(&Operations, INodeNo, &Part, R),
    ) {
        let lane = self.lane_of_listing(inode);
        let pending = Pending::new(reply);
        let directory = self.operations.node(inode);
        if directory.is_ok_and(|it| self.operations.lists_far(inode, &it, offset)) {
            self.in_time(&pending, lane, false, move |operations, pending| {
                if let Some(part) = operations.known_listing(inode, offset)
                    && let Some(reply) = pending.take()
                {
                    fill(operations, inode, &part, reply);
                }
            });
        }
        self.hand_over_pending(lane, pending, move |operations, pending| {
            let part = operations.listing(inode, offset);
            match (pending.take(), part) {
                (Some(reply), Ok(part)) => fill(operations, inode, &part, reply),
                (Some(reply), Err(errno)) => fail(reply, errno),
                (None, _) => {}
            }
        });
    }

    /// The lane of what looks at all that is in a directory.
    fn lane_of_listing(&self, inode: INodeNo) -> Lane {
        let node = self.operations.node(inode);
        let lane = node.map_or_else(|_| Lane::default(), |node| self.operations.lane(&node));
        Lane {
            directory: inode.0,
            ..lane
        }
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let granted = kernel::negotiate(config);
        self.operations.offer_passthrough(granted.passthrough);
        self.operations.offer_keeping_listings(granted.no_opendir);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        answer("lookup", || self.lookup(parent, name, reply));
    }

    fn forget(&self, _: &Request, inode: INodeNo, lookups: u64) {
        answer("forget", || self.operations.forget(inode, lookups));
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        answer("getattr", || self.getattr(inode, reply));
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
        len: u32,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let is_direct = flags.0 & libc::O_DIRECT != 0;
        let span = Span {
            offset,
            len,
            is_direct,
        };
        answer("read", || self.read(inode, handle, span, reply));
    }

    /// A descriptor is closed.
    fn flush(&self, _: &Request, _: INodeNo, handle: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        answer("flush", || {
            if let Some(open) = self.operations.opened(handle) {
                open.file.closed();
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
            self.release(inode, handle);
            reply.ok();
        });
    }

    /// The kernel does without from here on, and keeps listings, where it can.
    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.operations.keeps_listings() {
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
        self.list(
            inode,
            offset,
            reply,
            ReplyDirectory::error,
            |operations, inode, part, mut reply| {
                operations.readdir(inode, part, |number, next, kind, name| {
                    reply.add(number, next, kind, name)
                });
                reply.ok();
            },
        );
    }

    fn readdirplus(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        self.list(
            inode,
            offset,
            reply,
            ReplyDirectoryPlus::error,
            |operations, inode, part, mut reply| {
                operations.readdirplus(inode, part, |next, name, attr, ttl| {
                    reply.add(attr.ino, next, name, &ttl, attr, GENERATION)
                });
                reply.ok();
            },
        );
    }

    fn statfs(&self, _: &Request, inode: INodeNo, reply: ReplyStatfs) {
        let lane = self.lane_of_listing(INodeNo(ROOT));
        let pending = Pending::new(reply);
        self.in_time(&pending, lane, true, |operations, pending| {
            if let Some(reply) = pending.take() {
                reply_space(reply, Ok(operations.known_space()));
            }
        });
        self.hand_over_pending(lane, pending, move |operations, pending| {
            let space = operations.space(inode);
            if let Some(reply) = pending.take() {
                reply_space(reply, space);
            }
        });
    }

    fn getxattr(&self, _: &Request, inode: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        if let Some(value) = xattr_by_name(inode, name) {
            return reply_sized(value, size, reply);
        }
        let name = name.to_os_string();
        self.hand_over(self.lane_of_listing(inode), move |operations| {
            reply_sized(operations.getxattr(inode, &name), size, reply);
        });
    }

    fn listxattr(&self, _: &Request, inode: INodeNo, size: u32, reply: ReplyXattr) {
        self.hand_over(self.lane_of_listing(inode), move |operations| {
            reply_sized(operations.listxattr(inode), size, reply);
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

fn reply_entry(reply: ReplyEntry, entry: &Entry) {
    reply.entry_with_ttls(&entry.of_attr, &entry.of_name, &entry.attr, GENERATION);
}

fn reply_attr(reply: ReplyAttr, found: Result<(FileAttr, Duration), Errno>) {
    match found {
        Ok((attr, ttl)) => reply.attr(&ttl, &attr),
        Err(errno) => reply.error(errno),
    }
}

fn reply_space(reply: ReplyStatfs, space: Result<Space, Errno>) {
    match space {
        Ok(space) => reply.statfs(
            space.blocks,
            space.blocks_free,
            space.blocks_available,
            space.files,
            space.files_free,
            space.block_size,
            space.name_max,
            space.fragment_size,
        ),
        Err(errno) => reply.error(errno),
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mount::operations::{file_attr, unknown};
    use crate::mount::watch::SHORT;
    use crate::mount::{device, unmount};
    use crate::view::Kind;
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
