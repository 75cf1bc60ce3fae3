//! Room for what a reader decodes, lent by whoever opens it.

use std::fmt::Debug;
use std::io;

/// Bytes put down here are there until it goes, and then gone.
pub trait Scratch: Debug + Send + Sync {
    /// Puts `bytes` down and says where. None when there is no room for them.
    fn put(&self, bytes: &[u8]) -> Option<u64>;

    /// Fills `buffer` with bytes that were put down, from `at` on.
    ///
    /// # Errors
    /// They are lost.
    fn read_exact_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()>;
}
