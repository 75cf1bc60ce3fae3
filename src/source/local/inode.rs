//! What an inode of this machine says, and how far its file system lets it say
//! which bytes a file holds.

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::SystemTime;

use nix::errno::Errno;
use nix::sys::statfs::{FsType, fstatfs};
use nix::sys::statvfs::fstatvfs;
use rustix::fs::{AtFlags, FileType, StatxFlags, StatxTimestamp};

use crate::source::{FileId, Metadata, Rights, System, Version};

/// File systems of this machine whose inodes and change times hold, and whose own
/// identifier stays the same from one mount to the next, or never comes again
/// (linux/magic.h; `ZFS_SUPER_MAGIC` and bcachefs' `BCACHEFS_STATFS_MAGIC`).
const LASTING: [u32; 7] = [
    0xef53,      // ext2, ext3, ext4
    0x5846_5342, // xfs
    0x9123_683e, // btrfs
    0xf2f5_2010, // f2fs
    0xca45_1a4e, // bcachefs
    0x2fc1_2fc1, // zfs
    0x0102_1994, // tmpfs
];
/// It has an identifier of its own only with a layer that can be written.
const OVERLAYFS: u32 = 0x794c_7630;

/// Told to each mount, and to none ever again (linux/stat.h, since 6.8).
pub const MNT_ID_UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Directory,
    File,
    Link,
    Special,
}

/// What `statx` says of one inode.
#[derive(Clone, Copy, Debug)]
pub struct Inode {
    pub kind: Kind,
    /// Which mount it was found through.
    mount: u64,
    device: u64,
    number: u64,
    links: u32,
    /// Permission bits.
    mode: u16,
    uid: u32,
    gid: u32,
    /// Bytes.
    size: u64,
    accessed: (i64, i64),
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Inode {
    /// Of an open file or directory; of a link that is held, the link's.
    pub fn of(file: &impl AsFd) -> Result<Inode, Errno> {
        Inode::statx(file, OsStr::new(""), AtFlags::EMPTY_PATH)
    }

    /// Of the entry `name` of a directory, as far as its file system tells without being
    /// asked by the kernel; of a link, its own. It may be of another mount.
    pub fn glance(directory: &impl AsFd, name: &OsStr) -> Result<Inode, Errno> {
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_DONT_SYNC;
        Inode::statx(directory, name, flags)
    }

    fn statx(file: &impl AsFd, name: &OsStr, flags: AtFlags) -> Result<Inode, Errno> {
        let flags = flags | AtFlags::NO_AUTOMOUNT;
        let wanted = StatxFlags::BASIC_STATS | MNT_ID_UNIQUE;
        let found = rustix::fs::statx(file, name, flags, wanted);
        let found = found.map_err(|error| Errno::from_raw(error.raw_os_error()))?;
        let time = |time: StatxTimestamp| (time.tv_sec, i64::from(time.tv_nsec));
        Ok(Inode {
            kind: match FileType::from_raw_mode(found.stx_mode.into()) {
                FileType::Directory => Kind::Directory,
                FileType::RegularFile => Kind::File,
                FileType::Symlink => Kind::Link,
                _ => Kind::Special,
            },
            mount: found.stx_mnt_id,
            device: rustix::fs::makedev(found.stx_dev_major, found.stx_dev_minor),
            number: found.stx_ino,
            links: found.stx_nlink,
            mode: found.stx_mode & 0o777,
            uid: found.stx_uid,
            gid: found.stx_gid,
            size: found.stx_size,
            accessed: time(found.stx_atime),
            modified: time(found.stx_mtime),
            changed: time(found.stx_ctime),
        })
    }

    /// Whether `other` is the same file.
    pub fn is(&self, other: &Inode) -> bool {
        (self.device, self.number) == (other.device, other.number)
    }

    /// Whether `other` is on the same file system, found through the same mount.
    pub fn is_beside(&self, other: &Inode) -> bool {
        (self.device, self.mount) == (other.device, other.mount)
    }

    /// Whether it has lost its last name.
    pub fn is_removed(&self) -> bool {
        self.links == 0
    }

    /// Whether it changes under this one name alone.
    pub fn stands_alone(&self) -> bool {
        match self.kind {
            Kind::File => self.links < 2,
            Kind::Link => false,
            Kind::Directory | Kind::Special => true,
        }
    }

    /// Whether everybody may pass through this directory.
    pub fn is_passable(&self) -> bool {
        self.mode & 0o001 != 0
    }

    /// With no more than the permissions `least` for anybody but the owner.
    pub fn restricted(self, least: u16) -> Inode {
        let others = least << 3 | least;
        Inode {
            mode: self.mode & (0o700 | others),
            ..self
        }
    }

    /// What tells it from others: device and number.
    pub fn id(&self) -> (u64, u64) {
        (self.device, self.number)
    }

    /// The file system that it lies on, of which `file` is something.
    pub fn system(&self, file: &impl AsFd) -> Result<System, Errno> {
        let FsType(kind) = fstatfs(file)?.filesystem_type();
        // 32 bits, with a sign or without.
        let kind = kind as u32;
        let mounted = System::Mounted {
            mount: self.mount,
            device: self.device,
        };
        if self.changed.0 == 0 || !(LASTING.contains(&kind) || kind == OVERLAYFS) {
            return Ok(mounted);
        }
        match fstatvfs(file)?.filesystem_id() {
            0 => Ok(mounted),
            id => Ok(System::Lasting {
                kind: kind.into(),
                id,
            }),
        }
    }

    /// Which bytes the file holds, if it is `file` with the number of this inode.
    pub fn version(&self, file: FileId) -> Version {
        let file = FileId {
            inode: self.number,
            ..file
        };
        let now = SystemTime::now();
        Version::new(file, self.size, self.modified, self.changed, now)
    }

    /// `path`: that of the file from the root of its tree.
    pub fn metadata(&self, system: System, path: &Path) -> Metadata {
        let system = match system {
            // It was not the kernel that gave it a time in whole seconds or none at all,
            // but whoever made an image, and he may give the same to another file.
            System::Lasting { .. } if self.changed.1 == 0 => System::Mounted {
                mount: self.mount,
                device: self.device,
            },
            system => system,
        };
        Metadata {
            version: self.version(FileId::new(system, self.number, path)),
            rights: Rights::new(self.uid, self.gid, self.mode),
            accessed: self.accessed,
        }
    }
}
