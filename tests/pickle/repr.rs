//! A notation for objects, close to Python's `repr`.
//!
//! A Python-2 string reads as `bytes`. A call is `callable(args)` or, through
//! `__new__`, `callable.__new__(args)`, then `**{kwargs}` and what was done to the
//! result: `state [..] appended [..] items {..}`. A persistent object is its id
//! in `<>`, and an object within itself is `...`. Bytes that were not read are
//! `bytes[offset; length]`, text `str[..]`; those between opcodes are `raw [..]`.

use stfs::pickle::{ByteRange, CallKind, Object, ObjectId, Payload, PersistentId, Pickle, Str};

pub fn repr(pickle: &Pickle<'_>, id: ObjectId) -> String {
    Repr {
        pickle,
        within: Vec::new(),
    }
    .object(id)
}

struct Repr<'p, 'a> {
    pickle: &'p Pickle<'a>,
    within: Vec<ObjectId>,
}

impl Repr<'_, '_> {
    fn object(&mut self, id: ObjectId) -> String {
        if self.within.contains(&id) {
            return "...".into();
        }
        self.within.push(id);
        let text = match self.pickle.get(id) {
            Object::None => "None".into(),
            Object::Bool(true) => "True".into(),
            Object::Bool(false) => "False".into(),
            Object::Int(value) => value.to_string(),
            Object::BigInt(bytes) => decimal(bytes),
            Object::Float(value) if value.is_nan() => "nan".into(),
            Object::Float(value) => format!("{value:?}"),
            Object::Str(Str::Apart(span)) => format!("str{}", apart(span)),
            Object::Str(text) => text.as_bytes().map(quote).unwrap(),
            Object::String8(bytes) | Object::Bytes(bytes) => payload(bytes),
            Object::ByteArray(bytes) => format!("bytearray({})", payload(bytes)),
            Object::Tuple(items) if items.len() == 1 => format!("({},)", self.list(items)),
            Object::Tuple(items) => format!("({})", self.list(items)),
            Object::List(items) => format!("[{}]", self.list(items)),
            Object::Dict(_) => format!("{{{}}}", self.items(&self.pickle.entries(id))),
            Object::Set(members) => format!("set({})", self.list(members)),
            Object::FrozenSet(members) => format!("frozenset({})", self.list(members)),
            Object::Global(global) => format!("{}.{}", global.module, global.name),
            Object::Persistent(PersistentId::Text(text)) => format!("<'{text}'>"),
            Object::Persistent(PersistentId::Object(id)) => format!("<{}>", self.object(*id)),
            Object::Call(call) => {
                let mut text = self.object(call.callable);
                if matches!(call.kind, CallKind::NewObj | CallKind::NewObjEx) {
                    text += ".__new__";
                }
                text += &self.object(call.args);
                if let Some(kwargs) = call.kwargs {
                    text += &format!("**{}", self.object(kwargs));
                }
                if !call.state.is_empty() {
                    text += &format!(" state [{}]", self.list(&call.state));
                }
                if !call.appended.is_empty() {
                    text += &format!(" appended [{}]", self.list(&call.appended));
                }
                if !call.items.is_empty() {
                    text += &format!(" items {{{}}}", self.items(&call.items));
                }
                if let Some(span) = self.pickle.raw(id) {
                    text += &format!(" raw {}", apart(&span));
                }
                text
            }
        };
        self.within.pop();
        text
    }

    fn list(&mut self, ids: &[ObjectId]) -> String {
        let texts: Vec<String> = ids.iter().map(|&id| self.object(id)).collect();
        texts.join(", ")
    }

    fn items(&mut self, items: &[(ObjectId, ObjectId)]) -> String {
        let texts: Vec<String> = items
            .iter()
            .map(|&(key, value)| format!("{}: {}", self.object(key), self.object(value)))
            .collect();
        texts.join(", ")
    }
}

/// Little-endian two's complement in decimal.
fn decimal(bytes: &[u8]) -> String {
    let negative = bytes.last().is_some_and(|top| top & 0x80 != 0);
    let mut magnitude = bytes.to_vec();
    if negative {
        let mut carry = 1;
        for byte in &mut magnitude {
            let sum = u16::from(!*byte) + carry;
            (*byte, carry) = (sum as u8, sum >> 8);
        }
    }
    let mut digits = Vec::new();
    while magnitude.iter().any(|&byte| byte != 0) {
        let mut rest = 0;
        for byte in magnitude.iter_mut().rev() {
            let value = rest << 8 | u16::from(*byte);
            (*byte, rest) = ((value / 10) as u8, value % 10);
        }
        digits.push(b'0' + rest as u8);
    }
    digits.extend(negative.then_some(b'-'));
    digits
        .iter()
        .rev()
        .map(|&digit| char::from(digit))
        .collect()
}

fn payload(payload: &Payload) -> String {
    match payload {
        Payload::Here(bytes) => bytes_literal(bytes),
        Payload::Apart(span) => format!("bytes{}", apart(span)),
    }
}

fn apart(span: &ByteRange) -> String {
    format!("[{}; {}]", span.offset, span.len)
}

fn bytes_literal(bytes: &[u8]) -> String {
    let mut text = String::new();
    for &byte in bytes {
        match byte {
            b'\'' => text.push('\''),
            b'"' => text.push('"'),
            byte => text += &byte.escape_ascii().to_string(),
        }
    }
    // Python prefers double quotes around a single one.
    let quote = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    format!("b{quote}{text}{quote}")
}

/// Python's `ascii()` of UTF-8 with surrogates.
fn quote(bytes: &[u8]) -> String {
    let mut text = String::new();
    let mut rest = bytes;
    while let [first, ..] = rest {
        let length = match first {
            0x00..0x80 => 1,
            0x80..0xe0 => 2,
            0xe0..0xf0 => 3,
            _ => 4,
        };
        let lead = u32::from(*first) & [0, 0x7f, 0x1f, 0x0f, 0x07][length];
        let code = rest[1..length]
            .iter()
            .fold(lead, |code, byte| code << 6 | u32::from(byte & 0x3f));
        text += &match code {
            0x5c => "\\\\".into(),
            0x0a => "\\n".into(),
            0x20..0x7f => char::from(code as u8).to_string(),
            0..0x100 => format!("\\x{code:02x}"),
            0x100..0x1_0000 => format!("\\u{code:04x}"),
            _ => format!("\\U{code:08x}"),
        };
        rest = &rest[length..];
    }
    format!("'{text}'")
}
