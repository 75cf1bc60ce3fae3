//! Weights that DeepSpeed ZeRO-3 spread over the ranks: what each of its files has of
//! them is never whole (deepspeed/utils/zero_to_fp32.py).

use std::collections::HashMap;

use super::Walk;
use crate::checkpoint::objects::{Storages, Torch};
use crate::checkpoint::refusal::{Cause, Refusal};
use crate::checkpoint::weights::Picked;
use crate::pickle::{Object, ObjectId};

impl<'p, S: Storages> Walk<'_, 'p, S> {
    /// Refuses what DeepSpeed leaves of weights that are spread over the ranks: empty
    /// tensors, beside the shapes that they should have.
    pub(super) fn refuse_placeholders(
        &mut self,
        top: ObjectId,
        picked: &Picked<ObjectId>,
    ) -> Result<(), Refusal> {
        let pickle = self.torch.pickle();
        let find = |torch: &Torch<'p, S>, id: ObjectId, name: &str| {
            let mut entries = torch.items(id).iter().rev();
            entries.find_map(|(key, value)| (pickle.as_str(*key) == Some(name)).then_some(*value))
        };
        let spread = Refusal::new(
            Cause::Part,
            "the weights of a model that DeepSpeed ZeRO-3 spread over the ranks lie here in part; its \
             zero_to_fp32.py puts those of all ranks together",
        );
        let state = find(self.torch, top, "optimizer_state_dict");
        if state.is_some_and(|state| find(self.torch, state, "fp32_flat_groups").is_some()) {
            return Err(spread);
        }
        // Each rank has its own part of these.
        let fragments = find(self.torch, top, "frozen_param_fragments");
        let mut expected: HashMap<&str, ObjectId> = HashMap::new();
        for key in ["param_shapes", "frozen_param_shapes"] {
            let Some(shapes) = find(self.torch, top, key) else {
                continue;
            };
            let groups: &[ObjectId] = match pickle.get(shapes) {
                Object::List(groups) => groups,
                _ => &[shapes],
            };
            for group in groups {
                let named = self.torch.items(*group);
                self.pay(1 + named.len())?;
                let named = named.iter();
                expected.extend(
                    named.filter_map(|(name, shape)| Some((pickle.as_str(*name)?, *shape))),
                );
            }
        }
        if expected.is_empty() {
            return Ok(());
        }
        let module = find(self.torch, top, "module").unwrap_or(picked.value);
        let tensors = self.torch.items(module);
        self.pay(tensors.len())?;
        for (name, tensor) in tensors {
            let Some(shape) = pickle.as_str(*name).and_then(|name| expected.get(name)) else {
                continue;
            };
            let elements: u64 = self.torch.dimensions(*shape, "sizes")?.iter().product();
            let is_placeholder = elements > 0 && self.torch.tensor_len(*tensor) == Some(0);
            if is_placeholder {
                return Err(Refusal::new(
                    Cause::Part,
                    "DeepSpeed ZeRO-3 left empty placeholders of its weights here: the weights lie in \
                     parts in the `*_optim_states.pt` of all ranks, which its zero_to_fp32.py puts \
                     together",
                ));
            }
        }
        match fragments.is_some_and(|fragments| !self.torch.items(fragments).is_empty()) {
            true => Err(spread),
            false => Ok(()),
        }
    }
}
