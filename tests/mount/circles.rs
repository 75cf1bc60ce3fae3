//! What leads into the mount itself is refused in words and never touched, and mounts of
//! stfs over others work.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::process::Command;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::support::skip::skip;
use super::{Place, fuse, root, succeeded};

/// The output of a program that looks into a mount. One that hangs is a failure.
fn answered(program: &str, arguments: &[&Path]) -> String {
    let mut command = Command::new("timeout");
    command.args(["-s", "KILL", "60", program]).args(arguments);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{program}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn names(directory: &Path) -> Vec<String> {
    let listed = answered("ls", &[directory]);
    listed.lines().map(str::to_owned).collect()
}

fn text(file: &Path) -> String {
    answered("cat", &[file])
}

/// The place `at` shows the directory `what` too, until this is dropped.
struct Bound(std::path::PathBuf);

impl Bound {
    fn new(what: &Path, at: &Path) -> Bound {
        let none = None::<&str>;
        mount(Some(what), at, none, MsFlags::MS_BIND, none).unwrap();
        Bound(at.to_path_buf())
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// A place whose mount point lies elsewhere than its source does.
fn aside() -> Place {
    let mut place = Place::new();
    place.point = place.source.with_file_name("aside").join("sub/mount");
    fs::create_dir_all(&place.point).unwrap();
    place.write("file.txt", "text");
    place
}

#[test]
fn links_into_the_mount_are_refused() {
    if !fuse() {
        return skip("no /dev/fuse");
    }
    let place = aside();
    let parent = place.source.with_file_name("aside");
    fs::write(parent.join("beside.txt"), "beside").unwrap();
    let link = |target: &Path, name: &str| symlink(target, place.source.join(name)).unwrap();
    link(&place.point, "root");
    link(&place.point.join("file.txt"), "file");
    link(Path::new("../aside/sub/mount/missing"), "missing");
    link(Path::new("root/file.txt"), "twice");
    link(&parent, "parent");
    let place = place.mounted(&[]);
    let refused = ["file", "missing", "root", "twice"].map(|name| format!("{name}.refused.txt"));
    let mut wanted = vec!["file.txt".to_owned(), "parent".to_owned()];
    wanted.extend(refused.iter().cloned());
    wanted.sort();
    assert_eq!(names(&place.point), wanted);
    for name in &refused {
        let text = text(&place.shown(name));
        assert!(text.contains("this mount itself"), "{text}");
    }
    // A directory with the mount in it is shown without it.
    assert_eq!(names(&place.shown("parent")), ["beside.txt", "sub"]);
    let inner = names(&place.shown("parent/sub"));
    assert!(inner.contains(&"mount.refused.txt".to_owned()), "{inner:?}");
    assert_eq!(text(&place.shown("parent/beside.txt")), "beside");
    for name in ["root", "file", "twice", "parent/sub/mount"] {
        assert!(!place.shown(name).exists(), "{name}");
    }
    // The kernel may have kept nothing of it.
    answered("find", &[Path::new("-L"), &place.point, Path::new("-ls")]);
}

#[test]
fn bind_mounts_of_the_mount_are_refused() {
    if !fuse() || !root() {
        return skip("needs /dev/fuse and root");
    }
    for options in [&[][..], &["--allow-other"]] {
        let place = aside();
        place.write("bound.txt", "covered");
        for directory in ["bound", "disk", "deep/down"] {
            fs::create_dir_all(place.source.join(directory)).unwrap();
        }
        let disk = place.source.with_file_name("other");
        fs::create_dir_all(&disk).unwrap();
        fs::write(disk.join("inside.txt"), "inside").unwrap();
        let place = place.mounted(options);
        let _bound = [
            Bound::new(&place.point, &place.source.join("bound")),
            Bound::new(&place.point, &place.source.join("deep/down")),
            Bound::new(&place.shown("file.txt"), &place.source.join("bound.txt")),
            // An honest one, made as late.
            Bound::new(&disk, &place.source.join("disk")),
        ];
        assert_eq!(
            names(&place.point),
            [
                "bound.refused.txt",
                "bound.txt.refused.txt",
                "deep",
                "disk",
                "file.txt"
            ]
        );
        assert_eq!(names(&place.shown("deep")), ["down.refused.txt"]);
        assert_eq!(text(&place.shown("disk/inside.txt")), "inside");
        let why = text(&place.shown("bound.refused.txt"));
        assert!(why.contains("this mount itself"), "{why}");
        answered("find", &[Path::new("-L"), &place.point, Path::new("-ls")]);
    }
}

#[test]
fn the_source_covered_by_its_mount_is_not_asked() {
    if !fuse() || !root() {
        return skip("needs /dev/fuse and root");
    }
    let place = aside().mounted(&[]);
    let _bound = Bound::new(&place.point, &place.source);
    // What is held goes on being shown.
    assert_eq!(names(&place.point), ["file.txt"]);
    assert_eq!(text(&place.shown("file.txt")), "text");
    assert_eq!(text(&place.source.join("file.txt")), "text");
}

#[test]
fn links_to_other_file_systems_are_followed() {
    if !fuse() {
        return skip("no /dev/fuse");
    }
    let place = aside();
    let disk = match tempfile::tempdir_in("/dev/shm") {
        Ok(disk) if !is_beside(disk.path(), &place.source) => disk,
        _ => return skip("needs a second file system at /dev/shm"),
    };
    fs::create_dir(disk.path().join("sub")).unwrap();
    fs::write(disk.path().join("sub/file"), "far").unwrap();
    let far = disk.path().to_str().unwrap();
    let link = |target: &str, name: &str| symlink(target, place.source.join(name)).unwrap();
    link(far, "far");
    link("far/sub/file", "file");
    link(&format!("/sys/../{far}/./sub//file"), "roundabout");
    link(&format!("{far}/sub/file/"), "no-directory");
    link(&format!("{far}/sub/../../../..{far}/sub"), "up");
    link(&format!("/proc/self/root{far}/sub/file"), "jump");
    let place = place.mounted(&[]);
    for name in ["file", "far/sub/file", "roundabout", "up/file", "jump"] {
        assert_eq!(text(&place.shown(name)), "far", "{name}");
    }
    assert!(!place.shown("no-directory").exists());
}

fn is_beside(one: &Path, other: &Path) -> bool {
    let device = |path: &Path| fs::metadata(path).unwrap().dev();
    device(one) == device(other)
}

#[test]
fn mounts_over_mounts_show_what_is_below() {
    if !fuse() {
        return skip("no /dev/fuse");
    }
    let first = aside().mounted(&[]);
    let second = Place::new();
    second.write("second.txt", "second");
    symlink(&first.point, second.source.join("first")).unwrap();
    let second = second.mounted(&[]);
    let over = |place: &Place| {
        assert_eq!(names(&place.point), ["first", "second.txt"]);
        assert_eq!(text(&place.shown("first/file.txt")), "text");
    };
    over(&second);
    // Over both: one lies in its source, the other is linked to.
    let third = Place::new();
    let mut inner = Place::new();
    inner.point = third.source.join("sub/inner");
    fs::create_dir_all(&inner.point).unwrap();
    inner.write("inner.txt", "inner");
    let inner = inner.mounted(&[]);
    symlink(&second.point, third.source.join("second")).unwrap();
    symlink("second/first/file.txt", third.source.join("deep.txt")).unwrap();
    let third = third.mounted(&[]);
    assert_eq!(names(&third.point), ["deep.txt", "second", "sub"]);
    assert_eq!(text(&third.shown("sub/inner/inner.txt")), "inner");
    assert_eq!(text(&third.shown("second/second.txt")), "second");
    assert_eq!(text(&third.shown("second/first/file.txt")), "text");
    assert_eq!(text(&third.shown("deep.txt")), "text");
    // Straight over another one.
    let mut fourth = Place::new();
    fourth.source = third.point.clone();
    let fourth = fourth.mounted(&[]);
    assert_eq!(text(&fourth.shown("second/first/file.txt")), "text");
    drop((fourth, third, inner));
}

#[test]
fn of_two_that_lead_to_each_other_the_later_one_shows_both() {
    if !fuse() {
        return skip("no /dev/fuse");
    }
    let (one, other) = (aside(), aside());
    symlink(&other.point, one.source.join("other")).unwrap();
    symlink(&one.point, other.source.join("one")).unwrap();
    let one = one.mounted(&[]);
    let other = other.mounted(&[]);
    assert_eq!(names(&one.point), ["file.txt", "other.refused.txt"]);
    let why = text(&one.shown("other.refused.txt"));
    assert!(why.contains("mounted later"), "{why}");
    assert_eq!(names(&other.point), ["file.txt", "one"]);
    assert_eq!(
        names(&other.shown("one")),
        ["file.txt", "other.refused.txt"]
    );
    // Made again it is the later one, and shows what has come before it.
    succeeded(&one.umount(&[]));
    let one = one.mounted(&[]);
    assert_eq!(names(&one.point), ["file.txt", "other"]);
    assert_eq!(names(&one.shown("other")), ["file.txt", "one.refused.txt"]);
}
