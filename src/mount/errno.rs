//! Errors of the tree as the error numbers a reader sees.

use std::io;

use fuser::Errno;

use crate::view;

/// The error number for `error`. Two numbers never leave the mount as they are:
/// the kernel takes `ENOSYS` as "never ask again", and `ENOTCONN` means to every
/// user that the daemon of this mount is gone.
pub fn errno(error: &view::Error) -> Errno {
    match error {
        view::Error::NotFound => Errno::ENOENT,
        view::Error::NotADirectory => Errno::ENOTDIR,
        view::Error::IsADirectory => Errno::EISDIR,
        view::Error::Stale => Errno::ESTALE,
        view::Error::Io(error) => io_errno(error),
    }
}

fn io_errno(error: &io::Error) -> Errno {
    match error.raw_os_error() {
        Some(libc::ENOSYS | libc::ENOTCONN) => Errno::EIO,
        Some(code) => Errno::from_i32(code),
        None => match error.kind() {
            io::ErrorKind::NotFound => Errno::ENOENT,
            io::ErrorKind::PermissionDenied => Errno::EACCES,
            io::ErrorKind::OutOfMemory => Errno::ENOMEM,
            _ => Errno::EIO,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::Error;

    #[test]
    fn table() {
        let os = |code| Error::Io(io::Error::from_raw_os_error(code));
        let kind = |kind: io::ErrorKind| Error::Io(kind.into());
        for (error, code) in [
            (Error::NotFound, libc::ENOENT),
            (Error::NotADirectory, libc::ENOTDIR),
            (Error::IsADirectory, libc::EISDIR),
            (Error::Stale, libc::ESTALE),
            (os(libc::EACCES), libc::EACCES),
            (os(libc::ELOOP), libc::ELOOP),
            (os(libc::ENAMETOOLONG), libc::ENAMETOOLONG),
            (os(libc::ENOSYS), libc::EIO),
            (os(libc::ENOTCONN), libc::EIO),
            (kind(io::ErrorKind::UnexpectedEof), libc::EIO),
            (kind(io::ErrorKind::InvalidData), libc::EIO),
            (kind(io::ErrorKind::NotFound), libc::ENOENT),
            (kind(io::ErrorKind::PermissionDenied), libc::EACCES),
        ] {
            assert_eq!(errno(&error).code(), code, "{error:?}");
        }
    }
}
