//! A directory of this machine as a tree. It holds a descriptor of its root, and
//! everything is resolved relative to that one.
//!
//! ```text
//! root     the root, held open, and found again where that is permitted
//! resolve  paths below the root, link by link where links may not lead out
//! step     from a directory to a name in it, over no mount unseen
//! boundary which mounts may be touched
//! inode    what an inode says, and which file system it belongs to
//! acl      access control lists
//! opened   an open file
//! lease    read leases, which keep an open file as it is
//! mountinfo  the table of mounts
//! place    what a file system is mounted from
//! ```

mod acl;
mod boundary;
mod inode;
mod lease;
pub mod mountinfo;
mod opened;
mod place;
mod resolve;
mod root;
mod step;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;

use super::{Found, Metadata, Obstacle, Source, Space, System, Tree};
use inode::{Inode, Kind};
use opened::Opened;
use resolve::Stop;
use root::{Held, Root};
use step::Follow;

/// Where symbolic links may lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Links {
    /// Wherever the rights of the process reach.
    #[default]
    Anywhere,
    /// To what lies below the root, and only through directories that whoever
    /// follows them may enter: for trees that others read too.
    Inside,
}

/// A directory of a local tree.
#[derive(Debug)]
pub struct LocalTree {
    root: Arc<Root>,
    /// The root as it was when this directory was entered.
    held: Arc<Held>,
    path: PathBuf,
    directory: Arc<OwnedFd>,
    /// No link led here.
    is_direct: bool,
    inode: Inode,
    system: System,
    metadata: Metadata,
}

impl LocalTree {
    /// Opens the directory `path`, whose links may lead where `links` says.
    ///
    /// # Errors
    /// It is no directory, or must not be read.
    pub fn open(path: &Path, links: Links) -> io::Result<LocalTree> {
        let tree = LocalTree::of(path.canonicalize()?, links)?;
        tree.list()?;
        Ok(tree)
    }

    /// The directory that the file `path` lies in, whose links may lead anywhere,
    /// and the name of the file.
    pub fn around(path: &Path) -> io::Result<(LocalTree, OsString)> {
        let name = path.file_name().ok_or(io::ErrorKind::IsADirectory)?;
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let tree = LocalTree::of(parent.canonicalize()?, Links::Anywhere)?;
        Ok((tree, name.to_os_string()))
    }

    fn of(path: PathBuf, links: Links) -> io::Result<LocalTree> {
        let root = Arc::new(Root::open(path, links)?);
        let held = root.held()?;
        let directory = held.directory.clone();
        LocalTree::at(root, held, PathBuf::new(), directory, true)
    }

    fn at(
        root: Arc<Root>,
        held: Arc<Held>,
        path: PathBuf,
        directory: Arc<OwnedFd>,
        is_direct: bool,
    ) -> io::Result<LocalTree> {
        let inode = root.inode_of(&directory)?;
        let system = inode.system(&directory)?;
        Ok(LocalTree {
            metadata: inode.metadata(system, &path),
            root,
            held,
            path,
            directory,
            is_direct,
            inode,
            system,
        })
    }

    /// The inode of the entry `name`, and that held, unless it lies beside the directory
    /// on a disk: there the kernel knows all of it without being let into another mount.
    /// None: a mount that may not be touched.
    fn entry(&self, name: &OsStr) -> Result<Option<(Inode, Option<OwnedFd>)>, Errno> {
        if let System::Lasting { .. } = self.system
            && self.root.links == Links::Anywhere
            && let Ok(inode) = Inode::glance(&self.directory, name)
            && inode.is_beside(&self.inode)
        {
            return Ok(Some((inode, None)));
        }
        let file = step::entry(&self.root.boundary, &self.directory, name)?;
        let with_inode = |file| Ok((Inode::of(&file)?, Some(file)));
        file.map(with_inode).transpose()
    }

    /// What is found under `name`: `file`, which has the inode `inode`.
    fn found(&self, name: &OsStr, inode: &Inode, file: Option<&OwnedFd>) -> io::Result<Found> {
        let make = match inode.kind {
            Kind::File => Found::File,
            Kind::Directory => Found::Directory,
            Kind::Link | Kind::Special => return Ok(Found::Special),
        };
        let system = match file.filter(|_| !inode.is_beside(&self.inode)) {
            None => self.system,
            Some(file) => inode.system(file)?,
        };
        Ok(make(inode.metadata(system, &self.path.join(name))))
    }

    /// What the symbolic link `name`, whose own inode is `link`, leads to.
    fn behind(&self, name: &OsStr, link: &Inode) -> io::Result<Found> {
        let reached = match self.root.links {
            Links::Anywhere => resolve::anywhere(&self.root.boundary, &self.directory, name),
            Links::Inside => resolve::inside(&self.root, &self.held, &self.path.join(name)),
        };
        let blocked = |obstacle| {
            let metadata = link.metadata(self.system, &self.path.join(name));
            Ok(Found::Blocked(metadata, obstacle))
        };
        let file = match reached {
            Ok(file) => file,
            Err(Stop::Obstacle(obstacle)) => return blocked(obstacle),
            Err(Stop::Io(error)) => return Err(error),
        };
        let inode = self.root.inode_of(&file)?;
        if inode.kind == Kind::Directory && self.lies_in(&inode)? {
            return blocked(Obstacle::Upwards);
        }
        self.found(name, &inode, Some(&file))
    }

    /// Whether this directory is the one with the inode `directory` or leads through
    /// it, as its path is written or by way of the links in that.
    fn lies_in(&self, directory: &Inode) -> io::Result<bool> {
        use io::ErrorKind::{NotADirectory, NotFound, PermissionDenied};
        for path in self.path.ancestors() {
            match self.enter_at(path) {
                Ok(tree) if tree.inode.is(directory) => return Ok(true),
                Ok(_) => {}
                // Another one stands at its path now, or none.
                Err(error)
                    if matches!(error.kind(), NotFound | NotADirectory | PermissionDenied) => {}
                Err(error) => return Err(error),
            }
        }
        resolve::lies_below(&self.root.boundary, &self.directory, directory)
    }

    fn enter_at(&self, path: &Path) -> io::Result<LocalTree> {
        let root = &self.root;
        let held = root.held()?;
        match LocalTree::below(root, &held, path) {
            Ok(tree) if !tree.is_root() || !tree.inode.is_removed() => return Ok(tree),
            Err(error) if !root.is_fault_of(&held) => return Err(error),
            Ok(_) if !root.is_fault_of(&held) => return Err(root.gone()),
            _ => {}
        }
        // It is gone, but may be back.
        LocalTree::below(root, &root.held()?, path)
    }

    fn below(root: &Arc<Root>, held: &Arc<Held>, path: &Path) -> io::Result<LocalTree> {
        let (directory, is_direct) = match path.as_os_str().is_empty() {
            true => (held.directory.clone(), true),
            false => {
                let (directory, is_direct) = resolve::directory(root, held, path)?;
                (Arc::new(directory), is_direct)
            }
        };
        LocalTree::at(
            root.clone(),
            held.clone(),
            path.into(),
            directory,
            is_direct,
        )
    }

    fn is_root(&self) -> bool {
        self.path.as_os_str().is_empty()
    }

    /// A descriptor of the file `name` to read from.
    fn open_file(&self, name: &OsStr) -> io::Result<OwnedFd> {
        let follow = match self.root.links {
            Links::Anywhere => Follow::Links,
            Links::Inside => Follow::Nothing,
        };
        match step::open_to_read(&self.root.boundary, &self.directory, name, follow) {
            Err(Errno::ELOOP) if self.root.links == Links::Inside => {
                let file = resolve::inside(&self.root, &self.held, &self.path.join(name))?;
                Ok(step::reopen(&file)?)
            }
            opened => Ok(opened?.ok_or(Obstacle::Younger)?),
        }
    }
}

/// The regular file that is open as `file`, and called `location` for people.
pub fn adopt(file: File, location: PathBuf) -> io::Result<Source> {
    let inode = Inode::of(&file)?;
    if inode.kind != Kind::File {
        return Err(io::Error::other("not a regular file"));
    }
    let metadata = inode.metadata(inode.system(&file)?, &location);
    let opened = Opened::new(file, metadata.version);
    Ok(Source::new(location, metadata, Box::new(opened)))
}

impl Tree for LocalTree {
    fn path(&self) -> &Path {
        &self.path
    }

    fn location(&self) -> PathBuf {
        match self.is_root() {
            true => self.root.path.clone(),
            false => self.root.path.join(&self.path),
        }
    }

    fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    fn enter(&self, path: &Path) -> io::Result<Arc<dyn Tree>> {
        Ok(Arc::new(self.enter_at(path)?))
    }

    fn list(&self) -> io::Result<Vec<OsString>> {
        let mut directory = resolve::readable(&self.directory)?;
        let mut names = Vec::new();
        for entry in directory.iter() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(OsString::from_vec(name.to_vec()));
            }
        }
        // Of a directory that was removed the kernel lists nothing.
        match names.is_empty() && Inode::of(&self.directory)?.is_removed() {
            true => Err(io::ErrorKind::NotFound.into()),
            false => Ok(names),
        }
    }

    fn stat(&self, name: &OsStr) -> io::Result<Found> {
        let (inode, file) = match self.entry(name) {
            Ok(Some(entry)) => entry,
            Ok(None) => return Ok(Found::Blocked(self.metadata, Obstacle::Younger)),
            // A derived name may be longer than the file system allows; with a NUL in it,
            // it is the name of nothing.
            Err(Errno::ENOENT | Errno::ENAMETOOLONG | Errno::ENOTDIR | Errno::EINVAL) => {
                return Ok(Found::Missing);
            }
            Err(error) => return Err(error.into()),
        };
        match (inode.kind, &file) {
            (Kind::Link, _) => self.behind(name, &inode),
            (_, None) => self.found(name, &inode, None),
            (_, Some(file)) => {
                let inode = self.root.shared(inode, || acl::least(file));
                self.found(name, &inode, Some(file))
            }
        }
    }

    fn open(&self, name: &OsStr) -> io::Result<Source> {
        let file = self.open_file(name)?;
        let inode = self.root.inode_of(&file)?;
        let Found::File(metadata) = self.found(name, &inode, Some(&file))? else {
            return Err(io::Error::other("not a regular file"));
        };
        let opened = Opened::new(file.into(), metadata.version);
        Ok(Source::new(
            self.location().join(name),
            metadata,
            Box::new(opened),
        ))
    }

    fn address(&self, name: &OsStr) -> Option<Vec<u8>> {
        if !self.inode.is_beside(&self.held.inode) {
            return None;
        }
        let path = self.root.path.join(&self.path).join(name);
        let address = self.held.place.as_ref()?.address(&path)?;
        Some(address.as_os_str().as_bytes().to_vec())
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.is_direct.then(|| self.directory.as_fd())
    }

    fn stands_alone(&self) -> bool {
        let alone = |name: &OsString| {
            let Ok(Some((inode, _))) = self.entry(name) else {
                return false;
            };
            // What is mounted over a name has another one where events are told.
            let is_directory = inode.kind == Kind::Directory;
            inode.stands_alone() && (is_directory || inode.is_beside(&self.inode))
        };
        self.list().is_ok_and(|names| names.iter().all(alone))
    }

    fn space(&self) -> io::Result<Space> {
        let stats = nix::sys::statvfs::fstatvfs(&self.directory)?;
        let narrow = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        Ok(Space {
            blocks: stats.blocks(),
            blocks_free: stats.blocks_free(),
            blocks_available: stats.blocks_available(),
            files: stats.files(),
            files_free: stats.files_free(),
            block_size: narrow(stats.block_size()),
            fragment_size: narrow(stats.fragment_size()),
            name_max: narrow(stats.name_max()),
        })
    }
}
