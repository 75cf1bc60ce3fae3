//! Which processes hold a mount, so that it cannot be unmounted. The mount itself is
//! not asked.

use std::fmt::{self, Display};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::{Duration, Instant};

use super::connection;
use super::mountinfo::{self, Mount};
use super::process;

/// How long is looked for them: the kernel may make whoever asks about the memory of a
/// process wait for that process.
const PATIENCE: Duration = Duration::from_secs(3);

/// How many are named.
const NAMED: usize = 10;

/// What holds a mount, as far as this user can see it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Holders {
    /// The mounts that lie in it.
    mounts: Vec<PathBuf>,
    processes: Vec<Holder>,
    /// Requests that have no answer yet: whoever made them may hold nothing else.
    requests: u64,
}

/// A process, and the ways in which it holds the mount.
#[derive(Debug, PartialEq, Eq)]
struct Holder {
    pid: i32,
    command: String,
    ways: Vec<&'static str>,
}

impl Holders {
    /// Whether nothing else is known to hold it than requests, which may be answered any
    /// moment.
    pub fn are_requests(&self) -> bool {
        self.requests > 0 && self.mounts.is_empty() && self.processes.is_empty()
    }

    /// Those of `mount`.
    pub fn of(mount: &Mount) -> Holders {
        let Ok(table) = mountinfo::mounts() else {
            return Holders::default();
        };
        let above = table
            .iter()
            .skip_while(|other| other.id != mount.id)
            .skip(1);
        let mounts = above
            .map(|other| &other.point)
            .filter(|point| point.starts_with(&mount.point))
            .cloned()
            .collect();
        let requests = connection::waiting(mount);
        let (found, finds) = mpsc::channel();
        let mount = mount.clone();
        // Left behind where it does not end in time; it ends with this process then.
        thread::spawn(move || search(&mount, &table, &found));
        let deadline = Instant::now() + PATIENCE;
        let mut processes = vec![];
        let left = || deadline.saturating_duration_since(Instant::now());
        while let Ok(holder) = finds.recv_timeout(left()) {
            processes.push(holder);
        }
        Holders {
            mounts,
            processes,
            requests,
        }
    }
}

fn search(mount: &Mount, table: &[Mount], found: &Sender<Holder>) {
    let namespace = |process: &Path| fs::read_link(process.join("ns/mnt")).ok();
    let own = namespace(Path::new("/proc/self"));
    for pid in process::others().into_iter().flatten() {
        let directory = process::directory(pid);
        let open = process::descriptors(pid).unwrap_or_default();
        let is_open = open.iter().any(|it| it.info("mnt_id") == Some(mount.id));
        let is_mapped = maps(&directory, mount.device).unwrap_or(false);
        // Paths in another namespace are of other mounts.
        let shares = namespace(&directory) == own;
        let leads_in = |link: &str| {
            let path = fs::read_link(directory.join(link));
            path.is_ok_and(|path| {
                mountinfo::containing(table, &path).is_some_and(|it| it.id == mount.id)
            })
        };
        let ways = [
            (is_open, "open files"),
            (is_mapped, "mapped files"),
            (shares && leads_in("cwd"), "working directory"),
            (shares && leads_in("root"), "root directory"),
        ];
        let ways: Vec<_> = ways
            .into_iter()
            .filter(|way| way.0)
            .map(|way| way.1)
            .collect();
        if ways.is_empty() {
            continue;
        }
        let command = fs::read(directory.join("comm")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command);
        let holder = Holder {
            pid,
            command: command.strip_suffix('\n').unwrap_or(&command).to_owned(),
            ways,
        };
        if found.send(holder).is_err() {
            return;
        }
    }
}

/// Whether a process maps anything of the file system `device`.
fn maps(process: &Path, device: u64) -> io::Result<bool> {
    let device = format!("{:02x}:{:02x}", libc::major(device), libc::minor(device));
    for line in BufReader::new(File::open(process.join("maps"))?).split(b'\n') {
        // Addresses, rights, offset, device, inode, path.
        if line?.split(|&byte| byte == b' ').nth(3) == Some(device.as_bytes()) {
            return Ok(true);
        }
    }
    Ok(false)
}

impl Display for Holders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mounts = self.mounts.iter();
        let mounts = mounts.map(|point| format!("the mount at {}", point.display()));
        let processes = self.processes.iter().map(|holder| {
            let (command, pid) = (holder.command.escape_debug(), holder.pid);
            format!("{command} (process {pid}: {})", holder.ways.join(", "))
        });
        let requests = (self.requests > 0).then(|| {
            format!(
                "whoever waits for its answers (requests: {})",
                self.requests
            )
        });
        let all: Vec<_> = requests
            .into_iter()
            .chain(mounts)
            .chain(processes)
            .collect();
        match (all.len(), all.len().saturating_sub(NAMED)) {
            (0, _) => f.write_str("nothing that you can see; root sees the processes of all users"),
            (_, 0) => f.write_str(&all.join(", ")),
            (_, more) => write!(f, "{} and {more} more", all[..NAMED].join(", ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(pid: i32, command: &str) -> Holder {
        Holder {
            pid,
            command: command.into(),
            ways: vec!["open files", "working directory"],
        }
    }

    #[test]
    fn some_are_named_and_the_others_counted() {
        let mut holders = Holders::default();
        assert!(holders.to_string().contains("root sees"));
        holders.processes = (1..=10).map(|pid| holder(pid, "cat")).collect();
        assert!(
            holders
                .to_string()
                .ends_with("cat (process 10: open files, working directory)")
        );
        holders.mounts.push("/mnt/a/b".into());
        holders.requests = 3;
        holders.processes.push(holder(11, "cat"));
        let said = holders.to_string();
        assert!(
            said.starts_with(
                "whoever waits for its answers (requests: 3), the mount at /mnt/a/b, cat ("
            ),
            "{said}"
        );
        assert!(said.ends_with(" and 3 more"), "{said}");
    }

    #[test]
    fn a_command_cannot_pass_itself_off_as_more_than_its_name() {
        let holders = Holders {
            processes: vec![holder(1, "a\u{1b}[2J\nb")],
            ..Holders::default()
        };
        assert!(holders.to_string().starts_with("a\\u{1b}[2J\\nb ("));
    }
}
