//! Read leases (fcntl(2)): before the first byte of a leased file can change, the
//! kernel tells this process, and whoever wants to write waits until the lease is given
//! back.
//!
//! One thread is told, by a signal that the kernel sends to it alone: no other thread
//! has to block that or can be ended by it. The thread waits for nothing but signals: of
//! a lease that is broken, the last of the replies under way gives it back.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::{mem, thread};

use nix::errno::Errno;
use nix::sys::signal::SigSet;
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::gettid;

use crate::source::{Lender, Mapped};

/// Set in [`Lease::state`] when the lease is broken. The rest counts what is lent.
const BROKEN: usize = 1 << (usize::BITS - 1);

/// A read lease of an open file. As long as it is not broken nobody can have written to
/// the file since it was taken.
#[derive(Debug)]
pub struct Lease {
    file: Arc<File>,
    state: AtomicUsize,
}

impl Lease {
    /// Takes the lease of `file`, which has none and is open for reading alone.
    ///
    /// # Errors
    /// [`Errno::EAGAIN`] where somebody has the file open or mapped for writing. Others
    /// where there are no leases, or not for this process.
    pub fn take(file: &Arc<File>) -> Result<Arc<Lease>, Errno> {
        told_to(file, keeper()?)?;
        let lease = Arc::new(Lease {
            file: file.clone(),
            state: AtomicUsize::new(0),
        });
        // Known before it can be broken, and until its descriptor can be another file's.
        leases().insert(file.as_raw_fd(), Arc::downgrade(&lease));
        lease.set(libc::F_RDLCK)?;
        Ok(lease)
    }

    /// `bytes`, mapped of this file. Until they are dropped the file keeps them. None
    /// once the lease is broken.
    pub fn lend<'a>(&'a self, bytes: &'a [u8]) -> Option<Mapped<'a>> {
        let one_more = |state| (state & BROKEN == 0).then_some(state + 1);
        self.state
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more)
            .is_ok()
            .then(|| Mapped::new(bytes, self))
    }

    /// Whether somebody opened the file for writing since the lease was taken.
    pub fn is_broken(&self) -> bool {
        self.state.load(Ordering::Acquire) & BROKEN != 0
    }

    /// Gives the lease back if somebody waits for that: at once, or with the last of
    /// what is lent.
    fn look(&self) {
        // SAFETY: the call touches no memory.
        let held = unsafe { libc::fcntl(self.file.as_raw_fd(), libc::F_GETLEASE) };
        if held != libc::F_RDLCK && self.state.fetch_or(BROKEN, Ordering::AcqRel) == 0 {
            self.give_back();
        }
    }

    fn give_back(&self) {
        // The kernel has it already when it was waited for too long.
        let _ = self.set(libc::F_UNLCK);
    }

    fn set(&self, kind: libc::c_int) -> Result<(), Errno> {
        // SAFETY: the call touches no memory.
        let set = unsafe { libc::fcntl(self.file.as_raw_fd(), libc::F_SETLEASE, kind) };
        Errno::result(set).map(drop)
    }
}

impl Lender for Lease {
    fn returned(&self) {
        if self.state.fetch_sub(1, Ordering::AcqRel) == BROKEN + 1 {
            self.give_back();
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        leases().remove(&self.file.as_raw_fd());
        // Mappings keep an open file beyond its descriptor.
        self.give_back();
    }
}

/// All leases, by their descriptors, which is how signals name them.
fn leases() -> MutexGuard<'static, HashMap<RawFd, Weak<Lease>>> {
    static LEASES: OnceLock<Mutex<HashMap<RawFd, Weak<Lease>>>> = OnceLock::new();
    let leases = LEASES.get_or_init(Mutex::default);
    leases.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Has the thread `keeper` told, and no other, when a lease of `file` is broken.
fn told_to(file: &File, keeper: libc::pid_t) -> Result<(), Errno> {
    /// asm-generic/fcntl.h.
    const F_SETSIG: libc::c_int = 10;
    const F_SETOWN_EX: libc::c_int = 15;
    const F_OWNER_TID: libc::c_int = 0;
    #[repr(C)]
    struct Owner {
        kind: libc::c_int,
        pid: libc::pid_t,
    }
    let owner = Owner {
        kind: F_OWNER_TID,
        pid: keeper,
    };
    // SAFETY: the kernel reads a struct of this form, and keeps nothing of it.
    Errno::result(unsafe { libc::fcntl(file.as_raw_fd(), F_SETOWN_EX, &raw const owner) })?;
    // SAFETY: the call touches no memory.
    Errno::result(unsafe { libc::fcntl(file.as_raw_fd(), F_SETSIG, libc::SIGRTMIN()) })?;
    Ok(())
}

/// The thread that is told, which is there from the first lease on.
fn keeper() -> Result<libc::pid_t, Errno> {
    static KEEPER: OnceLock<Option<libc::pid_t>> = OnceLock::new();
    let start = || {
        let (started, keeper) = sync_channel(1);
        let thread = thread::Builder::new().name("leases".into());
        thread.spawn(move || keep(&started)).ok()?;
        keeper.recv().ok()
    };
    KEEPER.get_or_init(start).ok_or(Errno::ENOLCK)
}

/// Looks at leases that are broken, for as long as the process lives.
fn keep(started: &SyncSender<libc::pid_t>) -> Result<(), Errno> {
    let signals = signals();
    signals.thread_block()?;
    let told = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC)?;
    // Whoever started this thread waits for it.
    let _ = started.send(gettid().as_raw());
    loop {
        let signal = match told.read_signal() {
            Ok(Some(signal)) => signal,
            // Nothing but an interruption makes it fail.
            Ok(None) | Err(_) => continue,
        };
        // They are dropped when the table is free again, which their end needs.
        let broken: Vec<_> = match signal.ssi_signo == libc::SIGIO as u32 {
            // There were more signals than the kernel keeps.
            true => leases().values().filter_map(Weak::upgrade).collect(),
            false => {
                let lease = leases().get(&signal.ssi_fd).and_then(Weak::upgrade);
                lease.into_iter().collect()
            }
        };
        for lease in broken {
            lease.look();
        }
    }
}

/// The signal that names a lease, and the one that stands for any number of them.
fn signals() -> SigSet {
    // SAFETY: all zeros are a set, and what follows writes to that alone.
    let signals = unsafe {
        let mut signals: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&raw mut signals);
        libc::sigaddset(&raw mut signals, libc::SIGRTMIN());
        libc::sigaddset(&raw mut signals, libc::SIGIO);
        signals
    };
    // SAFETY: the functions above initialised it.
    unsafe { SigSet::from_sigset_t_unchecked(signals) }
}
