//! What shapes the tree, and what it is made with.

use super::promoter::Promote;
use crate::budget::Budget;
use crate::cache::{Directory, Limit};
use crate::source::Links;

/// Whether `X.tensors/` directories are part of the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Tensors {
    /// Listed and reachable.
    #[default]
    Show,
    /// Reachable by path, left out of listings.
    Hide,
    /// Not there at all.
    Off,
}

#[derive(Clone, Debug, Default)]
pub struct Options {
    pub tensors: Tensors,
    /// Show pickle checkpoints beside their converted form.
    pub show_pickles: bool,
    /// Where symbolic links of the source may lead.
    pub links: Links,
    /// Dotted path to the weights in each checkpoint, if not where the rule of
    /// the checkpoint layer finds them.
    pub weights: Option<String>,
    /// Where to keep what is found out, for whoever shows the same files next.
    pub cache: Option<Directory>,
    /// Why there is none though one was wanted, for people.
    pub no_cache: Option<String>,
    /// How much of it promoted files may take.
    pub cache_limit: Limit,
    pub promote: Promote,
    /// What memory for work on files is taken from.
    pub memory: Budget,
}
