//! Files of the store that somebody wrote to: never used, and removed.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use stfs::cache::{Comparison, Evicted, Name, Promotion, Store};
use tempfile::tempdir;

use super::common::*;

const LEN: usize = MIB;

/// Does something to a file of the store and expects that it is missed then, by
/// processes that have seen it before as by new ones.
fn is_missed(what: &str, tamper: impl Fn(&Store, &Name)) {
    for fresh in [false, true] {
        for peek in [false, true] {
            let folder = tempdir().unwrap();
            let root = folder.path().join("cache");
            let (reader, wanted) = model(&folder.path().join("m.pt"), 1, LEN);
            let mut used = store(&root);
            promote(&used, &name(1), &reader).unwrap();
            holds(&used, &name(1), &wanted);
            // Older kernels tell times by their ticks.
            std::thread::sleep(Duration::from_millis(20));
            tamper(&used, &name(1));
            if fresh {
                used = store(&root);
            }
            match peek {
                true => assert!(used.peek(&name(1)).is_none(), "{what}"),
                false => assert!(used.find(&name(1)).is_none(), "{what}"),
            }
            assert!(
                used.find(&name(1)).is_none() && used.peek(&name(1)).is_none(),
                "{what}"
            );
            used.collect().unwrap();
            assert!(files(&root).is_empty(), "{what}: {:?}", files(&root));
            assert_eq!(
                promote(&used, &name(1), &reader).unwrap(),
                Promotion::Made(Vec::new())
            );
            holds(&used, &name(1), &wanted);
        }
    }
}

/// Writes to the data and sets the time back.
fn write(store: &Store, name: &Name, change: impl Fn(&File)) {
    let path = store.directory().file(name);
    let file = OpenOptions::new().write(true).open(path).unwrap();
    let before = file.metadata().unwrap().modified().unwrap();
    change(&file);
    file.set_modified(before).unwrap();
}

#[test]
fn the_data_are_written_to() {
    is_missed("a byte", |store, name| {
        write(store, name, |file| file.write_all_at(b"x", 1000).unwrap());
    });
    is_missed("the same byte", |store, name| {
        let mut byte = [0];
        let file = File::open(store.directory().file(name)).unwrap();
        file.read_exact_at(&mut byte, 1000).unwrap();
        write(store, name, |file| file.write_all_at(&byte, 1000).unwrap());
    });
    is_missed("cut", |store, name| {
        write(store, name, |file| file.set_len(LEN as u64 / 2).unwrap());
    });
    is_missed("cut and made longer", |store, name| {
        write(store, name, |file| {
            let len = file.metadata().unwrap().len();
            file.set_len(10).unwrap();
            file.set_len(len).unwrap();
        });
    });
    is_missed("longer", |store, name| {
        write(store, name, |file| file.set_len(LEN as u64 * 2).unwrap());
    });
}

#[test]
fn the_data_are_replaced() {
    let replace = |store: &Store, name: &Name, bytes: &[u8]| {
        let path = store.directory().file(name);
        let times = fs::metadata(&path).unwrap().modified().unwrap();
        let new = path.with_extension("new");
        fs::write(&new, bytes).unwrap();
        File::open(&new).unwrap().set_modified(times).unwrap();
        fs::rename(new, path).unwrap();
    };
    is_missed("other bytes", |store, name| {
        replace(store, name, &noise(2, LEN + HEADER))
    });
    is_missed("the same bytes", |store, name| {
        let bytes = fs::read(store.directory().file(name)).unwrap();
        replace(store, name, &bytes);
    });
    is_missed("nothing", |store, name| {
        fs::remove_file(store.directory().file(name)).unwrap()
    });
}

#[test]
fn the_record_is_missing_or_is_another_ones() {
    is_missed("no record", |store, name| {
        fs::remove_file(store.directory().record(name)).unwrap();
    });
    is_missed("no longer empty", |store, name| {
        fs::write(store.directory().record(name), b"").unwrap();
    });
    is_missed("too long", |store, name| {
        fs::write(store.directory().record(name), noise(1, 100_000)).unwrap();
    });
    is_missed("of another file", |store, name| {
        let folder = tempdir().unwrap();
        let other = Name::of(&[b"other"]);
        let (reader, _) = model(&folder.path().join("m.pt"), 1, LEN);
        promote(store, &other, &reader).unwrap();
        fs::rename(
            store.directory().record(&other),
            store.directory().record(name),
        )
        .unwrap();
        fs::remove_file(store.directory().file(&other)).unwrap();
    });
}

#[test]
fn every_bit_of_the_record_counts() {
    let folder = tempdir().unwrap();
    let store = store(&folder.path().join("cache"));
    let (reader, wanted) = model(&folder.path().join("m.pt"), 1, LEN);
    promote(&store, &name(1), &reader).unwrap();
    // Keeps the data while their record comes and goes.
    let open = store.find(&name(1)).unwrap();
    let path = store.directory().record(&name(1));
    let record = fs::read(&path).unwrap();
    for bit in 0..8 * record.len() {
        let mut flipped = record.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        fs::write(&path, flipped).unwrap();
        assert!(store.find(&name(1)).is_none(), "bit {bit}");
        assert!(!path.exists(), "bit {bit}");
        assert!(store.peek(&name(1)).is_none());
    }
    for len in 0..record.len() {
        fs::write(&path, &record[..len]).unwrap();
        assert!(store.find(&name(1)).is_none(), "{len} bytes");
    }
    fs::write(&path, &record).unwrap();
    assert!(bytes(&store.find(&name(1)).unwrap()) == wanted);
    drop(open);
    holds(&store, &name(1), &wanted);
}

/// A file that is damaged and still open is replaced, not written to.
#[test]
fn an_open_file_keeps_its_bytes_when_it_is_made_again() {
    let folder = tempdir().unwrap();
    let store = store(&folder.path().join("cache"));
    let (reader, wanted) = model(&folder.path().join("m.pt"), 1, LEN);
    promote(&store, &name(1), &reader).unwrap();
    let open = store.find(&name(1)).unwrap();
    fs::write(store.directory().record(&name(1)), b"broken").unwrap();
    assert!(store.find(&name(1)).is_none());
    assert_eq!(store.evict(&name(1)).unwrap(), Evicted::InUse);
    assert_eq!(
        promote(&store, &name(1), &reader).unwrap(),
        Promotion::Made(Vec::new())
    );
    assert!(bytes(&open) == wanted);
    let again = store.find(&name(1)).unwrap();
    assert_ne!(open.stamp(), again.stamp());
    open.source().check().unwrap();
}

/// What a disk loses below the file system, only a comparison finds.
#[test]
fn a_comparison_finds_other_bytes() {
    let folder = tempdir().unwrap();
    let store = store(&folder.path().join("cache"));
    let (reader, _) = model(&folder.path().join("m.pt"), 1, 6 * MIB);
    assert_eq!(
        store.verify(&name(1), &reader).unwrap(),
        Comparison::Missing
    );
    promote(&store, &name(1), &reader).unwrap();
    let (other, _) = model(&folder.path().join("other.pt"), 2, 6 * MIB);
    let first = store.verify(&name(1), &other).unwrap();
    assert_eq!(first, Comparison::Differs(0));
    let (shorter, _) = model(&folder.path().join("shorter.pt"), 1, 5 * MIB);
    assert_eq!(
        store.verify(&name(1), &shorter).unwrap(),
        Comparison::Differs(0)
    );
    let mut late = noise(1, 6 * MIB);
    late[5 * MIB] ^= 1;
    let path = folder.path().join("late.pt");
    fs::write(&path, late).unwrap();
    let found = store.verify(&name(1), &raw(&path)).unwrap();
    let last = (HEADER + 5 * MIB) as u64;
    assert!(
        matches!(found, Comparison::Differs(at) if at <= last && at + (4 << 20) > last),
        "{found:?}"
    );
    assert_eq!(store.verify(&name(1), &reader).unwrap(), Comparison::Same);
}

#[test]
fn the_last_use_is_kept_to_within_a_minute() {
    let folder = tempdir().unwrap();
    let store = store(&folder.path().join("cache"));
    let (reader, _) = model(&folder.path().join("m.pt"), 1, LEN);
    promote(&store, &name(1), &reader).unwrap();
    let record = store.directory().record(&name(1));
    let used = |path: &Path| fs::metadata(path).unwrap().modified().unwrap();
    let set = |time| File::open(&record).unwrap().set_modified(time).unwrap();
    let ago = |seconds| SystemTime::now() - Duration::from_secs(seconds);

    let lately = ago(30);
    set(lately);
    store.find(&name(1)).unwrap();
    assert_eq!(used(&record), lately);
    // Long ago, or by a clock that was wrong.
    for wrong in [ago(90), ago(0) + Duration::from_secs(86400)] {
        set(wrong);
        store.peek(&name(1)).unwrap();
        assert_eq!(used(&record), wrong, "a look is no use");
        let open = store.find(&name(1)).unwrap();
        assert!(used(&record).elapsed().unwrap() < Duration::from_secs(30));
        // It was in use until it is closed.
        set(ago(90));
        drop(open);
        assert!(used(&record).elapsed().unwrap() < Duration::from_secs(30));
    }
}
