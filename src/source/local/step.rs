//! From a directory to what a name or a path in it leads to. No mount is crossed unseen:
//! where a step leads over one, what is behind is held without being touched, and the
//! boundary says whether it may be.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, open, openat, openat2, readlinkat};
use nix::sys::stat::Mode;
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};

use super::boundary::Boundary;
use super::inode::{Inode, Kind};

/// Links that are followed in one path, as the kernel has it.
pub const MOST_LINKS: usize = 40;

/// What a step or a path leads to, for its inode alone. None: a mount that may not be
/// touched.
pub type Reached = Result<Option<OwnedFd>, Errno>;

const HOLD: OFlag = OFlag::O_PATH.union(OFlag::O_CLOEXEC);
const READ: OFlag = OFlag::O_RDONLY
    .union(OFlag::O_NONBLOCK)
    .union(OFlag::O_NOCTTY)
    .union(OFlag::O_CLOEXEC);

/// Whether links are followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Follow {
    /// By the kernel, wherever they lead.
    Links,
    /// One is [`Errno::ELOOP`].
    Nothing,
}

/// The entry `name` of a directory; of a link, the link.
pub fn entry(boundary: &Boundary, directory: &impl AsFd, name: &OsStr) -> Reached {
    let flags = HOLD | OFlag::O_NOFOLLOW;
    match opened(directory, name, flags, ResolveFlag::empty()) {
        Some(held) => Ok(Some(held?)),
        None => over(boundary, directory, name, flags),
    }
}

/// What `path` leads to from a directory.
pub fn reach(
    boundary: &Boundary,
    directory: &impl AsFd,
    path: &OsStr,
    flags: OFlag,
    follow: Follow,
) -> Reached {
    let resolve = match follow {
        Follow::Links => ResolveFlag::empty(),
        Follow::Nothing => ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS,
    };
    let mut at: Option<OwnedFd> = None;
    let mut rest = path.to_os_string();
    let mut links = 0;
    loop {
        let here = at.as_ref().map_or(directory.as_fd(), AsFd::as_fd);
        // As far as it leads over no mount, the kernel goes by its own rules.
        if let Some(held) = opened(&here, &rest, HOLD | flags, resolve) {
            return Ok(Some(held?));
        }
        let (name, tail) = split(&rest);
        let Some(mut file) = over(boundary, &here, name, HOLD | OFlag::O_NOFOLLOW)? else {
            return Ok(None);
        };
        if Inode::of(&file)?.kind == Kind::Link {
            links += 1;
            if follow == Follow::Nothing || links > MOST_LINKS {
                return Err(Errno::ELOOP);
            }
            if !is_of_proc(&file)? {
                rest = joined(readlinkat(&file, c"")?, tail);
                continue;
            }
            // What it says is no path: the kernel jumps, and asks nobody on the way.
            file = match over(boundary, &here, name, HOLD)? {
                Some(file) => file,
                None => return Ok(None),
            };
        }
        let Some(tail) = tail else {
            let fits =
                !flags.contains(OFlag::O_DIRECTORY) || Inode::of(&file)?.kind == Kind::Directory;
            return fits.then_some(Some(file)).ok_or(Errno::ENOTDIR);
        };
        rest = tail.to_os_string();
        at = Some(file);
    }
}

/// The absolute path `path`, over links wherever they lead.
pub fn reach_absolute(boundary: &Boundary, path: &OsStr, flags: OFlag) -> Reached {
    reach(boundary, &AT_FDCWD, path, flags, Follow::Links)
}

/// The file `name` of a directory, or what it leads to, to read from. None as of [`Reached`].
pub fn open_to_read(
    boundary: &Boundary,
    directory: &impl AsFd,
    name: &OsStr,
    follow: Follow,
) -> Reached {
    let flags = match follow {
        Follow::Links => READ,
        Follow::Nothing => READ | OFlag::O_NOFOLLOW,
    };
    if let Some(file) = opened(directory, name, flags, ResolveFlag::empty()) {
        return Ok(Some(file?));
    }
    let held = match follow {
        Follow::Links => reach(boundary, directory, name, OFlag::empty(), follow),
        Follow::Nothing => entry(boundary, directory, name),
    };
    held?.map(|held| reopen(&held)).transpose()
}

/// The file that is held as `file`, to read from.
pub fn reopen(file: &impl AsFd) -> Result<OwnedFd, Errno> {
    open(&name_of(file)[..], READ, Mode::empty())
}

/// A name that leads to what is held as `file`, whatever becomes of its own.
pub fn name_of(file: &impl AsFd) -> String {
    format!("/proc/self/fd/{}", file.as_fd().as_raw_fd())
}

/// What is opened without leaving the mount that `directory` was found through. None where
/// the path leads over another, or is too long as a whole, or the kernel has no such call
/// or forbids it: then it has to be gone name by name.
fn opened(
    directory: &impl AsFd,
    path: &OsStr,
    flags: OFlag,
    resolve: ResolveFlag,
) -> Option<Result<OwnedFd, Errno>> {
    let resolve = resolve | ResolveFlag::RESOLVE_NO_XDEV;
    match openat2(
        directory,
        path,
        OpenHow::new().flags(flags).resolve(resolve),
    ) {
        Err(Errno::EXDEV | Errno::ENAMETOOLONG | Errno::ENOSYS | Errno::EPERM) => None,
        opened => Some(opened),
    }
}

/// The entry `name` of a directory, which may be another mount: that is asked for nothing
/// before it is permitted.
fn over(boundary: &Boundary, directory: &impl AsFd, name: &OsStr, flags: OFlag) -> Reached {
    let file = openat(directory, name, flags, Mode::empty())?;
    Ok(boundary.permits(&file)?.then_some(file))
}

/// The first name of a path and what follows it. The first one of an absolute path begins
/// with the slash; what ends in one leads to a directory.
fn split(path: &OsStr) -> (&OsStr, Option<&OsStr>) {
    let path = path.as_bytes();
    let is_slash = |byte: &u8| *byte == b'/';
    let start = path.iter().take_while(|byte| is_slash(byte)).count();
    let name = path.iter().skip(start).take_while(|byte| !is_slash(byte));
    let (name, tail) = path.split_at(start + name.count());
    let below = tail.iter().position(|byte| !is_slash(byte));
    let tail = match (tail, below) {
        ([], _) => None,
        (_, None) => Some(&b"."[..]),
        (tail, Some(at)) => tail.get(at..),
    };
    (OsStr::from_bytes(name), tail.map(OsStr::from_bytes))
}

/// The path over a link and on.
fn joined(target: OsString, tail: Option<&OsStr>) -> OsString {
    let mut path = target;
    if let Some(tail) = tail {
        path.push("/");
        path.push(tail);
    }
    path
}

fn is_of_proc(link: &OwnedFd) -> Result<bool, Errno> {
    Ok(fstatfs(link)?.filesystem_type() == PROC_SUPER_MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_split_as_the_kernel_does() {
        for (path, name, tail) in [
            ("a", "a", None),
            ("a/b/c", "a", Some("b/c")),
            ("a//b/", "a", Some("b/")),
            ("b/", "b", Some(".")),
            ("/", "/", None),
            ("//x/y", "//x", Some("y")),
            ("../x", "..", Some("x")),
        ] {
            let wanted = (OsStr::new(name), tail.map(OsStr::new));
            assert_eq!(split(OsStr::new(path)), wanted, "{path}");
        }
    }
}
