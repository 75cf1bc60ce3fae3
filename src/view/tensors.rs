//! `X.tensors`: a directory with a file for each tensor of one file, or of all
//! shards that an index names.

use std::path::PathBuf;
use std::sync::Arc;

use super::node::{Attr, Node, Origin, Place, TensorSet, Text};
use super::sources::Sources;
use super::{Error, Result, tensor_names};
use crate::convert::{Plan, Planned};

/// The directory of one file's tensors.
pub(super) fn single(path: PathBuf, origin: Arc<Origin>) -> Node {
    let attr = origin.attr.directory();
    let set = TensorSet {
        path: path.into(),
        parts: Box::new([origin]),
        merged: None,
    };
    Node::new(Place::Tensors(Arc::new(set)), attr)
}

/// The tensors of several files together. Where two files have a tensor
/// of the same name, the one that the index gives it to counts.
pub(super) fn merge(
    path: PathBuf,
    parts: Vec<(Arc<Origin>, Arc<Plan>, Vec<&str>)>,
) -> Arc<TensorSet> {
    let mut owners = std::collections::HashMap::new();
    for (part, (_, _, tensors)) in parts.iter().enumerate() {
        owners.extend(tensors.iter().map(|name| (*name, part)));
    }
    let mut found: Vec<(&str, bool, u32, u32)> = Vec::new();
    for (part, (_, plan, _)) in parts.iter().enumerate() {
        for (index, tensor) in plan.sorted() {
            let foreign = owners.get(&*tensor.name) != Some(&part);
            found.push((&tensor.name, foreign, part as u32, index as u32));
        }
    }
    found.sort_unstable();
    found.dedup_by(|later, earlier| later.0 == earlier.0);
    let merged = found
        .into_iter()
        .map(|(_, _, part, index)| (part, index))
        .collect();
    let set = TensorSet {
        path: path.into(),
        merged: Some(merged),
        parts: parts.into_iter().map(|(origin, ..)| origin).collect(),
    };
    Arc::new(set)
}

/// The directory of such tensors.
pub(super) fn merged(set: Arc<TensorSet>, attr: Attr) -> Node {
    Node::new(Place::Tensors(set), attr.directory())
}

/// A tensor directory with the plans behind it.
pub struct TensorListing {
    set: Arc<TensorSet>,
    plans: Vec<Arc<Plan>>,
}

/// The file with the numbers and texts beside the tensors. It is found by its
/// name alone: what is listed are tensors. A tensor of that name wins.
const VALUES: &str = ".other.json";

impl TensorListing {
    pub(super) fn open(sources: &Sources, set: &Arc<TensorSet>) -> Result<TensorListing> {
        let plans = set
            .parts
            .iter()
            .map(|origin| sources.plan(origin))
            .collect::<Result<_>>()?;
        Ok(TensorListing {
            set: set.clone(),
            plans,
        })
    }

    pub fn len(&self) -> usize {
        match (&self.set.merged, self.plans.first()) {
            (Some(merged), _) => merged.len(),
            (None, Some(plan)) => plan.tensors().len(),
            (None, None) => 0,
        }
    }

    /// The `rank`th tensor by name: its file name and node.
    pub fn entry(&self, rank: usize) -> Option<(String, Node)> {
        let (part, index) = match &self.set.merged {
            Some(merged) => merged.get(rank).copied()?,
            None => (0, self.plans.first()?.nth(rank)?.0 as u32),
        };
        let tensor = self.tensor(part, index)?;
        let name = tensor_names::encode(&tensor.name).into_owned();
        Some((name, self.node(part, index)?))
    }

    /// The node of the tensor with this file name. Names of exact duplicates are
    /// found too, and the file of values, though not listed.
    pub(super) fn find(&self, file_name: &str) -> Result<Node> {
        let place = match tensor_names::decode(file_name) {
            Some(name) => self.find_name(&name),
            None if tensor_names::is_cut(file_name) => self.find_cut(file_name),
            None => None,
        };
        let node = place.and_then(|(part, index)| self.node(part, index));
        let values = || (file_name == VALUES).then(|| self.values()).flatten();
        node.or_else(values).ok_or(Error::NotFound)
    }

    fn find_name(&self, name: &str) -> Option<(u32, u32)> {
        if let Some(merged) = &self.set.merged {
            let by_name = |place: &(u32, u32)| {
                self.tensor(place.0, place.1)
                    .map_or("", |tensor| &tensor.name)
                    .cmp(name)
            };
            if let Ok(rank) = merged.binary_search_by(by_name) {
                return merged.get(rank).copied();
            }
        }
        let found = |(part, plan): (usize, &Arc<Plan>)| {
            plan.find(name).map(|index| (part as u32, index as u32))
        };
        self.plans.iter().enumerate().find_map(found)
    }

    fn find_cut(&self, file_name: &str) -> Option<(u32, u32)> {
        self.plans.iter().enumerate().find_map(|(part, plan)| {
            let tensor = plan.tensors().iter().position(|tensor| {
                tensor.name.len() > file_name.len() / 3
                    && tensor_names::encode(&tensor.name) == file_name
            })?;
            Some((part as u32, tensor as u32))
        })
    }

    /// The numbers and texts beside the tensors of one file.
    fn values(&self) -> Option<Node> {
        let ([origin], [plan]) = (&*self.set.parts, &*self.plans) else {
            return None;
        };
        let text = Text {
            path: self.set.path.join(VALUES).into(),
            about: origin.path.clone(),
            refuses: false,
            body: plan.values()?.into(),
        };
        let attr = origin.attr.sized(text.body.len() as u64);
        Some(Node::new(Place::Text(Arc::new(text)), attr))
    }

    fn tensor(&self, part: u32, index: u32) -> Option<&Planned> {
        self.plans.get(part as usize)?.tensors().get(index as usize)
    }

    fn node(&self, part: u32, index: u32) -> Option<Node> {
        let origin = self.set.parts.get(part as usize)?;
        let attr = origin.attr.sized(self.tensor(part, index)?.len);
        Some(Node::new(Place::Tensor(origin.clone(), index), attr))
    }
}
