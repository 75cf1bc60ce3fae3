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
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat};
use nix::sys::stat::Mode;

use super::Links;
use super::acl;
use super::inode::{Inode, Kind};
use crate::source::Obstacle;

/// Links that are followed in one path, as the kernel has it.
const MOST_LINKS: usize = 40;
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

impl From<Stop> for io::Error {
    fn from(stop: Stop) -> io::Error {
        match stop {
            Stop::Io(error) => error,
            Stop::Obstacle(Obstacle::Nowhere) => io::ErrorKind::NotFound.into(),
            Stop::Obstacle(obstacle) => {
                io::Error::new(io::ErrorKind::PermissionDenied, obstacle.to_string())
            }
        }
    }
}

/// A descriptor of the entry `name` of a directory, for its inode alone.
pub fn hold(directory: &OwnedFd, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Ok(openat(directory, name, flags, Mode::empty())?)
}

/// A descriptor of the file `name` of a directory to read from.
pub fn open(directory: &OwnedFd, name: &OsStr, follow: bool) -> io::Result<OwnedFd> {
    let mut flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    flags.set(OFlag::O_NOFOLLOW, !follow);
    Ok(openat(directory, name, flags, Mode::empty())?)
}

/// The directory, to be listed.
pub fn readable(directory: &OwnedFd) -> io::Result<Dir> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let directory = openat(directory, c".", flags, Mode::empty())?;
    Ok(Dir::from_fd(directory)?)
}

/// The directory at `path` below `root`, which stands at `root_path`, and whether no
/// link led there.
pub fn directory(
    root: &Arc<OwnedFd>,
    root_path: &Path,
    path: &Path,
    links: Links,
) -> io::Result<(OwnedFd, bool)> {
    let plain = |component| matches!(component, Component::Normal(_));
    if !path.components().all(plain) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let resolve = ResolveFlag::RESOLVE_BENEATH
        | ResolveFlag::RESOLVE_NO_SYMLINKS
        | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    match openat2(root, path, OpenHow::new().flags(flags).resolve(resolve)) {
        Ok(directory) => Ok((directory, true)),
        // A link on the way, or a kernel without the call, or one that forbids it.
        Err(
            Errno::ELOOP
            | Errno::ENOSYS
            | Errno::EPERM
            | Errno::EINVAL
            | Errno::EAGAIN
            | Errno::EXDEV,
        ) => {
            if links == Links::Anywhere {
                return Ok((openat(root, path, flags, Mode::empty())?, false));
            }
            let reached = inside(root, root_path, path)?;
            match Inode::of(&reached.file)?.kind {
                Kind::Directory => Ok((reached.file, false)),
                _ => Err(io::ErrorKind::NotADirectory.into()),
            }
        }
        Err(error) => Err(error.into()),
    }
}

/// What the link `name` leads to, wherever that is.
pub fn anywhere(directory: &OwnedFd, name: &OsStr) -> Result<OwnedFd, Stop> {
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    Ok(openat(directory, name, flags, Mode::empty())?)
}

/// Whether `directory` is the one with the inode `above`, or lies below it.
pub fn lies_below(directory: &OwnedFd, above: &Inode) -> bool {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut at: Option<OwnedFd> = None;
    for _ in 0..MOST_LEVELS {
        let here = at.as_ref().unwrap_or(directory);
        let Ok(inode) = Inode::of(here) else {
            return false;
        };
        if inode.is(above) {
            return true;
        }
        let Ok(parent) = openat(here, c"..", flags, Mode::empty()) else {
            return false;
        };
        if Inode::of(&parent).is_ok_and(|parent| parent.is(&inode)) {
            return false;
        }
        at = Some(parent);
    }
    false
}

/// What a path leads to.
#[derive(Debug)]
pub struct Reached {
    /// For its inode alone.
    pub file: OwnedFd,
    /// Where it lies, and its own name there.
    pub parent: Arc<OwnedFd>,
    pub name: OsString,
}

/// What `path` leads to without leaving `root`, which stands at `root_path`. Links
/// lead through directories alone that everybody may enter, or that whoever asks
/// has entered on the way here: the names of `path` were looked up one by one, with
/// his rights.
pub fn inside(root: &Arc<OwnedFd>, root_path: &Path, path: &Path) -> Result<Reached, Stop> {
    let mut walk = Walk {
        root_path,
        directories: vec![(root.clone(), Inode::of(root)?)],
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
    root_path: &'a Path,
    /// From the root down to where the walk is.
    directories: Vec<(Arc<OwnedFd>, Inode)>,
    /// Directories that whoever asks has passed by name.
    entered: HashSet<(u64, u64)>,
    links: usize,
}

impl Walk<'_> {
    /// Goes on to `name`, and to where it leads if it is a link.
    fn step(&mut self, name: &OsStr) -> Result<Reached, Stop> {
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
            let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let file = openat(&parent, name.as_os_str(), flags, Mode::empty())?;
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
            reached = Some(Reached { file, parent, name });
        }
        match reached {
            Some(reached) if self.is_at(&reached)? => Ok(reached),
            // A link that ends in `.` or `..`: a directory that is here already.
            _ => self.here(),
        }
    }

    /// Whether the walk ended at `reached` and did not go up again.
    fn is_at(&self, reached: &Reached) -> Result<bool, Stop> {
        let inode = Inode::of(&reached.file)?;
        Ok(match inode.kind {
            Kind::Directory => self.directories.last().is_some_and(|(_, at)| at.is(&inode)),
            _ => true,
        })
    }

    fn here(&self) -> Result<Reached, Stop> {
        let (directory, _) = self
            .directories
            .last()
            .ok_or(Stop::Obstacle(Obstacle::Outside))?;
        Ok(Reached {
            file: directory.try_clone().map_err(Stop::Io)?,
            parent: directory.clone(),
            name: ".".into(),
        })
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
                let below = target.strip_prefix(self.root_path);
                below.map_err(|_| Stop::Obstacle(Obstacle::Outside))?
            }
        };
        Ok(target.iter().map(OsStr::to_os_string).collect())
    }
}
