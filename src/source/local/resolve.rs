//! Paths below a root, resolved relative to its descriptor. Where links may not
//! lead out, they are followed here, name by name, and never by the kernel.

use std::collections::{HashSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path};
use std::sync::Arc;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, readlinkat};
use nix::sys::stat::Mode;

use super::Links;
use super::acl;
use super::boundary::Boundary;
use super::inode::{Inode, Kind};
use super::root::{Held, Root};
use super::step::{self, Follow, MOST_LINKS};
use crate::source::Obstacle;

/// Directories above one that are looked at.
const MOST_LEVELS: usize = 4096;

/// Why a link was not followed to its end.
#[derive(Debug)]
pub enum Stop {
    Obstacle(Obstacle),
    Io(io::Error),
}

impl From<Errno> for Stop {
    fn from(error: Errno) -> Stop {
        match error {
            Errno::ENOENT | Errno::ENOTDIR | Errno::ENAMETOOLONG => {
                Stop::Obstacle(Obstacle::Nowhere)
            }
            Errno::ELOOP => Stop::Obstacle(Obstacle::Circle),
            Errno::EACCES | Errno::EPERM => Stop::Obstacle(Obstacle::Forbidden),
            error => Stop::Io(error.into()),
        }
    }
}

impl From<Obstacle> for Stop {
    fn from(obstacle: Obstacle) -> Stop {
        Stop::Obstacle(obstacle)
    }
}

impl From<Stop> for io::Error {
    fn from(stop: Stop) -> io::Error {
        match stop {
            Stop::Io(error) => error,
            Stop::Obstacle(obstacle) => obstacle.into(),
        }
    }
}

/// The directory, to be listed.
pub fn readable(directory: &OwnedFd) -> io::Result<Dir> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let directory = openat(directory, c".", flags, Mode::empty())?;
    Ok(Dir::from_fd(directory)?)
}

/// The directory at `path` below `root`, and whether no link led there.
pub fn directory(root: &Root, held: &Held, path: &Path) -> io::Result<(OwnedFd, bool)> {
    let plain = |component| matches!(component, Component::Normal(_));
    if !path.components().all(plain) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let reach = |follow| {
        let (boundary, path) = (&root.boundary, path.as_os_str());
        step::reach(boundary, &held.directory, path, OFlag::O_DIRECTORY, follow)
    };
    let found = match (reach(Follow::Nothing), root.links) {
        // A link on the way.
        (Err(Errno::ELOOP), Links::Anywhere) => reach(Follow::Links)?.map(|it| (it, false)),
        (Err(Errno::ELOOP), Links::Inside) => {
            let file = inside(root, held, path)?;
            match Inode::of(&file)?.kind {
                Kind::Directory => Some((file, false)),
                _ => return Err(io::ErrorKind::NotADirectory.into()),
            }
        }
        (found, _) => found?.map(|it| (it, true)),
    };
    Ok(found.ok_or(Obstacle::Younger)?)
}

/// What the link `name` leads to, wherever that is.
pub fn anywhere(boundary: &Boundary, directory: &OwnedFd, name: &OsStr) -> Result<OwnedFd, Stop> {
    let found = step::reach(boundary, directory, name, OFlag::empty(), Follow::Links)?;
    Ok(found.ok_or(Obstacle::Younger)?)
}

/// Whether `directory` is the one with the inode `above`, or lies below it, as far as
/// may be looked at.
///
/// # Errors
/// It cannot be told.
pub fn lies_below(boundary: &Boundary, directory: &OwnedFd, above: &Inode) -> io::Result<bool> {
    let mut at: Option<OwnedFd> = None;
    for _ in 0..MOST_LEVELS {
        let here = at.as_ref().unwrap_or(directory);
        let inode = Inode::of(here)?;
        if inode.is(above) {
            return Ok(true);
        }
        let parent = match step::entry(boundary, here, OsStr::new("..")) {
            Ok(Some(parent)) => parent,
            Ok(None) | Err(Errno::EACCES | Errno::ENOENT) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        if Inode::of(&parent)?.is(&inode) {
            return Ok(false);
        }
        at = Some(parent);
    }
    Ok(false)
}

/// What `path` leads to without leaving `root`, which is held as `held`. Links lead
/// through directories alone that everybody may enter, or that whoever asks has entered
/// on the way here: the names of `path` were looked up one by one, with his rights.
pub fn inside(root: &Root, held: &Held, path: &Path) -> Result<OwnedFd, Stop> {
    let directory = held.directory.clone();
    let mut walk = Walk {
        root,
        directories: vec![(directory, Inode::of(&held.directory)?)],
        entered: HashSet::new(),
        links: 0,
    };
    let mut reached = None;
    for component in path.components() {
        let Component::Normal(name) = component else {
            return Err(Stop::Io(io::ErrorKind::InvalidInput.into()));
        };
        reached = Some(walk.step(name)?);
    }
    reached.ok_or(Stop::Io(io::ErrorKind::InvalidInput.into()))
}

struct Walk<'a> {
    root: &'a Root,
    /// From the root down to where the walk is.
    directories: Vec<(Arc<OwnedFd>, Inode)>,
    /// Directories that whoever asks has passed by name.
    entered: HashSet<(u64, u64)>,
    links: usize,
}

impl Walk<'_> {
    /// Goes on to `name`, and to where it leads if it is a link.
    fn step(&mut self, name: &OsStr) -> Result<OwnedFd, Stop> {
        if let Some((_, here)) = self.directories.last() {
            self.entered.insert(here.id());
        }
        let mut queue = VecDeque::from([name.to_os_string()]);
        let mut by_link = false;
        let mut reached = None;
        while let Some(name) = queue.pop_front() {
            if name == "." {
                continue;
            }
            if name == ".." {
                self.leave()?;
                continue;
            }
            let Some((parent, _)) = self.directories.last().cloned() else {
                return Err(Stop::Obstacle(Obstacle::Outside));
            };
            let file = step::entry(&self.root.boundary, &parent, &name)?;
            let file = file.ok_or(Obstacle::Younger)?;
            let inode = Inode::of(&file)?;
            match inode.kind {
                Kind::Link => {
                    by_link = true;
                    let target = readlinkat(&file, c"")?;
                    for name in self.follow(&target)?.into_iter().rev() {
                        queue.push_front(name);
                    }
                    continue;
                }
                Kind::Directory => {
                    let passed = by_link && !queue.is_empty();
                    let is_passable = || inode.restricted(acl::least(&file)).is_passable();
                    if passed && !is_passable() && !self.entered.contains(&inode.id()) {
                        return Err(Stop::Obstacle(Obstacle::Private));
                    }
                    let directory = Arc::new(file.try_clone().map_err(Stop::Io)?);
                    self.directories.push((directory, inode));
                }
                Kind::File | Kind::Special if !queue.is_empty() => {
                    return Err(Stop::Obstacle(Obstacle::Nowhere));
                }
                Kind::File | Kind::Special => {}
            }
            reached = Some(file);
        }
        match reached {
            Some(reached) if self.is_at(&reached)? => Ok(reached),
            // A link that ends in `.` or `..`: a directory that is here already.
            _ => self.here(),
        }
    }

    /// Whether the walk ended at `reached` and did not go up again.
    fn is_at(&self, reached: &OwnedFd) -> Result<bool, Stop> {
        let inode = Inode::of(reached)?;
        Ok(match inode.kind {
            Kind::Directory => self.directories.last().is_some_and(|(_, at)| at.is(&inode)),
            _ => true,
        })
    }

    fn here(&self) -> Result<OwnedFd, Stop> {
        let here = self.directories.last();
        let (directory, _) = here.ok_or(Stop::Obstacle(Obstacle::Outside))?;
        directory.try_clone().map_err(Stop::Io)
    }

    fn leave(&mut self) -> Result<(), Stop> {
        if self.directories.len() < 2 {
            return Err(Stop::Obstacle(Obstacle::Outside));
        }
        self.directories.pop();
        Ok(())
    }

    /// The names that a link leads over. An absolute one is taken for what lies at
    /// that path below the root.
    fn follow(&mut self, target: &OsStr) -> Result<Vec<OsString>, Stop> {
        self.links += 1;
        if self.links > MOST_LINKS {
            return Err(Stop::Obstacle(Obstacle::Circle));
        }
        let target = Path::new(target);
        let target = match target.is_absolute() {
            false => target,
            true => {
                self.directories.truncate(1);
                let below = target.strip_prefix(&self.root.path);
                below.map_err(|_| Stop::Obstacle(Obstacle::Outside))?
            }
        };
        Ok(target.iter().map(OsStr::to_os_string).collect())
    }
}
