//! What a value that is no tensor is reported as: its Python type and a short form
//! of it, and the value itself where JSON has one.

use super::refusal::shown;
use crate::pickle::{Call, Object, ObjectId, Pickle};

/// A number or a text as JSON has it; what JSON has no number for, as text.
pub fn scalar(pickle: &Pickle, id: ObjectId) -> Option<serde_json::Value> {
    match pickle.get(id) {
        Object::Bool(value) => Some((*value).into()),
        Object::Int(value) => Some((*value).into()),
        Object::Float(value) if value.is_finite() => Some((*value).into()),
        Object::Float(value) => Some(value.to_string().into()),
        _ => pickle.as_str(id).map(Into::into),
    }
}

/// Python type and short form of a value, at the same cost for any value.
pub fn describe(pickle: &Pickle, id: ObjectId) -> (String, String) {
    let items = |count: usize| format!("{count} items");
    let (kind, repr) = match pickle.get(id) {
        Object::None => ("NoneType", "None".into()),
        Object::Bool(true) => ("bool", "True".into()),
        Object::Bool(false) => ("bool", "False".into()),
        Object::Int(value) => ("int", value.to_string()),
        Object::BigInt(bytes) => ("int", format!("{} bytes", bytes.len())),
        Object::Float(value) => ("float", format!("{value:?}")),
        Object::Str(text) => ("str", text.as_bytes().map_or_else(String::new, quoted)),
        Object::String8(text) => ("str", text.as_bytes().map_or_else(String::new, quoted)),
        Object::Bytes(bytes) => ("bytes", format!("{} bytes", bytes.len())),
        Object::ByteArray(bytes) => ("bytearray", format!("{} bytes", bytes.len())),
        Object::Tuple(tuple) => ("tuple", items(tuple.len())),
        Object::List(list) => ("list", items(list.len())),
        Object::Set(set) => ("set", items(set.len())),
        Object::FrozenSet(set) => ("frozenset", items(set.len())),
        Object::Dict(dict) => ("dict", items(dict.len())),
        Object::Global(global) => {
            let name = format!("{}.{}", global.module, global.name);
            ("type", shown(&name))
        }
        Object::Call(call) => return (class(pickle, call), String::new()),
        Object::Persistent(_) => ("storage", String::new()),
    };
    (kind.to_string(), repr)
}

/// The beginning of a text, in quotes.
fn quoted(text: &[u8]) -> String {
    /// More than [`shown`] shows.
    const ENOUGH: usize = 1024;
    let start = text.get(..ENOUGH).unwrap_or(text);
    format!("'{}'", shown(&String::from_utf8_lossy(start)))
}

/// The class or function that a call names.
fn class(pickle: &Pickle, call: &Call) -> String {
    match pickle.global(call.callable) {
        Some((module, name)) => shown(&format!("{module}.{name}")),
        None => "unknown".into(),
    }
}
