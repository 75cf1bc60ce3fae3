//! Extended attributes, which std does not read.

use std::ffi::CStr;
use std::io;
use std::path::Path;

/// Attribute of a mount's root: the number of the process that serves it, in
/// decimal. Left out of listings, so that no copy of the tree carries it.
pub const PID: &CStr = c"user.stfs.pid";

/// The longest value there can be, in bytes: xattr(7).
const LONGEST: usize = 64 << 10;

/// The value of the attribute `name` of `path`, symbolic links followed.
///
/// # Errors
/// As getxattr(2).
pub fn xattr(path: &Path, name: &CStr) -> io::Result<Vec<u8>> {
    let mut value = vec![0; LONGEST];
    let length = rustix::fs::getxattr(path, name, &mut value)?;
    value.truncate(length);
    Ok(value)
}
