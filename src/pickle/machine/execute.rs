//! What each opcode does, in terms of the machine's parts.

use super::super::error::ErrorKind;
use super::super::integer::{self, Base};
use super::super::object::{CallKind, Object, Payload, PersistentId, Str};
use super::super::opcode::Opcode;
use super::super::text;
use super::{Machine, NAME_BYTES, Result, limit};

impl<'a> Machine<'a, '_> {
    /// Executes any opcode but STOP, at which [`Machine::run`] ends.
    pub(super) fn execute(&mut self, opcode: Opcode) -> Result<()> {
        match opcode {
            Opcode::Stop => Ok(()),
            Opcode::Proto => match self.operands.u8()? {
                0..=5 => Ok(()),
                protocol => Err(ErrorKind::UnknownProtocol(protocol)),
            },
            Opcode::Frame => {
                let length = self.operands.u64()?;
                self.operands.begin_frame(length)
            }

            // Scalars.
            Opcode::None => self.push_constant(|constants| &mut constants.none, Object::None),
            Opcode::NewTrue => self.push_bool(true),
            Opcode::NewFalse => self.push_bool(false),
            Opcode::Int => self.int_line(),
            Opcode::Long => {
                let line = self.number_line()?;
                let digits = line.strip_suffix(b"L").unwrap_or(line);
                let value = integer::parse(digits, Base::Prefix, self.limits.long_bytes)?;
                self.push_new(value)
            }
            Opcode::BinInt => {
                let value = self.operands.i32()?;
                self.push_new(Object::Int(value.into()))
            }
            Opcode::BinInt1 => {
                let value = self.operands.u8()?;
                self.push_small(value)
            }
            Opcode::BinInt2 => {
                let value = self.operands.u16()?;
                self.push_new(Object::Int(value.into()))
            }
            Opcode::Long1 => {
                let length = self.operands.u8()?;
                self.long(length.into())
            }
            Opcode::Long4 => {
                let length = self.operands.signed_length()?;
                self.long(length)
            }
            Opcode::Float => {
                let value = text::float(self.number_line()?)?;
                self.push_new(Object::Float(value))
            }
            Opcode::BinFloat => {
                let value = f64::from_be_bytes(self.operands.array()?);
                self.push_new(Object::Float(value))
            }

            // Text and bytes.
            Opcode::String => {
                let bytes = text::quoted(self.operands.line()?)?;
                self.push_new(Object::String8(Payload::Here(bytes)))
            }
            Opcode::BinString => {
                let length = self.operands.signed_length()?;
                self.string8(length)
            }
            Opcode::ShortBinString => {
                let length = self.operands.u8()?;
                self.string8(length.into())
            }
            Opcode::Unicode => {
                let text = text::raw_unicode_escape(self.operands.line()?)?;
                self.push_new(Object::Str(text))
            }
            Opcode::ShortBinUnicode => {
                let length = self.operands.u8()?;
                self.unicode(length.into())
            }
            Opcode::BinUnicode => {
                let length = self.operands.u32()?;
                self.unicode(length.into())
            }
            Opcode::BinUnicode8 => {
                let length = self.operands.u64()?;
                self.unicode(length)
            }
            Opcode::ShortBinBytes => {
                let length = self.operands.u8()?;
                self.bytes(length.into())
            }
            Opcode::BinBytes => {
                let length = self.operands.u32()?;
                self.bytes(length.into())
            }
            Opcode::BinBytes8 => {
                let length = self.operands.u64()?;
                self.bytes(length)
            }
            Opcode::ByteArray8 => {
                let length = self.operands.u64()?;
                let bytes = self.payload(length)?;
                self.push_new(Object::ByteArray(bytes))
            }

            // Containers.
            Opcode::EmptyTuple => self.push_empty_tuple(),
            Opcode::Tuple1 => self.tuple(1),
            Opcode::Tuple2 => self.tuple(2),
            Opcode::Tuple3 => self.tuple(3),
            Opcode::Tuple => {
                let items = self.pop_to_mark()?;
                let tuple = self.new_tuple(items)?;
                self.push(tuple)
            }
            Opcode::EmptyList => self.push_new(Object::List(Vec::new())),
            Opcode::List => {
                let items = self.pop_to_mark()?;
                self.push_new(Object::List(items))
            }
            Opcode::EmptyDict => self.push_new(Object::Dict(Vec::new())),
            Opcode::Dict => {
                let items = self.pop_items_to_mark()?;
                self.check_keys(&items)?;
                self.push_new(Object::Dict(items))
            }
            Opcode::EmptySet => self.push_new(Object::Set(Vec::new())),
            Opcode::FrozenSet => {
                let members = self.pop_to_mark()?;
                self.check_members(&members)?;
                self.push_new(Object::FrozenSet(members.into()))
            }
            Opcode::Append => {
                let item = self.pop()?;
                self.append(&[item])
            }
            Opcode::Appends => {
                let items = self.pop_to_mark()?;
                self.append(&items)
            }
            Opcode::AddItems => {
                let members = self.pop_to_mark()?;
                self.add(&members)
            }
            Opcode::SetItem => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.set_items(&[(key, value)])
            }
            Opcode::SetItems => {
                let items = self.pop_items_to_mark()?;
                self.set_items(&items)
            }

            // The stack and the memo.
            Opcode::Mark => {
                self.marks.push(self.stack.len());
                self.effort.marks = self.effort.marks.max(self.marks.len());
                Ok(())
            }
            Opcode::Pop => {
                match self.above_mark().is_empty() {
                    // It is the mark that goes.
                    true => {
                        self.marks.pop().ok_or(ErrorKind::StackUnderflow)?;
                    }
                    false => self.discard(self.stack.len() - 1),
                }
                Ok(())
            }
            Opcode::PopMark => {
                let mark = self.marks.pop().ok_or(ErrorKind::NoMark)?;
                self.discard(mark);
                Ok(())
            }
            Opcode::Dup => {
                let object = self.top()?;
                self.effort.copies += 1;
                self.push(object)
            }
            Opcode::Get => {
                let index = self.index_line()?;
                self.get(index)
            }
            Opcode::BinGet => {
                let index = self.operands.u8()?;
                self.get(index.into())
            }
            Opcode::LongBinGet => {
                let index = self.operands.u32()?;
                self.get(index.into())
            }
            Opcode::Put => {
                let index = self.index_line()?;
                self.put(index)
            }
            Opcode::BinPut => {
                let index = self.operands.u8()?;
                self.put(index.into())
            }
            Opcode::LongBinPut => {
                let index = self.operands.u32()?;
                self.put(index.into())
            }
            Opcode::Memoize => self.put(self.memo.len() as u64),

            // Names, calls and what only the reader could supply.
            Opcode::Global => {
                let module = text::utf8(self.name_line()?)?;
                let name = text::utf8(self.name_line()?)?;
                let global = self.global_line(module, name)?;
                self.push(global)
            }
            Opcode::StackGlobal => self.stack_global(),
            Opcode::Reduce => {
                let args = self.pop()?;
                let callable = self.pop()?;
                self.call(CallKind::Reduce, callable, args, None)
            }
            Opcode::NewObj => {
                let args = self.pop()?;
                let class = self.pop()?;
                self.call(CallKind::NewObj, class, args, None)
            }
            Opcode::NewObjEx => {
                let kwargs = self.pop()?;
                let args = self.pop()?;
                let class = self.pop()?;
                self.call(CallKind::NewObjEx, class, args, Some(kwargs))
            }
            Opcode::Inst => {
                let module = text::ascii(self.name_line()?)?;
                let name = text::ascii(self.name_line()?)?;
                let class = self.global_line(module, name)?;
                let args = self.pop_to_mark()?;
                let args = self.new_tuple(args)?;
                self.call(CallKind::Inst, class, args, None)
            }
            Opcode::Obj => {
                let operands = self.pop_to_mark()?;
                let (&class, args) = operands.split_first().ok_or(ErrorKind::StackUnderflow)?;
                let args = self.new_tuple(args.to_vec())?;
                self.call(CallKind::Obj, class, args, None)
            }
            Opcode::Build => self.build(),
            Opcode::PersId => {
                let id = text::ascii(self.operands.line()?)?;
                self.push_new(Object::Persistent(PersistentId::Text(id)))
            }
            Opcode::BinPersId => {
                let id = self.pop()?;
                self.push_new(Object::Persistent(PersistentId::Object(id)))
            }
            Opcode::Ext1 => {
                let code = self.operands.u8()?;
                Err(ErrorKind::Extension(code.into()))
            }
            Opcode::Ext2 => {
                let code = self.operands.u16()?;
                Err(ErrorKind::Extension(code.into()))
            }
            Opcode::Ext4 => {
                let code = self.operands.i32()?;
                Err(ErrorKind::Extension(code))
            }
            Opcode::NextBuffer | Opcode::ReadOnlyBuffer => Err(ErrorKind::OutOfBand),
        }
    }
}

/// Arguments.
impl<'a> Machine<'a, '_> {
    fn number_line(&mut self) -> Result<&'a [u8]> {
        self.operands
            .line_within(self.limits.number_line, "bytes in a number")
    }

    fn name_line(&mut self) -> Result<&'a [u8]> {
        self.operands.line_within(self.limits.name, NAME_BYTES)
    }

    /// INT: protocols 0 and 1 have no other way to write a bool than `00` and
    /// `01`. As CPython, every two-byte line with the value 0 or 1 that ends
    /// in the digit is one.
    fn int_line(&mut self) -> Result<()> {
        let line = self.number_line()?;
        if line == b"01" {
            return self.push_bool(true);
        }
        match integer::parse(line, Base::Prefix, self.limits.long_bytes)? {
            Object::Int(value @ 0..=1) if line.len() == 2 && line[1].is_ascii_digit() => {
                self.push_bool(value == 1)
            }
            value => self.push_new(value),
        }
    }

    /// A memo index, up to 2^63 - 1.
    fn index_line(&mut self) -> Result<u64> {
        let line = self.number_line()?;
        match integer::parse(line, Base::Ten, self.limits.long_bytes)? {
            Object::Int(index) => u64::try_from(index).ok(),
            _ => None,
        }
        .ok_or_else(|| ErrorKind::MemoIndex(text::excerpt(line)))
    }

    fn long(&mut self, length: u64) -> Result<()> {
        if length > self.limits.long_bytes as u64 {
            return Err(limit("bytes in an integer", self.limits.long_bytes as u64));
        }
        let bytes = self.operands.bytes(length)?;
        self.push_new(integer::from_le_bytes(bytes))
    }

    fn payload(&mut self, length: u64) -> Result<Payload<'a>> {
        Ok(if length > self.apart {
            Payload::Apart(self.operands.span(length)?)
        } else {
            Payload::Here(self.operands.bytes(length)?.into())
        })
    }

    fn string8(&mut self, length: u64) -> Result<()> {
        let bytes = self.payload(length)?;
        self.push_new(Object::String8(bytes))
    }

    fn unicode(&mut self, length: u64) -> Result<()> {
        let text = if length > self.apart {
            Str::Apart(self.operands.span(length)?)
        } else {
            Str::from_utf8(self.operands.bytes(length)?).ok_or(ErrorKind::NotUtf8)?
        };
        self.push_new(Object::Str(text))
    }

    fn bytes(&mut self, length: u64) -> Result<()> {
        let bytes = self.payload(length)?;
        self.push_new(Object::Bytes(bytes))
    }
}
