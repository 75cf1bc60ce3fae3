//! What a node of the tree can be. One file for each output, and a line in
//! [`FORMS`]: nothing else knows them all.

pub mod control;
mod index;
pub mod real;
pub mod refusal;
mod safetensors;
mod tensor_names;
mod tensors;

use std::ffi::{OsStr, OsString};
use std::fmt::Debug;
use std::path::Path;

use super::file::OpenFile;
use super::folder::Folder;
use super::listing::Listing;
use super::node::{Attr, Node};
use super::origin::Origin;
use super::{Error, Result, View};

pub use index::Merged;

/// An extended attribute.
pub type Xattr = (&'static str, Vec<u8>);

/// How a node answers. What a file cannot do is an error for a directory, and the
/// other way round.
pub trait Form: Debug + Send + Sync {
    /// The child `name`.
    fn lookup(&self, view: &View, name: &OsStr) -> Result<Node> {
        let _ = (view, name);
        Err(Error::NotADirectory)
    }

    /// The children as of now.
    fn list(&self, view: &View) -> Result<Listing> {
        let _ = view;
        Err(Error::NotADirectory)
    }

    /// The file, open. `attr` are those of the node.
    fn open(&self, view: &View, attr: &Attr) -> Result<OpenFile> {
        let _ = (view, attr);
        Err(Error::IsADirectory)
    }

    /// The attributes as of now. `made` are those at the time the node was made.
    fn attr(&self, view: &View, made: &Attr) -> Result<Attr> {
        let _ = view;
        Ok(*made)
    }

    /// In a stable order.
    fn xattrs(&self, view: &View) -> Result<Vec<Xattr>> {
        let _ = view;
        Ok(Vec::new())
    }

    /// The checkpoint that this is the converted form of.
    fn origin(&self) -> Option<&Origin> {
        None
    }

    /// The directory of the source that this is, from the root of the source.
    fn source_directory(&self) -> Option<&Path> {
        None
    }

    /// Whether this file only says why another one is not there.
    fn is_refusal(&self) -> bool {
        false
    }
}

/// A child and the rank of its claim to the name: a real file 0, a derived one
/// 1, the tensors of all shards 2.
pub struct Claim {
    pub name: OsString,
    pub rank: u8,
    pub node: Node,
}

impl Claim {
    pub fn new(name: OsString, rank: u8, node: Node) -> Claim {
        Claim { name, rank, node }
    }
}

/// An output of the tree.
pub struct Output {
    /// What the entry `name` of the source puts into the listing.
    pub list: fn(&Folder, name: &OsStr) -> Result<Vec<Claim>>,
    /// The derived file or directory `name`.
    pub find: fn(&Folder, name: &OsStr) -> Result<Option<Node>>,
}

/// What the checkpoint `name` turns into: a converted file, or the refusal of one.
pub fn derived(folder: &Folder, name: &OsStr) -> Result<Option<Node>> {
    for form in [&safetensors::OUTPUT, &refusal::OUTPUT] {
        if let Some(claim) = (form.list)(folder, name)?.pop() {
            return Ok(Some(claim.node));
        }
    }
    Ok(None)
}

/// In the order in which they are asked for a name.
pub const FORMS: &[Output] = &[
    refusal::OUTPUT,
    safetensors::OUTPUT,
    tensors::OUTPUT,
    index::OUTPUT,
];
