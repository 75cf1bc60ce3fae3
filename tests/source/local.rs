//! Local trees: links that stay inside, a root that is held, and what can be told
//! over remounts.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use stfs::source::{Found, Links, LocalTree, Obstacle, System, Tree};

use super::skip::skip;
use super::{Ground, Local};

fn obstacle(tree: &dyn Tree, name: &str) -> Obstacle {
    match tree.stat(name.as_ref()).unwrap() {
        Found::Blocked(_, obstacle) => obstacle,
        other => panic!("{name}: {other:?}"),
    }
}

fn content(tree: &dyn Tree, name: &str) -> Vec<u8> {
    let source = tree.open(name.as_ref()).unwrap();
    source.read_at(0, source.size()).unwrap()
}

/// Links of every kind, and directories that not everybody may enter.
fn linked(links: Links) -> Local {
    let local = Local::new(links);
    local.write("public/file", b"public");
    local.write("private/file", b"private");
    local.write("private/inner/file", b"inner");
    local.set_mode("private", 0o700);
    fs::write(local.directory.path().join("outside"), b"outside").unwrap();
    let link = |target: &str, name: &str| symlink(target, local.at(name)).unwrap();
    link("public/file", "inside");
    link("public/../public/./file", "roundabout");
    link("../outside", "out");
    link("/etc/passwd", "absolute");
    link(local.at("public/file").to_str().unwrap(), "absolute-inside");
    link("private/file", "through-private");
    link("private", "to-private");
    link("public", "directory");
    link("inside", "twice");
    link("circle-b", "circle-a");
    link("circle-a", "circle-b");
    link("/proc/self/fd/0", "magic");
    link("public/file/more", "beyond");
    link(".", "self");
    link("file", "private/neighbour");
    link("inner/file", "private/down");
    link("../public/file", "private/up");
    link("../../outside", "private/out");
    local
}

#[test]
fn links_stay_inside() {
    let local = linked(Links::Inside);
    let root = local.root();
    for name in ["inside", "roundabout", "absolute-inside", "twice"] {
        assert_eq!(content(&*root, name), b"public", "{name}");
        assert!(matches!(
            root.stat(name.as_ref()).unwrap(),
            Found::File(metadata) if metadata.version.size == 6
        ));
    }
    for (name, why) in [
        ("out", Obstacle::Outside),
        ("absolute", Obstacle::Outside),
        ("magic", Obstacle::Outside),
        ("through-private", Obstacle::Private),
        ("circle-a", Obstacle::Circle),
        ("beyond", Obstacle::Nowhere),
        ("self", Obstacle::Upwards),
    ] {
        assert_eq!(obstacle(&*root, name), why, "{name}");
        assert!(root.open(name.as_ref()).is_err(), "{name}");
    }
    // A directory is shown with the rights that it has.
    let Found::Directory(private) = root.stat("to-private".as_ref()).unwrap() else {
        panic!("it is a directory");
    };
    assert_eq!(private.rights.mode, 0o500);
}

#[test]
fn whoever_has_entered_a_directory_may_follow_its_links() {
    let local = linked(Links::Inside);
    let private = local.root().enter(Path::new("private")).unwrap();
    assert_eq!(content(&*private, "neighbour"), b"private");
    assert_eq!(content(&*private, "down"), b"inner");
    assert_eq!(content(&*private, "up"), b"public");
    assert_eq!(obstacle(&*private, "out"), Obstacle::Outside);
    // By another name as well.
    let private = local.root().enter(Path::new("to-private")).unwrap();
    assert_eq!(content(&*private, "neighbour"), b"private");
    local.set_mode("private/inner", 0o700);
    assert_eq!(obstacle(&*private, "down"), Obstacle::Private);
}

#[test]
fn directories_behind_links_are_entered_by_name() {
    for links in [Links::Inside, Links::Anywhere] {
        let local = linked(links);
        let directory = local.root().enter(Path::new("directory")).unwrap();
        assert_eq!(content(&*directory, "file"), b"public");
        assert_eq!(directory.path(), Path::new("directory"));
    }
    let local = linked(Links::Inside);
    symlink("/etc", local.at("etc")).unwrap();
    assert!(local.root().enter(Path::new("etc")).is_err());
    for path in ["..", "public/..", "/etc", "public/../../"] {
        let error = local.root().enter(Path::new(path)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{path}");
    }
}

#[test]
fn without_other_readers_links_lead_anywhere() {
    let local = linked(Links::Anywhere);
    let root = local.root();
    assert_eq!(content(&*root, "out"), b"outside");
    assert_eq!(content(&*root, "through-private"), b"private");
    assert!(matches!(
        root.stat("absolute".as_ref()).unwrap(),
        Found::File(_)
    ));
    assert_eq!(obstacle(&*root, "circle-a"), Obstacle::Circle);
    assert_eq!(obstacle(&*root, "self"), Obstacle::Upwards);
}

#[test]
fn a_root_that_is_replaced_stays_what_it_was_for_others() {
    for (links, shown) in [(Links::Inside, &b"old"[..]), (Links::Anywhere, b"secret")] {
        let local = Local::new(links);
        local.write("file", b"old");
        let root = local.root();
        let aside = local.directory.path().join("aside");
        fs::rename(local.at(""), &aside).unwrap();
        let secret = local.directory.path().join("secret");
        fs::create_dir(&secret).unwrap();
        fs::write(secret.join("file"), b"secret").unwrap();
        symlink(&secret, local.directory.path().join("root")).unwrap();
        // A mount of one's own shows what stands there.
        let now = root.enter(Path::new("")).unwrap();
        assert_eq!(content(&*now, "file"), shown);
    }
}

#[test]
fn a_root_that_is_back_is_found_again_in_private_alone() {
    for (links, found) in [(Links::Anywhere, true), (Links::Inside, false)] {
        let local = Local::new(links);
        local.write("file", b"old");
        let root = local.root();
        local.end();
        assert!(root.enter(Path::new("")).is_err());
        local.write("file", b"new");
        let again = root.enter(Path::new(""));
        assert_eq!(again.is_ok(), found, "{links:?}");
        if let Ok(again) = again {
            assert_eq!(content(&*again, "file"), b"new");
        }
    }
}

/// The second user of the story is the tree itself: it must never give what lies
/// behind the link.
#[test]
fn a_directory_swapped_with_a_link_gives_nothing_away() {
    let local = Local::new(Links::Inside);
    local.write("d/file", b"right");
    let secret = local.directory.path().join("secret");
    fs::create_dir(&secret).unwrap();
    fs::write(secret.join("file"), b"wrong").unwrap();
    symlink(&secret, local.at("link")).unwrap();
    let root = local.root();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (d, link) = (local.at("d"), local.at("link"));
            for _ in 0..10_000 {
                let flags = nix::fcntl::RenameFlags::RENAME_EXCHANGE;
                let here = nix::fcntl::AT_FDCWD;
                nix::fcntl::renameat2(here, &d, here, &link, flags).unwrap();
            }
            done.store(true, Ordering::Relaxed);
        });
        let mut right = 0;
        while !done.load(Ordering::Relaxed) {
            let file = root
                .enter(Path::new("d"))
                .and_then(|d| d.open("file".as_ref()));
            if let Ok(file) = file {
                assert_eq!(file.read_at(0, file.size()).unwrap(), b"right");
                right += 1;
            }
        }
        assert!(right > 0);
    });
}

#[test]
fn an_ordinary_disk_can_be_trusted_and_settles() {
    let local = Local::new(Links::Anywhere);
    local.write("file", b"x");
    let root = local.root();
    let version = || match root.stat("file".as_ref()).unwrap() {
        Found::File(metadata) => metadata.version,
        other => panic!("{other:?}"),
    };
    let first = version();
    if matches!(first.file.system, System::Mounted { .. }) {
        return skip("the temporary directory is on a file system of no known kind");
    }
    assert!(!first.settled && !first.is_lasting());
    while !version().settled {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let settled = version();
    assert!(settled.is_lasting() && settled != first && settled.same_stamps(&first));
    assert!(root.address("file".as_ref()).is_some());
}

#[test]
fn a_root_must_be_a_directory_that_can_be_read() {
    let local = Local::new(Links::Anywhere);
    local.write("file", b"x");
    for path in ["file", "missing"] {
        assert!(LocalTree::open(&local.at(path), Links::Anywhere).is_err());
    }
    let (directory, name) = LocalTree::around(&local.at("file")).unwrap();
    assert_eq!(content(&directory, name.to_str().unwrap()), b"x");
    let mode = fs::Permissions::from_mode(0o755);
    fs::set_permissions(local.at(""), mode).unwrap();
}
