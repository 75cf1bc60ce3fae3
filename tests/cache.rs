//! The cache directory as a directory.

#[path = "cache/prune.rs"]
mod prune;
#[path = "cache/records.rs"]
mod records;
