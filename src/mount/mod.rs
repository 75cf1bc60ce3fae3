//! That tree in the kernel's terms: a FUSE mount, and the process behind it.
//!
//! ```text
//! adapter     one handler for each FUSE operation: what is answered at once, what by others
//! operations  what each operation finds out
//! deadlines   answers in time      names      what was told lately
//! inodes      inode numbers        handles    what is open
//! errno       error numbers        kernel     capabilities and read-ahead
//! daemon      the process, from its checks to its end
//! mountpoint  where a mount may go
//! device      making a mount       unmount    ending it
//! mountinfo   which mounts there are
//! state       whether they live    inquiry    asking those that may not answer
//! connection  who serves a mount   holders    who uses it
//! process     other processes
//! options     the words of -o      logging    where the log goes
//! prefault    pages stored ahead   drop_behind  pages that are there twice
//! listings    listings being read
//! watch       what changed         forget     what the kernel is to forget
//! xattr       extended attributes
//! ```

mod adapter;
mod connection;
mod daemon;
mod deadlines;
mod device;
mod drop_behind;
mod errno;
mod error;
mod forget;
mod handles;
mod holders;
mod inodes;
mod inquiry;
mod kernel;
mod listings;
mod logging;
mod mountinfo;
mod mountpoint;
mod names;
mod operations;
pub mod options;
mod prefault;
mod process;
mod state;
mod unmount;
mod watch;
mod xattr;

pub use daemon::{Config, Prepared};
pub use error::Error;
pub use mountinfo::{Mount, locate, mount_at, mount_of, stfs_mounts};
pub use options::Access;
pub use state::{State, states};
pub use unmount::{Manner, unmount};
pub use xattr::xattr;
