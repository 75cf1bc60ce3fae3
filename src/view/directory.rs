//! Directories of the source: which names they show, and what stands behind
//! each.
//!
//! A real file wins over a derived one of the same name. A name that two
//! checkpoints would both turn into goes to neither: they keep their endings.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::Path;
use std::sync::Arc;

use rayon::prelude::*;

use super::node::{Attr, Node, Origin, Place, Real, Text};
use super::scan::{Scan, stem};
use super::sources::Found;
use super::{Error, Result, Tensors, View, refused, tensors};
use crate::checkpoint::{Content, Refusal};
use crate::convert::index::Index;
use crate::convert::{Plan, names};
use crate::source::{Metadata, Source};

const REFUSED: &str = ".refused.txt";
const TENSORS: &str = ".tensors";
/// Hugging Face's own tools refuse longer index files.
const MAX_INDEX: u64 = 64 << 20;

/// A child and the rank of its claim to the name: a real file 0, a derived one
/// 1, the tensors of all shards 2.
type Claim = (OsString, u8, Node);

impl View {
    pub(super) fn child(&self, directory: &Path, name: &OsStr) -> Result<Node> {
        let path = directory.join(name);
        match self.sources.find(directory, name)? {
            Found::Directory(metadata) => return Ok(real_directory(&path, &metadata)),
            Found::File(metadata, content) if self.is_shown(&path, name, content) => {
                return Ok(plain(&path, &metadata));
            }
            _ => {}
        }
        let scan = self.scan(directory)?;
        if let Some(about) = strip_suffix(name, REFUSED)
            && let Some(node) = self.refusal(directory, &scan, &about)?
        {
            return Ok(node);
        }
        if let Some(base) = strip_suffix(name, names::SAFETENSORS)
            && let Some((origin, _)) = self.converted(directory, &scan, &base)?
        {
            return Ok(converted(origin));
        }
        if self.options.tensors != Tensors::Off
            && let Some(base) = strip_suffix(name, TENSORS)
            && let Some(node) = self.tensors_of(directory, &scan, &base)?
        {
            return Ok(node);
        }
        self.index(directory, &scan, name)?.ok_or(Error::NotFound)
    }

    /// The children of a directory, by name.
    pub(super) fn children(&self, directory: &Path) -> Result<Vec<(OsString, Node)>> {
        let scan = self.scan(directory)?;
        let claims: Vec<Vec<Claim>> = scan
            .names()
            .par_iter()
            .map(|name| self.claims(directory, &scan, name))
            .collect::<Result<_>>()?;
        let mut claims: Vec<Claim> = claims.into_iter().flatten().collect();
        claims.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
        claims.dedup_by(|later, earlier| later.0 == earlier.0);
        Ok(claims
            .into_iter()
            .map(|(name, _, node)| (name, node))
            .collect())
    }

    /// What the entry `name` of the source puts into the listing.
    fn claims(&self, directory: &Path, scan: &Scan, name: &OsStr) -> Result<Vec<Claim>> {
        let path = directory.join(name);
        let mut claims = Vec::new();
        let listed = self.options.tensors == Tensors::Show;
        match self.sources.find(directory, name)? {
            Found::Missing | Found::Special => {}
            Found::Directory(metadata) => {
                claims.push((name.to_os_string(), 0, real_directory(&path, &metadata)));
            }
            Found::Refused(metadata, refusal) => {
                let node = refused(directory, name, &metadata, &refusal);
                claims.push((with(name, REFUSED), 1, node));
            }
            Found::File(metadata, content) => {
                if self.is_shown(&path, name, content) {
                    claims.push((name.to_os_string(), 0, plain(&path, &metadata)));
                }
                if content == Content::Safetensors
                    && listed
                    && let Some(base) = strip_suffix(name, names::SAFETENSORS)
                    && let Ok((origin, _)) = self.sources.plan(&path, &metadata, content)
                {
                    let node = tensors::single(directory.join(with(&base, TENSORS)), origin);
                    claims.push((with(&base, TENSORS), 1, node));
                }
                if content.is_checkpoint() && !holds_no_weights(name) {
                    claims.extend(self.derived(directory, scan, name, &metadata, content)?);
                }
            }
        }
        if let Some(index) = name
            .to_str()
            .filter(|name| names::indexed_stem(name).is_some())
        {
            if let Some(derived) = names::index_name(index)
                && let Some(node) = self.index(directory, scan, derived.as_ref())?
            {
                claims.push((derived.into(), 1, node));
            }
            if listed
                && let Some(base) = names::indexed_stem(index)
                && let Some(node) = self.merged(directory, scan, base.as_ref())?
            {
                claims.push((with(base.as_ref(), TENSORS), 2, node));
            }
        }
        Ok(claims)
    }

    /// What a checkpoint turns into.
    fn derived(
        &self,
        directory: &Path,
        scan: &Scan,
        name: &OsStr,
        metadata: &Metadata,
        content: Content,
    ) -> Result<Vec<Claim>> {
        let base = self.base_of(directory, scan, name)?;
        let derived = with(&base, names::SAFETENSORS);
        if self.is_taken(directory, scan, &derived)? {
            return Ok(Vec::new());
        }
        Ok(
            match self.sources.plan(&directory.join(name), metadata, content) {
                Ok((origin, _)) => {
                    let mut claims = vec![(derived, 1, converted(origin.clone()))];
                    if self.options.tensors == Tensors::Show {
                        let name = with(&base, TENSORS);
                        let node = tensors::single(directory.join(&name), origin);
                        claims.push((name, 1, node));
                    }
                    claims
                }
                Err(refusal) => {
                    let node = refused(directory, name, metadata, &refusal);
                    vec![(with(name, REFUSED), 1, node)]
                }
            },
        )
    }

    /// Whether a file of the source is in the tree under its own name.
    fn is_shown(&self, path: &Path, name: &OsStr, content: Content) -> bool {
        if self.options.show_pickles {
            return true;
        }
        let is_index =
            || name.to_str().and_then(names::index_name).is_some() && read_index(path).is_some();
        !content.is_checkpoint() && !is_index()
    }

    /// Whether a real file keeps a derived one from being called `name`.
    fn is_taken(&self, directory: &Path, scan: &Scan, name: &OsStr) -> Result<bool> {
        if !scan.contains(name) {
            return Ok(false);
        }
        Ok(match self.sources.find(directory, name)? {
            Found::Directory(_) => true,
            Found::File(_, content) => self.is_shown(&directory.join(name), name, content),
            _ => false,
        })
    }

    /// The name without ending that a checkpoint's converted form has: its stem,
    /// or its whole name when another checkpoint has the same stem.
    fn base_of(&self, directory: &Path, scan: &Scan, name: &OsStr) -> Result<OsString> {
        let stem = stem(name);
        let rivals = self.checkpoints(directory, scan, &stem)?;
        match rivals.len() {
            0 | 1 => Ok(stem),
            _ => Ok(name.to_os_string()),
        }
    }

    /// The checkpoints in a directory whose converted form has this stem.
    fn checkpoints(
        &self,
        directory: &Path,
        scan: &Scan,
        stem: &OsStr,
    ) -> Result<Vec<(OsString, Metadata, Content)>> {
        let mut found = Vec::new();
        for name in scan.with_stem(stem).filter(|name| !holds_no_weights(name)) {
            if let Found::File(metadata, content) = self.sources.find(directory, name)?
                && content.is_checkpoint()
            {
                found.push((name.to_os_string(), metadata, content));
            }
        }
        Ok(found)
    }

    /// The checkpoint that `base.safetensors` is derived from, and its plan. None
    /// when there is none, or when it is refused.
    fn converted(
        &self,
        directory: &Path,
        scan: &Scan,
        base: &OsStr,
    ) -> Result<Option<(Arc<Origin>, Arc<Plan>)>> {
        if self.is_taken(directory, scan, &with(base, names::SAFETENSORS))? {
            return Ok(None);
        }
        let mut candidates = self.checkpoints(directory, scan, base)?;
        if candidates.len() != 1 {
            // Among rivals each goes by its whole name.
            candidates = self.checkpoints(directory, scan, &stem(base))?;
            if candidates.len() < 2 {
                return Ok(None);
            }
            candidates.retain(|(name, ..)| name == base);
        }
        let Some((name, metadata, content)) = candidates.pop() else {
            return Ok(None);
        };
        Ok(self
            .sources
            .plan(&directory.join(name), &metadata, content)
            .ok())
    }

    fn tensors_of(&self, directory: &Path, scan: &Scan, base: &OsStr) -> Result<Option<Node>> {
        let native = with(base, names::SAFETENSORS);
        let path = || directory.join(with(base, TENSORS));
        if scan.contains(&native)
            && let Found::File(metadata, Content::Safetensors) =
                self.sources.find(directory, &native)?
        {
            let planned =
                self.sources
                    .plan(&directory.join(&native), &metadata, Content::Safetensors);
            return Ok(planned
                .ok()
                .map(|(origin, _)| tensors::single(path(), origin)));
        }
        if let Some((origin, _)) = self.converted(directory, scan, base)? {
            return Ok(Some(tensors::single(path(), origin)));
        }
        self.merged(directory, scan, base)
    }

    /// The directory of the tensors of all shards that an index with this stem
    /// names; None unless every shard can be read.
    fn merged(&self, directory: &Path, scan: &Scan, base: &OsStr) -> Result<Option<Node>> {
        let named =
            |name: &&str| names::indexed_stem(name).is_some_and(|stem| stem.as_str() == base);
        let Some(index_name) = scan.indexes().find(named) else {
            return Ok(None);
        };
        let Some((index, metadata)) = read_index(&directory.join(index_name)) else {
            return Ok(None);
        };
        let mut parts = Vec::new();
        for (file, tensors) in index.files() {
            let file = OsStr::new(file);
            if Path::new(file).file_name() != Some(file) {
                return Ok(None);
            }
            let Found::File(metadata, content) = self.sources.find(directory, file)? else {
                return Ok(None);
            };
            if content == Content::Other {
                return Ok(None);
            }
            match self.sources.plan(&directory.join(file), &metadata, content) {
                Ok((origin, plan)) => parts.push((origin, plan, tensors)),
                Err(_) => return Ok(None),
            }
        }
        let path = directory.join(with(base, TENSORS));
        let attr = Attr::of(&metadata).directory();
        Ok(Some(tensors::merged(path, attr, parts)))
    }

    /// The derived index called `name`.
    fn index(&self, directory: &Path, scan: &Scan, name: &OsStr) -> Result<Option<Node>> {
        if self.is_taken(directory, scan, name)? {
            return Ok(None);
        }
        let found = scan
            .indexes()
            .find(|index| names::index_name(index).is_some_and(|derived| derived.as_str() == name));
        let Some(source) = found else {
            return Ok(None);
        };
        let Some((index, metadata)) = read_index(&directory.join(source)) else {
            return Ok(None);
        };
        let mut renamed = std::collections::HashMap::new();
        for file in index.files().into_keys() {
            let base = self.base_of(directory, scan, file.as_ref())?;
            let name = with(&base, names::SAFETENSORS).into_string();
            renamed.insert(file.to_string(), name.unwrap_or_default());
        }
        let body = index.renamed(|file| renamed.get(file).cloned().unwrap_or_default());
        let text = Text {
            path: directory.join(name).into(),
            about: directory.join(source).into(),
            refuses: false,
            body: body.into(),
        };
        Ok(Some(text_node(text, &metadata)))
    }

    /// `NAME.refused.txt`, when the file NAME is refused.
    fn refusal(&self, directory: &Path, scan: &Scan, name: &OsStr) -> Result<Option<Node>> {
        if !scan.contains(name) {
            return Ok(None);
        }
        let (metadata, refusal) = match self.sources.find(directory, name)? {
            Found::Refused(metadata, refusal) => (metadata, Arc::new(refusal)),
            Found::File(metadata, content)
                if content.is_checkpoint() && !holds_no_weights(name) =>
            {
                let base = self.base_of(directory, scan, name)?;
                if self.is_taken(directory, scan, &with(&base, names::SAFETENSORS))? {
                    return Ok(None);
                }
                match self.sources.plan(&directory.join(name), &metadata, content) {
                    Ok(_) => return Ok(None),
                    Err(refusal) => (metadata, refusal),
                }
            }
            _ => return Ok(None),
        };
        Ok(Some(refused(directory, name, &metadata, &refusal)))
    }

    fn scan(&self, directory: &Path) -> io::Result<Arc<Scan>> {
        let metadata = Metadata::from(std::fs::metadata(directory)?);
        if let Some(scan) = self.scans().get(directory)
            && scan.holds(&metadata.identity)
        {
            return Ok(scan.clone());
        }
        let scan = Arc::new(Scan::read(directory)?);
        self.scans().put(directory.to_path_buf(), scan.clone());
        Ok(scan)
    }
}

fn real(path: &Path, metadata: &Metadata) -> Real {
    Real {
        path: path.into(),
        device: metadata.identity.device,
        inode: metadata.identity.inode,
    }
}

pub(super) fn real_directory(path: &Path, metadata: &Metadata) -> Node {
    Node::new(Place::Directory(real(path, metadata)), Attr::of(metadata))
}

fn plain(path: &Path, metadata: &Metadata) -> Node {
    Node::new(Place::Plain(real(path, metadata)), Attr::of(metadata))
}

fn converted(origin: Arc<Origin>) -> Node {
    let attr = origin.attr;
    Node::new(Place::Converted(origin), attr)
}

fn refused(directory: &Path, about: &OsStr, metadata: &Metadata, refusal: &Refusal) -> Node {
    let body = refused::text(about, refusal);
    let text = Text {
        path: directory.join(with(about, REFUSED)).into(),
        about: directory.join(about).into(),
        refuses: true,
        body: body.into_bytes().into(),
    };
    text_node(text, metadata)
}

/// A text may be read by whoever sees its name; it says nothing of the contents.
fn text_node(text: Text, metadata: &Metadata) -> Node {
    let attr = Attr {
        kind: super::Kind::File,
        mode: 0o444,
        ..Attr::of(metadata).sized(text.body.len() as u64)
    };
    Node::new(Place::Text(Arc::new(text)), attr)
}

fn read_index(path: &Path) -> Option<(Index, Metadata)> {
    let source = Source::open(path).ok()?;
    let size = Some(source.size()).filter(|size| *size <= MAX_INDEX)?;
    let index = Index::parse(&source.read_at(0, size).ok()?)?;
    let metadata = Metadata::from(source.file().metadata().ok()?);
    Some((index, metadata))
}

fn holds_no_weights(name: &OsStr) -> bool {
    name.to_str().is_some_and(names::holds_no_weights)
}

fn with(name: &OsStr, suffix: &str) -> OsString {
    let mut name = name.to_os_string();
    name.push(suffix);
    name
}

/// `name` without `suffix`, unless nothing would be left.
fn strip_suffix(name: &OsStr, suffix: &str) -> Option<OsString> {
    use std::os::unix::ffi::OsStrExt;
    let stem = name.as_bytes().strip_suffix(suffix.as_bytes())?;
    (!stem.is_empty()).then(|| OsStr::from_bytes(stem).to_os_string())
}
