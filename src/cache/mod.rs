//! What is worth making once: plans, kept in memory.

mod plans;

pub use plans::{Key, Outcome, Plans};
