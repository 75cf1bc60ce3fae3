//! Cache directories on other file systems, which only root can make.

use std::fs::{self, File};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::thread;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use stfs::cache::{Comparison, Directory, Error, Limit, Promotion, Store};
use tempfile::{TempDir, tempdir};

use super::common::*;
use super::support::skip::skip;

/// A mounted file system, which goes on drop.
struct Mounted {
    folder: TempDir,
}

impl Mounted {
    /// None, and says so, for who may not mount.
    fn tmpfs(options: &str) -> Option<Mounted> {
        let folder = tempdir().unwrap();
        let none = None::<&str>;
        let path = folder.path();
        match mount(none, path, Some("tmpfs"), MsFlags::empty(), Some(options)) {
            Ok(()) => Some(Mounted { folder }),
            Err(error) => {
                skip(format!("this user may not mount a tmpfs: {error}"));
                None
            }
        }
    }

    /// An overlay over directories of `self`, mounted at its `merged`.
    fn overlay(&self) -> Option<PathBuf> {
        let at = |name: &str| {
            let path = self.path().join(name);
            fs::create_dir(&path).unwrap();
            path
        };
        let (lower, upper, work, merged) = (at("lower"), at("upper"), at("work"), at("merged"));
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            lower.display(),
            upper.display(),
            work.display()
        );
        let (kind, options) = (Some("overlay"), Some(options.as_str()));
        match mount(Some("overlay"), &merged, kind, MsFlags::empty(), options) {
            Ok(()) => Some(merged),
            Err(error) => {
                skip(format!("no overlay: {error}"));
                None
            }
        }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn set_read_only(&self, read_only: bool) {
        let mut flags = MsFlags::MS_REMOUNT;
        flags.set(MsFlags::MS_RDONLY, read_only);
        mount(None::<&str>, self.path(), None::<&str>, flags, None::<&str>).unwrap();
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = umount2(&self.path().join("merged"), MntFlags::MNT_DETACH);
        let _ = umount2(self.path(), MntFlags::MNT_DETACH);
    }
}

/// All that a store does, with the source elsewhere and on the same file system.
fn works_in(directory: &Path) {
    let elsewhere = tempdir().unwrap();
    for folder in [elsewhere.path(), directory] {
        let root = directory.join("cache");
        let (reader, wanted) = model(&folder.join("m.pt"), 1, 9 * MIB);
        let store = limited(&root, 15 * MIB);
        assert_eq!(
            promote(&store, &name(1), &reader).unwrap(),
            Promotion::Made(Vec::new())
        );
        holds(&store, &name(1), &wanted);
        // As another process sees it.
        let other = limited(&root, 15 * MIB);
        holds(&other, &name(1), &wanted);
        assert_eq!(other.verify(&name(1), &reader).unwrap(), Comparison::Same);
        let open = other.find(&name(1)).unwrap();
        let error = promote(&store, &name(2), &reader).unwrap_err();
        assert!(matches!(error, Error::NoRoom { .. }), "{error}");
        drop(open);
        promote(&store, &name(2), &reader).unwrap();
        holds(&other, &name(2), &wanted);
        fs::write(other.directory().file(&name(2)), &wanted).unwrap();
        assert!(store.find(&name(2)).is_none());
        assert!(files(&root).is_empty());
    }
}

#[test]
fn on_the_file_system_of_temporary_files() {
    works_in(tempdir().unwrap().path());
}

#[test]
fn on_tmpfs() {
    if let Some(mounted) = Mounted::tmpfs("size=64m,mode=700") {
        works_in(mounted.path());
    }
}

#[test]
fn on_overlayfs() {
    let Some(mounted) = Mounted::tmpfs("size=64m,mode=700") else {
        return;
    };
    if let Some(merged) = mounted.overlay() {
        works_in(&merged);
    }
}

/// The lower layer has a cache already, as images of containers may have.
#[test]
fn a_cache_in_the_lower_layer() {
    let Some(mounted) = Mounted::tmpfs("size=64m,mode=700") else {
        return;
    };
    let elsewhere = tempdir().unwrap();
    let (reader, wanted) = model(&elsewhere.path().join("m.pt"), 1, 5 * MIB);
    promote(&store(&mounted.path().join("below")), &name(1), &reader).unwrap();
    let Some(merged) = mounted.overlay() else {
        return;
    };
    let below = mounted.path().join("below");
    fs::rename(below, mounted.path().join("lower/cache")).unwrap();
    let store = store(&merged.join("cache"));
    // Whether its inode is still the same depends on the kernel.
    if let Some(promoted) = store.find(&name(1)) {
        assert!(bytes(&promoted) == wanted);
    }
    promote(&store, &name(1), &reader).unwrap();
    holds(&store, &name(1), &wanted);
    store.evict(&name(1)).unwrap();
    assert!(files(store.directory().root()).is_empty());
}

#[test]
fn a_full_file_system() {
    let Some(mounted) = Mounted::tmpfs("size=16m,mode=700") else {
        return;
    };
    let elsewhere = tempdir().unwrap();
    let (reader, wanted) = model(&elsewhere.path().join("m.pt"), 1, 9 * MIB);
    let root = mounted.path().join("cache");
    let store = store(&root);
    promote(&store, &name(1), &reader).unwrap();
    // There is not enough for a second one, so that the first goes, whatever the
    // limit is.
    promote(&store, &name(2), &reader).unwrap();
    assert!(store.find(&name(1)).is_none());
    holds(&store, &name(2), &wanted);
    // What is open stays, and what does not fit is said before anything is written.
    let open = store.find(&name(2)).unwrap();
    let error = promote(&store, &name(1), &reader).unwrap_err();
    assert!(matches!(error, Error::NoRoom { .. }), "{error}");
    holds(&store, &name(2), &wanted);
    drop(open);

    // Somebody else takes the last of it after the data are written.
    store.clear().unwrap();
    let fill = mounted.path().join("fill");
    let mut steps = 0;
    let mut step = |_| {
        steps += 1;
        if steps == 3 {
            let _ = fs::write(&fill, vec![1; 16 * MIB]);
        }
        ControlFlow::Continue(())
    };
    let result = store.promote(&name(1), &provenance("m"), &reader, &mut step);
    assert!(matches!(result, Err(Error::Full { .. })), "{result:?}");
    assert!(files(&root).is_empty(), "{:?}", files(&root));
    fs::remove_file(&fill).unwrap();
    promote(&store, &name(1), &reader).unwrap();
    holds(&store, &name(1), &wanted);
}

/// Of 64 MiB, three stay free whatever is wanted.
#[test]
fn a_twentieth_stays_free() {
    let Some(mounted) = Mounted::tmpfs("size=64m,mode=700") else {
        return;
    };
    let elsewhere = tempdir().unwrap();
    let (reader, _) = model(&elsewhere.path().join("m.pt"), 1, 20 * MIB);
    let directory = Directory::open(&mounted.path().join("cache")).unwrap();
    let store = Store::new(directory, Limit::KeepFree);
    let (large, _) = model(&elsewhere.path().join("large.pt"), 1, 22 * MIB);
    for (number, reader) in [(1, &reader), (2, &reader), (3, &large)] {
        promote(&store, &name(number), reader).unwrap();
    }
    // Two of 20 and one of 22 would leave two.
    assert_eq!(store.list().unwrap().len(), 2);
    store.clear().unwrap();
    for number in 1..=3 {
        promote(&store, &name(number), &reader).unwrap();
    }
    assert_eq!(store.list().unwrap().len(), 3);
    // What others write counts as well.
    fs::write(mounted.path().join("other"), vec![0; 20 * MIB]).unwrap_err();
    let (small, _) = model(&elsewhere.path().join("small.pt"), 1, MIB);
    promote(&store, &name(4), &small).unwrap();
    assert_eq!(store.list().unwrap().len(), 3);
    fs::write(mounted.path().join("other"), vec![0; 40 * MIB]).unwrap_err();
    store.check_room(20 * MIB as u64).unwrap();
    store.clear().unwrap();
    fs::write(mounted.path().join("other"), vec![0; 62 * MIB]).unwrap();
    let error = store.check_room(1).unwrap_err();
    assert!(error.to_string().contains("3.20 MiB stay"), "{error}");
    let error = promote(&store, &name(5), &small).unwrap_err();
    assert!(matches!(error, Error::NoRoom { .. }), "{error}");
    assert!(store.list().unwrap().is_empty());
}

/// Files of which the file system has taken no space yet count with their whole length: as if
/// it could not set it aside.
#[test]
fn what_is_still_to_be_written_counts() {
    let Some(mounted) = Mounted::tmpfs("size=64m,mode=700") else {
        return;
    };
    let elsewhere = tempdir().unwrap();
    let (reader, _) = model(&elsewhere.path().join("m.pt"), 1, 20 * MIB);
    let directory = Directory::open(&mounted.path().join("cache")).unwrap();
    let store = Store::new(directory, Limit::KeepFree);
    store.directory().prepare().unwrap();
    fs::create_dir(store.directory().incoming()).unwrap();
    let other = File::create(store.directory().incoming_file(&name(9))).unwrap();
    other.lock().unwrap();
    other.set_len(45 * MIB as u64).unwrap();
    let error = promote(&store, &name(1), &reader).unwrap_err();
    assert!(matches!(error, Error::NoRoom { .. }), "{error}");
    drop(other);
    promote(&store, &name(1), &reader).unwrap();
}

/// Of those that want the last room at once one has it, and what is to stay free stays so.
#[test]
fn several_at_once_leave_what_stays_free() {
    let Some(mounted) = Mounted::tmpfs("size=64m,mode=700") else {
        return;
    };
    let elsewhere = tempdir().unwrap();
    let path = elsewhere.path().join("m.pt");
    model(&path, 1, 20 * MIB);
    let root = mounted.path().join("cache");
    for _ in 0..5 {
        let start = Barrier::new(6);
        let made = thread::scope(|scope| {
            let works: Vec<_> = (0..6)
                .map(|number| {
                    let (start, path, root) = (&start, &path, &root);
                    scope.spawn(move || {
                        let directory = Directory::open(root).unwrap();
                        let store = Store::new(directory, Limit::KeepFree);
                        let mut least = u64::MAX;
                        let mut step = |_| {
                            least = least.min(store.occupancy().unwrap().free);
                            ControlFlow::Continue(())
                        };
                        start.wait();
                        let (reader, provenance) = (raw(path), provenance("m"));
                        let made = store.promote(&name(number), &provenance, &reader, &mut step);
                        assert!(least >= 64 * MIB as u64 / 20, "{least} bytes were free");
                        match made {
                            Ok(_) => true,
                            Err(error) => {
                                assert!(error.is_shortage(), "{error}");
                                false
                            }
                        }
                    })
                })
                .collect();
            works
                .into_iter()
                .map(|work| work.join().unwrap())
                .filter(|made| *made)
                .count()
        });
        assert!(made >= 3, "{made}");
        store(&root).clear().unwrap();
    }
}

#[test]
fn a_read_only_directory() {
    let Some(mounted) = Mounted::tmpfs("size=64m,mode=700") else {
        return;
    };
    let elsewhere = tempdir().unwrap();
    let root = mounted.path().join("cache");
    let (reader, wanted) = model(&elsewhere.path().join("m.pt"), 1, 5 * MIB);
    let before = store(&root);
    promote(&before, &name(1), &reader).unwrap();
    promote(&before, &name(3), &reader).unwrap();
    fs::write(before.directory().record(&name(3)), b"broken").unwrap();
    mounted.set_read_only(true);
    for store in [&before, &store(&root)] {
        assert!(bytes(&store.find(&name(1)).unwrap()) == wanted);
        assert!(store.find(&name(3)).is_none() && store.peek(&name(3)).is_none());
        assert!(store.peek(&name(1)).is_some());
        assert_eq!(
            promote(store, &name(1), &reader).unwrap(),
            Promotion::Already
        );
        let error = promote(store, &name(2), &reader).unwrap_err();
        assert!(matches!(error, Error::Io { .. }), "{error}");
        assert!(
            error.to_string().contains(root.to_str().unwrap()),
            "{error}"
        );
        assert!(store.evict(&name(1)).is_err());
        assert_eq!(store.list().unwrap().len(), 1);
    }
    mounted.set_read_only(false);
    promote(&before, &name(2), &reader).unwrap();
    assert!(bytes(&before.find(&name(2)).unwrap()) == wanted);
}
