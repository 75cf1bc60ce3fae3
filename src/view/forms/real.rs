//! Directories and files of the source, shown as they are.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::control;
use super::{Error, Form, Node, Result, View};
use crate::source::{Bytes, FileId, Found, Metadata, Source};
use crate::view::file::{OpenFile, Opened};
use crate::view::folder::Folder;
use crate::view::listing::Listing;
use crate::view::node::{Attr, Id, Kind, NodeKey};
use crate::view::origin::gone;
use crate::view::usage::{InUse, Tier};

/// The directory at `path` from the root of the source. A link to one is a directory
/// of its own: the kernel knows each directory under one name.
pub fn directory(path: PathBuf, metadata: &Metadata) -> Node {
    let path: Arc<Path> = path.into();
    let file = metadata.version.file;
    let key = NodeKey {
        form: "directory",
        place: Some(path.clone()),
        of: id(&file),
        part: 0,
    };
    let attr = Attr::of(Kind::Directory, metadata);
    Node::new(key, attr, Directory { path, file })
}

/// The file `name`.
pub fn file(folder: &Folder, name: &OsStr, metadata: &Metadata) -> Node {
    let file = metadata.version.file;
    let key = NodeKey {
        form: "file",
        place: None,
        of: id(&file),
        part: 0,
    };
    let real = RealFile {
        directory: folder.tree.path().into(),
        name: name.to_os_string(),
        location: folder.location(name).into(),
        file,
    };
    Node::new(key, Attr::of(Kind::File, metadata), real)
}

fn id(file: &FileId) -> Id {
    let system = format!("{:?}", file.system);
    Id::of(&[
        system.as_bytes(),
        &file.inode.to_le_bytes(),
        &file.path.to_le_bytes(),
    ])
}

#[derive(Debug)]
struct Directory {
    path: Arc<Path>,
    file: FileId,
}

impl Directory {
    fn is_root(&self) -> bool {
        self.path.as_os_str().is_empty()
    }

    /// The directory as it is now.
    ///
    /// # Errors
    /// [`Error::Stale`] when another one stands at its path, or perhaps a link to
    /// one. The root is whatever the source says: nobody could look it up again.
    fn enter<'v>(&self, view: &'v View) -> Result<Folder<'v>> {
        let tree = view.tree().enter(&self.path).map_err(gone)?;
        match self.is_root() || tree.metadata().version.file == self.file {
            true => Ok(Folder::new(view, tree)),
            false => Err(Error::Stale),
        }
    }
}

impl Form for Directory {
    fn lookup(&self, view: &View, name: &OsStr) -> Result<Node> {
        match self.enter(view)?.child(name)? {
            Some(node) => Ok(node),
            None if self.is_root() && name == control::NAME => control::directory(view),
            None => Err(Error::NotFound),
        }
    }

    fn list(&self, view: &View) -> Result<Listing> {
        Ok(Listing::of(self.enter(view)?.children()?))
    }

    fn attr(&self, view: &View, made: &Attr) -> Result<Attr> {
        let now = view.tree().enter(&self.path);
        match now {
            Ok(tree) if self.is_root() || tree.metadata().version.file == self.file => {
                Ok(Attr::of(Kind::Directory, tree.metadata()))
            }
            Err(error) if self.is_root() => Err(Error::Io(error)),
            // One that is gone or replaced is still what it was to whoever holds it.
            _ => Ok(*made),
        }
    }

    fn source_directory(&self) -> Option<&Path> {
        Some(&self.path)
    }
}

#[derive(Debug)]
struct RealFile {
    directory: Arc<Path>,
    name: OsString,
    location: Arc<Path>,
    file: FileId,
}

impl Form for RealFile {
    fn open(&self, view: &View, attr: &Attr) -> Result<OpenFile> {
        let directory = view.tree().enter(&self.directory).map_err(gone)?;
        let source = directory.open(&self.name).map_err(gone)?;
        let now = source.metadata();
        // Who opens it was let in by the rights that it had.
        if now.version.file != self.file || now.rights != attr.rights() {
            return Err(Error::Stale);
        }
        let in_use = view.usage().opened(self.location.clone(), Tier::Native);
        Ok(OpenFile::new(OpenReal { source, in_use }))
    }

    fn attr(&self, view: &View, made: &Attr) -> Result<Attr> {
        let found = view.tree().enter(&self.directory);
        let found = found.and_then(|directory| directory.stat(&self.name));
        Ok(match found {
            Ok(Found::File(now)) if now.version.file == self.file => Attr::of(Kind::File, &now),
            _ => *made,
        })
    }
}

/// It has the size that it has now.
struct OpenReal {
    source: Source,
    in_use: InUse,
}

impl Opened for OpenReal {
    fn read(&self, offset: u64, len: usize) -> Result<Bytes<'_>> {
        let bytes = self.source.read_now(offset, len)?;
        self.in_use.served(bytes.len() as u64);
        Ok(Bytes::Owned(bytes))
    }

    fn backing(&self) -> Option<&File> {
        self.source.file()
    }

    /// Pages of earlier opens are as old as the attributes, with which the kernel
    /// drops them.
    fn keeps_pages(&self) -> bool {
        self.source.version().settled
    }
}
