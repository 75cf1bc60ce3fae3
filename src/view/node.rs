//! One place in the tree, as a plain value, and what a directory holds at one moment.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::fmt::Debug;
use std::path::Path;
use std::sync::Arc;

use super::attr::{Attr, Kind};
use super::context::Context;
use super::error::{Error, Result};
use super::file::OpenFile;
use super::key::{Id, NodeKey};
use super::origin::Origin;
use super::xattrs::Xattr;
use crate::source::System;

/// A directory or file of the tree. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Node {
    key: NodeKey,
    attr: Attr,
    form: Arc<dyn Form>,
}

/// How a node answers. What a file cannot do is an error for a directory, and the
/// other way round.
pub(super) trait Form: Debug + Send + Sync {
    /// The child `name`.
    fn lookup(&self, context: &Context, name: &OsStr) -> Result<Node> {
        let _ = (context, name);
        Err(Error::NotADirectory)
    }

    /// The children as of now.
    fn list(&self, context: &Context) -> Result<Listing> {
        let _ = context;
        Err(Error::NotADirectory)
    }

    /// The file, open. `attr` are those of the node.
    fn open(&self, context: &Context, attr: &Attr) -> Result<OpenFile> {
        let _ = (context, attr);
        Err(Error::IsADirectory)
    }

    /// The attributes as of now. `made` are those at the time the node was made.
    fn attr(&self, context: &Context, made: &Attr) -> Result<Attr> {
        let _ = context;
        Ok(*made)
    }

    /// In a stable order.
    fn xattrs(&self, context: &Context) -> Result<Vec<Xattr>> {
        let _ = context;
        Ok(Vec::new())
    }

    /// The checkpoint that this is the converted form of.
    fn origin(&self) -> Option<&Origin> {
        None
    }

    /// The file or directory of the source that has to be looked at to answer. None when
    /// none has.
    fn home(&self) -> Option<Home> {
        None
    }

    /// Whether its attributes are those that the source has now.
    fn is_real(&self) -> bool {
        false
    }

    /// The directory of the source that this is, from the root of the source.
    fn source_directory(&self) -> Option<&Path> {
        None
    }

    /// Whether this file only says why another one is not there.
    fn is_refusal(&self) -> bool {
        false
    }

    /// Whether it may be gone the next time, though nothing in the source changes.
    fn is_passing(&self) -> bool {
        false
    }
}

/// A file or directory of the source.
#[derive(Clone, Copy, Debug)]
pub(super) struct Home {
    pub id: Id,
    pub system: System,
}

impl Node {
    pub(super) fn new(key: NodeKey, attr: Attr, form: impl Form + 'static) -> Node {
        let form = Arc::new(form);
        Node { key, attr, form }
    }

    pub(super) fn form(&self) -> &dyn Form {
        &*self.form
    }

    pub fn kind(&self) -> Kind {
        self.attr.kind
    }

    /// The attributes that were told last.
    pub fn attr(&self) -> &Attr {
        &self.attr
    }

    /// The same node, told with other attributes.
    pub fn with_attr(&self, attr: Attr) -> Node {
        Node {
            attr,
            ..self.clone()
        }
    }

    /// Whether this file only says why another one is not there.
    pub fn is_refusal(&self) -> bool {
        self.form.is_refusal()
    }

    /// Whether what it shows lies on this machine, if anywhere.
    pub fn is_near(&self) -> bool {
        self.form.home().is_none_or(|home| home.system.is_near())
    }

    pub fn key(&self) -> &NodeKey {
        &self.key
    }
}

/// Children by position, for directories of so many that nodes are made when asked
/// for.
pub(super) trait Children: Send + Sync {
    fn len(&self) -> usize;

    /// Child `index`: its name and node.
    fn entry(&self, index: usize) -> Option<(OsString, Node)>;
}

/// A directory's children at one moment.
pub struct Listing(Entries);

enum Entries {
    Few(Vec<(OsString, Node)>),
    Many(Box<dyn Children>),
}

impl Listing {
    pub(super) fn of(children: Vec<(OsString, Node)>) -> Listing {
        Listing(Entries::Few(children))
    }

    pub(super) fn many(children: impl Children + 'static) -> Listing {
        Listing(Entries::Many(Box::new(children)))
    }

    pub fn len(&self) -> usize {
        match &self.0 {
            Entries::Few(children) => children.len(),
            Entries::Many(children) => children.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether it may be another the next time, though nothing in the source changes.
    pub fn is_passing(&self) -> bool {
        match &self.0 {
            Entries::Few(children) => children.iter().any(|(_, node)| node.form.is_passing()),
            Entries::Many(_) => false,
        }
    }

    /// Whether any of the children comes from another machine.
    pub fn has_far(&self) -> bool {
        match &self.0 {
            Entries::Few(children) => children.iter().any(|(_, node)| !node.is_near()),
            // They are parts of one file, which is where the directory is.
            Entries::Many(_) => false,
        }
    }

    /// Child `index` in listing order.
    pub fn entry(&self, index: usize) -> Option<(Cow<'_, OsStr>, Node)> {
        match &self.0 {
            Entries::Few(children) => {
                let (name, node) = children.get(index)?;
                Some((Cow::Borrowed(name), node.clone()))
            }
            Entries::Many(children) => {
                let (name, node) = children.entry(index)?;
                Some((Cow::Owned(name), node))
            }
        }
    }
}
