//! What a node of the tree can be. One file for each output, and a line in the
//! table: a new output is both.
//!
//! ```text
//! real         directories and files of the source, as they are
//! safetensors  a checkpoint, converted        refusal  why one is not
//! tensors      a directory of raw tensors     index    of sharded checkpoints
//! control      what the mount tells of itself
//! output       what each of them offers       table    which there are
//! ```

pub mod control;
pub mod index;
mod output;
pub mod real;
mod refusal;
mod rooted;
mod safetensors;
pub mod table;
mod tensor_names;
mod tensors;
