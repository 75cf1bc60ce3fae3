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
use crate::view::below::{self, Below, Place};
use crate::view::context::Context;
use crate::view::error::{Error, Result, gone};
use crate::view::file::{OpenFile, OpenText};
use crate::view::folder::{Derived, Folder, SourceEntry, strip_suffix, with};
use crate::view::key::{Id, NodeKey};
use crate::view::node::{Form, Home, Node};
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
        let mut below = Below::new(folder);
        let files: Vec<String> = index
            .file_names()
            .map(|file| name_of(&mut below, file))
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
        let Some(text) = renamed.text(folder.context, &subject)? else {
            continue;
        };
        let key = NodeKey {
            form: "index",
            place: Some(folder.path(name).into()),
            of: Id::of(&[&metadata.version.to_bytes(), renamed.digest.as_bytes()]),
            part: 0,
        };
        let attr = Attr::of(Kind::File, &metadata)
            .sized(text.len() as u64)
            .with_rights(below.common(metadata.rights));
        return Ok(Some(Node::new(key, attr, renamed)));
    }
    Ok(None)
}

/// What the file that an index calls `file` is called in the tree. What lies in no
/// directory of it is called as it would be if it stood alone.
fn name_of(below: &mut Below, file: &str) -> Result<String> {
    let (directory, name) = match file.rsplit_once('/') {
        Some((directory, name)) => (format!("{directory}/"), name),
        None => (String::new(), file),
    };
    let base = match below.place(file)? {
        Some(place) if is_shown(&place)? => return Ok(file.to_string()),
        // A name made from text is text.
        Some(place) => place.folder.base_of(place.name)?.to_string_lossy().into(),
        None => names::stem(name),
    };
    Ok(format!("{directory}{base}{}", names::SAFETENSORS))
}

/// Whether there is a file that is in the tree as it is.
fn is_shown(place: &Place) -> Result<bool> {
    let is_there = place.folder.scan()?.contains(place.name);
    Ok(is_there
        && matches!(
            place.folder.find(place.name)?,
            SourceEntry::File(_, content) if !content.is_checkpoint()
        ))
}

/// Whether all that the indexes in a directory name lies in it.
pub fn stands_alone(folder: &Folder) -> bool {
    let leads_away = |name: &OsStr| match index_in(folder, name) {
        Ok(Some((index, _))) => index.file_names().any(below::leads_away),
        Ok(None) => false,
        Err(_) => true,
    };
    let scan = folder.scan();
    scan.is_ok_and(|scan| !scan.indexes().any(leads_away))
}

/// The index in the file `name`; None when there is none in it.
fn index_in(folder: &Folder, name: &OsStr) -> Result<Option<(Arc<Index>, Metadata)>> {
    let SourceEntry::File(metadata, _) = folder.find(name)? else {
        return Ok(None);
    };
    let index = folder.index(name, &metadata)?;
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
        let mut below = Below::new(folder);
        let Some(parts) = parts(&mut below, &index)? else {
            continue;
        };
        let set = merge(folder, base, &index, &metadata, parts)?;
        let rights = below.common(metadata.rights);
        let rights = set
            .parts
            .iter()
            .fold(rights, |rights, part| rights.common(part.attr.rights()));
        let attr = Attr::of(Kind::File, &metadata).with_rights(rights);
        return Ok(Some(tensors::directory(set, attr)));
    }
    Ok(None)
}

/// The shards that `index` names, by name; None unless all can be read.
fn parts(below: &mut Below, index: &Index) -> Result<Option<Vec<Shard>>> {
    let mut files: Vec<&str> = index.file_names().collect();
    files.sort_unstable();
    let mut parts = Vec::with_capacity(files.len());
    for file in files {
        let Some(Place { folder, name }) = below.place(file)? else {
            return Ok(None);
        };
        // What is in the scan is a plain name, and no path to somewhere else.
        if !folder.scan()?.contains(name) {
            return Ok(None);
        }
        let origin = match (folder.find(name)?, folder.derived(name)?) {
            (_, Derived::Converted(_, origin)) => origin,
            (SourceEntry::File(_, Content::Other), _) => return Ok(None),
            (SourceEntry::File(metadata, content), _) => {
                match folder.origin(name, &metadata, content, None) {
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
    fn text(&self, context: &Context, subject: &Subject) -> Result<Option<Arc<[u8]>>> {
        let text = context.catalog().rendered(subject, &self.digest, |index| {
            let names: std::collections::HashMap<&str, &String> =
                index.file_names().zip(&self.files).collect();
            index.renamed(|file| {
                names
                    .get(file)
                    .map_or_else(String::new, |it| it.to_string())
            })
        });
        Ok(text?)
    }
}

impl Form for Renamed {
    fn open(&self, context: &Context, attr: &Attr) -> Result<OpenFile> {
        let directory = context.tree().enter(&self.directory).map_err(gone)?;
        let subject = Subject {
            directory: &*directory,
            name: &self.name,
            version: &self.version,
            root: None,
        };
        let text = self.text(context, &subject)?;
        let text = text.filter(|text| text.len() as u64 == attr.size);
        Ok(OpenFile::new(OpenText(text.ok_or(Error::Stale)?)))
    }

    fn home(&self) -> Option<Home> {
        Some(Home {
            id: Id::of(&[&self.version.to_bytes()]),
            system: self.version.file.system,
        })
    }

    fn xattrs(&self, _: &Context) -> Result<Vec<Xattr>> {
        Ok(vec![xattrs::source(&self.location)])
    }
}
