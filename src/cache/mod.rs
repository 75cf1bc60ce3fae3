//! What is worth finding out once: what is known of each file, and converted files
//! as a whole. In memory, and in a directory that outlives the process.
//!
//! ```text
//! catalog     what is known of each file of a source
//! store       converted files, kept whole
//! directory   where things lie on disk      record  how one is written down
//! background  threads for what nobody waits for
//! ```

mod background;
mod catalog;
mod directory;
mod record;
mod store;

pub use background::Background;
pub use catalog::{
    Catalog, Converted, Figures, FileKey, Identity, Outcome, PlanKey, Subject, prune_records,
};
pub use directory::{Alive, Directory, Name};
pub use store::{
    Cleared, Comparison, Error, Evicted, Item, Limit, Occupancy, Promoted, Promotion, Provenance,
    Scratch, Shortage, Stamp, Store,
};
