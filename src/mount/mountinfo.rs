//! The mounts this process sees: `/proc/self/mountinfo`, proc(5).

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::statvfs::statvfs;

use super::error::Error;

/// The file system type of an stfs mount, as mountinfo and `/proc/mounts` show it.
pub const FS_TYPE: &str = "fuse.stfs";

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Device number of the file system, as `st_dev` has it.
    pub device: u64,
    /// Absolute path, free of symbolic links.
    pub point: PathBuf,
    pub fs_type: OsString,
    /// The first field of `/proc/mounts`.
    pub source: OsString,
}

impl Mount {
    pub fn is_stfs(&self) -> bool {
        self.fs_type == FS_TYPE
    }
}

/// All mounts, each after those it may cover.
pub fn mounts() -> io::Result<Vec<Mount>> {
    Ok(parse(&fs::read("/proc/self/mountinfo")?))
}

/// The mount at exactly `point`; of several on top of each other the uppermost.
pub fn mount_at(point: &Path) -> io::Result<Option<Mount>> {
    let mut mounts = mounts()?;
    mounts.reverse();
    Ok(mounts.into_iter().find(|mount| mount.point == point))
}

/// Where all stfs mounts are.
pub fn stfs_mounts() -> io::Result<Vec<PathBuf>> {
    let mounts = mounts()?.into_iter().filter(Mount::is_stfs);
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

fn parse(table: &[u8]) -> Vec<Mount> {
    table
        .split(|&byte| byte == b'\n')
        .filter_map(parse_line)
        .collect()
}

/// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`
fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|&byte| byte == b' ');
    let device = std::str::from_utf8(fields.nth(2)?).ok()?;
    let (major, minor) = device.split_once(':')?;
    let point = unescape(fields.nth(1)?);
    // Any number of optional fields lies before the separator.
    fields.find(|field| field == b"-")?;
    Some(Mount {
        device: libc::makedev(major.parse().ok()?, minor.parse().ok()?),
        point: point.into(),
        fs_type: OsStr::from_bytes(fields.next()?).to_owned(),
        source: unescape(fields.next()?),
    })
}

/// Undoes the kernel's `\ooo` for blanks, backslashes and the like.
fn unescape(field: &[u8]) -> OsString {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = match tail {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..] if first == b'\\' => {
                Some((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'))
            }
            _ => None,
        };
        plain.push(octal.unwrap_or(first));
        rest = if octal.is_some() { &tail[3..] } else { tail };
    }
    OsString::from_vec(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_manual_page_and_of_a_kernel() {
        let table = b"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n\
            97 1 0:44 / /mnt/a\\040b\\134c ro,nosuid,nodev,relatime shared:3 master:4 - fuse.stfs /models,\\012x\\043 ro,user_id=0\n\
            98 1 0:45 / /plain rw - tmpfs  rw\n";
        let mounts = parse(table);
        assert_eq!(mounts.len(), 3);
        assert_eq!(mounts[0].point, Path::new("/mnt2"));
        assert_eq!(mounts[0].source, "/dev/root");
        assert_eq!(mounts[0].device, libc::makedev(98, 0));
        assert!(!mounts[0].is_stfs());
        assert_eq!(mounts[1].point, Path::new("/mnt/a b\\c"));
        assert_eq!(mounts[1].source, "/models,\nx#");
        assert!(mounts[1].is_stfs());
        assert_eq!(mounts[2].source, "");
    }

    #[test]
    fn broken_lines_are_passed_over() {
        assert_eq!(
            parse(b"\n1 2\n1 2 x:y / /a rw - t s o\n1 2 0:1 / /a rw\n"),
            []
        );
    }

    #[test]
    fn this_process_has_a_root() {
        assert!(mount_at(Path::new("/proc")).unwrap().is_some());
    }
}
