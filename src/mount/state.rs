//! Whether mounts live, found without waiting for one that does not answer.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::geteuid;

use super::connection::Servers;
use super::inquiry::{self, Answer};
use super::mountinfo::{self, Mount};
use super::process::{Activity, Process};

/// How long mounts have for saying what they do: all of them together.
const LIMIT: Duration = Duration::from_millis(1200);

/// What a mount says of itself, below its root.
const REPORT: &str = ".stfs/status.json";

/// How a mount is.
#[derive(Debug)]
pub enum State {
    /// It answers, and this is what it says of itself.
    Live(Vec<u8>),
    /// Its process is gone or ending.
    Dead,
    /// Its process is stopped, as by SIGSTOP.
    Stopped,
    /// It said nothing in time, or only this.
    NotAnswering(Option<io::Error>),
    /// It is another user's, who keeps this one out.
    AnotherUsers,
}

/// What can be told of the process behind a mount without asking the mount.
#[derive(Debug)]
pub enum Server {
    Running(Process),
    Stopped(Process),
    Ending(Process),
    /// It is gone, or this user cannot see it.
    Unseen,
}

impl Server {
    /// That of `mount`.
    ///
    /// # Errors
    /// `/proc` is not there.
    pub fn of(mount: &Mount) -> io::Result<Server> {
        Ok(Server::among(&Servers::find()?, mount))
    }

    fn among(servers: &Servers, mount: &Mount) -> Server {
        let Some(process) = servers.of(mount) else {
            return Server::Unseen;
        };
        match process.activity() {
            Activity::Running => Server::Running(process),
            Activity::Stopped => Server::Stopped(process),
            Activity::Ending => Server::Ending(process),
        }
    }

    pub fn process(&self) -> Option<&Process> {
        match self {
            Server::Running(process) | Server::Stopped(process) | Server::Ending(process) => {
                Some(process)
            }
            Server::Unseen => None,
        }
    }

    /// Whether nothing will ever answer `mount` any more. Only one whose process is not
    /// to be seen is asked.
    pub fn is_dead(&self, mount: &Mount) -> bool {
        match self {
            Server::Ending(_) => true,
            Server::Running(_) | Server::Stopped(_) => false,
            Server::Unseen => {
                let answers = inquiry::read_all(&[report(mount)], LIMIT);
                answers.into_iter().any(|answer| is_end(&answer))
            }
        }
    }
}

/// How each of `mounts` is, and the number of its process.
///
/// # Errors
/// The mount table cannot be read, or there is no `/proc`.
pub fn states(mounts: &[Mount]) -> io::Result<Vec<(State, Option<i32>)>> {
    let table = mountinfo::mounts()?;
    let servers = Servers::find()?;
    let known: Vec<_> = mounts
        .iter()
        .map(|mount| {
            let server = Server::among(&servers, mount);
            let pid = server.process().map(Process::pid);
            (without_asking(&server, mount, &table), pid)
        })
        .collect();
    let asked = known
        .iter()
        .zip(mounts)
        .filter(|((state, _), _)| state.is_none());
    let paths: Vec<PathBuf> = asked.map(|(_, mount)| report(mount)).collect();
    let mut answers = inquiry::read_all(&paths, LIMIT).into_iter();
    let states = known.into_iter().zip(mounts).map(|((state, pid), mount)| {
        let state = state.unwrap_or_else(|| by_answer(answers.next().flatten(), mount));
        (state, pid)
    });
    Ok(states.collect())
}

/// None where the mount has to be asked.
fn without_asking(server: &Server, mount: &Mount, table: &[Mount]) -> Option<State> {
    let uppermost = mountinfo::containing(table, &mount.point);
    match server {
        Server::Ending(_) => Some(State::Dead),
        Server::Stopped(_) => Some(State::Stopped),
        _ if uppermost.is_some_and(|other| other.id != mount.id) => Some(State::NotAnswering(
            Some(io::Error::other("another mount covers it")),
        )),
        _ => None,
    }
}

fn by_answer(answer: Answer, mount: &Mount) -> State {
    let others = mountinfo::user(mount).is_some_and(|user| user != geteuid().as_raw());
    match answer {
        Some(Ok(report)) => State::Live(report),
        answer if is_end(&answer) => State::Dead,
        Some(Err(error)) if others && error.kind() == io::ErrorKind::PermissionDenied => {
            State::AnotherUsers
        }
        Some(Err(error)) => State::NotAnswering(Some(error)),
        None => State::NotAnswering(None),
    }
}

/// Whether that is the kernel's answer for a mount whose connection has ended.
fn is_end(answer: &Answer) -> bool {
    let Some(Err(error)) = answer else {
        return false;
    };
    matches!(
        error.raw_os_error(),
        Some(libc::ENOTCONN | libc::ECONNABORTED)
    )
}

fn report(mount: &Mount) -> PathBuf {
    Path::new(&mount.point).join(REPORT)
}
