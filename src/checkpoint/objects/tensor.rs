//! Tensors, unwrapped from what stands around them: parameters, subclasses,
//! device tensors.

use super::map::{Entries, Kind, Label, Map};
use super::meaning::Meaning;
use super::rebuild::ReadAs;
use super::torch::{Storages, Torch};
use super::wrapper::{WRAPPER_SUBCLASS, Wrapper, wrapper};
use crate::checkpoint::dtype::ElementType;
use crate::checkpoint::layout::Layout;
use crate::checkpoint::refusal::{Cause, Refusal, malformed, shown, unsupported};
use crate::pickle::{Call, CallKind, Object, ObjectId, PersistentId};

/// How many wrappers may stand around one tensor: a parameter of a subclass of
/// a device tensor is three.
pub(super) const MAX_WRAPPERS: usize = 16;

/// What the gradient of a tensor is called among its attributes.
pub const GRADIENT: &str = "grad";

impl<'p, S: Storages> Torch<'p, S> {
    /// The tensor that `call` makes, if it makes one.
    pub(super) fn tensor(&mut self, call: &'p Call) -> Result<Meaning<'p>, Refusal> {
        let pickle = self.pickle;
        let mut call = call;
        let mut callable = call.callable;
        let mut args = call.args;
        // The types that device tensors around this one say it has.
        let mut promised = Vec::new();
        let mut attributes = Entries::new();
        for _ in 0..MAX_WRAPPERS {
            let Some((module, name)) = pickle.global(callable) else {
                return Ok(Meaning::Other);
            };
            let wrapper = wrapper(module, name);
            let arguments = pickle.as_tuple(args).unwrap_or_default();
            let state = match wrapper {
                Wrapper::None => return Ok(Meaning::Other),
                Wrapper::Unsupported(what) => return Err(unsupported(what)),
                _ => self.state(call, &wrapper)?,
            };
            let too_few = || malformed(format!("`{name}` has too few or too many arguments"));
            let inner = match wrapper {
                Wrapper::None | Wrapper::Unsupported(_) => None,
                Wrapper::Quantized => return self.quantized(arguments),
                Wrapper::Sparse => return self.sparse(arguments),
                Wrapper::Rebuild(counts) => {
                    if !counts.contains(&arguments.len()) {
                        return Err(too_few());
                    }
                    let layout = self.rebuild(arguments, ReadAs::Dense)?;
                    keep_promise(&layout, &promised)?;
                    return Ok(Meaning::Tensor(layout, attributes));
                }
                Wrapper::RebuildTyped => {
                    if !matches!(arguments.len(), 7 | 8) {
                        return Err(too_few());
                    }
                    let layout = self.rebuild_typed(arguments)?;
                    keep_promise(&layout, &promised)?;
                    return Ok(Meaning::Tensor(layout, attributes));
                }
                Wrapper::TensorClass => {
                    let ([], Some(state @ [storage, _, _, _])) = (arguments, state) else {
                        return Err(unsupported(format!("a `{module}.{name}` of unknown form")));
                    };
                    let element = self.storage(*storage)?.element;
                    if element_of_tensor_class(name) != Some(element) {
                        return Err(malformed(format!(
                            "a `{module}.{name}` with a storage of another type"
                        )));
                    }
                    let layout = self.rebuild(state, ReadAs::Dense)?;
                    keep_promise(&layout, &promised)?;
                    return Ok(Meaning::Tensor(layout, attributes));
                }
                Wrapper::FromType => {
                    let [function, class, function_args, state] = arguments else {
                        return Err(too_few());
                    };
                    if pickle.global(*function) == Some(WRAPPER_SUBCLASS) {
                        return self.subclass(*class, *state);
                    }
                    attributes.extend(self.attributes(&[*state]));
                    callable = *function;
                    args = *function_args;
                    continue;
                }
                Wrapper::Parameter => match arguments {
                    [data, _grad, _hooks] => Some(data),
                    _ => return Err(too_few()),
                },
                Wrapper::ParameterWithState => match arguments {
                    [data, _grad, _hooks, state] => {
                        attributes.extend(self.attributes(&[*state]));
                        Some(data)
                    }
                    _ => return Err(too_few()),
                },
                // torch 0.1 gave the tensor with the state: data, gradient,
                // hooks, requires_grad, volatile. Later it is the argument, and
                // the state is requires_grad, volatile, hooks.
                Wrapper::ParameterClass => match (arguments, state) {
                    ([], Some([data, grad, _, _, _])) => {
                        attributes.push((Label::Name(GRADIENT), *grad));
                        Some(data)
                    }
                    ([data] | [data, _], None | Some([_, _, _])) => Some(data),
                    _ => return Err(unsupported(format!("a `{module}.{name}` of unknown form"))),
                },
                Wrapper::FromCpu => match arguments {
                    [data, dtype, _device, _grad] => {
                        promised.push(self.dtype(*dtype));
                        Some(data)
                    }
                    _ => return Err(too_few()),
                },
                Wrapper::FromNumpy => {
                    let [array, dtype, _device, _grad] = arguments else {
                        return Err(too_few());
                    };
                    let layout = self.array_layout(*array)?;
                    let layout =
                        layout.ok_or_else(|| malformed(format!("`{name}` wraps no array")))?;
                    promised.push(self.dtype(*dtype));
                    keep_promise(&layout, &promised)?;
                    return Ok(Meaning::Tensor(layout, attributes));
                }
            };
            let inner = match inner.map(|inner| pickle.get(*inner)) {
                Some(Object::Call(inner)) => inner,
                Some(Object::Persistent(id)) => {
                    if let Some(layout) = self.persistent_tensor(id)? {
                        keep_promise(&layout, &promised)?;
                        return Ok(Meaning::Tensor(layout, attributes));
                    }
                    return Err(malformed(format!("`{name}` wraps no tensor")));
                }
                _ => return Err(malformed(format!("`{name}` wraps no tensor"))),
            };
            call = inner;
            callable = inner.callable;
            args = inner.args;
        }
        Err(Refusal::new(
            Cause::TooLarge,
            "it is wrapped too many times",
        ))
    }

    /// The tensor that a persistent id names by itself.
    pub(super) fn persistent_tensor(
        &mut self,
        id: &PersistentId,
    ) -> Result<Option<Layout>, Refusal> {
        let number = match id {
            PersistentId::Text(text) => text.parse().ok(),
            // A number, or its decimal digits.
            PersistentId::Object(id) if self.text_len(*id) < 20 => {
                let text = self.pickle.as_str(*id);
                self.pickle.as_int(*id).or_else(|| text?.parse().ok())
            }
            PersistentId::Object(_) => None,
        };
        match number {
            Some(number) => self.storages.tensor(&mut self.table, number),
            None => Ok(None),
        }
    }

    /// A tensor of the class `class` that is only a shell around the tensors among its
    /// attributes.
    fn subclass(&self, class: ObjectId, state: ObjectId) -> Result<Meaning<'p>, Refusal> {
        if let Some((module, name)) = self.pickle.global(class)
            && module.starts_with("torch.distributed.")
        {
            return Err(Refusal::new(
                Cause::Part,
                format!("it is one rank's part of a {}, not the whole", shown(name)),
            ));
        }
        let attributes = self.attributes(&[state]);
        Ok(Meaning::Map(Map::of(Kind::Object, attributes)))
    }

    /// The state that `call` is given after it was made, where its kind of tensor
    /// has one. torch takes such a state for other data on any tensor, so it is
    /// never left out.
    fn state(&self, call: &'p Call, wrapper: &Wrapper) -> Result<Option<&'p [ObjectId]>, Refusal> {
        let class = matches!(wrapper, Wrapper::TensorClass | Wrapper::ParameterClass);
        let made = match call.kind {
            CallKind::NewObjEx => false,
            CallKind::NewObj => class,
            CallKind::Reduce | CallKind::Inst | CallKind::Obj => true,
        };
        if made && call.appended.is_empty() && call.items.is_empty() {
            match &*call.state {
                [] => return Ok(None),
                [state] if class => {
                    if let Some(state) = self.pickle.as_tuple(*state) {
                        return Ok(Some(state));
                    }
                }
                _ => {}
            }
        }
        Err(unsupported(
            "it is changed after it was made, in a way that is not read",
        ))
    }
}

/// The type of a tensor moved from a device must be the one its data has.
fn keep_promise(layout: &Layout, promised: &[Option<ElementType>]) -> Result<(), Refusal> {
    match promised
        .iter()
        .all(|dtype| *dtype == Some(ElementType::Plain(layout.dtype)))
    {
        true => Ok(()),
        false => Err(unsupported(
            "a device tensor whose type differs from its data's",
        )),
    }
}

/// The elements of `FloatTensor` are those of `FloatStorage`; `Tensor` is torch's
/// default.
fn element_of_tensor_class(name: &str) -> Option<ElementType> {
    match name.strip_suffix("Tensor")? {
        "" => ElementType::of_storage_class("FloatStorage"),
        "Untyped" | "_Untyped" => None,
        kind => ElementType::of_storage_class(&format!("{kind}Storage")),
    }
}
