//! Tensors that are one: exact duplicates of a view are kept under one name.
//!
//! convert.py drops duplicates too, and asks one release of transformers which name
//! to keep: here two of them have to find it. Views of one storage that overlap but
//! differ are all kept: convert.py would drop the smaller ones for good.

use std::collections::{BTreeMap, HashMap};

use safetensors::Dtype;

use super::tied_weights::{Standing, TiedNames};
use crate::checkpoint::{Lazy, Tensor};

/// Which tensors stay, and what became of the others.
#[derive(Debug, Default)]
pub struct Ties {
    /// Indices into the tensors, in their order.
    pub kept: Vec<usize>,
    /// Index of a dropped tensor and of the one that stands for it.
    pub dropped: Vec<(usize, usize)>,
}

/// Two tensors with equal views hold the same elements in the same shape.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Elements<'a> {
    storage: u32,
    dtype: Dtype,
    offset: u64,
    shape: &'a [u64],
    /// 0 for a dimension of one element, along which nobody steps.
    strides: Box<[u64]>,
    lazy: Lazy,
}

/// Finds exact duplicates among `tensors`. The name that stays is the first in
/// byte order of those that stand best by `tied`. Tensors without elements share
/// nothing and always stay.
pub fn find(tensors: &[Tensor], tied: Option<TiedNames>) -> Ties {
    let mut groups: BTreeMap<Elements, Vec<usize>> = BTreeMap::new();
    let mut ties = Ties::default();
    let mut views: HashMap<u32, u32> = HashMap::with_capacity(tensors.len());
    for tensor in tensors {
        *views.entry(tensor.storage).or_default() += 1;
    }
    for (index, tensor) in tensors.iter().enumerate() {
        // Most have a storage to themselves.
        if tensor.shape.contains(&0) || views.get(&tensor.storage) == Some(&1) {
            ties.kept.push(index);
            continue;
        }
        let elements = Elements {
            storage: tensor.storage,
            dtype: tensor.dtype,
            offset: tensor.offset,
            shape: &tensor.shape,
            strides: steps(tensor),
            lazy: tensor.lazy,
        };
        groups.entry(elements).or_default().push(index);
    }
    let standing = |name: &str| tied.map_or(Standing::Untied, |tied| tied.standing(name));
    for group in groups.into_values() {
        let stays = group.iter().copied().min_by_key(|index| {
            let name = &tensors[*index].name;
            (standing(name), name)
        });
        let Some(stays) = stays else { continue };
        ties.kept.push(stays);
        let others = group.into_iter().filter(|index| *index != stays);
        ties.dropped.extend(others.map(|index| (index, stays)));
    }
    ties.kept.sort_unstable();
    ties.dropped.sort_unstable();
    ties
}

fn steps(tensor: &Tensor) -> Box<[u64]> {
    let dimensions = tensor.shape.iter().zip(&tensor.strides);
    dimensions
        .map(|(&size, &stride)| if size == 1 { 0 } else { stride })
        .collect()
}
