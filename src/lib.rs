//! stfs mounts a model directory in which every pickle checkpoint has already
//! become a `.safetensors` file and every tensor is a file of its own.
//!
//! The modules are the way of the data: each uses only those above it.
//!
//! ```text
//! budget      how much memory work on files may take, in the process as a whole
//! workers     threads for what may block, for all of them
//! source      a tree of files, wherever it lies: their bytes, and which file they are
//! pickle      bytes -> inert objects; nothing is resolved, imported or called
//! checkpoint  file -> named tensors and where their bytes lie
//! convert     named tensors -> safetensors header and segments; file names
//! cache       what is known of each file, and converted files; kept for the next process
//! view        the tree a mount shows
//! mount       that tree in the kernel's terms
//! cli         the commands
//! ```

pub mod budget;
pub mod cache;
pub mod checkpoint;
pub mod cli;
pub mod convert;
pub mod mount;
pub mod pickle;
pub mod source;
pub mod view;
pub mod workers;

#[cfg(test)]
#[path = "../tests/support/skip.rs"]
mod skip;
