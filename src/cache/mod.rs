//! What is worth finding out once: plans, and small facts about files. In memory,
//! and in a directory that outlives the process.

mod directory;
mod plans;
mod prune;
mod recent;
mod record;
mod records;

pub use directory::{Directory, Name};
pub use plans::{Circumstances, Key, Outcome, Plans};
pub use prune::{PLANS_BUDGET, prune_plans};
pub use recent::Recent;
pub use record::{Body, Size, Summary};
pub use records::{Records, Subject};
