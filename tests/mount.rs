//! Real mounts by the real program, of plain files: what every mount has to do,
//! whatever it shows. Expected bytes come from the source directory.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirEntryExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use tempfile::TempDir;

#[path = "mount/circles.rs"]
mod circles;
#[path = "mount/exhausted.rs"]
mod exhausted;
mod support;

/// Returns from a test, visibly, where it cannot run.
macro_rules! needs {
    ($condition:expr, $what:literal) => {
        if !$condition {
            return support::skip::skip($what);
        }
    };
}

fn fuse() -> bool {
    Path::new("/dev/fuse").exists()
}

fn root() -> bool {
    fs::metadata("/proc/self").unwrap().uid() == 0
}

/// A user who is neither root nor the owner of anything.
const NOBODY: u32 = 65534;

/// Lets every user open /dev/fuse, as far as this thread and its children see: where
/// it is closed they get another node, which is made at `node`.
fn open_fuse_to_all(node: &Path) -> nix::Result<()> {
    if fs::metadata("/dev/fuse").unwrap().mode() & 0o006 == 0o006 {
        return Ok(());
    }
    let none = None::<&str>;
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    mknod(node, SFlag::S_IFCHR, Mode::all(), makedev(10, 229))?;
    fs::set_permissions(node, PermissionsExt::from_mode(0o666)).unwrap();
    mount(Some(node), "/dev/fuse", none, MsFlags::MS_BIND, none)
}

/// A source directory, and a directory to mount it on.
struct Place {
    _dir: TempDir,
    source: PathBuf,
    point: PathBuf,
}

impl Place {
    fn new() -> Self {
        Self::named(OsStr::new("source"))
    }

    fn named(source: &OsStr) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        // Other users of the tests have to get in.
        fs::set_permissions(&root, PermissionsExt::from_mode(0o755)).unwrap();
        let (source, point) = (root.join(source), root.join("mount"));
        fs::create_dir(&source).unwrap();
        fs::create_dir(&point).unwrap();
        Self {
            _dir: dir,
            source,
            point,
        }
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs::write(self.source.join(name), bytes).unwrap();
    }

    /// Puts other bytes in the place of a file at once, as a download does.
    fn replace(&self, name: &str, bytes: impl AsRef<[u8]>) {
        self.write(".new", bytes);
        fs::rename(self.source.join(".new"), self.source.join(name)).unwrap();
    }

    fn shown(&self, name: &str) -> PathBuf {
        self.point.join(name)
    }

    /// `stfs mount SOURCE POINT OPTIONS`
    fn command(&self, options: &[&str]) -> Command {
        let mut command = stfs();
        command.env("XDG_CACHE_HOME", self.point.with_file_name("cache"));
        command.arg("mount").arg(&self.source).arg(&self.point);
        command.args(options);
        command
    }

    fn mount(&self, options: &[&str]) -> Output {
        self.command(options).output().unwrap()
    }

    fn mounted(self, options: &[&str]) -> Self {
        succeeded(&self.mount(options));
        self
    }

    /// A mount by a child of this process, as soon as it answers.
    fn mounted_in_foreground(&self) -> Child {
        let child = self.command(&["--foreground"]).spawn().unwrap();
        wait_until("the mount is there", || self.is_mounted());
        child
    }

    fn umount(&self, options: &[&str]) -> Output {
        let mut command = stfs();
        command.arg("umount").arg(&self.point).args(options);
        command.output().unwrap()
    }

    /// The line of this mount in the kernel's table.
    fn table_line(&self) -> Option<String> {
        let point = format!(" {} ", self.point.to_str().unwrap());
        let table = fs::read("/proc/thread-self/mounts").unwrap();
        String::from_utf8_lossy(&table)
            .lines()
            .find(|line| line.contains(&point))
            .map(str::to_owned)
    }

    fn is_mounted(&self) -> bool {
        self.table_line().is_some()
    }

    /// The process that serves the mount, found by its command line.
    fn daemon(&self) -> Option<u32> {
        let processes = fs::read_dir("/proc").unwrap();
        processes.flatten().find_map(|process| {
            let pid = process.file_name().to_str()?.parse().ok()?;
            let line = fs::read(process.path().join("cmdline")).ok()?;
            let mut words = line.split(|&byte| byte == 0);
            let served = words.nth(1)? == b"mount"
                && words.any(|word| word == self.point.as_os_str().as_bytes());
            served.then_some(pid)
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut unmount = if root() {
            Command::new("umount")
        } else {
            Command::new("fusermount3")
        };
        let lazy = if root() { "-l" } else { "-uz" };
        while self.is_mounted() {
            let status = unmount.arg(lazy).arg(&self.point).status();
            if !status.is_ok_and(|status| status.success()) {
                break;
            }
        }
    }
}

fn stfs() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stfs"));
    command.env_remove("RUST_LOG");
    command
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn succeeded(output: &Output) {
    assert_eq!(output.status.code(), Some(0), "{}", stderr(output));
}

/// The command failed with `status` and said each of `words`, in one line.
fn refused(output: &Output, status: i32, words: &[&str]) {
    let said = stderr(output);
    assert_eq!(output.status.code(), Some(status), "{said}");
    for word in words {
        assert!(said.contains(word), "`{word}` is missing: {said}");
    }
    if status == 1 {
        assert!(
            said.starts_with("stfs: ") && said.lines().count() == 1,
            "{said}"
        );
    }
}

fn kill(signal: &str, pid: u32) {
    let status = Command::new("kill")
        .arg(signal)
        .arg(pid.to_string())
        .status();
    assert!(status.unwrap().success());
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Bytes that differ at every place where a mistake could put them.
fn pattern(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let step = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut bytes: Vec<u8> = (0..length.div_ceil(8)).flat_map(step).collect();
    bytes.truncate(length);
    bytes
}

fn raw_error<T>(result: io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

const LENGTH: usize = 3 * 1024 * 1024 + 123;

// ---- bytes ----

#[test]
fn every_way_to_read_gives_the_bytes_of_the_source() {
    needs!(fuse(), "no /dev/fuse");
    let place = Place::new();
    let bytes = pattern(LENGTH, 1);
    place.write("file", &bytes);
    place.write("empty", "");
    let place = place.mounted(&[]);

    assert_eq!(fs::read(place.shown("empty")).unwrap(), b"");
    assert!(fs::read(place.shown("file")).unwrap() == bytes, "read");

    let mut file = File::open(place.shown("file")).unwrap();
    for offset in [
        0,
        1,
        511,
        4095,
        4097,
        131_071,
        1_048_575,
        1_048_577,
        LENGTH - 1,
        LENGTH,
    ] {
        for length in [1, 13, 4096, 70_001, 2_000_003] {
            let mut part = vec![0; length];
            let end = LENGTH.min(offset + length);
            let mut got = 0;
            while got < end - offset {
                let at = (offset + got) as u64;
                let count = file.read_at(&mut part[got..], at).unwrap();
                assert!(count > 0, "early end at {at}");
                got += count;
            }
            assert!(
                part[..got] == bytes[offset..end],
                "pread at {offset}, {length} bytes"
            );
        }
        let at = offset as u64;
        assert_eq!(file.seek(SeekFrom::Start(at)).unwrap(), at);
    }
    assert_eq!(file.read_at(&mut [0; 10], LENGTH as u64 + 1).unwrap(), 0);

    // SAFETY: nobody changes the source while it is mapped.
    let private = unsafe { memmap2::MmapOptions::new().map_copy_read_only(&file) }.unwrap();
    assert!(private[..] == bytes, "private mapping");
    // SAFETY: as above.
    let shared = unsafe { memmap2::Mmap::map(&file) }.unwrap();
    assert!(shared[..] == bytes, "shared mapping");

    // copy_file_range(2) or sendfile(2), whichever the kernel permits.
    let copy = place.source.join("copy");
    file.seek(SeekFrom::Start(0)).unwrap();
    let copied = io::copy(&mut file, &mut File::create(&copy).unwrap()).unwrap();
    assert_eq!(copied, LENGTH as u64);
    assert!(fs::read(copy).unwrap() == bytes, "io::copy");
}

#[test]
fn direct_reads_give_the_bytes_of_the_source() {
    needs!(fuse(), "no /dev/fuse");
    let place = Place::new();
    let bytes = pattern(LENGTH, 2);
    place.write("file", &bytes);
    let direct = |path: PathBuf| {
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(libc::O_DIRECT).open(path)
    };
    let source = direct(place.source.join("file"));
    needs!(source.is_ok(), "no O_DIRECT where the tests run");
    let place = place.mounted(&[]);
    let file = direct(place.shown("file")).unwrap();

    const ALIGNED: usize = 4096;
    const CHUNK: usize = 512 * 1024;
    let mut buffer = vec![0; CHUNK + ALIGNED];
    let start = buffer.as_ptr().align_offset(ALIGNED);
    let buffer = &mut buffer[start..start + CHUNK];
    let mut got = vec![];
    loop {
        match file.read_at(buffer, got.len() as u64).unwrap() {
            0 => break,
            count => got.extend_from_slice(&buffer[..count]),
        }
    }
    assert!(got == bytes);
}

#[test]
fn many_threads_share_one_descriptor() {
    needs!(fuse(), "no /dev/fuse");
    let place = Place::new();
    let bytes = pattern(LENGTH, 3);
    place.write("file", &bytes);
    let place = place.mounted(&["--threads", "3"]);
    let file = File::open(place.shown("file")).unwrap();
    thread::scope(|scope| {
        for thread in 0..16 {
            let (file, bytes) = (&file, &bytes);
            scope.spawn(move || {
                let mut part = vec![0; 99_991];
                for round in 0..20 {
                    let offset = (thread * 7919 + round * 131_101) % (LENGTH - part.len());
                    file.read_exact_at(&mut part, offset as u64).unwrap();
                    assert!(part == bytes[offset..offset + part.len()]);
                }
            });
        }
    });
}

#[test]
fn the_same_file_open_many_times_at_once() {
    needs!(fuse(), "no /dev/fuse");
    let place = Place::new();
    let bytes = pattern(100_000, 4);
    place.write("file", &bytes);
    let place = place.mounted(&[]);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..50 {
                    assert!(fs::read(place.shown("file")).unwrap() == bytes);
                }
            });
        }
    });
}

// ---- names and attributes ----

#[test]
fn a_large_directory_is_listed_whole() {
    needs!(fuse(), "no /dev/fuse");
    let place = Place::new();
    let mut names: Vec<OsString> = (0..1000)
        .map(|number| format!("a name of some length, number {number:04}").into())
        .collect();
    for name in &names {
        fs::write(place.source.join(name), "").unwrap();
    }
    fs::create_dir(place.source.join("sub")).unwrap();
    names.push("sub".into());
    let place = place.mounted(&[]);
    for _ in 0..2 {
        let mut listed = vec![];
        for entry in fs::read_dir(&place.point).unwrap() {
            let entry = entry.unwrap();
            assert_eq!(entry.ino(), entry.metadata().unwrap().ino());
            assert_eq!(
                entry.file_type().unwrap().is_dir(),
                entry.file_name() == "sub"
            );
            listed.push(entry.file_name());
        }
        listed.sort();
        assert_eq!(listed, names);
    }
    assert_eq!(fs::read_dir(place.shown("sub")).unwrap().count(), 0);
}

#[test]
fn attributes_are_those_of_the_source() {
    needs!(fuse(), "no /dev/fuse");
    let place = Place::new();
    place.write("file", pattern(12_345, 5));
    let path = place.source.join("file");
    fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
    let place = place.mounted(&[]);
    let (source, shown) = (
        fs::metadata(path).unwrap(),
        fs::metadata(place.shown("file")).unwrap(),
    );
    assert_eq!(shown.len(), 12_345);
    assert_eq!(shown.mode(), libc::S_IFREG | 0o440);
    assert_eq!((shown.uid(), shown.gid()), (source.uid(), source.gid()));
    assert_eq!(shown.modified().unwrap(), source.modified().unwrap());
    assert!(shown.blocks() * 512 >= shown.len());
    assert!(fs::metadata(&place.point).unwrap().is_dir());
    assert_eq!(
        raw_error(fs::metadata(place.shown("none"))),
        Some(libc::ENOENT)
    );
    assert_eq!(
        raw_error(fs::metadata(place.shown("file/x"))),
        Some(libc::ENOTDIR)
    );
}

#[test]
fn the_size_of_the_file_system_is_the_source_s() {
    needs!(fuse(), "no /dev/fuse");
    let place = Place::new().mounted(&[]);
    let total = |path: &Path| {
        let output = Command::new("stat")
            .args(["-f", "-c", "%b %S"])
            .arg(path)
            .output();
        let output = String::from_utf8(output.unwrap().stdout).unwrap();
        let figures = output
            .split_whitespace()
            .map(|word| word.parse::<u64>().unwrap());
        figures.product::<u64>()
    };
    assert_eq!(total(&place.point), total(&place.source));
}

#[test]
fn only_what_users_may_set_is_an_attribute_at_all() {
    needs!(fuse(), "no /dev/fuse");
    let place = Place::new();
    place.write("m.pt", support::one_vector(&[1.0]));
    let place = place.mounted(&[]);
    let file = place.shown("m.safetensors");
    let get = |name| stfs::mount::xattr(&file, name);
    assert_eq!(get(c"user.stfs.tier").unwrap(), b"stream");
    assert_eq!(raw_error(get(c"user.stfs.none")), Some(libc::ENODATA));
    assert_eq!(raw_error(get(c"user.other")), Some(libc::ENODATA));
    for name in [c"security.selinux", c"system.posix_acl_access"] {
        assert_eq!(raw_error(get(name)), Some(libc::EOPNOTSUPP), "{name:?}");
    }
    assert_eq!(get(c"user.stfs.tier").unwrap(), b"stream");
}

#[test]
fn nothing_can_be_written() {
    needs!(fuse(), "no /dev/fuse");
    let place = Place::new();
    place.write("file", "text");
    let place = place.mounted(&[]);
    let file = place.shown("file");
    let read_only = Some(libc::EROFS);
    assert_eq!(
        raw_error(OpenOptions::new().write(true).open(&file)),
        read_only
    );
    assert_eq!(
        raw_error(OpenOptions::new().append(true).open(&file)),
        read_only
    );
    assert_eq!(raw_error(File::create(place.shown("new"))), read_only);
    assert_eq!(raw_error(fs::remove_file(&file)), read_only);
    assert_eq!(raw_error(fs::rename(&file, place.shown("new"))), read_only);
    assert_eq!(raw_error(fs::create_dir(place.shown("dir"))), read_only);
    let mode = PermissionsExt::from_mode(0o777);
    assert_eq!(raw_error(fs::set_permissions(&file, mode)), read_only);
    assert_eq!(fs::read(place.source.join("file")).unwrap(), b"text");
}

// ---- a source that changes ----

#[test]
fn a_replaced_file_is_seen_and_an_open_one_stays() {
    needs!(fuse(), "no /dev/fuse");
    let place = Place::new();
    let (old, new) = (pattern(300_000, 6), pattern(500_000, 7));
    place.write("file", &old);
    let place = place.mounted(&[]);
    let file = File::open(place.shown("file")).unwrap();
    place.replace("file", &new);
    wait_until("the new file is shown", || {
        fs::metadata(place.shown("file")).unwrap().len() == 500_000
    });
    assert!(fs::read(place.shown("file")).unwrap() == new);
    let mut held = vec![0; old.len()];
    file.read_exact_at(&mut held, 0).unwrap();
    assert!(held == old);
}

#[test]
fn an_open_right_after_a_replacement_succeeds() {
    needs!(fuse(), "no /dev/fuse");
    let place = Place::new();
    place.write("file", "0");
    let place = place.mounted(&[]);
    for round in 1..100 {
        // The kernel knows the old file, and asks to open that one.
        fs::metadata(place.shown("file")).unwrap();
        place.replace("file", round.to_string());
        let shown = fs::read_to_string(place.shown("file")).unwrap();
        let shown: i32 = shown.parse().unwrap();
        assert!(
            shown == round || shown == round - 1,
            "{shown} in round {round}"
        );
    }
}

#[test]
fn a_deleted_and_a_new_file_are_seen() {
    needs!(fuse(), "no /dev/fuse");
    let place = Place::new();
    place.write("old", "old");
    let place = place.mounted(&[]);
    assert!(place.shown("old").exists() && !place.shown("new").exists());
    place.write("new", "new");
    assert_eq!(fs::read(place.shown("new")).unwrap(), b"new");
    fs::remove_file(place.source.join("old")).unwrap();
    wait_until("the deleted file is gone", || !place.shown("old").exists());
}

// ---- a source that is watched ----

/// Whether changes of the source are told of, so that the kernel may keep what it got.
fn is_watched(place: &Place) -> bool {
    use nix::sys::statfs::*;
    let fs_type = statfs(&place.source).unwrap().filesystem_type();
    let telling = [
        EXT4_SUPER_MAGIC,
        XFS_SUPER_MAGIC,
        BTRFS_SUPER_MAGIC,
        TMPFS_MAGIC,
    ];
    telling.contains(&fs_type)
}

/// All names of the mount with what stat(2) says. None when it takes too long.
fn listed(place: &Place) -> Option<Vec<String>> {
    fn walk(path: &Path, lines: &mut Vec<String>) {
        // What goes while it is looked at is gone.
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            let Ok(metadata) = entry.path().symlink_metadata() else {
                continue;
            };
            let (length, mode, inode) = (metadata.len(), metadata.mode(), metadata.ino());
            let name = entry.file_name();
            lines.push(format!("{} {length} {mode:o} {inode}", name.display()));
            if metadata.is_dir() {
                walk(&entry.path(), lines);
            }
        }
    }
    let (sender, receiver) = std::sync::mpsc::channel();
    let point = place.point.clone();
    thread::spawn(move || {
        let mut lines = Vec::new();
        walk(&point, &mut lines);
        sender.send(lines)
    });
    receiver.recv_timeout(Duration::from_secs(5)).ok()
}

/// Everything comes to be shown within the second that the page promises, and what
/// the scheduler takes.
fn soon(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_millis(1500);
    while !condition() {
        assert!(Instant::now() < deadline, "late: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn what_was_listed_is_listed_again_without_the_daemon() {
    needs!(fuse(), "no /dev/fuse");
    let place = Place::new();
    needs!(is_watched(&place), "no file system that tells of changes");
    fs::create_dir(place.source.join("sub")).unwrap();
    for name in ["file", "sub/m.pt", "sub/other"] {
        place.write(name, support::one_vector(&[1.0]));
    }
    // What was written just now may still change without a trace.
    let settled = |name: &str| support::version(&place.source.join(name)).settled;
    wait_until("all is old enough", || {
        ["file", "sub/m.pt", "sub/other"].into_iter().all(settled)
    });
    // The tensors of a checkpoint are no directory of the source.
    let place = place.mounted(&["--tensors", "hide"]);
    let first = listed(&place).unwrap();
    assert_eq!(first.len(), 4, "{first:?}");
    let daemon = place.daemon().unwrap();
    thread::sleep(Duration::from_millis(1200));
    kill("-STOP", daemon);
    let again = listed(&place);
    kill("-CONT", daemon);
    assert_eq!(again.as_ref(), Some(&first));

    // No longer once something changed: then it has to be asked.
    place.write("sub/new", "");
    soon("the new file", || listed(&place).unwrap().len() == 5);
}

#[test]
fn every_change_shows_up_soon_after_everything_was_listed() {
    needs!(fuse(), "no /dev/fuse");
    let place = Place::new();
    let sub = place.source.join("sub");
    fs::create_dir(&sub).unwrap();
    fs::create_dir(place.source.join("deep")).unwrap();
    fs::create_dir(place.source.join("deep/deeper")).unwrap();
    for name in ["file", "sub/file", "sub/gone", "deep/deeper/file"] {
        place.write(name, "text");
    }
    place.write("sub/m.pt", support::one_vector(&[1.0]));
    let place = place.mounted(&[]);
    let list = || listed(&place).unwrap();
    let size = |name| fs::metadata(place.shown(name)).map_or(0, |it| it.len());
    let names = |name| -> Vec<OsString> {
        let entries = fs::read_dir(place.shown(name)).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };

    list();
    place.write("sub/new", "new");
    soon("a new file is listed", || {
        names("sub").contains(&"new".into())
    });
    assert_eq!(size("sub/new"), 3);

    list();
    fs::remove_file(sub.join("gone")).unwrap();
    soon("a removed file is gone", || {
        !place.shown("sub/gone").exists()
    });
    assert!(!names("sub").contains(&"gone".into()));

    list();
    place.replace("sub/file", "other text");
    soon("a replaced file", || size("sub/file") == 10);
    assert_eq!(fs::read(place.shown("sub/file")).unwrap(), b"other text");

    list();
    let mut file = OpenOptions::new()
        .append(true)
        .open(sub.join("file"))
        .unwrap();
    io::Write::write_all(&mut file, b", and more").unwrap();
    soon("what is written in place", || size("sub/file") == 20);
    assert_eq!(
        fs::read(place.shown("sub/file")).unwrap(),
        b"other text, and more"
    );
    // It is still open, and written to again.
    list();
    io::Write::write_all(&mut file, b"!").unwrap();
    soon("what is written later", || size("sub/file") == 21);

    list();
    let mode = |mode| fs::set_permissions(sub.join("file"), PermissionsExt::from_mode(mode));
    mode(0o600).unwrap();
    let shown = |name| fs::metadata(place.shown(name)).unwrap().mode() & 0o777;
    soon("a mode", || shown("sub/file") == 0o400);
    list();
    fs::set_permissions(&sub, PermissionsExt::from_mode(0o700)).unwrap();
    soon("the mode of a directory", || shown("sub") == 0o500);

    list();
    let old = size("sub/m.safetensors");
    place.replace("sub/m.pt", support::one_vector(&[2.0; 64]));
    soon("a replaced checkpoint", || {
        let shown = fs::read(place.shown("sub/m.tensors/weight"));
        size("sub/m.safetensors") > old && shown.is_ok_and(|bytes| bytes.len() == 256)
    });
    list();
    // The directory's own time does not change with this.
    place.write("sub/m.pt", "no checkpoint any more");
    soon("a checkpoint that is none any more", || {
        !names("sub").contains(&"m.safetensors".into())
    });

    list();
    fs::rename(place.source.join("deep"), place.source.join("moved")).unwrap();
    soon("a renamed directory", || {
        !place.shown("deep/deeper/file").exists() && place.shown("moved/deeper/file").exists()
    });
    list();
    fs::remove_dir_all(place.source.join("moved")).unwrap();
    fs::create_dir(place.source.join("moved")).unwrap();
    place.write("moved/other", "");
    soon("another directory of the same name", || {
        let entries = fs::read_dir(place.shown("moved"));
        let names = entries.map(|mut it| it.next().and_then(Result::ok));
        names.is_ok_and(|first| first.is_some_and(|first| first.file_name() == "other"))
    });

    list();
    std::os::unix::fs::symlink("sub/file", place.source.join("link")).unwrap();
    soon("a link", || size("link") == 21);
    list();
    // Nothing in the root itself changes.
    io::Write::write_all(&mut file, b"!").unwrap();
    soon("what a link leads to", || size("link") == 22);
}

#[test]
fn whoever_works_in_a_directory_stays_there_when_others_change() {
    needs!(fuse(), "no /dev/fuse");
    let place = Place::new();
    fs::create_dir(place.source.join("sub")).unwrap();
    place.write("sub/file", "text");
    let place = place.mounted(&[]);
    listed(&place).unwrap();
    let script = "echo; read line; pwd -P && cat file";
    let mut child = Command::new("sh")
        .args(["-c", script])
        .current_dir(place.shown("sub"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = child.stdout.take().unwrap();
    output.read_exact(&mut [0]).unwrap();
    place.write("new", "");
    soon("the new file", || place.shown("new").exists());
    thread::sleep(Duration::from_millis(100));
    io::Write::write_all(&mut child.stdin.take().unwrap(), b"go\n").unwrap();
    let mut said = String::new();
    output.read_to_string(&mut said).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(said, format!("{}\ntext", place.shown("sub").display()));
}

#[test]
fn readers_of_a_busy_source_see_one_file_or_the_other() {
    needs!(fuse(), "no /dev/fuse");
    let place = Place::new();
    let content = |round: usize| round.to_string().repeat(1 + round % 700);
    place.write("file", content(0));
    place.write("growing", "");
    let place = place.mounted(&[]);
    let latest = std::sync::atomic::AtomicUsize::new(0);
    let end = Instant::now() + Duration::from_secs(3);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut growing = OpenOptions::new()
                .append(true)
                .open(place.source.join("growing"))
                .unwrap();
            for round in 1.. {
                place.replace("file", content(round));
                io::Write::write_all(&mut growing, b"x").unwrap();
                latest.store(round, std::sync::atomic::Ordering::SeqCst);
                if Instant::now() > end {
                    break;
                }
                thread::sleep(Duration::from_micros(300 * (round % 7) as u64));
            }
        });
        for reader in 0..2 {
            let (place, latest) = (&place, &latest);
            scope.spawn(move || {
                while Instant::now() < end {
                    if reader == 0 {
                        listed(place).unwrap();
                    }
                    let shown = match fs::read_to_string(place.shown("file")) {
                        // It was replaced between the lookup and the open, twice.
                        Err(error) if error.raw_os_error() == Some(libc::ESTALE) => continue,
                        shown => shown.unwrap(),
                    };
                    let after = latest.load(std::sync::atomic::Ordering::SeqCst) + 1;
                    let whole = (0..=after).rev().any(|round| shown == content(round));
                    assert!(whole, "{} bytes by round {after}", shown.len());
                }
            });
        }
    });
    let last = latest.into_inner();
    soon("the last file", || {
        fs::read_to_string(place.shown("file")).unwrap() == content(last)
            && fs::metadata(place.shown("growing")).unwrap().len() == last as u64
    });
}

#[test]
fn where_no_more_may_be_watched_changes_are_seen_all_the_same() {
    needs!(fuse() && root(), "no /dev/fuse, or not root");
    let place = Place::new();
    for number in 0..5 {
        fs::create_dir(place.source.join(number.to_string())).unwrap();
        place.write(&format!("{number}/file"), "text");
    }
    for limit in ["max_inotify_watches", "max_inotify_instances"] {
        for most in [0, 3] {
            // The limits of a user namespace are its own.
            let script = r#"
                set -e
                echo "$1" >/proc/sys/user/$2 || exit 77
                shift 2
                "$@"
                ls -lR "$POINT" >/dev/null
                for number in 0 1 2 3 4; do echo new >"$SOURCE/$number/new"; done
                sleep 1.2
                for number in 0 1 2 3 4; do
                    ls "$POINT/$number" | grep -qx new
                    test "$(cat "$POINT/$number/new")" = new
                done
                rm "$SOURCE"/*/new
                umount "$POINT"
            "#;
            let mount = place.command(&[]);
            let output = Command::new("unshare")
                .args([
                    "--user",
                    "--map-root-user",
                    "--mount",
                    "sh",
                    "-c",
                    script,
                    "sh",
                ])
                .args([&most.to_string(), limit])
                .arg(mount.get_program())
                .args(mount.get_args())
                .env("POINT", &place.point)
                .env("SOURCE", &place.source)
                .env("XDG_CACHE_HOME", place.point.with_file_name("cache"))
                .output()
                .unwrap();
            let refused = output.status.code() == Some(77) || stderr(&output).contains("unshare");
            needs!(!refused, "no user namespaces");
            assert!(
                output.status.success(),
                "{limit} {most}: {}",
                stderr(&output)
            );
        }
    }
}

// ---- where a mount may go ----

#[test]
fn unfit_mount_points_are_refused_in_words() {
    needs!(fuse(), "no /dev/fuse");
    let mut place = Place::new();
    place.write("file", "text");
    fs::create_dir(place.source.join("sub")).unwrap();
    let root = place.point.parent().unwrap().to_owned();

    let point = std::mem::replace(&mut place.point, place.source.join("sub"));
    refused(&place.mount(&[]), 1, &["inside the source"]);
    place.point = place.source.clone();
    refused(&place.mount(&["-o", "nonempty"]), 1, &["cover the source"]);
    place.point = root.clone();
    refused(&place.mount(&["-o", "nonempty"]), 1, &["cover the source"]);
    place.point = place.source.join("file");
    refused(&place.mount(&[]), 1, &["inside the source"]);
    place.point = root.join("a/b");
    refused(&place.mount(&[]), 1, &["no such directory", "mkdir -p"]);
    place.point = "/proc".into();
    refused(&place.mount(&[]), 1, &["already mounted", "proc"]);
    place.point = point;

    fs::write(place.shown("occupant"), "mine").unwrap();
    refused(&place.mount(&[]), 1, &["not empty", "-o nonempty"]);
    succeeded(&place.mount(&["-o", "nonempty"]));
    assert!(place.shown("file").exists() && !place.shown("occupant").exists());
    refused(&place.mount(&[]), 1, &["already mounted", "stfs umount"]);
    succeeded(&place.umount(&[]));
    assert_eq!(fs::read(place.shown("occupant")).unwrap(), b"mine");
}

#[test]
fn a_missing_mount_point_is_made_and_left() {
    needs!(fuse(), "no /dev/fuse");
    let place = Place::new();
    place.write("file", "text");
    fs::remove_dir(&place.point).unwrap();
    let place = place.mounted(&[]);
    assert!(place.shown("file").exists());
    succeeded(&place.umount(&[]));
    assert_eq!(fs::read_dir(&place.point).unwrap().count(), 0);
}

#[test]
fn an_unfit_source_is_refused_in_words() {
    let mut place = Place::new();
    place.write("file", "text");
    let source = std::mem::replace(&mut place.source, "/no/such/directory".into());
    refused(&place.mount(&[]), 1, &["/no/such/directory", "no such"]);
    place.source = source.join("file");
    refused(&place.mount(&[]), 1, &["not a directory"]);
}

#[test]
fn the_mount_table_shows_the_source_whatever_it_is_called() {
    needs!(fuse(), "no /dev/fuse");
    let name = OsString::from_vec(b"a,suid,b c\\d\ne\xffhf-mount".to_vec());
    let place = Place::named(&name);
    place.write("file", "text");
    let place = place.mounted(&[]);
    let line = place.table_line().unwrap();
    let mut fields = line.split(' ');
    let source = fields.next().unwrap();
    assert!(
        source.ends_with("/a,suid,b\\040c\\134d\\012e\u{fffd}hf-mount"),
        "{source}"
    );
    assert_eq!(fields.nth(1).unwrap(), "fuse.stfs");
    let options: Vec<_> = fields.next().unwrap().split(',').collect();
    for option in ["ro", "nosuid", "nodev", "default_permissions"] {
        assert!(options.contains(&option), "{option}: {options:?}");
    }
    assert_eq!(fs::read(place.shown("file")).unwrap(), b"text");
}

#[test]
fn options_reach_the_mount_table_or_are_refused_by_name() {
    needs!(fuse(), "no /dev/fuse");
    let place = Place::new();
    refused(&place.mount(&["-o", "ro,direct_io"]), 2, &["`direct_io`"]);
    refused(&place.mount(&["-o", "rw"]), 2, &["`rw`", "read-only"]);
    refused(&place.mount(&["-o", "fsname=x"]), 2, &["`fsname=x`"]);
    refused(&place.mount(&["-o", "threads=0"]), 2, &["`threads=0`"]);
    refused(
        &place.mount(&["--allow-root", "-o", "allow_other"]),
        2,
        &["exclude"],
    );
    refused(
        &place.mount(&["--allow-root", "--allow-other"]),
        2,
        &["cannot be used with"],
    );
    assert!(!place.is_mounted());
    let place = place.mounted(&["-o", "noexec,_netdev,x-systemd.automount", "-o", "noatime"]);
    let line = place.table_line().unwrap();
    assert!(
        line.contains("noexec") && line.contains("noatime"),
        "{line}"
    );
}

// ---- the process and its end ----

#[test]
fn unmounting_returns_when_the_process_is_gone() {
    needs!(fuse(), "no /dev/fuse");
    let place = Place::new().mounted(&[]);
    let daemon = place.daemon().unwrap();
    assert!(Path::new(&format!("/proc/{daemon}")).exists());
    succeeded(&place.umount(&[]));
    assert!(!place.is_mounted());
    assert_eq!(place.daemon(), None);
    refused(&place.umount(&[]), 1, &["nothing is mounted"]);
    let output = stfs().args(["umount", "/proc"]).output().unwrap();
    refused(&output, 1, &["not one of stfs"]);
}

#[test]
fn a_mount_in_use_stays_unless_lazy() {
    needs!(fuse(), "no /dev/fuse");
    let place = Place::new();
    let bytes = pattern(200_000, 8);
    place.write("file", &bytes);
    let place = place.mounted(&[]);
    let mut file = File::open(place.shown("file")).unwrap();
    refused(&place.umount(&[]), 1, &["in use", "--lazy"]);
    assert!(place.is_mounted());
    succeeded(&place.umount(&["--lazy"]));
    assert!(!place.is_mounted());
    let mut held = vec![];
    file.read_to_end(&mut held).unwrap();
    assert!(held == bytes);
    assert!(place.daemon().is_some());
    drop(file);
    wait_until("the process has ended", || place.daemon().is_none());
}

#[test]
fn an_external_unmount_ends_the_process_with_success() {
    needs!(fuse() && root(), "no /dev/fuse, or not root");
    let place = Place::new();
    let mut child = place.mounted_in_foreground();
    // It is in use for as long as its process makes sure that it answers.
    wait_until("it is unmounted", || {
        let output = Command::new("umount").arg(&place.point).output();
        output.unwrap().status.success()
    });
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn signals_unmount_even_while_files_are_open() {
    needs!(fuse(), "no /dev/fuse");
    let place = Place::new();
    place.write("file", "text");
    for signal in ["-TERM", "-INT", "-HUP"] {
        let mut child = place.mounted_in_foreground();
        let _file = File::open(place.shown("file")).unwrap();
        kill(signal, child.id());
        assert_eq!(child.wait().unwrap().code(), Some(0), "{signal}");
        assert!(!place.is_mounted(), "{signal}");
    }
}

#[test]
fn a_dead_mount_is_cleared_by_unmounting_and_by_mounting_again() {
    needs!(fuse(), "no /dev/fuse");
    let place = Place::new();
    place.write("file", "text");
    let place = place.mounted(&[]);
    let die = || {
        kill("-KILL", place.daemon().unwrap());
        // Attributes are still answered by the kernel for a while.
        wait_until("the mount is dead", || {
            raw_error(fs::read_dir(&place.point)) == Some(libc::ENOTCONN)
        });
    };
    die();
    succeeded(&place.umount(&[]));
    assert!(!place.is_mounted());

    succeeded(&place.mount(&[]));
    die();
    let output = place.mount(&[]);
    succeeded(&output);
    assert!(stderr(&output).contains("cleared"), "{}", stderr(&output));
    assert_eq!(fs::read(place.shown("file")).unwrap(), b"text");
    let table = fs::read_to_string("/proc/self/mounts").unwrap();
    let point = place.point.to_str().unwrap();
    assert_eq!(table.lines().filter(|line| line.contains(point)).count(), 1);
}

#[test]
fn the_background_process_lets_go_of_its_caller() {
    needs!(fuse(), "no /dev/fuse");
    let place = Place::new();
    // The shell waits for the end of the pipe on descriptor 9, which a mount that
    // kept it would put off for ever.
    let script = r#"exec 9>&1; "$@" 9>&9; echo mounted"#;
    let mount = place.command(&[]);
    let output = Command::new("timeout")
        .args(["10", "sh", "-c", script, "sh"])
        .arg(mount.get_program())
        .args(mount.get_args())
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert_eq!(output.stdout, b"mounted\n");
    assert_eq!(output.status.code(), Some(0));
    let daemon = place.daemon().unwrap();
    assert_eq!(
        fs::read_link(format!("/proc/{daemon}/cwd")).unwrap(),
        Path::new("/")
    );
    assert!(place.is_mounted());
}

#[test]
fn the_log_goes_to_the_file_given() {
    needs!(fuse(), "no /dev/fuse");
    let place = Place::new();
    let log = place.point.with_file_name("log");
    let place = place.mounted(&["-v", "--log-file", log.to_str().unwrap()]);
    let text = fs::read_to_string(&log).unwrap();
    assert!(text.contains(place.point.to_str().unwrap()), "{text}");
    assert_eq!(fs::metadata(&log).unwrap().mode() & 0o777, 0o600);
    succeeded(&place.umount(&[]));
    let output = place.mount(&["--log-file", "/no/such/log"]);
    refused(&output, 1, &["/no/such/log", "log"]);
    assert!(!place.is_mounted());
}

// ---- other users ----

fn read_as_nobody(path: &Path) -> Output {
    Command::new("cat")
        .arg(path)
        .uid(NOBODY)
        .gid(NOBODY)
        .output()
        .unwrap()
}

#[test]
fn other_users_get_in_when_told_so_and_as_far_as_modes_allow() {
    needs!(fuse() && root(), "no /dev/fuse, or not root");
    let place = Place::new();
    place.write("public", "for all");
    place.write("private", "for one");
    let mode = |name, mode| {
        let path = place.source.join(name);
        fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    };
    mode("public", 0o644);
    mode("private", 0o600);
    for (options, public) in [
        (&[][..], false),
        (&["--allow-root"], false),
        (&["--allow-other"], true),
    ] {
        succeeded(&place.mount(options));
        assert_eq!(fs::read(place.shown("private")).unwrap(), b"for one");
        let read = read_as_nobody(&place.shown("public"));
        assert_eq!(
            read.status.success(),
            public,
            "{options:?}: {}",
            stderr(&read)
        );
        assert!(!public || read.stdout == b"for all");
        assert!(!read_as_nobody(&place.shown("private")).status.success());
        succeeded(&place.umount(&[]));
    }
}

#[test]
fn an_ordinary_user_mounts_through_the_helper() {
    needs!(fuse() && root(), "no /dev/fuse, or not root");
    let helper = Command::new("fusermount3").arg("-V").output();
    needs!(helper.is_ok(), "no fusermount3");
    let device = tempfile::tempdir().unwrap();
    let opened = open_fuse_to_all(&device.path().join("fuse"));
    needs!(opened.is_ok(), "/dev/fuse is closed to ordinary users");
    let place = Place::named(OsStr::new("a,b\\c d"));
    place.write("file", "text");
    // Where the user can certainly run it.
    let program = place.point.with_file_name("stfs");
    fs::copy(env!("CARGO_BIN_EXE_stfs"), &program).unwrap();
    for path in [&place.source, &place.point] {
        std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let run = |arguments: &[&OsStr]| {
        let mut command = Command::new(&program);
        command
            .args(arguments)
            .uid(NOBODY)
            .gid(NOBODY)
            .output()
            .unwrap()
    };
    let (source, point) = (place.source.as_os_str(), place.point.as_os_str());
    succeeded(&run(&["mount".as_ref(), source, point]));
    let line = place.table_line().unwrap();
    assert!(line.contains("/a,b\\134c\\040d "), "{line}");
    assert!(
        line.contains("fuse.stfs") && line.contains("user_id=65534"),
        "{line}"
    );
    assert_eq!(read_as_nobody(&place.shown("file")).stdout, b"text");
    assert_eq!(raw_error(fs::read(place.shown("file"))), Some(libc::EACCES));
    succeeded(&run(&["umount".as_ref(), point]));
    assert!(!place.is_mounted());
    assert_eq!(place.daemon(), None);

    let permitted = fs::read_to_string("/etc/fuse.conf").unwrap_or_default();
    let permitted = permitted
        .lines()
        .any(|line| line.trim() == "user_allow_other");
    if !permitted {
        let output = run(&["mount".as_ref(), source, point, "--allow-other".as_ref()]);
        refused(&output, 1, &["user_allow_other", "/etc/fuse.conf"]);
    }
}

#[test]
fn what_one_mount_found_out_the_next_one_knows() {
    needs!(fuse(), "no /dev/fuse");
    let place = Place::new();
    place.write("m.pt", support::one_vector(&[1.0]));
    let file = place.source.join("m.pt");
    let is_settled = || support::version(&file).settled;
    wait_until("the file is old enough to be remembered", is_settled);
    let flags = AddWatchFlags::IN_OPEN | AddWatchFlags::IN_ACCESS;
    let watch = Inotify::init(InitFlags::IN_NONBLOCK).unwrap();
    watch.add_watch(&file, flags).unwrap();
    let cache = place.point.with_file_name("elsewhere");
    let option = format!("cache_dir={}", cache.display());
    let mut sizes = Vec::new();
    for options in [["--cache-dir", cache.to_str().unwrap()], ["-o", &option]] {
        succeeded(&place.mount(&options));
        sizes.push(fs::metadata(place.shown("m.safetensors")).unwrap().len());
        let looked = watch.read_events().is_ok();
        assert_eq!(looked, sizes.len() == 1);
        assert_eq!(
            fs::read(place.shown("m.tensors/weight")).unwrap(),
            1.0_f32.to_le_bytes()
        );
        assert!(watch.read_events().is_ok());
        succeeded(&place.umount(&[]));
        wait_until("the process is gone", || place.daemon().is_none());
        while watch.read_events().is_ok() {}
    }
    assert_eq!(sizes[0], sizes[1]);
    assert!(cache.join("CACHEDIR.TAG").exists());
    assert!(!place.point.with_file_name("cache").exists());
}

#[test]
fn a_mount_needs_no_cache() {
    needs!(fuse(), "no /dev/fuse");
    let place = Place::new();
    place.write("m.pt", support::one_vector(&[1.0]));
    let file = place.source.join("m.pt");
    let log = place.point.with_file_name("log");
    for cache in [
        &file,
        &place.shown("cache"),
        Path::new("/proc/no/such/place"),
    ] {
        let options = [
            "--cache-dir",
            cache.to_str().unwrap(),
            "--log-file",
            log.to_str().unwrap(),
        ];
        let mounted = place.mount(&options);
        succeeded(&mounted);
        assert_eq!(
            fs::read(place.shown("m.tensors/weight")).unwrap(),
            1.0_f32.to_le_bytes()
        );
        succeeded(&place.umount(&[]));
        wait_until("the process is gone", || place.daemon().is_none());
        for said in [fs::read_to_string(&log).unwrap(), stderr(&mounted)] {
            assert!(
                said.contains("no cache") && said.contains(cache.to_str().unwrap()),
                "{said}"
            );
        }
        fs::remove_file(&log).unwrap();
    }
    assert_eq!(fs::read_dir(&place.point).unwrap().count(), 0);
}
