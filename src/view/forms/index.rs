//! Sharded checkpoints: the derived index, and one directory for the tensors of all
//! shards.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::sync::Arc;

use super::output::{Claim, Output};
use super::tensors;
use crate::cache::{Name, Subject};
use crate::checkpoint::Content;
use crate::convert::index::Index;
use crate::convert::names;
use crate::source::{Metadata, Version};
use crate::view::attr::{Attr, Kind};
use crate::view::context::Context;
use crate::view::error::{Error, Result, gone};
use crate::view::file::{OpenFile, OpenText};
use crate::view::folder::{Derived, Folder, SourceEntry, strip_suffix, with};
use crate::view::key::{Id, NodeKey};
use crate::view::node::{Form, Node};
use crate::view::options::Tensors;
use crate::view::origin::Origin;
use crate::view::tensor_set::TensorSet;
use crate::view::xattrs::{self, Xattr};

pub const OUTPUT: Output = Output { list, find };

/// A shard, and the name that the index has for it.
type Shard = (String, Arc<Origin>);

fn list(folder: &Folder, name: &OsStr) -> Result<Vec<Claim>> {
    let mut claims = Vec::new();
    let Some(name) = name.to_str() else {
        return Ok(claims);
    };
    if let Some(derived) = names::index_name(name).map(OsString::from)
        && let Some(node) = derived_index(folder, &derived)?
    {
        claims.push(Claim::new(derived, 1, node));
    }
    if folder.context.options().tensors == Tensors::Show
        && let Some(base) = names::indexed_stem(name).map(OsString::from)
        && let Some(node) = merged(folder, &base)?
    {
        claims.push(Claim::new(with(&base, tensors::SUFFIX), 3, node));
    }
    Ok(claims)
}

/// The derived index called `name`, or the tensors of all shards.
fn find(folder: &Folder, name: &OsStr) -> Result<Option<Node>> {
    match strip_suffix(name, tensors::SUFFIX) {
        Some(base) if folder.context.options().tensors != Tensors::Off => merged(folder, base),
        _ => derived_index(folder, name),
    }
}

/// The derived index called `name`.
fn derived_index(folder: &Folder, name: &OsStr) -> Result<Option<Node>> {
    let scan = folder.scan()?.clone();
    for source in scan.with_index_name(name) {
        if folder.is_taken(name)? {
            return Ok(None);
        }
        let Some((index, metadata)) = index_in(folder, source)? else {
            continue;
        };
        let files: Vec<String> = index
            .file_names()
            .map(|file| name_of(folder, file))
            .collect::<Result<_>>()?;
        let parts: Vec<&[u8]> = files.iter().map(String::as_bytes).collect();
        let renamed = Renamed {
            directory: folder.tree.path().into(),
            name: source.to_os_string(),
            location: folder.location(source).into(),
            version: metadata.version,
            digest: Name::of(&parts),
            files: files.into(),
        };
        let subject = Subject::new(&*folder.tree, source, &metadata);
        let Some(text) = renamed.text(folder.context, &subject) else {
            continue;
        };
        let key = NodeKey {
            form: "index",
            place: Some(folder.path(name).into()),
            of: Id::of(&[&metadata.version.to_bytes(), renamed.digest.as_bytes()]),
            part: 0,
        };
        let attr = Attr::of(Kind::File, &metadata).sized(text.len() as u64);
        return Ok(Some(Node::new(key, attr, renamed)));
    }
    Ok(None)
}

/// What the file that an index calls `file` is called in the tree.
fn name_of(folder: &Folder, file: &str) -> Result<String> {
    let shown = folder.scan()?.contains(file.as_ref())
        && matches!(
            folder.find(file.as_ref())?,
            SourceEntry::File(_, content) if !content.is_checkpoint()
        );
    if shown {
        return Ok(file.to_string());
    }
    let base = folder.base_of(file.as_ref())?;
    // A name made from text is text.
    Ok(format!("{}{}", base.to_string_lossy(), names::SAFETENSORS))
}

/// The index in the file `name`; None when there is none in it.
fn index_in(folder: &Folder, name: &OsStr) -> Result<Option<(Arc<Index>, Metadata)>> {
    let SourceEntry::File(metadata, _) = folder.find(name)? else {
        return Ok(None);
    };
    let subject = Subject::new(&*folder.tree, name, &metadata);
    let index = folder.context.catalog().index(&subject);
    Ok(index.map(|index| (index, metadata)))
}

/// The directory of the tensors of all shards that an index with this stem names; None
/// unless every shard of one can be read.
fn merged(folder: &Folder, base: &OsStr) -> Result<Option<Node>> {
    let scan = folder.scan()?.clone();
    for name in scan.with_indexed_stem(base) {
        let Some((index, metadata)) = index_in(folder, name)? else {
            continue;
        };
        let Some(parts) = parts(folder, &index)? else {
            continue;
        };
        let set = merge(folder, base, &index, &metadata, parts)?;
        let rights = set.parts.iter().fold(metadata.rights, |rights, part| {
            rights.common(part.attr.rights())
        });
        let attr = Attr::of(Kind::File, &metadata).with_rights(rights);
        return Ok(Some(tensors::directory(set, attr)));
    }
    Ok(None)
}

/// The shards that `index` names, by name; None unless all can be read.
fn parts(folder: &Folder, index: &Index) -> Result<Option<Vec<Shard>>> {
    let mut files: Vec<&str> = index.file_names().collect();
    files.sort_unstable();
    let mut parts = Vec::with_capacity(files.len());
    for file in files {
        let name = OsStr::new(file);
        // What is in the scan is a plain name, and no path to somewhere else.
        if !folder.scan()?.contains(name) {
            return Ok(None);
        }
        let origin = match (folder.find(name)?, folder.derived(name)?) {
            (_, Derived::Converted(_, origin)) => origin,
            (SourceEntry::File(_, Content::Other), _) => return Ok(None),
            (SourceEntry::File(metadata, content), _) => {
                match folder.origin(name, &metadata, content) {
                    Ok(origin) => origin,
                    Err(_) => return Ok(None),
                }
            }
            _ => return Ok(None),
        };
        parts.push((file.to_string(), origin));
    }
    Ok(Some(parts))
}

/// The tensors of all shards, put together anew when the index or a shard is another
/// one than the last time.
fn merge(
    folder: &Folder,
    base: &OsStr,
    index: &Index,
    metadata: &Metadata,
    parts: Vec<Shard>,
) -> Result<Arc<TensorSet>> {
    let path = folder.path(&with(base, tensors::SUFFIX));
    let known = folder.context.merged(&path, &metadata.version);
    let same = |set: &Arc<TensorSet>| {
        let ids = set.parts.iter().map(|part| part.id);
        ids.eq(parts.iter().map(|(_, origin)| origin.id))
    };
    if let Some(set) = known.filter(same) {
        return Ok(set);
    }
    let mut files = index.files();
    let mut shards = Vec::with_capacity(parts.len());
    for (file, origin) in &parts {
        let plan = folder.context.sources().plan(origin)?;
        let tensors = files.remove(file.as_str()).unwrap_or_default();
        shards.push((origin.clone(), plan, tensors));
    }
    let set = tensors::merge(path.clone(), shards);
    folder.context.keep_merged(path, metadata.version, &set);
    Ok(set)
}

/// An index whose files are called what the tree calls them.
#[derive(Debug)]
struct Renamed {
    directory: Arc<Path>,
    name: OsString,
    /// For people.
    location: Arc<Path>,
    version: Version,
    /// What the files are called, in the order of [`Index::file_names`].
    files: Box<[String]>,
    digest: Name,
}

impl Renamed {
    fn text(&self, context: &Context, subject: &Subject) -> Option<Arc<[u8]>> {
        context.catalog().rendered(subject, &self.digest, || {
            let index = context.catalog().index(subject)?;
            let names: std::collections::HashMap<&str, &String> =
                index.file_names().zip(&self.files).collect();
            Some(index.renamed(|file| {
                names
                    .get(file)
                    .map_or_else(String::new, |it| it.to_string())
            }))
        })
    }
}

impl Form for Renamed {
    fn open(&self, context: &Context, attr: &Attr) -> Result<OpenFile> {
        let directory = context.tree().enter(&self.directory).map_err(gone)?;
        let subject = Subject {
            directory: &*directory,
            name: &self.name,
            version: &self.version,
        };
        let text = self.text(context, &subject);
        let text = text.filter(|text| text.len() as u64 == attr.size);
        Ok(OpenFile::new(OpenText(text.ok_or(Error::Stale)?)))
    }

    fn xattrs(&self, _: &Context) -> Result<Vec<Xattr>> {
        Ok(vec![xattrs::source(&self.location)])
    }
}
