//! Named tensors become a safetensors file: its header, where its bytes come
//! from, what it is called.

mod boxes;
mod codec;
pub mod compare;
mod decoded;
mod elements;
mod extent;
mod files;
mod header;
mod headers;
pub mod index;
pub mod names;
mod plan;
mod points;
mod reader;
mod scratch;
mod strided;
mod tied_weights;
mod ties;

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// Why a file could not be planned.
pub use crate::checkpoint::Error;
pub use extent::Extent;
pub use files::Files;
pub use plan::{Plan, Planned};
pub use reader::{Reader, Segment};
pub use scratch::Scratch;
pub use tied_weights::{TiedNames, Ties};

use crate::budget::{Budget, Share};
use crate::checkpoint::{
    self, Cause, Checkpoint, Content, NameHint, NativeTensor, Refusal, Wanted, open_companions,
    sniff,
};
use crate::source::{self, Found, LocalTree, Source, Tree};

/// A longer `config.json` is no model's.
const MAX_CONFIG: u64 = 4 << 20;

/// What a plan is made from: what reading a file finds.
#[derive(Debug)]
pub enum Parsed {
    Checkpoint(Checkpoint),
    /// A file that is safetensors already.
    Native(Vec<NativeTensor>),
}

/// Reads the checkpoint in `source`, or the header of a native safetensors file.
/// `directory` is the one that it lies in; `wanted` is of a checkpoint. The memory for
/// it, and for the plan that is made from it, is taken from `share`.
pub fn read(
    source: &Source,
    content: Content,
    directory: &dyn Tree,
    wanted: Wanted,
    share: &Share,
) -> Result<Parsed, Error> {
    let parsed = match content {
        Content::Safetensors => checkpoint::native(source, share).map(Parsed::Native),
        _ => checkpoint::read(source, content, directory, wanted, share).map(Parsed::Checkpoint),
    };
    if let Err(Error::Source(_)) = parsed {
        return parsed;
    }
    // A file that changed while it was read may fit together by chance, or not.
    source.check_version()?;
    parsed
}

impl Parsed {
    /// Plans the conversion of a file of `source_size` bytes. `architecture` is the
    /// class of model that it belongs to; it decides which name a tied tensor keeps.
    pub fn plan(self, source_size: u64, architecture: Option<&str>) -> Result<Plan, Refusal> {
        match self {
            Parsed::Native(tensors) => Ok(Plan::native(tensors, source_size)),
            Parsed::Checkpoint(checkpoint) => {
                let tied = architecture.and_then(tied_weights::tied);
                Plan::new(checkpoint, source_size, tied)
            }
        }
    }
}

/// Opens one file to read it as safetensors: a checkpoint converted, a native
/// file as it is.
///
/// # Errors
/// [`Error::Refused`] also for a file that is neither.
pub fn open(path: &Path) -> Result<Reader, Error> {
    open_at(path, None)
}

/// As [`open`], below the dotted path `root` of a checkpoint.
pub fn open_at(path: &Path, root: Option<&str>) -> Result<Reader, Error> {
    let (directory, name) = LocalTree::around(path).map_err(source::Error::Io)?;
    let source = directory.open(&name).map_err(source::Error::Io)?;
    if name.to_str().is_some_and(names::is_part) {
        return Err(match directory.stat(names::METADATA.as_ref()) {
            Ok(Found::File(_)) => Refusal::new(
                Cause::InDirectory,
                "this is a part of the distributed checkpoint that the `.metadata` beside it describes",
            ),
            _ => lone_part(),
        }
        .into());
    }
    let share = Budget::default().share();
    let content = sniff(&source, hint(&name), &share)?;
    let architecture = architecture_beside(&directory)?;
    let wanted = root.map_or(Wanted::Rule, Wanted::Exactly);
    let parsed = read(&source, content, &directory, wanted, &share)?;
    let plan = parsed.plan(source.size(), architecture.as_deref())?;
    let companions = open_companions(plan.companions(), &directory)?;
    Ok(Reader::new(Files::new(source, companions), Arc::new(plan)))
}

/// Why a part of a distributed checkpoint by itself is refused.
pub fn lone_part() -> Refusal {
    Refusal::new(
        Cause::NotDownloaded,
        "it is a part of a distributed checkpoint, whose `.metadata` is missing: the save or the download \
         was cut off",
    )
}

/// What the name of a file promises.
pub fn hint(name: &OsStr) -> NameHint {
    match name.to_str() {
        Some(name) if names::promises_checkpoint(name) => NameHint::Checkpoint,
        Some(name) if name.ends_with(names::SAFETENSORS) => NameHint::Safetensors,
        _ => NameHint::Nothing,
    }
}

/// The file beside a checkpoint that says which class of model it belongs to.
pub const CONFIG: &str = "config.json";

/// The class of model that the files in a directory belong to, as far as may be read.
fn architecture_beside(directory: &dyn Tree) -> source::Result<Option<Arc<str>>> {
    use io::ErrorKind::{NotFound, PermissionDenied};
    let name = CONFIG.as_ref();
    let found = match directory.stat(name) {
        Ok(Found::File(_)) => {
            let config = directory.open(name).map_err(source::Error::Io);
            config.and_then(|config| architecture_in(&config))
        }
        Ok(_) => Ok(None),
        Err(error) => Err(error.into()),
    };
    match found {
        Err(source::Error::Io(error)) if matches!(error.kind(), NotFound | PermissionDenied) => {
            Ok(None)
        }
        found => found,
    }
}

/// The class of model that a `config.json` names first.
///
/// # Errors
/// It cannot be read. One that says nothing of the kind is none.
pub fn architecture_in(config: &Source) -> source::Result<Option<Arc<str>>> {
    if config.size() > MAX_CONFIG {
        return Ok(None);
    }
    let text = config.read_at(0, config.size())?;
    let config: Option<serde_json::Value> = serde_json::from_slice(&text).ok();
    let first = config
        .as_ref()
        .and_then(|it| it.get("architectures")?.get(0));
    Ok(first.and_then(|name| Some(name.as_str()?.into())))
}
