//! A checkpoint file becomes named tensors: element type, shape, strides, and
//! where their bytes lie. What a file is, its content says ([`sniff`]); which
//! containers there are, the table in `formats` says.

mod archive;
mod companions;
mod content;
mod contents;
mod describe;
mod dtype;
mod error;
mod formats;
mod layout;
mod ledger;
mod numpy;
mod objects;
mod preamble;
mod refusal;
mod sniff;
mod storage;
mod stream;
mod tensor;
mod training;
mod verdict;
mod walk;
mod weights;
mod wire;

pub use archive::{ArchiveEntry, Checksum, check_headers};
pub use companions::{Companion, open_companions};
pub use content::{Content, Intruder};
pub use contents::{Checkpoint, Other};
pub use dtype::{Numeric, numeric};
pub use error::{Error, Result};
pub use formats::distributed::PARTS;
pub use formats::safetensors::{MAX_HEADER, NativeTensor, native, native_ties};
pub use formats::{Format, Holds};
pub use ledger::{LeftOut, Rule};
pub use refusal::{Cause, Refusal};
pub use sniff::{NameHint, fingerprint, read, sniff};
pub use storage::{Backing, Codec, Encoded, Storage, Tile, Tiling};
pub use tensor::{Lazy, Tensor};
pub use weights::Wanted;
