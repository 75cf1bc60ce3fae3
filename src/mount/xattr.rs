//! Extended attributes, which std does not read.

use std::ffi::{CStr, CString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The longest value there can be, in bytes: xattr(7).
const LONGEST: usize = 64 << 10;

/// The value of the attribute `name` of `path`, symbolic links followed.
pub fn xattr(path: &Path, name: &CStr) -> io::Result<Vec<u8>> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut value = vec![0u8; LONGEST];
    // SAFETY: NUL-terminated strings, and a buffer of the length given.
    let length = unsafe {
        libc::getxattr(
            path.as_ptr(),
            name.as_ptr(),
            value.as_mut_ptr().cast(),
            value.len(),
        )
    };
    match usize::try_from(length) {
        Ok(length) => {
            value.truncate(length);
            Ok(value)
        }
        Err(_) => Err(io::Error::last_os_error()),
    }
}
