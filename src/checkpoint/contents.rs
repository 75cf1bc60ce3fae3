//! The contents of a checkpoint: its tensors and what stands beside them.

use serde::{Deserialize, Serialize};

use super::archive::ArchiveEntry;
use super::companions::Companion;
use super::layout::{Layout, Note};
use super::refusal::{Cause, Refusal};
use super::storage::Storage;
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
    /// Entries for the metadata of the converted file: what it takes to undo what
    /// safetensors could not say as it was.
    pub notes: Vec<(String, String)>,
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
    pub value: Option<serde_json::Value>,
}

/// Tensors and values of a checkpoint, before their storages are known.
#[derive(Default)]
pub struct Contents {
    pub tensors: Vec<Tensor>,
    pub others: Vec<Other>,
    /// How many more there are.
    pub unlisted: u64,
    /// What tensors were before they were written in another way, by name.
    pub notes: Vec<(String, Note)>,
}

impl Contents {
    /// Adds a tensor; the names of all have to be told apart by the caller.
    pub fn add(&mut self, name: &str, layout: Layout) -> Result<(), Refusal> {
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

    /// The checkpoint with these contents, whose tensors lie in `storages`.
    pub fn with(self, storages: Vec<Storage>) -> Checkpoint {
        let mut notes = Vec::new();
        if !self.notes.is_empty() {
            let by_name: serde_json::Map<_, _> = self
                .notes
                .into_iter()
                .map(|(name, note)| (name, note.json()))
                .collect();
            notes.push((
                "stfs".to_string(),
                serde_json::Value::from(by_name).to_string(),
            ));
        }
        Checkpoint {
            tensors: self.tensors,
            storages,
            others: self.others,
            unlisted: self.unlisted,
            notes,
            ..Checkpoint::default()
        }
    }
}
