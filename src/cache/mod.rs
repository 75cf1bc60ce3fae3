//! What is worth finding out once: plans, and small facts about files.

mod directory;
mod plans;
mod prune;
mod recent;

pub use directory::{Directory, Name};
pub use plans::{Key, Outcome, Plans};
pub use prune::{PLANS_BUDGET, prune_plans};
pub use recent::Recent;
