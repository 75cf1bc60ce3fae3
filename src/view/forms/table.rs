//! The outputs of the tree: a line for each. Nothing else knows them all.

use std::ffi::OsStr;
use std::sync::Arc;

use super::output::{Claim, Output};
use super::{index, refusal, safetensors, tensors};
use crate::view::error::Result;
use crate::view::folder::Folder;
use crate::view::node::Node;

/// In the order in which they are asked for a name.
const OUTPUTS: &[Output] = &[
    refusal::OUTPUT,
    safetensors::OUTPUT,
    tensors::OUTPUT,
    index::OUTPUT,
];

/// The derived file or directory `name`.
pub fn find(folder: &Folder, name: &OsStr) -> Result<Option<Node>> {
    for output in OUTPUTS {
        if let Some(node) = (output.find)(folder, name)? {
            return Ok(Some(node));
        }
    }
    Ok(None)
}

/// What the entry `name` of the source puts into the listing, besides itself.
pub fn list(folder: &Folder, name: &OsStr) -> Result<Vec<Claim>> {
    let mut claims = Vec::new();
    for output in OUTPUTS {
        claims.extend((output.list)(folder, name)?);
    }
    Ok(claims)
}

/// What the checkpoint `name` turns into: a converted file, or the refusal of one; below
/// the dotted path `root`, the converted form of one value.
pub fn derived(folder: &Folder, name: &OsStr, root: Option<&Arc<str>>) -> Result<Option<Node>> {
    if let Some(root) = root {
        return safetensors::at_root(folder, name, root);
    }
    for output in [&safetensors::OUTPUT, &refusal::OUTPUT] {
        if let Some(claim) = (output.list)(folder, name)?.pop() {
            return Ok(Some(claim.node));
        }
    }
    Ok(None)
}
