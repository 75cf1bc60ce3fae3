//! The contents of a checkpoint: its tensors and what stands beside them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::archive::ArchiveEntry;
use super::companions::Companion;
use super::error::Result;
use super::layout::{Layout, Note};
use super::ledger::LeftOut;
use super::refusal::{Cause, Refusal, unsupported};
use super::storage::{Backing, Storage};
use super::tensor::Tensor;
use super::wire;

/// The tensors of one checkpoint and what stands beside them.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Checkpoint {
    /// In the order of the file.
    pub tensors: Vec<Tensor>,
    /// The spans that the tensors' elements lie in.
    pub storages: Vec<Storage>,
    /// Files of the same directory that storages lie in.
    pub companions: Vec<Companion>,
    /// The entries of zip archives that storages lie in.
    pub entries: Vec<ArchiveEntry>,
    /// Values that are no tensors.
    pub others: Vec<Other>,
    /// How many more of them there are.
    pub unlisted: u64,
    /// Tensor bytes that are not among the tensors, and by which rule.
    pub left_out: Vec<LeftOut>,
    /// Dotted paths of other values that hold weights.
    pub roots: Vec<String>,
    /// Entries for the metadata of the converted file: what it takes to undo what
    /// safetensors could not say as it was.
    pub notes: Vec<(String, String)>,
}

impl Checkpoint {
    /// The same of an archive that begins so many bytes after the file does.
    ///
    /// # Errors
    /// Something of it does not lie in the file as it is.
    pub fn moved(mut self, by: u64) -> Result<Checkpoint> {
        for storage in &mut self.storages {
            match &mut storage.backing {
                Backing::File(offset) => *offset = offset.saturating_add(by),
                Backing::Decoded(encoded) => encoded.offset = encoded.offset.saturating_add(by),
                Backing::Memory(_) => {}
                Backing::Companion { .. } | Backing::Chain(_) | Backing::Tiles(_) => {
                    return Err(unsupported("its tensors are put together in parts").into());
                }
            }
        }
        for entry in &mut self.entries {
            entry.header = entry.header.saturating_add(by);
            entry.data = entry.data.saturating_add(by);
        }
        Ok(self)
    }
}

/// A value that is no tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Other {
    /// Dotted path.
    pub path: String,
    /// Python type, as far as the pickle tells.
    pub kind: String,
    /// A short form, control characters escaped.
    pub repr: String,
    /// The whole of a number or text at the top of what was walked.
    #[serde(with = "wire::json")]
    pub value: Option<Value>,
}

/// Tensors and values of a checkpoint, before their storages are known.
#[derive(Default)]
pub struct Contents {
    pub tensors: Vec<Tensor>,
    pub others: Vec<Other>,
    /// How many more there are.
    pub unlisted: u64,
    /// Tensor bytes that are not among the tensors, and by which rule.
    pub left_out: Vec<LeftOut>,
    /// The dotted path below which the tensors were found, where that is not what
    /// convert.py takes too.
    pub root: Option<String>,
    /// Dotted paths of other values that hold weights.
    pub roots: Vec<String>,
    /// What tensors were before they were written in another way, by name.
    pub notes: Vec<(String, Note)>,
}

impl Contents {
    /// Adds a tensor; the names of all have to be told apart by the caller.
    pub fn add(&mut self, name: &str, layout: Layout) -> std::result::Result<(), Refusal> {
        if name == "__metadata__" {
            return Err(Refusal::new(
                Cause::Inexpressible,
                "a tensor is called `__metadata__`, which safetensors keeps for itself",
            ));
        }
        if let Some(note) = layout.note {
            self.notes.push((name.to_string(), note));
        }
        self.tensors.push(Tensor {
            name: name.to_string(),
            dtype: layout.dtype,
            shape: layout.shape,
            strides: layout.strides,
            storage: layout.storage,
            offset: layout.offset,
            lazy: layout.lazy,
        });
        Ok(())
    }

    /// What it takes to undo the conversion: how tensors were written, by name; where
    /// they were, and how many bytes each rule left out. No name of a tensor that is
    /// written in another way begins with `@`: it would be hidden by one of these.
    fn metadata(&self) -> serde_json::Map<String, Value> {
        let notes = self.notes.iter();
        let mut metadata: serde_json::Map<_, _> = notes
            .map(|(name, note)| (name.clone(), note.json()))
            .collect();
        if let Some(root) = &self.root {
            metadata.insert("@root".into(), root.as_str().into());
        }
        let mut totals = BTreeMap::new();
        for entry in &self.left_out {
            *totals.entry(entry.rule.name()).or_insert(0_u64) += entry.bytes;
        }
        if !totals.is_empty() {
            metadata.insert("@left_out".into(), json!(totals));
        }
        metadata
    }

    /// The checkpoint with these contents, whose tensors lie in `storages`.
    pub fn with(self, storages: Vec<Storage>) -> Checkpoint {
        let mut notes = Vec::new();
        let metadata = self.metadata();
        if !metadata.is_empty() {
            notes.push(("stfs".to_string(), Value::from(metadata).to_string()));
        }
        Checkpoint {
            tensors: self.tensors,
            storages,
            others: self.others,
            unlisted: self.unlisted,
            left_out: self.left_out,
            roots: self.roots,
            notes,
            ..Checkpoint::default()
        }
    }
}
