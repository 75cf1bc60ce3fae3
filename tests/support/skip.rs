//! What a test says that cannot run here, so that nobody takes its silence for a success.
//!
//! A test that returns without having tested anything calls [`skip`] first. Where `STFS_REQUIRE_E2E`
//! is `1`, as in continuous integration, what could have been installed had to be: it fails then.
//!
//! ```ignore
//! if !Path::new("/dev/fuse").exists() {
//!     return skip("no /dev/fuse");
//! }
//! ```

use std::env;
use std::fmt::Display;

/// The test cannot run for want of a device, a right or a program.
pub fn skip(reason: impl Display) {
    println!("skipped: {reason}");
    let required = env::var_os("STFS_REQUIRE_E2E").is_some_and(|value| value == "1");
    assert!(!required, "skipped, and STFS_REQUIRE_E2E is set: {reason}");
}
