//! What is worth finding out once: plans, and small facts about files.

mod plans;
mod recent;

pub use plans::{Key, Outcome, Plans};
pub use recent::Recent;
