//! Directories and files of the source, shown as they are.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::available_parallelism;

use super::output::Claim;
use super::{control, refusal, table};
use crate::source::{self, Bytes, FileId, Found, Metadata, Source};
use crate::view::attr::{Attr, Kind};
use crate::view::context::Context;
use crate::view::error::{Error, Result, gone};
use crate::view::file::{Contents, OpenFile, Opened};
use crate::view::folder::{Folder, SourceEntry};
use crate::view::key::{Id, NodeKey};
use crate::view::node::{Form, Home, Listing, Node};
use crate::view::usage::{InUse, Tier};
use crate::workers::at_once;

/// Names that are looked at by one thread: other threads would cost more than they do.
const FEW: usize = 32;
/// Threads that look at names of a file system that is not of this machine: they wait
/// more than they work.
const FAR: usize = 16;

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

/// The child `name` of a directory; None when there is none.
fn child(folder: &Folder, name: &OsStr) -> Result<Option<Node>> {
    if let Some(node) = real(folder, name)? {
        return Ok(Some(node));
    }
    // What stands in for a file is found as it is listed.
    for about in refusal::about(folder, name)? {
        let mut claims = claims(folder, &about)?.into_iter();
        if let Some(claim) = claims.find(|claim| claim.name == name) {
            return Ok(Some(claim.node));
        }
    }
    table::find(folder, name)
}

/// The children of a directory, by name.
fn children(folder: &Folder) -> Result<Vec<(OsString, Node)>> {
    let names = folder.scan()?.names();
    let threads = match folder.tree.metadata().version.file.system.is_near() {
        true => available_parallelism().map_or(1, usize::from),
        false => FAR,
    };
    let parts: Vec<&[Box<OsStr>]> = names.chunks(FEW).collect();
    let claims = at_once(&parts, threads, |part| -> Result<Vec<Claim>> {
        // What is known of one name is of use to its neighbours, and to few others.
        let folder = folder.afresh();
        let claims = part.iter().map(|name| claims(&folder, name));
        Ok(claims
            .collect::<Result<Vec<_>>>()?
            .into_iter()
            .flatten()
            .collect())
    })?;
    drop(parts);
    let mut all = Vec::with_capacity(claims.iter().map(Vec::len).sum());
    claims.into_iter().for_each(|claims| all.extend(claims));
    all.sort_by(|a: &Claim, b| (&a.name, a.rank).cmp(&(&b.name, b.rank)));
    all.dedup_by(|later, earlier| later.name == earlier.name);
    Ok(all
        .into_iter()
        .map(|claim| (claim.name, claim.node))
        .collect())
}

/// What the entry `name` of the source puts into the listing.
fn claims(folder: &Folder, name: &OsStr) -> Result<Vec<Claim>> {
    let mut claims = Vec::new();
    let derived = real(folder, name).and_then(|node| {
        claims.extend(node.map(|node| Claim::new(name.to_os_string(), 0, node)));
        table::list(folder, name)
    });
    match derived {
        Ok(derived) => claims.extend(derived),
        // One file that cannot be looked at does not take the others away.
        Err(Error::Io(error)) if error.kind() != io::ErrorKind::NotConnected => {
            claims.push(refusal::unreadable(folder, name, &error.into()));
        }
        Err(Error::Stale) => {
            claims.push(refusal::unreadable(folder, name, &source::Error::Changed));
        }
        Err(error) => return Err(error),
    }
    Ok(claims)
}

/// The file or directory `name` of the source, where it is in the tree as it is.
fn real(folder: &Folder, name: &OsStr) -> Result<Option<Node>> {
    Ok(match folder.find(name)? {
        SourceEntry::Directory(metadata) => Some(directory(folder.path(name), &metadata)),
        SourceEntry::File(metadata, content) if folder.is_shown(name, &metadata, content)? => {
            Some(file(folder, name, &metadata))
        }
        _ => None,
    })
}

/// The file `name`.
fn file(folder: &Folder, name: &OsStr, metadata: &Metadata) -> Node {
    let file = metadata.version.file;
    let key = NodeKey {
        form: "file",
        place: None,
        of: id(&file),
        part: 0,
    };
    let real = RealFile {
        directory: folder.tree.path().into(),
        name: name.into(),
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
    fn enter<'c>(&self, context: &'c Context) -> Result<Folder<'c>> {
        let tree = context.tree().enter(&self.path).map_err(gone)?;
        match self.is_root() || tree.metadata().version.file == self.file {
            true => Ok(Folder::new(context, tree)),
            false => Err(Error::Stale),
        }
    }
}

impl Form for Directory {
    fn lookup(&self, context: &Context, name: &OsStr) -> Result<Node> {
        match child(&self.enter(context)?, name)? {
            Some(node) => Ok(node),
            None if self.is_root() && name == control::NAME => control::directory(context),
            None => Err(Error::NotFound),
        }
    }

    fn list(&self, context: &Context) -> Result<Listing> {
        Ok(Listing::of(children(&self.enter(context)?)?))
    }

    fn attr(&self, context: &Context, made: &Attr) -> Result<Attr> {
        let now = context.tree().enter(&self.path);
        match now {
            Ok(tree) if self.is_root() || tree.metadata().version.file == self.file => {
                Ok(Attr::of(Kind::Directory, tree.metadata()))
            }
            Err(error) if self.is_root() => Err(Error::Io(error)),
            // One that is gone or replaced is still what it was to whoever holds it.
            _ => Ok(*made),
        }
    }

    fn home(&self) -> Option<Home> {
        Some(home(&self.file))
    }

    fn is_real(&self) -> bool {
        true
    }

    fn source_directory(&self) -> Option<&Path> {
        Some(&self.path)
    }
}

#[derive(Debug)]
struct RealFile {
    directory: Arc<Path>,
    name: Box<OsStr>,
    file: FileId,
}

impl Form for RealFile {
    fn open(&self, context: &Context, attr: &Attr) -> Result<OpenFile> {
        let directory = context.tree().enter(&self.directory).map_err(gone)?;
        let source = directory.open(&self.name).map_err(gone)?;
        let now = source.metadata();
        // Who opens it was let in by the rights that it had.
        if now.version.file != self.file || now.rights != attr.rights() {
            return Err(Error::Stale);
        }
        let location = directory.location().join(&*self.name).into();
        let in_use = context.usage().opened(location, Tier::Native);
        Ok(OpenFile::new(OpenReal { source, in_use }))
    }

    fn attr(&self, context: &Context, made: &Attr) -> Result<Attr> {
        let found = context.tree().enter(&self.directory);
        let found = found.and_then(|directory| directory.stat(&self.name));
        Ok(match found {
            Ok(Found::File(now)) if now.version.file == self.file => Attr::of(Kind::File, &now),
            _ => *made,
        })
    }

    fn home(&self) -> Option<Home> {
        Some(home(&self.file))
    }

    fn is_real(&self) -> bool {
        true
    }
}

fn home(file: &FileId) -> Home {
    Home {
        id: id(file),
        system: file.system,
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

    fn is_near(&self) -> bool {
        self.source.is_near()
    }

    fn backing(&self) -> Option<&File> {
        self.source.file()
    }

    fn contents(&self) -> Option<Contents> {
        let version = self.source.version();
        version.settled.then(|| Contents::of(version))
    }
}
