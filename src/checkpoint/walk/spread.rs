//! Weights that DeepSpeed ZeRO-3 spread over the ranks: what each of its files has of
//! them is never whole (deepspeed/utils/zero_to_fp32.py).

use super::Walk;
use crate::checkpoint::objects::{Meaning, Storages, Torch};
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
        let Some(shapes) = find(self.torch, top, "param_shapes") else {
            return Ok(());
        };
        let groups: &[ObjectId] = match pickle.get(shapes) {
            Object::List(groups) => groups,
            _ => &[shapes],
        };
        self.pay(groups.len())?;
        let mut groups = groups.iter();
        let Some((name, shape)) = groups.find_map(|group| self.torch.items(*group).first()) else {
            return Ok(());
        };
        let name = pickle.as_str(*name).unwrap_or_default();
        let Some(placeholder) = find(self.torch, picked.value, name) else {
            return Ok(());
        };
        let elements: u64 = self.torch.dimensions(*shape, "sizes")?.iter().product();
        let is_empty = match self.torch.meaning(placeholder)? {
            Meaning::Tensor(layout, _) => layout.shape.contains(&0),
            _ => false,
        };
        match is_empty && elements > 0 {
            false => Ok(()),
            true => Err(Refusal::new(
                Cause::Part,
                "DeepSpeed ZeRO-3 left empty placeholders of its weights here: the weights lie in \
                 parts in the `*_optim_states.pt` of all ranks, which its zero_to_fp32.py puts \
                 together",
            )),
        }
    }
}
