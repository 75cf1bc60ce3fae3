//! The stack machine: its arena, stack and memo; it makes objects and calls
//! nothing.

mod execute;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::Pickle;
use super::error::{Error, ErrorKind};
use super::limits::Limits;
use super::memo::Memo;
use super::object::{Call, CallKind, Import, Object, ObjectId};
use super::opcode::Opcode;
use super::reader::Reader;
use super::text;

type Result<T> = std::result::Result<T, ErrorKind>;

pub(super) struct Machine<'a, 'l> {
    reader: Reader<'a>,
    limits: &'l Limits,
    objects: Vec<Object<'a>>,
    constants: Constants,
    stack: Vec<ObjectId>,
    /// Heights of the stack at each MARK, lowest first.
    marks: Vec<usize>,
    memo: Memo,
    /// Module, then name, to the object that stands for the pair.
    globals: HashMap<Arc<str>, HashMap<Arc<str>, ObjectId>>,
    imports: Vec<Import>,
    calls: u64,
    /// Tuples that hold, at any depth, what Python cannot hash.
    unhashable_tuples: HashSet<ObjectId>,
    /// Byte offset of the opcode in execution.
    offset: usize,
}

/// Objects there is one of, made on first use.
#[derive(Default)]
struct Constants {
    none: Option<ObjectId>,
    r#false: Option<ObjectId>,
    r#true: Option<ObjectId>,
    empty_tuple: Option<ObjectId>,
}

impl<'a, 'l> Machine<'a, 'l> {
    pub(super) fn new(input: &'a [u8], limits: &'l Limits) -> Machine<'a, 'l> {
        Machine {
            reader: Reader::new(input),
            limits,
            objects: Vec::new(),
            constants: Constants::default(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: Memo::default(),
            globals: HashMap::new(),
            imports: Vec::new(),
            calls: 0,
            unhashable_tuples: HashSet::new(),
            offset: 0,
        }
    }

    /// Executes opcodes up to STOP.
    pub(super) fn run(mut self) -> std::result::Result<Pickle<'a>, Error> {
        let mut opcode = None;
        match self.run_to_stop(&mut opcode) {
            Ok(root) => Ok(Pickle {
                objects: self.objects,
                root,
                imports: self.imports,
                calls: self.calls,
                end: self.reader.position(),
            }),
            Err(kind) => Err(Error {
                offset: self.offset,
                opcode: opcode.map(Opcode::name),
                kind,
                imports: self.imports,
                calls: self.calls,
            }),
        }
    }

    /// Leaves the opcode that failed, if it is one, in `current`.
    fn run_to_stop(&mut self, current: &mut Option<Opcode>) -> Result<ObjectId> {
        let mut executed = 0;
        loop {
            *current = None;
            self.offset = self.reader.position();
            let byte = self.reader.opcode()?;
            let opcode = Opcode::from_byte(byte).ok_or(ErrorKind::UnknownOpcode(byte))?;
            *current = Some(opcode);
            executed += 1;
            if executed > self.limits.opcodes {
                return Err(limit("opcodes", self.limits.opcodes));
            }
            if opcode == Opcode::Stop {
                // Where a frame goes on after STOP, readers do not agree on
                // where the next pickle begins.
                self.reader.end_frame()?;
                return self.pop();
            }
            self.execute(opcode)?;
        }
    }
}

/// The arena, the stack and the memo.
impl<'a> Machine<'a, '_> {
    fn object(&self, id: ObjectId) -> &Object<'a> {
        &self.objects[id.index()]
    }

    fn new_object(&mut self, object: Object<'a>) -> Result<ObjectId> {
        let index = self.objects.len();
        match ObjectId::from_index(index) {
            Some(id) if index < self.limits.objects => {
                self.objects.push(object);
                Ok(id)
            }
            _ => Err(limit("objects", self.limits.objects as u64)),
        }
    }

    fn push(&mut self, object: ObjectId) -> Result<()> {
        if self.stack.len() >= self.limits.stack {
            return Err(limit("objects on the stack", self.limits.stack as u64));
        }
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
        if self.memo.len() >= self.limits.memo {
            return Err(limit("memo entries", self.limits.memo as u64));
        }
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
        Ok(&mut self.objects[top.index()])
    }

    fn append(&mut self, items: &[ObjectId]) -> Result<()> {
        match self.target()? {
            Object::List(list) => list.extend_from_slice(items),
            Object::Call(call) => call.appended.extend_from_slice(items),
            other => return Err(wrong_type("a list", other)),
        }
        Ok(())
    }

    fn add(&mut self, members: &[ObjectId]) -> Result<()> {
        if let Object::Set(_) = self.target()? {
            self.check_members(members)?;
        }
        match self.target()? {
            Object::Set(set) => set.extend_from_slice(members),
            Object::Call(call) => call.appended.extend_from_slice(members),
            other => return Err(wrong_type("a set", other)),
        }
        Ok(())
    }

    fn set_items(&mut self, items: &[(ObjectId, ObjectId)]) -> Result<()> {
        if let Object::Dict(_) = self.target()? {
            self.check_keys(items)?;
        }
        match self.target()? {
            Object::Dict(dict) => dict.extend_from_slice(items),
            Object::Call(call) => call.items.extend_from_slice(items),
            other => return Err(wrong_type("a dict", other)),
        }
        Ok(())
    }
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
            Object::Str(text) => text.as_str().ok_or(ErrorKind::NotUtf8)?,
            Object::String8(bytes) => text::utf8(bytes)?,
            other => return Err(wrong_type("a str", other)),
        };
        if text.len() > self.limits.name {
            return Err(limit(
                "bytes in the module or name of an import",
                self.limits.name as u64,
            ));
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
        let id = self.new_object(Object::Global {
            module: Arc::clone(&module),
            name: Arc::clone(&name),
        })?;
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
            Object::Global { .. } | Object::Call(_) | Object::Persistent(_) => {}
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
