//! The table of mounts that this process sees: proc(5), `/proc/self/mountinfo`.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// The file system type of an stfs mount, as the table and `/proc/mounts` show it.
pub const FS_TYPE: &str = "fuse.stfs";

/// One mount, as its line says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Told to each mount; used again when it is gone.
    pub id: u64,
    /// Device number of the file system, as `st_dev` has it.
    pub device: u64,
    /// What of the file system is mounted.
    pub root: PathBuf,
    /// Where: absolute, free of symbolic links.
    pub point: PathBuf,
    pub fs_type: OsString,
    /// The first field of `/proc/mounts`: a device, a server, or a name.
    pub source: OsString,
    /// Those of the file system itself, separated by commas.
    pub options: OsString,
}

/// All mounts, each after those it may cover. Lines that are none are passed over.
pub fn mounts() -> io::Result<Vec<Mount>> {
    let table = fs::read("/proc/self/mountinfo")?;
    let lines = table.split(|byte| *byte == b'\n');
    Ok(lines.filter_map(Mount::parse).collect())
}

impl Mount {
    /// Whether it is one of stfs.
    pub fn is_stfs(&self) -> bool {
        self.fs_type == FS_TYPE
    }

    /// Whether this is that mount, perhaps moved meanwhile.
    pub fn is_same(&self, other: &Mount) -> bool {
        (self.id, self.device) == (other.id, other.device)
    }

    /// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`
    pub fn parse(line: &[u8]) -> Option<Mount> {
        let mut fields = line.split(|byte| *byte == b' ');
        let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
        let device = std::str::from_utf8(fields.nth(1)?).ok()?;
        let (major, minor) = device.split_once(':')?;
        let root = unescape(fields.next()?).into();
        let point = unescape(fields.next()?).into();
        // Any number of optional fields lies before the separator.
        fields.find(|field| field == b"-")?;
        Some(Mount {
            id,
            device: libc::makedev(major.parse().ok()?, minor.parse().ok()?),
            root,
            point,
            fs_type: unescape(fields.next()?),
            source: unescape(fields.next()?),
            options: unescape(fields.next()?),
        })
    }
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
    use std::path::Path;

    use super::*;

    #[test]
    fn lines_of_the_manual_page_and_of_a_kernel() {
        let line =
            b"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue";
        let line = Mount::parse(line).unwrap();
        assert_eq!((line.id, line.device), (36, libc::makedev(98, 0)));
        assert_eq!(line.root, Path::new("/mnt1"));
        assert_eq!(line.point, Path::new("/mnt2"));
        assert_eq!(line.fs_type, "ext3");
        assert_eq!(line.source, "/dev/root");

        let line = b"97 1 0:44 / /mnt/a\\040b\\134c ro,nosuid,nodev shared:3 master:4 - fuse.stfs /models,\\012x\\043 ro,user_id=0";
        let line = Mount::parse(line).unwrap();
        assert_eq!(line.point, Path::new("/mnt/a b\\c"));
        assert_eq!(line.source, "/models,\nx#");
        assert_eq!(line.options, "ro,user_id=0");

        let unnamed = Mount::parse(b"98 1 0:45 / /plain rw - tmpfs  rw").unwrap();
        assert_eq!(unnamed.source, "");
    }

    #[test]
    fn broken_lines_are_none() {
        for line in ["", "1 2", "1 2 x:y / /a rw - t s o", "1 2 0:1 / /a rw"] {
            assert_eq!(Mount::parse(line.as_bytes()), None, "{line}");
        }
    }
}
