//! Which directories may become mount points.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::error::Error;
use super::mountinfo::{self, Mount};
use super::state::Server;
use super::unmount;

/// A directory that is fit to be mounted on.
#[derive(Debug)]
pub struct MountPoint {
    /// Absolute, free of symbolic links.
    pub path: PathBuf,
    /// A mount whose process is gone was here and has been taken away.
    pub cleared: bool,
}

/// Makes `path` fit to be mounted on: creates the directory where only its last
/// component is missing, and takes an stfs mount away whose process is gone.
/// `source` must be absolute and free of symbolic links.
///
/// # Errors
/// The place is unfit; nothing has been changed then, but for a dead mount.
pub fn prepare(path: &Path, source: &Path, nonempty: bool) -> Result<MountPoint, Error> {
    let io_error = |what| Error::io(path, what);
    let mut place = mountinfo::locate(path)?;
    let mut cleared = false;
    loop {
        let mount = mountinfo::mount_at(&place).map_err(io_error("read the mount table"))?;
        if let Some(mount) = mount {
            clear(path, &mount)?;
            cleared = true;
            continue;
        }
        // What lies in the file system of another process may be a link.
        let settled = canonical(&place).map_err(io_error("look at it"))?;
        if settled == place {
            break;
        }
        place = settled;
    }
    if place.starts_with(source) && place != source {
        return Err(Error::InsideSource {
            path: path.to_owned(),
            source_dir: source.to_owned(),
        });
    }
    if source.starts_with(&place) {
        return Err(Error::CoversSource {
            path: path.to_owned(),
            source_dir: source.to_owned(),
        });
    }
    match fs::metadata(&place) {
        Ok(metadata) if !metadata.is_dir() => return Err(Error::NotADirectory(path.to_owned())),
        Ok(_) => {
            // A directory that may be written but not listed is left to mount(2).
            let empty = fs::read_dir(&place).map_or(true, |mut entries| entries.next().is_none());
            if !empty && !nonempty {
                return Err(Error::NotEmpty(path.to_owned()));
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::create_dir(&place).map_err(io_error("create the directory"))?;
        }
        Err(error) => return Err(io_error("look at it")(error)),
    }
    Ok(MountPoint {
        path: place,
        cleared,
    })
}

/// Takes a mount away whose process is gone.
fn clear(path: &Path, mount: &Mount) -> Result<(), Error> {
    if !mount.is_stfs() {
        return Err(already_mounted(path, mount));
    }
    let server = Server::of(mount).map_err(Error::io(path, "look for the process of its mount"))?;
    match &server {
        Server::Stopped(process) => Err(Error::Stopped {
            path: path.to_owned(),
            pid: process.pid(),
        }),
        server if server.is_dead(mount) => unmount::sever(mount, server.process()),
        _ => Err(already_mounted(path, mount)),
    }
}

/// `path` without symbolic links. Its last component may be missing.
fn canonical(path: &Path) -> io::Result<PathBuf> {
    match (fs::canonicalize(path), path.parent(), path.file_name()) {
        (Err(error), Some(parent), Some(name)) if error.kind() == io::ErrorKind::NotFound => {
            Ok(fs::canonicalize(parent)?.join(name))
        }
        (result, ..) => result,
    }
}

fn already_mounted(path: &Path, mount: &Mount) -> Error {
    Error::AlreadyMounted {
        path: path.to_owned(),
        fs_type: mount.fs_type.to_string_lossy().into_owned(),
        source_name: mount.source.to_string_lossy().into_owned(),
        umount: if mount.is_stfs() {
            "stfs umount"
        } else {
            "umount"
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn tree() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        fs::create_dir_all(root.join("source/sub")).unwrap();
        (dir, root)
    }

    #[test]
    fn makes_the_last_component_only() {
        let (_dir, root) = tree();
        let source = root.join("source");
        let made = prepare(&root.join("new"), &source, false).unwrap();
        assert_eq!(made.path, root.join("new"));
        assert!(made.path.is_dir() && !made.cleared);
        let error = prepare(&root.join("no/where"), &source, false).unwrap_err();
        assert!(matches!(error, Error::NoParent { .. }), "{error}");
        assert!(!root.join("no").exists());
    }

    #[test]
    fn refuses_what_it_would_hide_or_meet_again() {
        let (_dir, root) = tree();
        let source = root.join("source");
        symlink(&source, root.join("link")).unwrap();
        for (place, inside) in [
            ("source/sub", true),
            ("source/new", true),
            ("link/sub", true),
            ("source", false),
            ("link", false),
            ("", false),
        ] {
            let error = prepare(&root.join(place), &source, true).unwrap_err();
            match error {
                Error::InsideSource { .. } => assert!(inside, "{place}"),
                Error::CoversSource { .. } => assert!(!inside, "{place}"),
                other => panic!("{place}: {other}"),
            }
        }
        assert!(!source.join("new").exists());
    }

    #[test]
    fn refuses_files_and_full_directories() {
        let (_dir, root) = tree();
        let source = root.join("source");
        fs::create_dir(root.join("full")).unwrap();
        fs::write(root.join("full/file"), "x").unwrap();
        let error = prepare(&root.join("full"), &source, false).unwrap_err();
        assert!(matches!(error, Error::NotEmpty(_)), "{error}");
        prepare(&root.join("full"), &source, true).unwrap();
        let error = prepare(&root.join("full/file"), &source, true).unwrap_err();
        assert!(matches!(error, Error::NotADirectory(_)), "{error}");
    }

    #[test]
    fn refuses_a_foreign_mount() {
        let (_dir, root) = tree();
        let error = prepare(Path::new("/proc"), &root, true).unwrap_err();
        assert!(error.to_string().contains("proc"), "{error}");
        assert!(matches!(error, Error::AlreadyMounted { .. }), "{error}");
    }
}
