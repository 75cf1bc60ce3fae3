//! Other processes as `/proc` shows them. Links are read and never followed, so that
//! nothing here waits for a file system that does not answer.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// A process that is held on to: while this is there, its number stays its own.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    handle: OwnedFd,
}

/// Whether a process can do anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    Running,
    /// By a signal or a debugger; it goes on when it is told to.
    Stopped,
    /// It is gone, or will never run its program again: a thread of it may still be
    /// waiting in the kernel.
    Ending,
}

impl Process {
    /// None where there is no such process any more.
    pub fn hold(pid: i32) -> Option<Process> {
        let pid = Pid::from_raw(pid)?;
        let handle = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        Some(Process { pid, handle })
    }

    pub fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    pub fn activity(&self) -> Activity {
        let stat = fs::read(directory(self.pid()).join("stat"));
        stat.ok()
            .and_then(|line| activity(&line))
            .unwrap_or(Activity::Ending)
    }

    /// Whether all of it is gone in time.
    pub fn ends_within(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut ends = [PollFd::new(self.handle.as_fd(), PollFlags::POLLIN)];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            match poll(&mut ends, timeout) {
                Err(Errno::EINTR) => {}
                result => return result == Ok(1),
            }
        }
    }

    /// # Errors
    /// As kill(2). One that is gone already is none.
    pub fn kill(&self) -> io::Result<()> {
        match pidfd_send_signal(&self.handle, Signal::KILL) {
            Err(rustix::io::Errno::SRCH) => Ok(()),
            result => Ok(result?),
        }
    }
}

/// What a line of `/proc/PID/stat` says, proc(5).
fn activity(line: &[u8]) -> Option<Activity> {
    /// In the ninth field, from the kernel's `sched.h`.
    const PF_EXITING: u64 = 4;
    const SIGKILL_PENDING: u64 = 1 << (libc::SIGKILL - 1);
    // The second field is the command's name in parentheses, and may hold anything.
    let after_name = line.iter().rposition(|&byte| byte == b')')? + 1;
    let fields = std::str::from_utf8(line.get(after_name..)?).ok()?;
    let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
    // The first of them is the third of the line.
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    let killed = number(9)? & PF_EXITING != 0 || number(31)? & SIGKILL_PENDING != 0;
    Some(match *fields.first()? {
        "Z" | "X" | "x" => Activity::Ending,
        _ if killed => Activity::Ending,
        "T" | "t" => Activity::Stopped,
        _ => Activity::Running,
    })
}

/// A descriptor that a process has open.
#[derive(Debug)]
pub struct Descriptor {
    /// What it is open on, as far as that has a name.
    pub link: PathBuf,
    info: PathBuf,
}

impl Descriptor {
    /// What its line of `/proc/PID/fdinfo` that begins with `name` says.
    pub fn info(&self, name: &str) -> Option<u64> {
        let info = fs::read_to_string(&self.info).ok()?;
        let mut lines = info.lines();
        lines.find_map(|line| {
            line.strip_prefix(name)?
                .strip_prefix(':')?
                .trim()
                .parse()
                .ok()
        })
    }
}

/// The numbers of all processes but this one.
pub fn others() -> io::Result<impl Iterator<Item = i32>> {
    let own = std::process::id();
    let numbers = fs::read_dir("/proc")?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    Ok(numbers.filter(move |&pid: &i32| u32::try_from(pid) != Ok(own)))
}

/// Where `/proc` shows a process.
pub fn directory(pid: i32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}"))
}

/// Whose process it is.
pub fn user(pid: i32) -> Option<u32> {
    Some(fs::metadata(directory(pid)).ok()?.uid())
}

/// What a process has open.
///
/// # Errors
/// It is gone, or another user's.
pub fn descriptors(pid: i32) -> io::Result<Vec<Descriptor>> {
    let directory = directory(pid);
    let open = descriptors_below(&directory)?;
    if !open.is_empty() {
        return Ok(open);
    }
    // One whose first thread has ended may have others, which still hold them.
    let threads = fs::read_dir(directory.join("task"))?.flatten();
    let open = threads.filter_map(|thread| descriptors_below(&thread.path()).ok());
    Ok(open.flatten().collect())
}

fn descriptors_below(directory: &Path) -> io::Result<Vec<Descriptor>> {
    let entries = fs::read_dir(directory.join("fd"))?.flatten();
    let descriptor = |entry: fs::DirEntry| {
        Some(Descriptor {
            link: fs::read_link(entry.path()).ok()?,
            info: directory.join("fdinfo").join(entry.file_name()),
        })
    };
    Ok(entries.filter_map(descriptor).collect())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_process_is_waited_for_and_no_longer_than_told() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::hold(child.id().try_into().unwrap()).unwrap();
        assert_eq!(process.activity(), Activity::Running);
        assert!(!process.ends_within(Duration::from_millis(20)));
        process.kill().unwrap();
        assert!(process.ends_within(Duration::from_secs(10)));
        assert_eq!(process.activity(), Activity::Ending);
        child.wait().unwrap();
        assert_eq!(process.activity(), Activity::Ending);
        process.kill().unwrap();
    }

    #[test]
    fn lines_of_a_kernel() {
        let line = |state: &str, flags: u64, pending: u64| {
            let line = format!(
                "7 (a) Z 1) {state} 1 7 7 0 -1 {flags} 6 0 1 0 17 21 0 0 20 0 10 0 25 6 8 184 9 9 1 0 0 {pending} 0 4096 1"
            );
            activity(line.as_bytes())
        };
        assert_eq!(line("S", 4_194_624, 0), Some(Activity::Running));
        assert_eq!(line("D", 4_194_624, 0), Some(Activity::Running));
        assert_eq!(line("D", 4_194_624, 1 << 8), Some(Activity::Ending));
        assert_eq!(line("R", 4_194_628, 0), Some(Activity::Ending));
        assert_eq!(line("T", 4_194_624, 0), Some(Activity::Stopped));
        assert_eq!(line("t", 4_194_624, 0), Some(Activity::Stopped));
        assert_eq!(line("Z", 4_194_628, 0), Some(Activity::Ending));
        assert_eq!(activity(b"7 (a"), None);
        assert_eq!(activity(b"7 (a) S 1"), None);
    }
}
