//! The root of a local tree: a descriptor that is held, and what becomes of it when
//! the directory or its file system goes away.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::fcntl::OFlag;
use nix::sys::statfs::fstatfs;

use super::Links;
use super::acl;
use super::boundary::Boundary;
use super::inode::Inode;
use super::place::Place;
use super::step;
use crate::source::{Obstacle, System};

#[derive(Debug)]
pub struct Root {
    /// Absolute, free of symbolic links when it was opened.
    pub path: PathBuf,
    pub links: Links,
    pub boundary: Boundary,
    /// None while the root is gone: nothing keeps its file system from being
    /// unmounted then.
    held: Mutex<Option<Arc<Held>>>,
    /// What the root was at first.
    system: System,
    place: Option<Place>,
}

/// The root directory while it is there.
#[derive(Debug)]
pub struct Held {
    pub directory: Arc<OwnedFd>,
    pub inode: Inode,
    system: System,
    /// None where it cannot be told.
    pub place: Option<Place>,
}

impl Held {
    fn open(path: &Path, boundary: &Boundary) -> io::Result<Held> {
        let directory = step::reach_absolute(boundary, path.as_os_str(), OFlag::O_DIRECTORY)?;
        let directory = directory.ok_or(Obstacle::Younger)?;
        let inode = Inode::of(&directory)?;
        Ok(Held {
            system: inode.system(&directory)?,
            place: Place::of(&directory),
            directory: Arc::new(directory),
            inode,
        })
    }

    /// Whether the directory was removed, or its file system is dead: attributes
    /// alone would not tell, for the kernel goes on answering with the last ones.
    fn is_gone(&self) -> bool {
        let inode = Inode::of(&self.directory);
        inode.is_ok_and(|inode| inode.is_removed())
            || inode.is_err()
            || fstatfs(&self.directory).is_err()
    }
}

impl Root {
    pub fn open(path: PathBuf, links: Links) -> io::Result<Root> {
        let boundary = Boundary::draw()?;
        let held = Held::open(&path, &boundary)?;
        Ok(Root {
            path,
            links,
            boundary,
            system: held.system,
            place: held.place.clone(),
            held: Mutex::new(Some(Arc::new(held))),
        })
    }

    /// The root as it is now. Unless others read the tree too, it is what stands at its
    /// path: whoever may rename what lies above it could put something else there.
    pub fn held(&self) -> io::Result<Arc<Held>> {
        let mut held = self.lock();
        if let Some(root) = &*held
            && (self.links == Links::Inside || self.stands_at_path(root))
        {
            return Ok(root.clone());
        }
        if self.links == Links::Inside {
            return Err(self.gone());
        }
        match (Held::open(&self.path, &self.boundary), &*held) {
            // The empty directory that a file system is mounted on is not the source.
            (Ok(root), _) if self.is_same(&root) && !root.is_gone() => {
                Ok(held.insert(Arc::new(root)).clone())
            }
            (_, Some(root)) if !root.is_gone() => Ok(root.clone()),
            _ => {
                *held = None;
                Err(self.gone())
            }
        }
    }

    /// Whether `held` is gone, and that is why nothing was found in it. It is let go of
    /// then, so that what is left of its file system can be unmounted.
    pub fn is_fault_of(&self, held: &Held) -> bool {
        let gone = held.is_gone();
        if gone {
            let mut current = self.lock();
            current.take_if(|current| std::ptr::eq(&**current, held));
        }
        gone
    }

    /// What an open file says, with the rights that it leaves to those who read the tree.
    pub fn inode_of(&self, file: &impl AsFd) -> io::Result<Inode> {
        Ok(self.shared(Inode::of(file)?, || acl::least(file)))
    }

    /// `inode` with the rights that it leaves to those who read the tree: `least` tells
    /// what an access control list leaves to them.
    pub fn shared(&self, inode: Inode, least: impl FnOnce() -> u16) -> Inode {
        match self.links {
            Links::Anywhere => inode,
            Links::Inside => inode.restricted(least()),
        }
    }

    fn stands_at_path(&self, root: &Held) -> bool {
        let path = self.path.as_os_str();
        let there = step::reach_absolute(&self.boundary, path, OFlag::O_DIRECTORY);
        let there = there
            .ok()
            .flatten()
            .and_then(|there| Inode::of(&there).ok());
        there.is_some_and(|there| there.is(&root.inode))
    }

    fn is_same(&self, root: &Held) -> bool {
        match (self.system, root.system) {
            (System::Mounted { .. }, System::Mounted { .. }) => match (&self.place, &root.place) {
                (Some(then), Some(now)) => then.is_same(now),
                _ => false,
            },
            (then, now) => then == now,
        }
    }

    pub fn gone(&self) -> io::Error {
        let what = format!(
            "the source {} is gone: it was removed or unmounted",
            self.path.display()
        );
        io::Error::new(io::ErrorKind::NotConnected, what)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<Held>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
