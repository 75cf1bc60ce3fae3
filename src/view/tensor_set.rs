//! Which tensors a directory of tensors holds.

use std::path::Path;
use std::sync::Arc;

use super::origin::Origin;

/// The tensors of a file, or of all files that an index names.
#[derive(Debug)]
pub(super) struct TensorSet {
    /// Where the directory stands in the tree.
    pub path: Arc<Path>,
    pub parts: Box<[Arc<Origin>]>,
    /// Part and index of each tensor, by name; None when there is one part,
    /// whose plan knows the order.
    pub places: Option<Box<[(u32, u32)]>>,
}
