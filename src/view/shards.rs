//! Sharded checkpoints in a directory of the source: the derived index, and one
//! directory for the tensors of all shards.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::sync::Arc;

use super::directory::{Claim, TENSORS, text_node, with};
use super::node::{Attr, Node, Origin, TensorSet, Text};
use super::scan::Scan;
use super::sources::Found;
use super::{Result, View, tensors};
use crate::checkpoint::Content;
use crate::convert::index::Index;
use crate::convert::{Plan, names};
use crate::source::Metadata;

/// A shard with the names of the tensors that its index gives to it.
type Shard<'i> = (Arc<Origin>, Arc<Plan>, Vec<&'i str>);

impl View {
    /// What the file `name` turns into if it is an index.
    pub(super) fn of_index(
        &self,
        directory: &Path,
        scan: &Scan,
        name: &OsStr,
    ) -> Result<Vec<Claim>> {
        let mut claims = Vec::new();
        let Some(name) = name.to_str() else {
            return Ok(claims);
        };
        if let Some(derived) = names::index_name(name).map(OsString::from)
            && let Some(node) = self.index(directory, scan, &derived)?
        {
            claims.push((derived, 1, node));
        }
        if self.lists_tensors()
            && let Some(base) = names::indexed_stem(name).map(OsString::from)
            && let Some(node) = self.merged(directory, scan, &base)?
        {
            claims.push((with(&base, TENSORS), 2, node));
        }
        Ok(claims)
    }

    /// The directory of the tensors of all shards that an index with this stem
    /// names; None unless every shard of one can be read.
    pub(super) fn merged(
        &self,
        directory: &Path,
        scan: &Scan,
        base: &OsStr,
    ) -> Result<Option<Node>> {
        for name in scan.with_indexed_stem(base) {
            if let Some((index, metadata)) = self.index_in(directory, name)?
                && let Some(set) = self.merge(directory, scan, base, &index, &metadata)?
            {
                return Ok(Some(tensors::merged(set, Attr::of(&metadata))));
            }
        }
        Ok(None)
    }

    /// The tensors of all shards of `index`, put together anew when it or a shard
    /// is another one than the last time.
    fn merge(
        &self,
        directory: &Path,
        scan: &Scan,
        base: &OsStr,
        index: &Index,
        metadata: &Metadata,
    ) -> Result<Option<Arc<TensorSet>>> {
        let path = directory.join(with(base, TENSORS));
        if let Some((identity, set)) = self.merged.get(&path)
            && identity == metadata.identity
            && set.parts.iter().all(|part| self.is_current(part))
        {
            return Ok(Some(set));
        }
        let Some(shards) = self.shards(directory, scan, index)? else {
            return Ok(None);
        };
        let set = tensors::merge(path.clone(), shards);
        self.merged.put(path, (metadata.identity, set.clone()));
        Ok(Some(set))
    }

    /// Whether the file behind `origin` is still the one it was.
    fn is_current(&self, origin: &Origin) -> bool {
        let (Some(directory), Some(name)) = (origin.path.parent(), origin.path.file_name()) else {
            return false;
        };
        match self.sources.find(directory, name) {
            Ok(Found::File(metadata, content)) => self
                .sources
                .origin(&origin.path, &metadata, content)
                .is_ok_and(|now| now.key == origin.key),
            _ => false,
        }
    }

    /// The shards that `index` names; None unless all can be read.
    fn shards<'i>(
        &self,
        directory: &Path,
        scan: &Scan,
        index: &'i Index,
    ) -> Result<Option<Vec<Shard<'i>>>> {
        let mut shards = Vec::new();
        for (file, tensors) in index.files() {
            // What is in the scan is a plain name, and no path to somewhere else.
            if !scan.contains(file.as_ref()) {
                return Ok(None);
            }
            let Found::File(metadata, content) = self.sources.find(directory, file.as_ref())?
            else {
                return Ok(None);
            };
            if content == Content::Other {
                return Ok(None);
            }
            let origin = self
                .sources
                .origin(&directory.join(file), &metadata, content);
            let Ok(origin) = origin else {
                return Ok(None);
            };
            let plan = self.sources.plan(&origin)?;
            shards.push((origin, plan, tensors));
        }
        Ok(Some(shards))
    }

    /// The derived index called `name`.
    pub(super) fn index(
        &self,
        directory: &Path,
        scan: &Scan,
        name: &OsStr,
    ) -> Result<Option<Node>> {
        if self.is_taken(directory, scan, name)? {
            return Ok(None);
        }
        for source in scan.with_index_name(name) {
            let Some((index, metadata)) = self.index_in(directory, source)? else {
                continue;
            };
            let mut renamed = HashMap::new();
            for file in index.files().into_keys() {
                renamed.insert(file, self.name_in_index(directory, scan, file)?);
            }
            let body = index.renamed(|file| renamed.get(file).cloned().unwrap_or_default());
            let text = Text {
                path: directory.join(name).into(),
                about: directory.join(source).into(),
                refuses: false,
                body: body.into(),
            };
            return Ok(Some(text_node(text, Attr::of(&metadata))));
        }
        Ok(None)
    }

    /// What the file that an index calls `file` is called in the tree.
    fn name_in_index(&self, directory: &Path, scan: &Scan, file: &str) -> Result<String> {
        let shown = scan.contains(file.as_ref())
            && matches!(
                self.sources.find(directory, file.as_ref())?,
                Found::File(_, content) if !content.is_checkpoint()
            );
        if shown {
            return Ok(file.to_string());
        }
        let base = self.base_of(directory, scan, file.as_ref())?;
        // A name made from text is text.
        Ok(format!("{}{}", base.to_string_lossy(), names::SAFETENSORS))
    }

    /// The index in the file `name`; None when there is none in it.
    fn index_in(&self, directory: &Path, name: &OsStr) -> Result<Option<(Arc<Index>, Metadata)>> {
        let Found::File(metadata, _) = self.sources.find(directory, name)? else {
            return Ok(None);
        };
        let index = self.sources.index(&directory.join(name), &metadata);
        Ok(index.map(|index| (index, metadata)))
    }
}
