//! The checkpoint layer, and what is read through it: tensors have the values
//! that torch gives them, and every other file is refused in words.

#[path = "checkpoint/archive.rs"]
mod archive;
#[path = "checkpoint/corpus.rs"]
mod corpus;
#[path = "checkpoint/distributed.rs"]
mod distributed;
#[path = "checkpoint/exported.rs"]
mod exported;
#[path = "checkpoint/few_requests.rs"]
mod few_requests;
#[path = "checkpoint/ledger.rs"]
mod ledger;
#[path = "checkpoint/legacy.rs"]
mod legacy;
#[path = "checkpoint/mutation.rs"]
mod mutation;
#[path = "checkpoint/npy.rs"]
mod npy;
#[path = "checkpoint/numpy.rs"]
mod numpy;
#[path = "checkpoint/opcodes.rs"]
mod opcodes;
#[path = "checkpoint/sniffing.rs"]
mod sniffing;
#[path = "checkpoint/state_dict.rs"]
mod state_dict;
mod support;
#[path = "checkpoint/torch_objects.rs"]
mod torch_objects;
#[path = "checkpoint/torchscript.rs"]
mod torchscript;
#[path = "checkpoint/weights.rs"]
mod weights;
#[path = "checkpoint/zip_oddities.rs"]
mod zip_oddities;

use std::fs;
use std::path::Path;

use safetensors::{Dtype, SafeTensors};
use stfs::checkpoint::{Cause, Refusal};
use stfs::convert::{self, Error};

use support::owned;

/// A tensor as a reader of the converted file sees it.
#[derive(Debug, PartialEq)]
struct Seen {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

/// The tensors of the checkpoint `bytes` under the name `model.pt`, in the order
/// of their names, or why there are none.
fn read(bytes: &[u8]) -> Result<Vec<Seen>, Refusal> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.pt");
    fs::write(&path, bytes).unwrap();
    read_file(&path)
}

fn read_file(path: &Path) -> Result<Vec<Seen>, Refusal> {
    let reader = match convert::open(path) {
        Ok(reader) => reader,
        Err(Error::Refused(refusal)) => return Err(refusal),
        Err(error) => panic!("{}: {error}", path.display()),
    };
    let file = match reader.read(0, usize::try_from(reader.plan().size()).unwrap()) {
        Ok(bytes) => owned(bytes),
        // Some archives turn out to contradict themselves when they are read.
        Err(error) => {
            return Err(reader.plan().refusal().unwrap_or_else(|| panic!("{error}")));
        }
    };
    let parsed = SafeTensors::deserialize(&file).unwrap();
    let mut seen: Vec<Seen> = parsed
        .iter()
        .map(|(name, view)| Seen {
            name: name.to_string(),
            dtype: view.dtype(),
            shape: view.shape().to_vec(),
            bytes: view.data().to_vec(),
        })
        .collect();
    seen.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(seen)
}

#[track_caller]
fn refused(bytes: &[u8], cause: Cause) -> String {
    match read(bytes) {
        Err(refusal) => {
            assert_eq!(refusal.cause(), cause, "{refusal}");
            refusal.to_string()
        }
        Ok(seen) => panic!("not refused: {seen:?}"),
    }
}
