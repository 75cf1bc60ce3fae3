//! A checkpoint file becomes named tensors: element type, shape, strides, and
//! where their bytes lie. One module per container; what a file is, its content
//! says ([`sniff`]).

mod companions;
mod danger;
mod describe;
mod distributed;
mod dtype;
mod legacy;
mod legacy_tar;
mod npy;
mod npz;
mod numpy;
mod plain;
mod refusal;
mod safetensors;
mod sniff;
mod state_dict;
mod storage;
mod stream;
mod torch;
mod torch_zip;
mod torchscript;
mod wire;
mod zip;

use serde::{Deserialize, Serialize};

use crate::pickle::ReadAt;
use crate::source::{self, Source, Span};

pub use companions::{Companion, Companions, open_companions};
pub use distributed::PARTS;
pub use dtype::{Numeric, numeric};
pub use refusal::{Cause, Refusal};
pub use safetensors::{MAX_HEADER, NativeTensor, native};
pub use sniff::{Content, Intruder, Promise, Stream, sniff};
pub use storage::{Codec, Encoded, Place, Storage, Tile, Tiling};

/// The tensors of one checkpoint and what stands beside them.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Checkpoint {
    /// In the order of the file.
    pub tensors: Vec<Tensor>,
    /// The spans that the tensors' elements lie in.
    pub storages: Vec<Storage>,
    /// Files of the same directory that storages lie in.
    pub companions: Vec<Companion>,
    /// Values that are no tensors.
    pub others: Vec<Other>,
    /// How many more of them there are.
    pub unlisted: u64,
    /// Entries for the metadata of the converted file: what it takes to undo what
    /// safetensors could not say as it was.
    pub notes: Vec<(String, String)>,
}

/// A strided view of a storage. The view has been checked: every element lies
/// inside the storage.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Tensor {
    pub name: String,
    #[serde(with = "wire::dtype")]
    pub dtype: ::safetensors::Dtype,
    /// Elements, as torch counts them.
    pub shape: Box<[u64]>,
    /// Elements.
    pub strides: Box<[u64]>,
    /// Index into [`Checkpoint::storages`].
    pub storage: u32,
    /// Bytes from the start of the storage to the first element.
    pub offset: u64,
    pub lazy: Lazy,
}

/// What is still to be done to each element when it is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Lazy {
    /// The bytes of each number are big-endian.
    pub swap: bool,
    /// torch's negative bit.
    pub negate: bool,
    /// torch's conjugate bit.
    pub conjugate: bool,
}

impl Tensor {
    /// Bytes of one element.
    pub fn element_size(&self) -> u64 {
        dtype::ElementType::Plain(self.dtype).size()
    }

    /// Elements; a checked view fits `u64`.
    pub fn elements(&self) -> u64 {
        self.shape.iter().product()
    }

    /// Bytes when laid out row by row.
    pub fn bytes(&self) -> u64 {
        self.elements() * self.element_size()
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
    pub value: Option<serde_json::Value>,
}

/// Why there is no checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Source(#[from] source::Error),
    #[error(transparent)]
    Refused(#[from] Refusal),
}

impl Error {
    /// The refusal that this amounts to, for whoever has no other way to say it.
    fn into_refusal(self) -> Refusal {
        match self {
            Error::Refused(refusal) => refusal,
            Error::Source(error) => Refusal::new(Cause::Changing, error.to_string()),
        }
    }
}

pub type Result<T> = std::result::Result<T, Error>;

/// Pickles are read where they lie in the file.
impl ReadAt for Source {
    type Error = source::Error;

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> source::Result<()> {
        Source::read_exact_at(self, buffer, offset)
    }
}

/// The same of a stretch of a file, with its own offsets.
impl ReadAt for Span<'_> {
    type Error = source::Error;

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> source::Result<()> {
        Span::read_exact_at(self, buffer, offset)
    }
}

/// Reads the checkpoint in `source`, whose content is `content`: the tensors below
/// the dotted path `root`, if one is given. `companions` are the files of the
/// same directory. Costs the pickle and the directory of the container, not the
/// weights.
pub fn read(
    source: &Source,
    content: Content,
    companions: &dyn Companions,
    root: Option<&str>,
) -> Result<Checkpoint> {
    match content {
        Content::TorchZip => torch_zip::read(source.span(), root),
        Content::Pickle(Stream::Legacy) => legacy::read(source, root),
        Content::Pickle(Stream::Tar) => legacy_tar::read(source, root),
        Content::Pickle(Stream::Plain) => plain::read(source, root),
        Content::Distributed => distributed::read(source, companions, root),
        Content::NotACheckpoint(intruder) => Err(intruder.refusal().into()),
        Content::Npy { .. } => npy::read(source, root),
        Content::Npz { .. } => npz::read(source, root),
        Content::Safetensors | Content::Other => {
            let what = match sniff::stranger(source)? {
                Some(kind) => format!("this is {kind}, not a pickle checkpoint"),
                None => "this is not a pickle checkpoint".to_string(),
            };
            Err(Refusal::new(Cause::Unsupported, what).into())
        }
    }
}
