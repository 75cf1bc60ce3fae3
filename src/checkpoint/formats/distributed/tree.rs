//! The state dict that was saved, put together again from the names of its tensors:
//! which dictionary each was in, `.metadata` says beside (`planner_data`,
//! torch/distributed/checkpoint/_nested_dict.py).

use std::borrow::Cow;
use std::collections::HashMap;

use super::metadata::{Manifest, Saved};
use crate::checkpoint::dtype::ElementType;
use crate::checkpoint::refusal::{Refusal, too_large};
use crate::checkpoint::training::{self, Behind, Optimizer};
use crate::checkpoint::weights::{Entry, Values};
use safetensors::Dtype;

/// Dictionaries and values of one checkpoint.
const MAX_NODES: usize = 4_000_000;

/// The dictionaries and what is in them.
pub struct StateDict<'m> {
    nodes: Vec<Node<'m>>,
}

struct Node<'m> {
    key: &'m str,
    /// What was saved under this name; None for a dictionary.
    saved: Option<(&'m str, &'m Saved<'m>)>,
    children: Vec<usize>,
}

/// The dictionary that everything is in.
pub const TOP: usize = 0;

impl<'m> StateDict<'m> {
    pub fn of(manifest: &'m Manifest<'m>) -> Result<StateDict<'m>, Refusal> {
        let top = Node {
            key: "",
            saved: None,
            children: Vec::new(),
        };
        let mut nodes = vec![top];
        let mut known: HashMap<(usize, &str), usize> = HashMap::new();
        for (name, saved) in &manifest.entries {
            let mut at = TOP;
            let steps = match manifest.paths.get(name) {
                Some(steps) => steps.clone(),
                None => split(name),
            };
            let last = steps.len().saturating_sub(1);
            for (number, key) in steps.into_iter().enumerate() {
                let is_last = number == last;
                if let Some(next) = known.get(&(at, key)).filter(|_| !is_last) {
                    at = *next;
                    continue;
                }
                if nodes.len() >= MAX_NODES {
                    return Err(too_large("its tensors lie in too many dictionaries"));
                }
                let next = nodes.len();
                nodes.push(Node {
                    key,
                    saved: is_last.then_some((*name, saved)),
                    children: Vec::new(),
                });
                if !is_last {
                    known.insert((at, key), next);
                }
                nodes[at].children.push(next);
                at = next;
            }
        }
        Ok(StateDict { nodes })
    }

    pub fn key(&self, node: usize) -> &'m str {
        self.nodes.get(node).map_or("", |node| node.key)
    }

    pub fn saved(&self, node: usize) -> Option<(&'m str, &'m Saved<'m>)> {
        self.nodes.get(node)?.saved
    }

    pub fn children(&self, node: usize) -> &[usize] {
        self.nodes.get(node).map_or(&[], |node| &node.children)
    }

    /// The form of optimizer's state that the dictionary is of, if it is one.
    pub fn optimizer(&self, node: usize) -> Option<Optimizer> {
        let keys = self.children(node).iter().map(|child| self.key(*child));
        let form = Optimizer::of(keys, |name| {
            let mut children = self.children(node).iter();
            let found = children.find(|child| self.key(**child) == name);
            found.map_or(Behind::Nothing, |child| self.behind(*child))
        });
        form.filter(|_| self.saved(node).is_none())
    }

    fn behind(&self, node: usize) -> Behind {
        let is_tensor = |node: &usize| matches!(self.saved(*node), Some((_, Saved::Tensor(_))));
        match self.saved(node) {
            Some((_, Saved::Tensor(_))) => Behind::Other,
            // Lists are saved as objects, or cut up into what is in them.
            Some((_, Saved::Object(_))) => Behind::List,
            None if self.key(node) != "state" => Behind::List,
            None => match self.children(node).iter().any(is_tensor) {
                true => Behind::Other,
                false => Behind::Mapping,
            },
        }
    }

    /// Whether the value is the state of a generator of random numbers.
    pub fn is_rng(&self, node: usize) -> bool {
        match self.saved(node) {
            Some((_, Saved::Tensor(cut))) => {
                cut.dtype == ElementType::Plain(Dtype::U8)
                    && matches!(*cut.shape, [len] if training::is_rng_size(len))
            }
            Some((_, Saved::Object(_))) => false,
            None => {
                let tensors: Vec<usize> = self.tensors(node).collect();
                !tensors.is_empty() && tensors.iter().all(|tensor| self.is_rng(*tensor))
            }
        }
    }

    /// Everything that was saved at or below `node`.
    pub fn below(&self, node: usize) -> impl Iterator<Item = usize> {
        let mut pending = vec![node];
        std::iter::from_fn(move || {
            loop {
                let node = pending.pop()?;
                pending.extend(self.children(node).iter().rev());
                if self.saved(node).is_some() {
                    return Some(node);
                }
            }
        })
    }

    /// The tensors among them.
    pub fn tensors(&self, node: usize) -> impl Iterator<Item = usize> {
        let is_tensor = |node: &usize| matches!(self.saved(*node), Some((_, Saved::Tensor(_))));
        self.below(node).filter(is_tensor)
    }
}

/// The keys behind a name that nothing is said of.
fn split(name: &str) -> Vec<&str> {
    match name.split_once('.') {
        Some(("state_dict", rest)) => vec!["state_dict", rest],
        Some((first, rest)) if training::is_optimizer_key(first) => {
            let state = ["state.", "param_groups."];
            match state
                .iter()
                .find_map(|key| Some((rest.get(..key.len() - 1)?, rest.strip_prefix(key)?)))
            {
                Some((key, rest)) => vec![first, key, rest],
                None => vec![name],
            }
        }
        _ => vec![name],
    }
}

impl<'m> Values<'m> for StateDict<'m> {
    type Id = usize;

    fn entries(&mut self, node: usize) -> Result<Option<Vec<Entry<'m, usize>>>, Refusal> {
        if self.saved(node).is_some() || self.optimizer(node).is_some() {
            return Ok(None);
        }
        let children = self.children(node).iter();
        let entries = children.map(|child| (Some(Cow::Borrowed(self.key(*child))), *child));
        Ok(Some(entries.collect()))
    }

    fn is_mapping(&mut self, node: usize) -> Result<bool, Refusal> {
        Ok(self.saved(node).is_none())
    }

    fn holds_weights(
        &mut self,
        (key, node): &Entry<'m, usize>,
        at_top: bool,
    ) -> Result<bool, Refusal> {
        let key = key.as_deref().unwrap_or_default();
        let is_trainers = at_top && training::is_optimizer_key(key);
        if is_trainers || training::is_rng_key(key) && self.is_rng(*node) {
            return Ok(false);
        }
        let mut pending = vec![*node];
        while let Some(node) = pending.pop() {
            let form = self.optimizer(node);
            if matches!(self.saved(node), Some((_, Saved::Tensor(_)))) {
                return Ok(true);
            }
            let children = self.children(node).iter();
            let is_training = |child: &usize| {
                let key = self.key(*child);
                form.is_some_and(|form| form.has(key))
                    || training::is_rng_key(key) && self.is_rng(*child)
            };
            pending.extend(children.filter(|child| !is_training(child)));
        }
        Ok(false)
    }

    /// Keys have dots in them, as names of tensors do.
    fn at(&mut self, node: usize, path: &str) -> Result<Option<usize>, Refusal> {
        let mut at = node;
        let mut rest = path;
        while !rest.is_empty() {
            let found = self.children(at).iter().filter_map(|child| {
                let tail = rest.strip_prefix(self.key(*child))?;
                let tail = match tail {
                    "" => "",
                    tail => tail.strip_prefix('.')?,
                };
                Some((*child, tail))
            });
            match found.min_by_key(|(_, tail)| tail.len()) {
                Some(found) => (at, rest) = found,
                None => return Ok(None),
            }
        }
        Ok(Some(at))
    }

    fn text(&self, _: usize) -> Option<Cow<'m, str>> {
        None
    }

    fn only_tensor(&mut self, node: usize) -> Result<Option<usize>, Refusal> {
        Ok(match *self.children(node) {
            [only] if matches!(self.saved(only), Some((_, Saved::Tensor(_)))) => Some(only),
            _ => None,
        })
    }
}
