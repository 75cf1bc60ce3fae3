//! Pickles of plain values: numbers, texts and collections of them, which a reader
//! can hold inside each other, as Rust values are, and copy where they are shared.

use super::object::{Object, ObjectId};
use super::parsed::Pickle;

/// Bounds on what a pickle of plain values costs a reader that takes no care itself:
/// one that calls itself for each value inside another, and copies what is shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlainLimits {
    /// Values inside each other.
    pub depth: u32,
    /// Opcodes, and values when each is counted as often as it is referred to.
    pub values: u64,
}

/// What is known of an object of which [`measure`] has seen all that is inside.
#[derive(Clone, Copy)]
struct Measure {
    depth: u32,
    /// Values, itself included.
    values: u64,
}

impl Pickle<'_> {
    /// Whether it is made of plain values within these bounds. That holds for whatever
    /// is in the stream, used or not.
    pub fn is_plain(&self, limits: &PlainLimits) -> bool {
        let is_plain = |id| {
            !matches!(
                self.get(id),
                Object::Global(_) | Object::Call(_) | Object::Persistent(_)
            )
        };
        self.effort.opcodes <= limits.values
            && self.effort.copies == 0
            && self.effort.marks <= limits.depth as usize
            && self.imports().is_empty()
            && self.ids().all(is_plain)
            && measure(self, limits)
    }
}

/// Whether no object of the pickle reaches beyond the limits, or into itself.
fn measure(pickle: &Pickle, limits: &PlainLimits) -> bool {
    let mut measured: Vec<Option<Measure>> = vec![None; pickle.ids().count()];
    let mut entered = vec![false; measured.len()];
    let mut pending = Vec::new();
    let mut inside = Vec::new();
    for start in pickle.ids() {
        pending.push(start);
        while let Some(&id) = pending.last() {
            if measured[id.index()].is_some() {
                pending.pop();
                continue;
            }
            inside.clear();
            pickle.get(id).push_children(&mut inside);
            if !entered[id.index()] {
                entered[id.index()] = true;
                let unknown = |id: &ObjectId| measured[id.index()].is_none();
                inside.retain(unknown);
                // What was entered and not left again contains this.
                if inside.iter().any(|id| entered[id.index()]) {
                    return false;
                }
                pending.append(&mut inside);
                continue;
            }
            let mut whole = Measure {
                depth: 1,
                values: 1,
            };
            for part in inside.iter().filter_map(|id| measured[id.index()]) {
                whole.depth = whole.depth.max(part.depth.saturating_add(1));
                whole.values = whole.values.saturating_add(part.values);
            }
            if whole.depth > limits.depth || whole.values > limits.values {
                return false;
            }
            measured[id.index()] = Some(whole);
            pending.pop();
        }
    }
    true
}
