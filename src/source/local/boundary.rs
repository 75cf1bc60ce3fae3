//! What a tree may touch: of the mounts of stfs only those that are older than itself. Each
//! then waits for older ones alone, and none for itself, whatever way leads back to it: a
//! link, a bind mount, or the mount of another stfs over this one.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use rustix::fs::{AtFlags, StatxFlags};

use super::inode::MNT_ID_UNIQUE;
use super::mountinfo::mounts;

/// Drawn before the tree is mounted anywhere.
#[derive(Debug)]
pub struct Boundary {
    older: Older,
    /// Mounts made since, by their unique number, that are none of stfs.
    harmless: Mutex<HashSet<u64>>,
}

/// Which mounts were there already.
#[derive(Debug)]
enum Older {
    /// Those with a unique number up to this one.
    UpTo(u64),
    /// Those with these numbers. They are used again when one is gone: what is mounted in
    /// the place of an older one then passes for it.
    These(HashSet<u64>),
}

impl Boundary {
    /// Between the mounts that are there now and all that come later.
    ///
    /// # Errors
    /// The mounts cannot be listed.
    pub fn draw() -> io::Result<Boundary> {
        let older = match newest() {
            Some(newest) => Older::UpTo(newest),
            None => Older::These(mounts()?.into_iter().map(|mount| mount.id).collect()),
        };
        Ok(Boundary {
            older,
            harmless: Mutex::default(),
        })
    }

    /// Whether the mount that `file` was found through may be touched. The file itself is
    /// not: nothing is asked of its file system.
    ///
    /// # Errors
    /// It cannot be told.
    pub fn permits(&self, file: &impl AsFd) -> Result<bool, Errno> {
        let (wanted, is_unique) = match self.older {
            Older::UpTo(_) => (MNT_ID_UNIQUE, true),
            Older::These(_) => (StatxFlags::MNT_ID, false),
        };
        let Some(mount) = mount_of(file, wanted)? else {
            // Before Linux 5.8 mounts have no numbers here.
            return Ok(true);
        };
        let is_older = match &self.older {
            Older::UpTo(newest) => mount <= *newest,
            Older::These(older) => older.contains(&mount),
        };
        let known = || self.harmless.lock().unwrap_or_else(PoisonError::into_inner);
        if is_older || known().contains(&mount) {
            return Ok(true);
        }
        // Of a mount that this process does not see, its kind cannot be told.
        let is_harmless = match mount_of(file, StatxFlags::MNT_ID)? {
            Some(id) => {
                let table = mounts().map_err(errno)?;
                let line = table.into_iter().find(|line| line.id == id);
                line.is_some_and(|line| !line.is_stfs())
            }
            None => false,
        };
        if is_harmless && is_unique {
            known().insert(mount);
        }
        Ok(is_harmless)
    }
}

/// The number of the mount that `file` was found through; None where the kernel has no
/// such number.
fn mount_of(file: &impl AsFd, wanted: StatxFlags) -> Result<Option<u64>, Errno> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let found = rustix::fs::statx(file, OsStr::new(""), flags, wanted);
    let found = found.map_err(|error| Errno::from_raw(error.raw_os_error()))?;
    let is_told = found.stx_mask & wanted.bits() != 0;
    Ok(is_told.then_some(found.stx_mnt_id))
}

fn errno(error: io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}

/// The unique number of the mount that was made last: listmount(2), since Linux 6.8. None
/// where there is no such call, or it is forbidden.
fn newest() -> Option<u64> {
    /// The same on every architecture but Alpha.
    const LISTMOUNT: libc::c_long = 458;
    const ALL: u64 = u64::MAX;
    /// linux/mount.h: `mnt_id_req`.
    #[repr(C)]
    struct Request {
        size: u32,
        spare: u32,
        mount: u64,
        after: u64,
    }
    let mut newest = 0;
    loop {
        let mut listed = [0_u64; 256];
        let request = Request {
            size: size_of::<Request>() as u32,
            spare: 0,
            mount: ALL,
            after: newest,
        };
        // SAFETY: the kernel reads `request`, whose size is in it, and writes no more
        // than the given number of elements to `listed`. Both outlive the call.
        let count = unsafe {
            libc::syscall(
                LISTMOUNT,
                &raw const request,
                listed.as_mut_ptr(),
                listed.len(),
                0,
            )
        };
        let listed = listed.get(..usize::try_from(count).ok()?)?;
        // In the order of their numbers.
        match listed.last() {
            Some(last) if *last > newest => newest = *last,
            _ => return Some(newest).filter(|newest| *newest > 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn what_was_mounted_before_may_be_touched() {
        let boundary = Boundary::draw().unwrap();
        for place in ["/", "/proc", "/sys"] {
            let file = File::open(place).unwrap();
            assert_eq!(boundary.permits(&file), Ok(true), "{place}");
        }
    }

    #[test]
    fn of_younger_mounts_the_kind_decides() {
        for older in [Older::UpTo(0), Older::These(HashSet::new())] {
            let harmless = Mutex::default();
            let boundary = Boundary { older, harmless };
            let file = File::open("/proc").unwrap();
            assert_eq!(boundary.permits(&file), Ok(true));
            // It is in no table: an internal mount of the kernel.
            let (pipe, _) = std::io::pipe().unwrap();
            assert_eq!(boundary.permits(&pipe), Ok(false));
        }
    }
}
