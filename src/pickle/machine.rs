//! The stack machine: its arena, stack and memo; it makes objects and calls
//! nothing.

mod execute;

use std::collections::{HashMap, HashSet};
use std::mem;
use std::sync::Arc;

use super::error::{Error, ErrorKind, ParseError, Stop};
use super::input::Input;
use super::limits::Limits;
use super::memo::Memo;
use super::object::{ByteRange, Call, CallKind, Global, Import, Object, ObjectId, Payload, Str};
use super::objects::Objects;
use super::opcode::{Argument, Opcode};
use super::operands::Operands;
use super::parsed::{Effort, Pickle, Step};
use super::text;

type Result<T> = std::result::Result<T, ErrorKind>;

/// What [`Limits::name`] bounds.
const NAME_BYTES: &str = "bytes in the module or name of an import";

pub(super) struct Machine<'a, 'l> {
    operands: Operands<'a>,
    limits: &'l Limits<'l>,
    /// Payloads longer than this are left apart.
    apart: u64,
    objects: Objects<'a>,
    /// Bytes that the objects hold outside of the arena.
    heap: usize,
    /// Bytes of memory that were taken from the share.
    taken: u64,
    constants: Constants,
    stack: Vec<ObjectId>,
    /// Heights of the stack at each MARK, lowest first.
    marks: Vec<usize>,
    memo: Memo,
    /// Module, then name, to the object that stands for the pair.
    globals: HashMap<Arc<str>, HashMap<Arc<str>, ObjectId>>,
    imports: Vec<Import>,
    calls: u64,
    /// Results of calls that were taken off the stack.
    discarded: Vec<ObjectId>,
    /// Tuples that hold, at any depth, what Python cannot hash.
    unhashable_tuples: HashSet<ObjectId>,
    effort: Effort,
    /// Byte offset of the opcode in execution.
    offset: u64,
    /// The opcode in execution, if it is one.
    opcode: Option<Opcode>,
}

/// Objects there is one of, made on first use.
#[derive(Default)]
struct Constants {
    none: Option<ObjectId>,
    r#false: Option<ObjectId>,
    r#true: Option<ObjectId>,
    empty_tuple: Option<ObjectId>,
    /// The integers of one byte, by value; empty or 256 of them.
    small: Vec<Option<ObjectId>>,
}

impl<'a, 'l> Machine<'a, 'l> {
    /// At byte `offset` of the input.
    pub(super) fn new<I: Input<'a>>(
        input: &I,
        offset: u64,
        limits: &'l Limits<'l>,
    ) -> Machine<'a, 'l> {
        Machine {
            operands: Operands::new(offset, input.end()),
            limits,
            apart: input.apart(limits),
            objects: Objects::default(),
            heap: 0,
            taken: 0,
            constants: Constants::default(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: Memo::default(),
            globals: HashMap::new(),
            imports: Vec::new(),
            calls: 0,
            discarded: Vec::new(),
            unhashable_tuples: HashSet::new(),
            effort: Effort::default(),
            offset,
            opcode: None,
        }
    }

    /// Executes opcodes up to the next BUILD, or to STOP.
    pub(super) fn resume<I: Input<'a>>(
        &mut self,
        input: &I,
    ) -> std::result::Result<Step<'a>, ParseError<I::Error>> {
        self.run(input).map_err(|stop| self.failure(stop))
    }

    /// What stopped the machine, with the place.
    pub(super) fn failure<E>(&mut self, stop: Stop<E>) -> ParseError<E> {
        match stop {
            Stop::Read(error) => ParseError::Read(error),
            Stop::Kind(kind) => ParseError::Pickle(Error {
                offset: self.offset,
                opcode: self.opcode.map(Opcode::name),
                kind,
                imports: mem::take(&mut self.imports),
                calls: self.calls,
            }),
        }
    }

    fn run<I: Input<'a>>(&mut self, input: &I) -> std::result::Result<Step<'a>, Stop<I::Error>> {
        loop {
            self.opcode = None;
            self.offset = self.operands.position();
            self.operands
                .hold(input, 1 + Argument::FIXED, self.limits)?;
            let byte = self.operands.opcode()?;
            let opcode = Opcode::from_byte(byte).ok_or(ErrorKind::UnknownOpcode(byte))?;
            self.opcode = Some(opcode);
            self.effort.opcodes += 1;
            if self.effort.opcodes > self.limits.opcodes {
                return Err(limit("opcodes", self.limits.opcodes).into());
            }
            if opcode == Opcode::Stop {
                // Where a frame goes on after STOP, readers do not agree on
                // where the next pickle begins.
                self.operands.end_frame()?;
                let root = self.pop()?;
                self.discard(0);
                return Ok(Step::Done(Pickle {
                    root,
                    objects: mem::take(&mut self.objects),
                    imports: mem::take(&mut self.imports),
                    calls: self.calls,
                    discarded: mem::take(&mut self.discarded),
                    effort: self.effort,
                    end: self.operands.position(),
                }));
            }
            self.hold_argument(input, opcode)?;
            self.execute(opcode)?;
            self.check_memory()?;
            if opcode == Opcode::Build {
                return Ok(Step::Built(self.top()?));
            }
        }
    }

    /// Reads on until the argument of `opcode` is held, as far as there is one.
    fn hold_argument<I: Input<'a>>(
        &mut self,
        input: &I,
        opcode: Opcode,
    ) -> std::result::Result<(), Stop<I::Error>> {
        if self.operands.holds_all() {
            return Ok(());
        }
        let lines = |count: usize, length: usize| (count, length.saturating_add(1) as u64);
        let (count, length) = match opcode.argument() {
            Argument::Fixed => return Ok(()),
            Argument::Payload(width) => return self.hold_counted(input, width, self.apart),
            Argument::Integer(width) => {
                return self.hold_counted(input, width, self.limits.long_bytes as u64);
            }
            Argument::Number => lines(1, self.limits.number_line),
            Argument::Names => lines(2, self.limits.name),
            Argument::Text => lines(1, usize::MAX),
        };
        let longest = length.saturating_mul(count as u64);
        loop {
            let held = self.operands.held();
            let newlines = held.iter().filter(|&&byte| byte == b'\n');
            if newlines.take(count).count() == count
                || held.len() as u64 >= longest
                || self.operands.holds_all()
            {
                return Ok(());
            }
            let more = (held.len() as u64 + 1).saturating_mul(2).min(longest);
            self.operands.hold(input, more, self.limits)?;
        }
    }

    /// Holds a length of `width` bytes and, unless it is above `longest`, as
    /// many bytes after it.
    fn hold_counted<I: Input<'a>>(
        &mut self,
        input: &I,
        width: usize,
        longest: u64,
    ) -> std::result::Result<(), Stop<I::Error>> {
        let mut length = [0; 8];
        for (to, from) in length[..width].iter_mut().zip(self.operands.held()) {
            *to = *from;
        }
        let length = u64::from_le_bytes(length);
        if length > longest {
            return Ok(());
        }
        let argument = length.saturating_add(width as u64);
        self.operands.hold(input, argument, self.limits)
    }

    fn check_memory(&mut self) -> Result<()> {
        let memory = self.heap
            + self.objects.memory()
            + self.memo.memory()
            + self.discarded.capacity() * size_of::<ObjectId>()
            + self.stack.capacity() * size_of::<ObjectId>()
            + self.marks.capacity() * size_of::<usize>()
            + self.unhashable_tuples.capacity() * (size_of::<ObjectId>() + 1);
        let most = self.limits.memory_after(self.operands.taken());
        let memory = memory as u64;
        if memory > most {
            return Err(limit("bytes of memory", most));
        }
        if memory > self.taken {
            self.limits.take(memory - self.taken)?;
            self.taken = memory;
        }
        Ok(())
    }
}

/// What the machine shows between two steps, and what it is told there.
impl<'a> Machine<'a, '_> {
    pub(super) fn position(&self) -> u64 {
        self.operands.position()
    }

    pub(super) fn objects(&self) -> &Objects<'a> {
        &self.objects
    }

    pub(super) fn imports(&self) -> &[Import] {
        &self.imports
    }

    pub(super) fn peek<I: Input<'a>>(
        &mut self,
        input: &I,
    ) -> std::result::Result<Option<u8>, Stop<I::Error>> {
        self.operands.hold(input, 1, self.limits)?;
        Ok(self.operands.held().first().copied())
    }

    pub(super) fn claim(&mut self, built: ObjectId, gap: u64, len: u64) -> Result<ByteRange> {
        if self.objects.raw(built).is_some() {
            return Err(ErrorKind::RawTwice);
        }
        let span = self.operands.raw(gap, len)?;
        self.objects.set_raw(built, span);
        Ok(span)
    }
}

/// The arena, the stack and the memo.
impl<'a> Machine<'a, '_> {
    fn object(&self, id: ObjectId) -> &Object<'a> {
        self.objects.get(id)
    }

    fn new_object(&mut self, object: Object<'a>) -> Result<ObjectId> {
        self.heap += object.heap();
        let most = u64::from(u32::MAX) - 1;
        self.objects.push(object).ok_or(limit("objects", most))
    }

    fn push(&mut self, object: ObjectId) -> Result<()> {
        self.stack.push(object);
        Ok(())
    }

    fn push_new(&mut self, object: Object<'a>) -> Result<()> {
        let id = self.new_object(object)?;
        self.push(id)
    }

    fn push_constant(
        &mut self,
        slot: fn(&mut Constants) -> &mut Option<ObjectId>,
        object: Object<'a>,
    ) -> Result<()> {
        let id = match *slot(&mut self.constants) {
            Some(id) => id,
            None => {
                let id = self.new_object(object)?;
                *slot(&mut self.constants) = Some(id);
                id
            }
        };
        self.push(id)
    }

    /// The value of an integer of one byte. As in CPython, there is one object
    /// for each.
    fn push_small(&mut self, value: u8) -> Result<()> {
        self.constants.small.resize(256, None);
        let known = self.constants.small[usize::from(value)];
        let id = match known {
            Some(id) => id,
            None => {
                let id = self.new_object(Object::Int(value.into()))?;
                self.constants.small[usize::from(value)] = Some(id);
                id
            }
        };
        self.push(id)
    }

    fn push_bool(&mut self, value: bool) -> Result<()> {
        let slot: fn(&mut Constants) -> &mut Option<ObjectId> = if value {
            |constants| &mut constants.r#true
        } else {
            |constants| &mut constants.r#false
        };
        self.push_constant(slot, Object::Bool(value))
    }

    fn push_empty_tuple(&mut self) -> Result<()> {
        self.push_constant(
            |constants| &mut constants.empty_tuple,
            Object::Tuple(Box::default()),
        )
    }

    /// What stands above the topmost mark.
    fn above_mark(&self) -> &[ObjectId] {
        let mark = self.marks.last().copied().unwrap_or(0);
        &self.stack[mark..]
    }

    fn top(&self) -> Result<ObjectId> {
        self.above_mark()
            .last()
            .copied()
            .ok_or(ErrorKind::StackUnderflow)
    }

    fn pop(&mut self) -> Result<ObjectId> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    /// Takes objects off the stack for good. What they did when they were made stays done.
    fn discard(&mut self, height: usize) {
        let objects = &self.objects;
        let gone = self.stack.drain(height..);
        let held = gone.filter(|id| match objects.get(*id) {
            Object::Call(_) => true,
            Object::Tuple(items) | Object::FrozenSet(items) => !items.is_empty(),
            Object::List(items) | Object::Set(items) => !items.is_empty(),
            Object::Dict(items) => !items.is_empty(),
            _ => false,
        });
        self.discarded.extend(held);
    }

    fn pop_to_mark(&mut self) -> Result<Vec<ObjectId>> {
        let mark = self.marks.pop().ok_or(ErrorKind::NoMark)?;
        Ok(self.stack.drain(mark..).collect())
    }

    /// Keys and values in turn.
    fn pop_items_to_mark(&mut self) -> Result<Vec<(ObjectId, ObjectId)>> {
        let flat = self.pop_to_mark()?;
        match flat.as_chunks::<2>() {
            (pairs, []) => Ok(pairs.iter().map(|&[key, value]| (key, value)).collect()),
            _ => Err(ErrorKind::OddItems),
        }
    }

    fn get(&mut self, index: u64) -> Result<()> {
        let object = self.memo.get(index).ok_or(ErrorKind::NotInMemo(index))?;
        self.push(object)
    }

    fn put(&mut self, index: u64) -> Result<()> {
        let object = self.top()?;
        self.memo.put(index, object);
        Ok(())
    }
}

/// Containers.
impl<'a> Machine<'a, '_> {
    fn new_tuple(&mut self, items: Vec<ObjectId>) -> Result<ObjectId> {
        let hashable = items.iter().all(|&item| self.check_hashable(item).is_ok());
        let id = self.new_object(Object::Tuple(items.into()))?;
        if !hashable {
            self.unhashable_tuples.insert(id);
        }
        Ok(id)
    }

    /// Makes a tuple of the topmost `length` objects.
    fn tuple(&mut self, length: usize) -> Result<()> {
        let height = self.above_mark().len();
        let start = height
            .checked_sub(length)
            .ok_or(ErrorKind::StackUnderflow)?;
        let items = self.above_mark()[start..].to_vec();
        self.stack.truncate(self.stack.len() - length);
        let tuple = self.new_tuple(items)?;
        self.push(tuple)
    }

    /// Fails for what Python fails to hash. What a call makes is assumed to
    /// be hashable, since only the call could tell.
    fn check_hashable(&self, id: ObjectId) -> Result<()> {
        let object = self.object(id);
        let unhashable = match object {
            Object::List(_) | Object::Dict(_) | Object::Set(_) | Object::ByteArray(_) => true,
            Object::Tuple(_) => self.unhashable_tuples.contains(&id),
            _ => false,
        };
        if unhashable {
            return Err(ErrorKind::Unhashable(object.type_name()));
        }
        Ok(())
    }

    fn check_members(&self, members: &[ObjectId]) -> Result<()> {
        members.iter().try_for_each(|&id| self.check_hashable(id))
    }

    fn check_keys(&self, items: &[(ObjectId, ObjectId)]) -> Result<()> {
        items
            .iter()
            .try_for_each(|&(key, _)| self.check_hashable(key))
    }

    /// The object on top of the stack, to be changed in place.
    fn target(&mut self) -> Result<&mut Object<'a>> {
        let top = self.top()?;
        Ok(self.objects.get_mut(top))
    }

    fn append(&mut self, items: &[ObjectId]) -> Result<()> {
        let list = match self.target()? {
            Object::List(list) => list,
            Object::Call(call) => &mut call.appended,
            other => return Err(wrong_type("a list", other)),
        };
        self.heap += extend(list, items);
        Ok(())
    }

    fn add(&mut self, members: &[ObjectId]) -> Result<()> {
        if let Object::Set(_) = self.target()? {
            self.check_members(members)?;
        }
        let set = match self.target()? {
            Object::Set(set) => set,
            Object::Call(call) => &mut call.appended,
            other => return Err(wrong_type("a set", other)),
        };
        self.heap += extend(set, members);
        Ok(())
    }

    fn set_items(&mut self, items: &[(ObjectId, ObjectId)]) -> Result<()> {
        if let Object::Dict(_) = self.target()? {
            self.check_keys(items)?;
        }
        let dict = match self.target()? {
            Object::Dict(dict) => dict,
            Object::Call(call) => &mut call.items,
            other => return Err(wrong_type("a dict", other)),
        };
        self.heap += extend(dict, items);
        Ok(())
    }

    fn build(&mut self) -> Result<()> {
        let state = self.pop()?;
        let states = match self.target()? {
            Object::Call(call) => &mut call.state,
            other => return Err(wrong_type("the result of a call", other)),
        };
        self.heap += extend(states, &[state]);
        Ok(())
    }
}

/// Appends `items` and says by how many bytes the memory of `list` grew.
fn extend<T: Copy>(list: &mut Vec<T>, items: &[T]) -> usize {
    let before = list.capacity();
    list.extend_from_slice(items);
    (list.capacity() - before) * size_of::<T>()
}

/// Names and calls.
impl Machine<'_, '_> {
    fn global_line(&mut self, module: &str, name: &str) -> Result<ObjectId> {
        if module.is_empty() || name.is_empty() {
            return Err(ErrorKind::EmptyName);
        }
        self.global(module, name)
    }

    fn stack_global(&mut self) -> Result<()> {
        let name = self.pop()?;
        let module = self.pop()?;
        let module: Arc<str> = self.global_operand(module)?.into();
        let name: Arc<str> = self.global_operand(name)?.into();
        let global = self.global(&module, &name)?;
        self.push(global)
    }

    /// A Python-2 string is decoded to a `str` before it gets here in CPython,
    /// so it names a module as well as any other.
    fn global_operand(&self, id: ObjectId) -> Result<&str> {
        let text = match self.object(id) {
            Object::Str(Str::Apart(_)) | Object::String8(Payload::Apart(_)) => {
                return Err(limit(NAME_BYTES, self.apart));
            }
            Object::Str(text) => text.as_str().ok_or(ErrorKind::NotUtf8)?,
            Object::String8(Payload::Here(bytes)) => text::utf8(bytes)?,
            other => return Err(wrong_type("a str", other)),
        };
        if text.len() > self.limits.name {
            return Err(limit(NAME_BYTES, self.limits.name as u64));
        }
        Ok(text)
    }

    /// The object that stands for the pair; the first one is an import.
    fn global(&mut self, module: &str, name: &str) -> Result<ObjectId> {
        let known = self.globals.get(module).and_then(|names| names.get(name));
        if let Some(&id) = known {
            return Ok(id);
        }
        if self.imports.len() >= self.limits.imports {
            return Err(limit("distinct imports", self.limits.imports as u64));
        }
        let module = match self.globals.get_key_value(module) {
            Some((module, _)) => Arc::clone(module),
            None => Arc::from(module),
        };
        let name: Arc<str> = Arc::from(name);
        self.imports.push(Import {
            offset: self.offset,
            module: Arc::clone(&module),
            name: Arc::clone(&name),
        });
        let id = self.new_object(Object::Global(Box::new(Global {
            module: Arc::clone(&module),
            name: Arc::clone(&name),
        })))?;
        self.globals.entry(module).or_default().insert(name, id);
        Ok(id)
    }

    fn call(
        &mut self,
        kind: CallKind,
        callable: ObjectId,
        args: ObjectId,
        kwargs: Option<ObjectId>,
    ) -> Result<()> {
        match self.object(callable) {
            Object::Global(_) | Object::Call(_) | Object::Persistent(_) => {}
            other => return Err(wrong_type("something to call", other)),
        }
        match self.object(args) {
            Object::Tuple(_) => {}
            other => return Err(wrong_type("a tuple of arguments", other)),
        }
        match kwargs.map(|kwargs| self.object(kwargs)) {
            None | Some(Object::Dict(_)) => {}
            Some(other) => return Err(wrong_type("a dict of arguments", other)),
        }
        self.calls += 1;
        self.push_new(Object::Call(Box::new(Call {
            kind,
            callable,
            args,
            kwargs,
            state: Vec::new(),
            appended: Vec::new(),
            items: Vec::new(),
        })))
    }
}

fn limit(what: &'static str, limit: u64) -> ErrorKind {
    ErrorKind::Limit { what, limit }
}

fn wrong_type(expected: &'static str, found: &Object<'_>) -> ErrorKind {
    ErrorKind::Type {
        expected,
        found: found.type_name(),
    }
}
