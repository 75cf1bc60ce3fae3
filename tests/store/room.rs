//! How much the store takes, and what goes first.

use std::fs::File;
use std::time::{Duration, SystemTime};

use nix::sys::statvfs::statvfs;
use stfs::cache::{Cleared, Directory, Error, Evicted, Limit, Name, Store};
use stfs::convert::Reader;
use tempfile::{TempDir, tempdir};

use super::common::*;

/// Bytes of each converted file.
const SIZE: usize = MIB + HEADER;

/// A source, and room for three files and a half.
fn three() -> (TempDir, Store, Reader) {
    let folder = tempdir().unwrap();
    let store = limited(&folder.path().join("cache"), 7 * SIZE / 2);
    let (reader, wanted) = model(&folder.path().join("m.pt"), 1, MIB);
    assert_eq!(wanted.len(), SIZE);
    (folder, store, reader)
}

/// Makes it look as if the file was last used so many minutes ago.
fn used(store: &Store, name: &Name, minutes: u64) {
    let file = File::open(store.directory().record(name)).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(60 * minutes))
        .unwrap();
}

fn names(store: &Store) -> Vec<Name> {
    store.list().unwrap().iter().map(|item| item.name).collect()
}

#[test]
fn the_least_recently_used_goes_first() {
    let (_folder, store, reader) = three();
    for (number, minutes) in [(1, 10), (2, 30), (3, 20)] {
        promote(&store, &name(number), &reader).unwrap();
        used(&store, &name(number), minutes);
    }
    assert_eq!(names(&store), [name(2), name(3), name(1)]);
    store.find(&name(2)).unwrap();
    promote(&store, &name(4), &reader).unwrap();
    let mut left = names(&store);
    left.sort();
    let mut wanted = [name(1), name(2), name(4)];
    wanted.sort();
    assert_eq!(left, wanted);
    assert_eq!(files(store.directory().root()), only(&wanted));
}

#[test]
fn an_open_file_stays() {
    let (_folder, store, reader) = three();
    for number in 1..=3 {
        promote(&store, &name(number), &reader).unwrap();
        used(&store, &name(number), 40 - u64::from(number));
    }
    let one = store.find(&name(1)).unwrap();
    used(&store, &name(1), 60);
    promote(&store, &name(4), &reader).unwrap();
    assert!(store.find(&name(2)).is_none());
    assert!(store.find(&name(1)).is_some());
    assert_eq!(store.evict(&name(1)).unwrap(), Evicted::InUse);
    let item = |number| {
        let items = store.list().unwrap();
        items
            .into_iter()
            .find(|item| item.name == name(number))
            .unwrap()
    };
    assert!(item(1).in_use && !item(3).in_use);
    assert_eq!(
        (item(1).size, &*item(1).source),
        (SIZE as u64, reader.source().location())
    );

    // With all of them open there is no room, and none of them goes.
    let all = [store.find(&name(3)).unwrap(), store.find(&name(4)).unwrap()];
    let error = promote(&store, &name(5), &reader).unwrap_err();
    assert!(matches!(error, Error::NoRoom { .. }), "{error}");
    assert_eq!(names(&store).len(), 3);
    let cleared = store.clear().unwrap();
    assert_eq!(
        cleared,
        Cleared {
            files: 0,
            bytes: 0,
            in_use: 3
        }
    );

    drop((one, all));
    assert_eq!(
        store.evict(&name(1)).unwrap(),
        Evicted::Removed(SIZE as u64)
    );
    assert_eq!(store.evict(&name(1)).unwrap(), Evicted::Missing);
    let cleared = store.clear().unwrap();
    assert_eq!(
        cleared,
        Cleared {
            files: 2,
            bytes: 2 * SIZE as u64,
            in_use: 0
        }
    );
    assert!(files(store.directory().root()).is_empty());
}

/// A duplicate of the descriptor, as the kernel has one, keeps a file as well.
#[test]
fn a_duplicate_keeps_the_file() {
    let (_folder, store, reader) = three();
    promote(&store, &name(1), &reader).unwrap();
    let open = store.find(&name(1)).unwrap();
    let duplicate = open.source().file().unwrap().try_clone().unwrap();
    drop(open);
    assert_eq!(store.evict(&name(1)).unwrap(), Evicted::InUse);
    drop(duplicate);
    assert_eq!(
        store.evict(&name(1)).unwrap(),
        Evicted::Removed(SIZE as u64)
    );
}

/// A mapping keeps the open file that it is of, and with it the lock.
#[test]
fn a_mapping_keeps_the_file() {
    let (_folder, store, reader) = three();
    promote(&store, &name(1), &reader).unwrap();
    let open = store.find(&name(1)).unwrap();
    // SAFETY: nobody writes to the file.
    let mapping = unsafe { memmap2::Mmap::map(open.source().file().unwrap()) }.unwrap();
    drop(open);
    assert_eq!(store.evict(&name(1)).unwrap(), Evicted::InUse);
    drop(mapping);
    assert_eq!(
        store.evict(&name(1)).unwrap(),
        Evicted::Removed(SIZE as u64)
    );
}

/// The kernel maps a file that it passes reads through to by an open file of its own,
/// which has no lock. What was removed keeps its bytes.
#[test]
fn a_mapping_outlives_its_file() {
    let (_folder, store, reader) = three();
    promote(&store, &name(1), &reader).unwrap();
    let wanted = bytes(&store.find(&name(1)).unwrap());
    let file = File::open(store.directory().file(&name(1))).unwrap();
    // SAFETY: nobody writes to the file, which is only removed.
    let mapping = unsafe { memmap2::Mmap::map(&file) }.unwrap();
    drop(file);
    used(&store, &name(1), 60);
    for number in 2..10 {
        promote(&store, &name(number), &reader).unwrap();
    }
    assert!(store.find(&name(1)).is_none());
    assert!(*mapping == *wanted);
}

#[test]
fn a_file_that_cannot_fit_evicts_nothing() {
    let (folder, store, reader) = three();
    promote(&store, &name(1), &reader).unwrap();
    let (large, _) = model(&folder.path().join("large.pt"), 2, 4 * MIB);
    let Err(Error::NoRoom { needed, shortage }) = promote(&store, &name(2), &large) else {
        panic!("there is no room");
    };
    assert_eq!(
        (needed, shortage.limit),
        ((4 * MIB + HEADER) as u64, 7 * SIZE as u64 / 2)
    );
    // Nor one that would fit if nothing were open.
    let open = store.find(&name(1)).unwrap();
    promote(&store, &name(3), &reader).unwrap();
    let (most, _) = model(&folder.path().join("most.pt"), 2, 3 * MIB);
    let error = promote(&store, &name(2), &most).unwrap_err();
    assert!(matches!(error, Error::NoRoom { .. }), "{error}");
    assert_eq!(names(&store).len(), 2);
    drop(open);
    promote(&store, &name(2), &most).unwrap();
    assert_eq!(names(&store), [name(2)]);
}

#[test]
fn leftovers_go_before_files() {
    let (_folder, store, reader) = three();
    for number in 1..=3 {
        promote(&store, &name(number), &reader).unwrap();
    }
    let left = store.directory().incoming_file(&name(7));
    std::fs::write(&left, vec![0; SIZE]).unwrap();
    std::fs::remove_file(store.directory().record(&name(3))).unwrap();
    assert_eq!(store.occupancy().unwrap().bytes, 4 * SIZE as u64);
    promote(&store, &name(4), &reader).unwrap();
    assert!(!left.exists());
    assert!(store.find(&name(1)).is_some() && store.find(&name(2)).is_some());
}

#[test]
fn usage_says_what_there_is() {
    let (_folder, store, reader) = three();
    promote(&store, &name(1), &reader).unwrap();
    let occupancy = store.occupancy().unwrap();
    assert_eq!((occupancy.files, occupancy.bytes), (1, SIZE as u64));
    assert_eq!(occupancy.limit, 7 * SIZE as u64 / 2);
    let stats = statvfs(store.directory().root()).unwrap();
    let free = stats.blocks_available() * stats.fragment_size();
    assert!(
        occupancy.free.abs_diff(free) < 1 << 30,
        "others write as well"
    );
}

/// The smaller of a twentieth and 10 GiB.
#[test]
fn some_of_the_file_system_stays_free() {
    let folder = tempdir().unwrap();
    let directory = Directory::open(&folder.path().join("cache")).unwrap();
    let occupancy = Store::new(directory, Limit::KeepFree).occupancy().unwrap();
    let stats = statvfs(folder.path()).unwrap();
    let twentieth = stats.blocks() * stats.fragment_size() / 20;
    let wanted = occupancy.free.saturating_sub(twentieth.min(10 << 30));
    assert!(occupancy.limit.abs_diff(wanted) < 4096);
}

#[test]
fn whether_a_file_could_get_in_is_known_beforehand() {
    let (_folder, store, reader) = three();
    let refused = |store: &Store, needed: usize| {
        let error = store.check_room(needed as u64).unwrap_err();
        assert!(error.is_shortage(), "{error}");
        error.to_string()
    };
    // What is there would go.
    for number in 1..=3 {
        promote(&store, &name(number), &reader).unwrap();
    }
    store.check_room(7 * SIZE as u64 / 2).unwrap();
    refused(&store, 7 * SIZE / 2 + 1);
    let nothing = limited(store.directory().root(), 0);
    let text = refused(&nothing, 1);
    assert!(
        text.contains("--cache-size") && text.contains(store.directory().root().to_str().unwrap()),
        "{text}"
    );
    assert_eq!(names(&store).len(), 3);
}
