//! What tells one node from another, and a file from what it becomes when it changes.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use crate::cache::Name;

/// Equal keys: the same file with the same bytes. A source file that changes
/// gets another key for everything derived from it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NodeKey {
    /// What it is.
    pub(super) form: &'static str,
    /// Where it stands, if it is another one under another name.
    pub(super) place: Option<Arc<Path>>,
    /// Which file, in which version, it is or is made from.
    pub(super) of: Id,
    /// Which part of that.
    pub(super) part: u64,
}

/// A hash of what tells a file from all others.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Id(u128);

impl Id {
    /// `parts` with their lengths, so that no two lists of them are alike.
    pub fn of(parts: &[&[u8]]) -> Id {
        let name = Name::of(parts);
        let (half, _) = name
            .as_bytes()
            .split_first_chunk()
            .unwrap_or((&[0; 16], &[]));
        Id(u128::from_le_bytes(*half))
    }

    /// A part of it, and never zero.
    pub fn number(self) -> u64 {
        (self.0 as u64).max(1)
    }

    pub fn to_bytes(self) -> [u8; 16] {
        self.0.to_le_bytes()
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}
