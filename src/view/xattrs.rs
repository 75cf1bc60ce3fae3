//! Extended attributes of derived files.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::usage::Tier;

/// What the names of all begin with.
pub const XATTRS: &str = "user.stfs.";

/// Name and value.
pub type Xattr = (&'static str, Vec<u8>);

/// Where the bytes of a file come from.
pub(super) fn tier(tier: Tier) -> Xattr {
    ("user.stfs.tier", tier.name().as_bytes().to_vec())
}

/// The dotted paths of other values with weights, as JSON; none where there are none.
pub(super) fn roots(roots: &[String]) -> Option<Xattr> {
    let text = serde_json::to_vec(roots).ok();
    let text = text.filter(|_| !roots.is_empty());
    text.map(|text| ("user.stfs.roots", text))
}

/// The checkpoint that a file is made from.
pub(super) fn source(location: &Path) -> Xattr {
    ("user.stfs.source", location.as_os_str().as_bytes().to_vec())
}
