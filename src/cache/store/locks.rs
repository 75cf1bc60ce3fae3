//! Who may read, write or remove which file, across processes. A lock belongs to
//! an open file, and goes with the last descriptor of it: a process that is killed
//! leaves none behind.
//!
//! * a shared lock on a finished file: it is in use, and stays;
//! * an exclusive one on a finished file: it is being removed, or just finished;
//! * an exclusive one on a file in `incoming/`: it is being written, or somebody who
//!   reads has put down there what he decoded;
//! * an exclusive one on `CACHEDIR.TAG`: room is being made.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often a claim is tried while others finish or remove the same file.
const ATTEMPTS: usize = 8;
/// Others hold an exclusive lock for moments only, unless they are busy finishing.
const PATIENCE: [Duration; 4] = [Duration::from_millis(1); 4];

/// Whether `path` leads to `file`. False when there is nothing.
pub fn leads_to(path: &Path, file: &File) -> io::Result<bool> {
    let there = match fs::symlink_metadata(path) {
        Ok(there) => there,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    let open = file.metadata()?;
    Ok((there.dev(), there.ino()) == (open.dev(), open.ino()))
}

/// Takes a shared lock; false when somebody has the exclusive one.
pub fn share(file: &File) -> io::Result<bool> {
    let mut patience = PATIENCE.iter();
    loop {
        match file.try_lock_shared() {
            Ok(()) => return Ok(true),
            Err(TryLockError::Error(error)) => return Err(error),
            Err(TryLockError::WouldBlock) => match patience.next() {
                Some(moment) => std::thread::sleep(*moment),
                None => return Ok(false),
            },
        }
    }
}

/// How often a turn is asked for, and how long apart: longer than the largest file takes to
/// be removed.
const TURNS: usize = 1000;
const TURN: Duration = Duration::from_millis(10);

/// Takes the lock of whoever makes room. None when that cannot be had, on file systems without
/// locks or while a process that holds it has been stopped: then more may be taken than
/// there is to take, until room is made the next time.
pub fn take_turn(path: &Path) -> Option<File> {
    let file = options(true).open(path).ok()?;
    for _ in 0..TURNS {
        match exclude(&file) {
            Ok(true) => return Some(file),
            Ok(false) => std::thread::sleep(TURN),
            Err(_) => return None,
        }
    }
    None
}

fn exclude(file: &File) -> io::Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// The same, though others may look for a moment whether it was left behind.
fn exclude_at_last(file: &File) -> io::Result<bool> {
    for moment in PATIENCE {
        if exclude(file)? {
            return Ok(true);
        }
        std::thread::sleep(moment);
    }
    exclude(file)
}

fn options(write: bool) -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(write).mode(0o600);
    options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    options
}

/// Opens a file of the store for reading.
pub fn open(path: &Path) -> io::Result<File> {
    options(false).open(path)
}

/// Opens and locks what is there already. For writing only where that is needed: an
/// overlay copies the whole file then.
fn open_exclusive(path: &Path) -> io::Result<Option<File>> {
    let file = options(false).open(path)?;
    match exclude(&file) {
        // A network file system.
        Err(error) if error.raw_os_error() == Some(libc::EBADF) => {
            let file = options(true).open(path)?;
            Ok(exclude(&file)?.then_some(file))
        }
        locked => Ok(locked?.then_some(file)),
    }
}

/// A file that its path leads to, locked against everybody else.
#[derive(Debug)]
pub struct Held {
    file: File,
    path: PathBuf,
}

#[derive(Debug)]
pub enum Attempt {
    Held(Held),
    InUse,
    Missing,
}

impl Held {
    pub fn existing(path: &Path) -> io::Result<Attempt> {
        let file = match open_exclusive(path) {
            Ok(Some(file)) => file,
            Ok(None) => return Ok(Attempt::InUse),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Attempt::Missing),
            Err(error) => return Err(error),
        };
        // Another may have removed it while this one waited for nothing.
        if !leads_to(path, &file)? {
            return Ok(Attempt::Missing);
        }
        let path = path.to_path_buf();
        Ok(Attempt::Held(Held { file, path }))
    }

    /// Bytes.
    pub fn size(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    pub fn remove(self) -> io::Result<()> {
        remove(&self.path)
    }
}

/// The right to write the file at a path in `incoming/`, which is empty. What is
/// still there when the claim goes is removed.
#[derive(Debug)]
pub struct Claim {
    file: File,
    path: PathBuf,
}

impl Claim {
    /// None while another has it.
    pub fn take(path: &Path) -> io::Result<Option<Claim>> {
        for _ in 0..ATTEMPTS {
            let file = options(true).create(true).truncate(false).open(path)?;
            if !exclude_at_last(&file)? {
                return Ok(None);
            }
            // It was finished or removed between the two calls.
            if !leads_to(path, &file)? {
                continue;
            }
            if file.metadata()?.len() == 0 {
                let path = path.to_path_buf();
                return Ok(Some(Claim { file, path }));
            }
            // Left behind. A file of the store is never cut: bytes that somebody
            // may see stay what they are.
            remove(path)?;
        }
        Ok(None)
    }

    pub fn file(&self) -> &File {
        &self.file
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // Once renamed, it is no longer here.
        if leads_to(&self.path, &self.file).unwrap_or(false) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Removes a file that may have gone already.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}
