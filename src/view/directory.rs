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
use crate::checkpoint::{Cause, Content, Refusal};
use crate::convert::names;
use crate::source::Metadata;

/// Names that are looked at by one thread.
const FEW: usize = 32;

const REFUSED: &str = ".refused.txt";
pub(super) const TENSORS: &str = ".tensors";

/// A child and the rank of its claim to the name: a real file 0, a derived one
/// 1, the tensors of all shards 2.
pub(super) type Claim = (OsString, u8, Node);

impl View {
    pub(super) fn child(&self, directory: &Real, name: &OsStr) -> Result<Node> {
        let metadata = self.enter(directory)?;
        let directory = &*directory.path;
        let path = directory.join(name);
        match self.sources.find(directory, name)? {
            Found::Directory(metadata) => return Ok(real_directory(&path, &metadata)),
            Found::File(metadata, content) if self.is_shown(&path, &metadata, content) => {
                return Ok(plain(&path, &metadata));
            }
            _ => {}
        }
        let scan = self.scan(directory, &metadata)?;
        if let Some(about) = strip_suffix(name, REFUSED)
            && let Some(node) = self.refusal(directory, &scan, &about)?
        {
            return Ok(node);
        }
        if let Some(base) = strip_suffix(name, names::SAFETENSORS)
            && let Some(origin) = self.converted(directory, &scan, &base)?
        {
            return Ok(self.converted_node(origin));
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
    pub(super) fn children(&self, directory: &Real) -> Result<Vec<(OsString, Node)>> {
        let metadata = self.enter(directory)?;
        let scan = self.scan(&directory.path, &metadata)?;
        let claims_of = |name: &OsString| self.claims(&directory.path, &scan, name);
        let claims: Vec<Vec<Claim>> = match scan.names().len() {
            // Other threads would cost more than they do.
            0..FEW => scan.names().iter().map(claims_of).collect::<Result<_>>(),
            _ => scan.names().par_iter().map(claims_of).collect(),
        }?;
        let mut claims: Vec<Claim> = claims.into_iter().flatten().collect();
        claims.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
        claims.dedup_by(|later, earlier| later.0 == earlier.0);
        Ok(claims
            .into_iter()
            .map(|(name, _, node)| (name, node))
            .collect())
    }

    /// What stands at the path of `directory` now.
    ///
    /// # Errors
    /// [`Error::Stale`] when that is another directory, or perhaps a link to one.
    /// The root is whatever stands at its path: nobody could look it up again.
    fn enter(&self, directory: &Real) -> Result<Metadata> {
        let metadata = Metadata::from(std::fs::metadata(&directory.path)?);
        match directory.is(&metadata) || *directory.path == *self.source() {
            true => Ok(metadata),
            false => Err(Error::Stale),
        }
    }

    /// What the entry `name` of the source puts into the listing.
    fn claims(&self, directory: &Path, scan: &Scan, name: &OsStr) -> Result<Vec<Claim>> {
        let path = directory.join(name);
        let mut claims = Vec::new();
        match self.sources.find(directory, name)? {
            Found::Missing | Found::Special => return Ok(claims),
            Found::Directory(metadata) => {
                claims.push((name.to_os_string(), 0, real_directory(&path, &metadata)));
            }
            Found::Refused(metadata, refusal) => {
                if !holds_no_weights(name) {
                    let node = refused(directory, name, &metadata, &refusal);
                    claims.push((with(name, REFUSED), 1, node));
                }
            }
            Found::File(metadata, content) => {
                if self.is_shown(&path, &metadata, content) {
                    claims.push((name.to_os_string(), 0, plain(&path, &metadata)));
                }
                if content == Content::Safetensors
                    && self.lists_tensors()
                    && let Some(base) = strip_suffix(name, names::SAFETENSORS)
                    && let Ok(origin) = self.sources.origin(&path, &metadata, content)
                {
                    let node = tensors::single(directory.join(with(&base, TENSORS)), origin);
                    claims.push((with(&base, TENSORS), 1, node));
                }
                if content.is_checkpoint() {
                    match holds_no_weights(name) {
                        true => self.sources.pass_over(&path, &metadata),
                        false => {
                            claims.extend(self.derived(directory, scan, name, &metadata, content)?);
                        }
                    }
                }
                claims.extend(self.of_index(directory, scan, name)?);
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
        let path = directory.join(name);
        if self.is_taken(directory, scan, &derived)? {
            self.sources.pass_over(&path, metadata);
            return Ok(Vec::new());
        }
        Ok(match self.sources.origin(&path, metadata, content) {
            Ok(origin) => {
                let mut claims = vec![(derived, 1, self.converted_node(origin.clone()))];
                if self.lists_tensors() {
                    let name = with(&base, TENSORS);
                    let node = tensors::single(directory.join(&name), origin);
                    claims.push((name, 1, node));
                }
                claims
            }
            Err(refusal) if is_unwanted(&refusal) => Vec::new(),
            Err(refusal) => {
                let node = refused(directory, name, metadata, &refusal);
                vec![(with(name, REFUSED), 1, node)]
            }
        })
    }

    /// The converted form of `origin`: the file that is kept, where there is one.
    fn converted_node(&self, origin: Arc<Origin>) -> Node {
        let attr = origin.attr;
        let kept = self.promoter.as_ref();
        let place = match kept.and_then(|promoter| promoter.peek(&origin)) {
            Some(kept) => Place::Kept(origin, kept),
            None => Place::Converted(origin),
        };
        Node::new(place, attr)
    }

    pub(super) fn lists_tensors(&self) -> bool {
        self.options.tensors == Tensors::Show
    }

    /// Whether a file of the source is in the tree under its own name.
    fn is_shown(&self, path: &Path, metadata: &Metadata, content: Content) -> bool {
        let is_index = || {
            let name = path.file_name().and_then(OsStr::to_str);
            name.and_then(names::index_name).is_some()
                && self.sources.index(path, metadata).is_some()
        };
        self.options.show_pickles || !content.is_hidden() && !is_index()
    }

    /// Whether a real file keeps a derived one from being called `name`.
    pub(super) fn is_taken(&self, directory: &Path, scan: &Scan, name: &OsStr) -> Result<bool> {
        if !scan.contains(name) {
            return Ok(false);
        }
        Ok(match self.sources.find(directory, name)? {
            Found::Directory(_) => true,
            Found::File(metadata, content) => {
                self.is_shown(&directory.join(name), &metadata, content)
            }
            _ => false,
        })
    }

    /// The name without ending that a checkpoint's converted form has: its stem,
    /// or its whole name when another checkpoint would be called the same.
    pub(super) fn base_of(&self, directory: &Path, scan: &Scan, name: &OsStr) -> Result<OsString> {
        let base = stem(name);
        let mut rival = base.clone();
        loop {
            let mut same_stem = 0;
            for other in scan.with_stem(&rival) {
                // One that stands alone need not be looked at again.
                let counts = other == name || self.checkpoint(directory, scan, other)?.is_some();
                same_stem += usize::from(counts);
            }
            if same_stem > 1 {
                return Ok(name.to_os_string());
            }
            // `m.pt.bin` has the stem `m.pt`, and so a rival in a checkpoint `m.pt`
            // that has to go by its whole name.
            let shorter = stem(&rival);
            if shorter == rival || self.checkpoint(directory, scan, &rival)?.is_none() {
                return Ok(base);
            }
            rival = shorter;
        }
    }

    /// The file `name`, when it is a checkpoint that might hold weights.
    fn checkpoint(
        &self,
        directory: &Path,
        scan: &Scan,
        name: &OsStr,
    ) -> Result<Option<(Metadata, Content)>> {
        if !scan.contains(name) || holds_no_weights(name) {
            return Ok(None);
        }
        Ok(match self.sources.find(directory, name)? {
            Found::File(metadata, content) if content.is_checkpoint() => Some((metadata, content)),
            _ => None,
        })
    }

    /// The checkpoint that `base.safetensors` is derived from. None when there is
    /// none, or when it is refused.
    fn converted(
        &self,
        directory: &Path,
        scan: &Scan,
        base: &OsStr,
    ) -> Result<Option<Arc<Origin>>> {
        if self.is_taken(directory, scan, &with(base, names::SAFETENSORS))? {
            return Ok(None);
        }
        for name in scan.with_stem(base).chain([base]) {
            if let Some((metadata, content)) = self.checkpoint(directory, scan, name)?
                && self.base_of(directory, scan, name)? == base
            {
                let path = directory.join(name);
                return Ok(self.sources.origin(&path, &metadata, content).ok());
            }
        }
        Ok(None)
    }

    fn tensors_of(&self, directory: &Path, scan: &Scan, base: &OsStr) -> Result<Option<Node>> {
        let native = with(base, names::SAFETENSORS);
        let origin = match self.sources.find(directory, &native)? {
            Found::File(metadata, content @ Content::Safetensors) => self
                .sources
                .origin(&directory.join(&native), &metadata, content)
                .ok(),
            _ => self.converted(directory, scan, base)?,
        };
        match origin {
            Some(origin) => {
                let path = directory.join(with(base, TENSORS));
                Ok(Some(tensors::single(path, origin)))
            }
            None => self.merged(directory, scan, base),
        }
    }

    /// `NAME.refused.txt`, when the file NAME is refused.
    fn refusal(&self, directory: &Path, scan: &Scan, name: &OsStr) -> Result<Option<Node>> {
        if !scan.contains(name) || holds_no_weights(name) {
            return Ok(None);
        }
        let (metadata, refusal) = match self.sources.find(directory, name)? {
            Found::Refused(metadata, refusal) => (metadata, Arc::new(refusal)),
            Found::File(metadata, content) if content.is_checkpoint() => {
                let base = self.base_of(directory, scan, name)?;
                if self.is_taken(directory, scan, &with(&base, names::SAFETENSORS))? {
                    return Ok(None);
                }
                let path = directory.join(name);
                match self.sources.origin(&path, &metadata, content) {
                    Ok(_) => return Ok(None),
                    Err(refusal) if is_unwanted(&refusal) => return Ok(None),
                    Err(refusal) => (metadata, refusal),
                }
            }
            _ => return Ok(None),
        };
        Ok(Some(refused(directory, name, &metadata, &refusal)))
    }

    /// The names in `directory`, whose metadata were read just now.
    fn scan(&self, directory: &Path, metadata: &Metadata) -> io::Result<Arc<Scan>> {
        let key = directory.to_path_buf();
        if let Some(scan) = self.scans.get(&key)
            && scan.holds(&metadata.identity)
        {
            return Ok(scan);
        }
        let scan = Arc::new(Scan::read(directory)?);
        self.scans.put(key, scan.clone());
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

fn refused(directory: &Path, about: &OsStr, metadata: &Metadata, refusal: &Refusal) -> Node {
    let body = refused::text(about, refusal);
    let text = Text {
        path: directory.join(with(about, REFUSED)).into(),
        about: directory.join(about).into(),
        refuses: true,
        body: body.into_bytes().into(),
    };
    // It may be read by whoever sees its name: it says nothing of the contents.
    let attr = Attr {
        kind: super::Kind::File,
        mode: 0o444,
        ..Attr::of(metadata)
    };
    text_node(text, attr)
}

pub(super) fn text_node(text: Text, attr: Attr) -> Node {
    let attr = attr.sized(text.body.len() as u64);
    Node::new(Place::Text(Arc::new(text)), attr)
}

/// Whether a checkpoint of this name turns into nothing by itself.
fn holds_no_weights(name: &OsStr) -> bool {
    name.to_str()
        .is_some_and(|name| names::holds_no_weights(name) || names::is_part(name))
}

/// Whether nobody misses the file: what training leaves behind is not shown,
/// whatever it is called.
fn is_unwanted(refusal: &Refusal) -> bool {
    refusal.cause() == Cause::OptimizerState
}

pub(super) fn with(name: &OsStr, suffix: &str) -> OsString {
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
