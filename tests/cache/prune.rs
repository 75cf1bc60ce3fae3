//! What is taken away from the records, and what is left.

use std::fs::{self, File, FileTimes};
use std::path::Path;
use std::time::{Duration, SystemTime};

use stfs::cache::{Directory, Name, prune_records};

/// Bytes that a small file counts for.
const BLOCK: u64 = 4096;

fn minutes_ago(minutes: u64) -> SystemTime {
    SystemTime::now() - Duration::from_secs(60 * minutes)
}

fn date(path: &Path, read: SystemTime, written: SystemTime) {
    let times = FileTimes::new().set_accessed(read).set_modified(written);
    let file = File::options().write(true).open(path).unwrap();
    file.set_times(times).unwrap();
}

#[test]
fn the_longest_unused_go_first() {
    let root = tempfile::tempdir().unwrap();
    let directory = Directory::open(root.path()).unwrap();
    assert_eq!(
        prune_records(&directory, 0).unwrap(),
        0,
        "there are none yet"
    );

    let records: Vec<_> = (0..10_u8)
        .map(|number| directory.plan(&Name::of(&[&[number]])))
        .collect();
    for (number, path) in records.iter().enumerate() {
        directory.write(path, &[b"record"]).unwrap();
        let written = minutes_ago(100 - number as u64);
        date(path, written, written);
    }
    // The first was read since.
    date(&records[0], minutes_ago(1), minutes_ago(100));
    let left = || -> Vec<usize> { (0..10).filter(|n| records[*n].exists()).collect() };

    assert_eq!(prune_records(&directory, 10 * BLOCK).unwrap(), 10 * BLOCK);
    assert_eq!(left().len(), 10);
    assert_eq!(prune_records(&directory, 4 * BLOCK).unwrap(), 4 * BLOCK);
    assert_eq!(left(), [0, 7, 8, 9]);
    assert_eq!(prune_records(&directory, BLOCK - 1).unwrap(), 0);
    assert_eq!(left(), [0; 0]);
}

#[test]
fn what_is_no_record_stays() {
    let root = tempfile::tempdir().unwrap();
    let directory = Directory::open(root.path()).unwrap();
    let record = directory.plan(&Name::of(&[b"one"]));
    directory.write(&record, &[b"record"]).unwrap();
    let group = record.parent().unwrap();
    let file = |path: &Path, minutes| {
        fs::write(path, b"something").unwrap();
        date(path, minutes_ago(minutes), minutes_ago(minutes));
        path.to_path_buf()
    };
    let abandoned = file(&group.join(".stfs-unfinished-Abc123"), 120);
    let outside = tempfile::tempdir().unwrap();
    let target = file(&outside.path().join(".stfs-unfinished-Abc123"), 120);
    let link = group.join(".stfs-unfinished-Link");
    std::os::unix::fs::symlink(&target, &link).unwrap();
    let kept = [
        file(&group.join(".stfs-unfinished-New456"), 1),
        file(&group.join("notes"), 1000),
        file(&directory.plans().join(".stfs-unfinished-Top789"), 1000),
        file(&root.path().join("notes"), 1000),
        root.path().join("CACHEDIR.TAG"),
        target,
        link,
    ];
    std::os::unix::fs::symlink(outside.path(), directory.plans().join("zz")).unwrap();

    assert_eq!(prune_records(&directory, 0).unwrap(), 0);
    assert!(!record.exists() && !abandoned.exists());
    for path in &kept {
        assert!(path.symlink_metadata().is_ok(), "{path:?}");
    }
    assert_eq!(
        fs::read(outside.path().join(".stfs-unfinished-Abc123")).unwrap(),
        b"something"
    );
}
