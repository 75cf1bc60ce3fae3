//! What is worth finding out once: plans, and small facts about files.

mod directory;
mod plans;
mod recent;

pub use directory::{Directory, Name};
pub use plans::{Key, Outcome, Plans};
pub use recent::Recent;
