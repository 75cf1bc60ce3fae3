//! Bytes that are mapped stay what they are for as long as a reply takes: whoever wants
//! to write waits, and where he would not, nothing is mapped.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::statfs::{self, FsType, statfs};
use stfs::source::{Bytes, Error, Found, LocalTree, Source, System, Tree};
use tempfile::TempDir;

use super::skip::skip;

static OLD: [u8; 20_000] = [1; 20_000];
static NEW: [u8; 20_000] = [2; 20_000];

/// Directories on file systems of this machine that have leases.
fn grounds() -> Vec<TempDir> {
    let kinds = [
        statfs::EXT4_SUPER_MAGIC,
        statfs::XFS_SUPER_MAGIC,
        statfs::BTRFS_SUPER_MAGIC,
        statfs::TMPFS_MAGIC,
    ];
    let mut grounds: Vec<(FsType, TempDir)> = Vec::new();
    for place in [std::env::temp_dir(), "/dev/shm".into(), "/var/tmp".into()] {
        let kind = statfs(&place).map(|it| it.filesystem_type());
        let kind = kind.ok().filter(|kind| kinds.contains(kind));
        if let Some(kind) = kind.filter(|kind| grounds.iter().all(|(known, _)| known != kind)) {
            grounds.extend(tempfile::tempdir_in(place).ok().map(|it| (kind, it)));
        }
    }
    if grounds.is_empty() {
        skip("no directory for temporary files is on a file system with leases");
    }
    grounds
        .into_iter()
        .map(|(_, directory)| directory)
        .collect()
}

/// Each with a file that nobody has open.
fn files() -> Vec<(TempDir, PathBuf)> {
    let with_file = |directory: TempDir| {
        let path = directory.path().join("file");
        fs::write(&path, OLD).unwrap();
        (directory, path)
    };
    grounds().into_iter().map(with_file).collect()
}

fn open(path: &Path) -> Source {
    let (directory, name) = LocalTree::around(path).unwrap();
    directory.open(&name).unwrap()
}

/// The same once its stamps are old enough to tell a write.
fn open_settled(path: &Path) -> Source {
    let (directory, name) = LocalTree::around(path).unwrap();
    loop {
        match directory.stat(&name).unwrap() {
            Found::File(metadata) if metadata.version.settled => break,
            _ => std::thread::sleep(Duration::from_millis(50)),
        }
    }
    directory.open(&name).unwrap()
}

fn reply(source: &Source) -> Result<Bytes<'_>, Error> {
    source.check()?;
    source.reply(0, OLD.len())
}

fn mapped(source: &Source) -> Bytes<'_> {
    let bytes = reply(source).unwrap();
    assert!(matches!(bytes, Bytes::Mapped(_)), "{bytes:?}");
    bytes
}

fn assert_copied(bytes: Bytes) {
    match bytes {
        Bytes::Owned(bytes) => assert_eq!(bytes, OLD),
        Bytes::Mapped(_) => panic!("nothing keeps what is mapped as it is"),
    }
}

/// What a system call finds in them.
fn passed_on(bytes: &Bytes) -> Vec<u8> {
    let mut file = tempfile::tempfile().unwrap();
    // SAFETY: they go to a system call.
    file.write_all(unsafe { bytes.for_kernel() }).unwrap();
    file.rewind().unwrap();
    let mut found = Vec::new();
    file.read_to_end(&mut found).unwrap();
    found
}

fn writer(path: &Path) -> File {
    File::options().write(true).open(path).unwrap()
}

/// Whether a writer who does not wait is let in.
fn lets_in(path: &Path) -> bool {
    let mut options = OpenOptions::new();
    match options
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
    {
        Ok(_) => true,
        Err(error) if error.kind() == ErrorKind::WouldBlock => false,
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn a_writer_waits_for_what_is_mapped() {
    type Write = fn(&Path);
    let writes: [Write; 4] = [
        |path| writer(path).write_all_at(&NEW, 0).unwrap(),
        |path| fs::write(path, NEW).unwrap(),
        |path| {
            let append = File::options().append(true).open(path);
            append.unwrap().write_all(&NEW).unwrap();
        },
        |path| nix::unistd::truncate(path, 10).unwrap(),
    ];
    for (_directory, path) in files() {
        for write in writes {
            fs::write(&path, OLD).unwrap();
            let source = open(&path);
            let bytes = [mapped(&source), mapped(&source)];
            std::thread::scope(|scope| {
                let write = scope.spawn(|| write(&path));
                for bytes in bytes {
                    for _ in 0..20 {
                        assert!(!lets_in(&path));
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    assert!(!write.is_finished());
                    assert!(passed_on(&bytes) == OLD);
                    drop(bytes);
                }
                write.join().unwrap();
            });
            assert!(matches!(source.check(), Err(Error::Changed)));
            assert!(matches!(source.reply(0, 10), Err(Error::Changed)));
        }
    }
}

#[test]
fn what_is_being_written_to_is_not_mapped() {
    for (_directory, path) in files() {
        let write = writer(&path);
        // It may be in the middle of a write that has moved the stamps already.
        loop {
            write.write_all_at(&OLD, 0).unwrap();
            let source = open(&path);
            match source.check() {
                Err(Error::Changed) => break,
                checked => checked.unwrap(),
            }
            assert!(open(&path).version().settled, "nothing else tells");
        }
        let source = open_settled(&path);
        assert_copied(reply(&source).unwrap());
        write.write_all_at(b"new", 5).unwrap();
        assert!(matches!(reply(&source), Err(Error::Changed)));
        drop(write);
        mapped(&open(&path));
    }
}

#[test]
fn a_file_that_was_opened_for_writing_alone_goes_on() {
    for (_directory, path) in files() {
        let source = open_settled(&path);
        mapped(&source);
        drop(writer(&path));
        for _ in 0..2 {
            assert_copied(reply(&source).unwrap());
        }
        // For those who open it now nothing has happened.
        mapped(&open(&path));
    }
}

#[test]
fn what_leaves_the_bytes_alone_waits_for_nothing() {
    for (directory, path) in files() {
        let source = open(&path);
        let bytes = mapped(&source);
        let moved = directory.path().join("moved");
        fs::rename(&path, &moved).unwrap();
        fs::write(&path, NEW).unwrap();
        fs::rename(&path, &moved).unwrap();
        assert!(passed_on(&bytes) == OLD);
        drop(bytes);
        mapped(&source);
    }
}

#[test]
fn a_file_that_is_closed_holds_up_nobody() {
    for (_directory, path) in files() {
        for _ in 0..100 {
            let source = open(&path);
            mapped(&source);
            drop(source);
            assert!(lets_in(&path));
        }
    }
}

/// Of signals the kernel keeps a few for each user: here none.
#[test]
fn any_number_of_files_can_be_written_to_at_once() {
    const FILES: usize = 1000;
    let limits = [Resource::RLIMIT_NOFILE, Resource::RLIMIT_SIGPENDING];
    let [files, signals] = limits.map(|limit| getrlimit(limit).unwrap());
    setrlimit(Resource::RLIMIT_NOFILE, files.1, files.1).unwrap();
    for directory in grounds() {
        for most in [signals.0, 0] {
            let path = |number: usize| directory.path().join(number.to_string());
            let sources: Vec<Source> = (0..FILES)
                .map(|number| {
                    fs::write(path(number), OLD).unwrap();
                    open(&path(number))
                })
                .collect();
            let bytes: Vec<Bytes> = sources.iter().map(mapped).collect();
            setrlimit(Resource::RLIMIT_SIGPENDING, most, signals.1).unwrap();
            assert!((0..FILES).all(|number| !lets_in(&path(number))));
            drop(bytes);
            // Each would wait until the kernel has had enough, which takes 45 seconds.
            (0..FILES).for_each(|number| drop(writer(&path(number))));
            for source in &sources {
                assert!(!matches!(source.reply(0, 1), Ok(Bytes::Mapped(_))));
            }
            // What is not lent is given back as well.
            let again: Vec<Source> = (0..FILES).map(|number| open(&path(number))).collect();
            again.iter().for_each(|source| drop(mapped(source)));
            (0..FILES).for_each(|number| fs::write(path(number), NEW).unwrap());
            assert!(again.iter().all(|source| source.check().is_err()));
            setrlimit(Resource::RLIMIT_SIGPENDING, signals.0, signals.1).unwrap();
        }
    }
}

/// Leases of an overlay know nothing of what is written to the layers beneath it.
#[test]
fn an_overlay_is_not_mapped() {
    if !nix::unistd::geteuid().is_root() {
        return skip("mounting an overlay takes root");
    }
    for directory in grounds() {
        let at = |name: &str| {
            let path = directory.path().join(name);
            fs::create_dir_all(&path).unwrap();
            path
        };
        let (lower, upper, work, shown) = (at("lower"), at("upper"), at("work"), at("shown"));
        fs::write(lower.join("file"), OLD).unwrap();
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            lower.display(),
            upper.display(),
            work.display()
        );
        let kind = Some("overlay");
        let none = MsFlags::empty();
        if let Err(error) = mount(kind, &shown, kind, none, Some(options.as_str())) {
            return skip(format_args!("no overlay can be mounted: {error}"));
        }
        let source = open_settled(&shown.join("file"));
        let outcome = reply(&source).map(assert_copied);
        writer(&lower.join("file")).write_all_at(&NEW, 0).unwrap();
        let after = reply(&source).map(drop);
        drop(source);
        umount2(&shown, MntFlags::MNT_DETACH).unwrap();
        outcome.unwrap();
        assert!(matches!(after, Err(Error::Changed)));
    }
}

#[test]
fn nothing_is_mapped_where_a_file_system_is_not_known() {
    let source = LocalTree::around(Path::new("/proc/self/status")).unwrap();
    let source = source.0.open(&source.1).unwrap();
    assert!(matches!(
        source.version().file.system,
        System::Mounted { .. }
    ));
    assert!(matches!(source.reply(0, 0), Ok(Bytes::Owned(_))));
}
