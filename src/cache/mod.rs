//! What is worth finding out once: plans, small facts about files, and converted
//! files as a whole. In memory, and in a directory that outlives the process.

mod background;
mod directory;
mod plans;
mod recent;
mod store;

pub use background::Background;
pub use directory::{Directory, Name};
pub use plans::{
    Body, Circumstances, Key, Outcome, PLANS_BUDGET, Plans, Records, Size, Subject, Summary,
    prune_plans,
};
pub use recent::Recent;
pub use store::{Cleared, Error, Evicted, Item, Kept, Limit, Promotion, Store, Usage, Verdict};
