//! What a file system is mounted from, and where.

use std::ffi::OsString;
use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::mountinfo::{Mount, mounts};

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    kind: OsString,
    /// The device, server or image; of a loop device, the file behind it.
    source: OsString,
    /// What of the file system is mounted.
    root: PathBuf,
    /// Where it is mounted.
    point: PathBuf,
}

impl Place {
    /// The mount that `file` was opened through; None where that cannot be told.
    pub fn of(file: &impl AsFd) -> Option<Place> {
        let info = format!("/proc/self/fdinfo/{}", file.as_fd().as_raw_fd());
        let info = fs::read_to_string(info).ok()?;
        let mount = info.lines().find_map(|line| line.strip_prefix("mnt_id:"))?;
        let mount: u64 = mount.trim().parse().ok()?;
        let line = mounts().ok()?.into_iter().find(|line| line.id == mount);
        Some(Place::at(line?))
    }

    fn at(line: Mount) -> Place {
        Place {
            kind: line.fs_type,
            source: behind_loop(line.source),
            root: line.root,
            point: line.point,
        }
    }

    /// Whether `other` shows the same part of the same file system, as far as names
    /// can tell.
    pub fn is_same(&self, other: &Place) -> bool {
        let of = |place: &Place| {
            let Place {
                kind, source, root, ..
            } = place.clone();
            (kind, source, root)
        };
        of(self) == of(other)
    }

    /// What the file at the absolute path `path` is called wherever the file system
    /// is mounted.
    pub fn address(&self, path: &Path) -> Option<PathBuf> {
        let below = path.strip_prefix(&self.point).ok()?;
        let inside = self.root.strip_prefix("/").unwrap_or(&self.root);
        let mut address = self.kind.clone();
        address.push("\0");
        address.push(&self.source);
        address.push("\0");
        address.push(inside.join(below));
        Some(address.into())
    }
}

/// The image behind a loop device, whose number may be another one tomorrow.
fn behind_loop(source: OsString) -> OsString {
    let name = Path::new(&source).strip_prefix("/dev").ok();
    let name = name.filter(|name| name.as_os_str().as_bytes().starts_with(b"loop"));
    let file = name.and_then(|name| {
        let file = Path::new("/sys/block").join(name).join("loop/backing_file");
        fs::read(file).ok()
    });
    match file {
        Some(file) => OsString::from_vec(file.trim_ascii_end().to_vec()),
        None => source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_does_not_depend_on_where_a_file_system_is_mounted() {
        let line = b"97 1 0:44 /sub /mnt/a\\040b rw shared:3 master:4 - fuse.sshfs me@host:/x ro\n";
        let place = Place::at(Mount::parse(line).unwrap());
        let address = place.address(Path::new("/mnt/a b/m/x.pt")).unwrap();
        assert_eq!(address, Path::new("fuse.sshfs\0me@host:/x\0sub/m/x.pt"));
        assert_eq!(place.address(Path::new("/mnt/c")), None);
        let elsewhere = b"98 1 0:45 /sub /media rw - fuse.sshfs me@host:/x ro";
        let elsewhere = Place::at(Mount::parse(elsewhere).unwrap());
        assert!(elsewhere.is_same(&place) && elsewhere != place);
        assert_eq!(elsewhere.address(Path::new("/media/m/x.pt")), Some(address));
    }
}
