//! Which of the mounts that this process sees are those of stfs, and where.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::statvfs::statvfs;

use super::error::Error;
pub use crate::source::local::mountinfo::{FS_TYPE, Mount, mounts};

/// Whether a mount is one of stfs.
pub fn is_stfs(mount: &Mount) -> bool {
    mount.is_stfs()
}

/// The mount at exactly `point`; of several on top of each other the uppermost.
pub fn mount_at(point: &Path) -> io::Result<Option<Mount>> {
    let mut mounts = mounts()?;
    mounts.reverse();
    Ok(mounts.into_iter().find(|mount| mount.point == point))
}

/// Where all stfs mounts are.
pub fn stfs_mounts() -> io::Result<Vec<PathBuf>> {
    let mounts = mounts()?.into_iter().filter(is_stfs);
    Ok(mounts.map(|mount| mount.point).collect())
}

/// The stfs mount that `path`, which is absolute and free of links, lies in.
pub fn mount_of(path: &Path) -> io::Result<Option<PathBuf>> {
    let mut mounts = stfs_mounts()?;
    mounts.retain(|point| path.starts_with(point));
    Ok(mounts
        .into_iter()
        .max_by_key(|point| point.as_os_str().len()))
}

/// `path` as the table writes it, absolute and free of symbolic links, also where
/// its last component is missing or cannot be looked at: a dead mount, another
/// user's.
///
/// # Errors
/// Another component cannot be passed.
pub fn locate(path: &Path) -> Result<PathBuf, Error> {
    let failed = match fs::canonicalize(path) {
        Ok(place) => return Ok(place),
        Err(error) => error,
    };
    let Some(name) = path.file_name().filter(|_| !is_link(path)) else {
        return Err(Error::io(path, "look at it")(failed));
    };
    let parent = match path.parent() {
        Some(parent) if parent != OsStr::new("") => parent,
        _ => Path::new("."),
    };
    match fs::canonicalize(parent) {
        Ok(parent) => Ok(parent.join(name)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Error::NoParent {
            path: path.to_owned(),
            parent: parent.to_owned(),
        }),
        Err(error) => Err(Error::io(parent, "look at it")(error)),
    }
}

/// Whether the process behind the FUSE mount at `place` is gone. Attributes would
/// not tell: the kernel goes on answering with those it was given last.
pub fn is_dead(place: &Path) -> bool {
    statvfs(place) == Err(Errno::ENOTCONN)
}

fn is_link(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_symlink())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_a_root() {
        assert!(mount_at(Path::new("/proc")).unwrap().is_some());
    }
}
