//! `NAME.refused.txt`: why the checkpoint NAME is not shown, and what to do. Of a
//! directory that is one checkpoint NAME is the directory's own: that of the file that
//! describes it would be a hidden one.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::sync::Arc;

use super::output::{Claim, Output};
use super::rooted;
use crate::checkpoint::{Cause, Refusal};
use crate::convert::names;
use crate::source::{self, Metadata, Version};
use crate::view::attr::{Attr, Kind};
use crate::view::context::Context;
use crate::view::error::Result;
use crate::view::file::{OpenFile, OpenText};
use crate::view::folder::{self, Derived, Folder, Outcome, strip_suffix, with};
use crate::view::key::{Id, NodeKey};
use crate::view::node::{Form, Node};
use crate::view::xattrs::{self, Xattr};

const REFUSED: &str = ".refused.txt";

pub const OUTPUT: Output = Output { list, find };

fn list(folder: &Folder, name: &OsStr) -> Result<Vec<Claim>> {
    let node = of(folder, name)?;
    let claim = |node| claim(folder, name, node);
    Ok(node.map(claim).into_iter().collect())
}

/// The claim of the refusal of `about`. A file called as the directory is comes first.
fn claim(folder: &Folder, about: &OsStr, node: Node) -> Claim {
    match about == names::METADATA {
        true => Claim::new(with(&of_directory(folder), REFUSED), 2, node),
        false => Claim::new(with(about, REFUSED), 1, node),
    }
}

/// What the directory is called.
fn of_directory(folder: &Folder) -> OsString {
    let location = folder.tree.location();
    let name = location.file_name();
    name.map_or_else(|| names::MODEL.into(), OsStr::to_os_string)
}

/// The files that a file of this name may be the refusal of.
pub fn about(folder: &Folder, name: &OsStr) -> Result<Vec<OsString>> {
    let mut files = Vec::new();
    if let Some(about) = strip_suffix(name, REFUSED) {
        files.push(about);
        files.extend((about == of_directory(folder)).then_some(OsStr::new(names::METADATA)));
    }
    let is_there = |file: &OsStr| Ok(folder.scan()?.contains(file).then(|| file.to_os_string()));
    files
        .into_iter()
        .filter_map(|file| is_there(file).transpose())
        .collect()
}

/// The refusal of one value of a file.
fn find(folder: &Folder, name: &OsStr) -> Result<Option<Node>> {
    let Some(about) = strip_suffix(name, REFUSED) else {
        return Ok(None);
    };
    Ok(match rooted::find(folder, about)? {
        Outcome::Refused(metadata, refusal) => Some(node(folder, about, &metadata, &refusal)),
        Outcome::Nothing | Outcome::Converted(_) => None,
    })
}

/// The refusal of the file `about`, if it is refused.
fn of(folder: &Folder, about: &OsStr) -> Result<Option<Node>> {
    Ok(match folder.derived(about)? {
        Derived::Refused(metadata, refusal) => Some(node(folder, about, &metadata, &refusal)),
        _ => None,
    })
}

/// What stands in for a file that could not be looked at.
pub fn unreadable(folder: &Folder, about: &OsStr, error: &source::Error) -> Claim {
    // Nothing is known of the file but that it is there.
    let metadata = *folder.tree.metadata();
    let refusal = folder::unreadable(error);
    claim(folder, about, node(folder, about, &metadata, &refusal))
}

fn node(folder: &Folder, about: &OsStr, metadata: &Metadata, refusal: &Refusal) -> Node {
    let text: Arc<[u8]> = text(about, refusal).into_bytes().into();
    let version: &Version = &metadata.version;
    let key = NodeKey {
        form: "refusal",
        place: Some(folder.path(about).into()),
        of: Id::of(&[&version.to_bytes(), &text]),
        part: 0,
    };
    let attr = Attr::of(Kind::File, metadata).sized(text.len() as u64);
    let attr = match refusal.cause() {
        // It says nothing of the contents, and is for those too who may not see them.
        Cause::Unreadable => Attr {
            mode: 0o444,
            ..attr
        },
        _ => attr,
    };
    let about = folder.location(about).into();
    let is_passing = !refusal.cause().is_lasting();
    let refused = Refused {
        about,
        text,
        is_passing,
    };
    Node::new(key, attr, refused)
}

/// One paragraph: which file, why, and what to do.
fn text(name: &OsStr, refusal: &Refusal) -> String {
    let name = name.to_string_lossy();
    format!(
        "{} is not shown as safetensors: {}. {}\n",
        name.escape_debug(),
        refusal,
        refusal.remedy()
    )
}

#[derive(Debug)]
struct Refused {
    /// The file that it speaks of, for people.
    about: Arc<Path>,
    text: Arc<[u8]>,
    /// The file could not be looked at.
    is_passing: bool,
}

impl Form for Refused {
    fn open(&self, _: &Context, _: &Attr) -> Result<OpenFile> {
        Ok(OpenFile::new(OpenText(self.text.clone())))
    }

    fn xattrs(&self, _: &Context) -> Result<Vec<Xattr>> {
        Ok(vec![xattrs::source(&self.about)])
    }

    fn is_refusal(&self) -> bool {
        true
    }

    fn is_passing(&self) -> bool {
        self.is_passing
    }
}
