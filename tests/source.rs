//! Trees: one suite, run over every kind, and what a local one does besides.

#[path = "source/leases.rs"]
mod leases;
#[path = "source/local.rs"]
mod local;
#[path = "support/skip.rs"]
mod skip;
#[path = "source/suite.rs"]
mod suite;

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use stfs::source::memory::MemoryTree;
use stfs::source::{Links, LocalTree, Obstacle, Rights, Tree};

/// A tree that tests can change behind its back.
trait Ground {
    fn root(&self) -> Arc<dyn Tree>;
    /// Writes to a file in place, and makes the directories that it lies in.
    fn write(&self, path: &str, bytes: &[u8]);
    /// Puts another file in its place.
    fn replace(&self, path: &str, bytes: &[u8]);
    fn make_directory(&self, path: &str);
    fn make_special(&self, path: &str);
    fn make_dangling_link(&self, path: &str);
    fn remove(&self, path: &str);
    fn set_mode(&self, path: &str, mode: u16);
    /// Takes the whole source away.
    fn end(&self);
}

struct Local {
    directory: tempfile::TempDir,
    links: Links,
}

impl Local {
    fn new(links: Links) -> Local {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("root")).unwrap();
        Local { directory, links }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.directory.path().join("root").join(path)
    }
}

impl Ground for Local {
    fn root(&self) -> Arc<dyn Tree> {
        Arc::new(LocalTree::open(&self.at(""), self.links).unwrap())
    }

    fn write(&self, path: &str, bytes: &[u8]) {
        let path = self.at(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    fn replace(&self, path: &str, bytes: &[u8]) {
        let new = self.directory.path().join("new");
        std::fs::write(&new, bytes).unwrap();
        std::fs::rename(new, self.at(path)).unwrap();
    }

    fn make_directory(&self, path: &str) {
        std::fs::create_dir_all(self.at(path)).unwrap();
    }

    fn make_special(&self, path: &str) {
        let path = self.at(path);
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    }

    fn make_dangling_link(&self, path: &str) {
        symlink("nowhere", self.at(path)).unwrap();
    }

    fn remove(&self, path: &str) {
        let path = self.at(path);
        match path.is_dir() {
            true => std::fs::remove_dir_all(path).unwrap(),
            false => std::fs::remove_file(path).unwrap(),
        }
    }

    fn set_mode(&self, path: &str, mode: u16) {
        let mode = std::fs::Permissions::from_mode(mode.into());
        std::fs::set_permissions(self.at(path), mode).unwrap();
    }

    fn end(&self) {
        std::fs::remove_dir_all(self.at("")).unwrap();
    }
}

impl Ground for MemoryTree {
    fn root(&self) -> Arc<dyn Tree> {
        MemoryTree::root(self)
    }

    fn write(&self, path: &str, bytes: &[u8]) {
        MemoryTree::write(self, path, bytes);
    }

    fn replace(&self, path: &str, bytes: &[u8]) {
        MemoryTree::replace(self, path, bytes);
    }

    fn make_directory(&self, path: &str) {
        MemoryTree::make_directory(self, path);
    }

    fn make_special(&self, path: &str) {
        MemoryTree::make_special(self, path);
    }

    fn make_dangling_link(&self, path: &str) {
        self.block(path, Obstacle::Nowhere);
    }

    fn remove(&self, path: &str) {
        MemoryTree::remove(self, path);
    }

    fn set_mode(&self, path: &str, mode: u16) {
        self.set_rights(Path::new(path), Rights::new(0, 0, mode));
    }

    fn end(&self) {
        self.unmount();
    }
}
