//! Reads files that may never answer. Each is read in a process of its own, which is
//! killed and left behind when its time is up: a thread that waits for a file system
//! cannot be.

use std::ffi::{CStr, CString};
use std::io::{self, PipeReader, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{ForkResult, fork};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use rustix::stdio::stdout;

/// More than a mount has to say.
const MOST: usize = 16 << 20;

/// What became of a question. None: there was no answer in time.
pub type Answer = Option<io::Result<Vec<u8>>>;

/// Reads all of `paths` at once, each to its end, for as long as `limit` at most.
pub fn read_all(paths: &[PathBuf], limit: Duration) -> Vec<Answer> {
    let deadline = Instant::now() + limit;
    let mut inquiries: Vec<_> = paths.iter().map(|path| Inquiry::start(path)).collect();
    loop {
        let mut open: Vec<_> = inquiries
            .iter_mut()
            .flatten()
            .filter(|inquiry| !inquiry.ended)
            .collect();
        let left = deadline.saturating_duration_since(Instant::now());
        if open.is_empty() || left.is_zero() {
            break;
        }
        let mut ready: Vec<_> = open
            .iter()
            .map(|inquiry| PollFd::new(inquiry.pipe.as_fd(), PollFlags::POLLIN))
            .collect();
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut ready, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => break,
        }
        let ready: Vec<_> = ready.iter().map(|it| it.any() == Some(true)).collect();
        for (inquiry, _) in open.iter_mut().zip(ready).filter(|(_, ready)| *ready) {
            inquiry.hear();
        }
    }
    let answer = |inquiry: io::Result<Inquiry>| match inquiry {
        Ok(inquiry) => inquiry.answer(),
        Err(error) => Some(Err(error)),
    };
    inquiries.into_iter().map(answer).collect()
}

/// A process that reads a file. What it says is the bytes, and then the error that ended
/// them in four bytes: 0 at the end of the file.
struct Inquiry {
    process: Pid,
    pipe: PipeReader,
    said: Vec<u8>,
    ended: bool,
}

impl Inquiry {
    fn start(path: &Path) -> io::Result<Inquiry> {
        let path = CString::new(path.as_os_str().as_bytes())?;
        let (reader, writer) = io::pipe()?;
        // SAFETY: the child makes system calls on what was made before, and nothing
        // else: it allocates nothing and takes no lock.
        match unsafe { fork() }? {
            ForkResult::Child => {
                let pipe = keep_only(writer.as_fd());
                let read = pipe.and_then(|()| read_into(&path, stdout()));
                let error = read.map_or_else(|error| error.raw_os_error(), |()| 0);
                let _ = write_all(stdout(), &error.to_le_bytes());
                // SAFETY: it ends this process, and runs nothing of its parent's.
                unsafe { libc::_exit(0) }
            }
            ForkResult::Parent { child } => Ok(Inquiry {
                process: Pid::from_raw(child.as_raw()).ok_or(io::ErrorKind::InvalidData)?,
                pipe: reader,
                said: vec![],
                ended: false,
            }),
        }
    }

    /// Takes what there is to hear.
    fn hear(&mut self) {
        let mut block = [0; 4096];
        match self.pipe.read(&mut block) {
            Ok(0) => self.ended = true,
            Ok(length) => self.said.extend_from_slice(&block[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => self.ended = true,
        }
    }

    fn answer(mut self) -> Answer {
        if !self.ended {
            return None;
        }
        let Some((_, error)) = self.said.split_last_chunk() else {
            return Some(Err(io::ErrorKind::UnexpectedEof.into()));
        };
        Some(match i32::from_le_bytes(*error) {
            0 => {
                self.said.truncate(self.said.len() - size_of::<i32>());
                Ok(std::mem::take(&mut self.said))
            }
            error => Err(io::Error::from_raw_os_error(error)),
        })
    }
}

impl Drop for Inquiry {
    fn drop(&mut self) {
        // It may have ended; and where it cannot, it is not waited for.
        let _ = kill_process(self.process, Signal::KILL);
        let _ = waitpid(Some(self.process), WaitOptions::NOHANG);
    }
}

/// In the child: makes `pipe` its output and all that it has open. It may outlive its
/// parent, whose caller waits for the end of what that has open.
fn keep_only(pipe: BorrowedFd) -> rustix::io::Result<()> {
    rustix::stdio::dup2_stdout(pipe)?;
    // SAFETY: this process uses nothing but its output, and runs nothing that would.
    unsafe {
        libc::close(libc::STDIN_FILENO);
        libc::close(libc::STDERR_FILENO);
        // Without close_range(2) those stay open that end at the next exec(2).
        libc::close_range(libc::STDERR_FILENO as u32 + 1, u32::MAX, 0);
    }
    rustix::process::chdir(c"/")
}

/// In the child: hands on what is in the file.
fn read_into(path: &CStr, pipe: BorrowedFd) -> rustix::io::Result<()> {
    let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut block = [0; 4096];
    let mut left = MOST;
    loop {
        match rustix::io::read(&file, &mut block)? {
            0 => return Ok(()),
            length if length > left => return Err(rustix::io::Errno::FBIG),
            length => {
                left -= length;
                write_all(pipe, &block[..length])?;
            }
        }
    }
}

fn write_all(pipe: BorrowedFd, mut bytes: &[u8]) -> rustix::io::Result<()> {
    while !bytes.is_empty() {
        let written = rustix::io::write(pipe, bytes)?;
        bytes = &bytes[written..];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_errors_and_silence() {
        let dir = tempfile::tempdir().unwrap();
        let (full, silent) = (dir.path().join("full"), dir.path().join("silent"));
        let bytes: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
        std::fs::write(&full, &bytes).unwrap();
        // Whoever opens it for reading waits for a writer, for ever.
        nix::unistd::mkfifo(&silent, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let paths = [full.clone(), dir.path().join("none"), full];
        let [Some(Ok(first)), Some(Err(error)), Some(Ok(last))] =
            &read_all(&paths, Duration::from_secs(60))[..]
        else {
            panic!("not all answered as they should");
        };
        assert!(*first == bytes && *last == bytes);
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        let [None] = &read_all(&[silent], Duration::from_millis(50))[..] else {
            panic!("an answer from nobody");
        };
    }
}
