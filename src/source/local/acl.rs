//! Access control lists (acl(5)): what they leave of the rights that the permission
//! bits alone would give to others than the owner.

use std::os::fd::AsFd;

use rustix::fs::getxattr;
use rustix::io::Errno;

use super::step::name_of;

const LIST: &str = "system.posix_acl_access";
/// Bytes of a list of some hundred entries. Of a longer one nothing is believed.
const MOST: usize = 4096;
/// Reading, writing and executing.
const ALL: u16 = 0o7;

/// What everybody but the owner of `file` may do at least, whoever he is.
pub fn least(file: &impl AsFd) -> u16 {
    // This also works for descriptors that cannot be read from.
    least_of(|list| getxattr(name_of(file), LIST, list))
}

/// By the list that `read` writes into a buffer, and the length of which it gives.
fn least_of(read: impl FnOnce(&mut [u8]) -> Result<usize, Errno>) -> u16 {
    let mut list = [0; MOST];
    match read(&mut list) {
        Ok(len) => list.get(..len).and_then(parse).unwrap_or(0),
        // There is none, or no such thing here.
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::NOSYS) => ALL,
        Err(_) => 0,
    }
}

/// linux/posix_acl_xattr.h: a version, then tag, permissions and id of each entry. None
/// for what is no list.
fn parse(list: &[u8]) -> Option<u16> {
    const VERSION: [u8; 4] = 2_u32.to_le_bytes();
    const USER: u16 = 0x02;
    const GROUP_OBJ: u16 = 0x04;
    const GROUP: u16 = 0x08;
    const MASK: u16 = 0x10;
    const OTHER: u16 = 0x20;
    let entries = list.strip_prefix(&VERSION)?.as_chunks::<8>();
    let (entries, []) = entries else {
        return None;
    };
    let mut least = ALL;
    for &[a, b, c, d, ..] in entries {
        let (tag, permissions) = (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]));
        if let USER | GROUP_OBJ | GROUP | MASK | OTHER = tag {
            least &= permissions;
        }
    }
    Some(least)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(entries: &[(u16, u16)]) -> Vec<u8> {
        let entries = entries.iter().flat_map(|(tag, permissions)| {
            [&tag.to_le_bytes()[..], &permissions.to_le_bytes(), &[0; 4]].concat()
        });
        2_u32.to_le_bytes().into_iter().chain(entries).collect()
    }

    #[test]
    fn the_least_of_all_entries_but_the_owners() {
        let denied = list(&[(1, 7), (2, 0), (4, 4), (0x10, 4), (0x20, 4)]);
        assert_eq!(parse(&denied), Some(0));
        let masked = list(&[(1, 6), (2, 7), (4, 7), (0x10, 5), (0x20, 5)]);
        assert_eq!(parse(&masked), Some(5));
        assert_eq!(parse(&list(&[(1, 6)])), Some(7));
    }

    #[test]
    fn what_is_no_list_permits_nothing() {
        let least_of_list = |list: &[u8]| {
            least_of(|buffer| {
                buffer[..list.len()].copy_from_slice(list);
                Ok(list.len())
            })
        };
        assert_eq!(least_of_list(b""), 0);
        assert_eq!(least_of_list(&list(&[(4, 4)])[..9]), 0);
        assert_eq!(least_of(|_| Err(Errno::RANGE)), 0);
        assert_eq!(least_of(|_| Err(Errno::NODATA)), 7);
    }
}
