//! The store of converted files, on its own. What several processes do to it is
//! in `store_processes.rs`: a child that is being started has all files open for a
//! moment, and with them their locks.

#[path = "store/bytes.rs"]
mod bytes;
#[path = "store/changes.rs"]
mod changes;
#[path = "store/common.rs"]
mod common;
#[path = "store/filesystems.rs"]
mod filesystems;
#[path = "store/leftovers.rs"]
mod leftovers;
#[path = "store/room.rs"]
mod room;
#[path = "store/scratch.rs"]
mod scratch;
mod support;
#[path = "store/tampering.rs"]
mod tampering;
