//! What a directory of the tree holds at one moment.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};

use super::node::Node;

/// Children by position, for directories of so many that nodes are made when asked
/// for.
pub(super) trait Children: Send + Sync {
    fn len(&self) -> usize;

    /// Child `index`: its name and node.
    fn entry(&self, index: usize) -> Option<(OsString, Node)>;
}

/// A directory's children at one moment.
pub struct Listing(Kind);

enum Kind {
    Few(Vec<(OsString, Node)>),
    Many(Box<dyn Children>),
}

impl Listing {
    pub(super) fn of(children: Vec<(OsString, Node)>) -> Listing {
        Listing(Kind::Few(children))
    }

    pub(super) fn many(children: impl Children + 'static) -> Listing {
        Listing(Kind::Many(Box::new(children)))
    }

    pub fn len(&self) -> usize {
        match &self.0 {
            Kind::Few(children) => children.len(),
            Kind::Many(children) => children.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Child `index` in listing order.
    pub fn entry(&self, index: usize) -> Option<(Cow<'_, OsStr>, Node)> {
        match &self.0 {
            Kind::Few(children) => {
                let (name, node) = children.get(index)?;
                Some((Cow::Borrowed(name), node.clone()))
            }
            Kind::Many(children) => {
                let (name, node) = children.entry(index)?;
                Some((Cow::Owned(name), node))
            }
        }
    }
}
