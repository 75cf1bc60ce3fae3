//! The cache directory as a directory.

#[path = "cache/prune.rs"]
mod prune;
