//! An output of the tree: what it puts into listings, and how it is found by name.

use std::ffi::{OsStr, OsString};

use crate::view::error::Result;
use crate::view::folder::Folder;
use crate::view::node::Node;

/// A child and the rank of its claim to the name: a real file 0, a derived one 1, one
/// that another file has more of a claim to by its name 2, the tensors of all shards 3.
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
