//! The header of a safetensors file, byte for byte as safetensors writes it
//! (safetensors/src/tensor.rs, `prepare`).

use std::collections::BTreeMap;
use std::fmt::Write;

use safetensors::Dtype;

/// A tensor as the header names it.
pub struct Field<'a> {
    pub name: &'a str,
    pub dtype: Dtype,
    /// Elements; `F4` counts values, two to a byte.
    pub shape: &'a [u64],
    /// Bytes.
    pub len: u64,
}

/// Length field, JSON and padding. `fields` are in file order; their data
/// follows without gaps. Of several metadata entries `format` comes first, then
/// the others by name: safetensors itself writes them in random order.
pub fn write(metadata: &BTreeMap<&str, &str>, fields: &[Field]) -> Vec<u8> {
    let mut json = String::with_capacity(64 + fields.len() * 96);
    json.push_str("{\"__metadata__\":{");
    let format = metadata.get_key_value("format");
    let others = metadata.iter().filter(|(key, _)| **key != "format");
    for (index, (key, value)) in format.into_iter().chain(others).enumerate() {
        if index > 0 {
            json.push(',');
        }
        push_string(&mut json, key);
        json.push(':');
        push_string(&mut json, value);
    }
    json.push('}');
    let mut begin = 0;
    for field in fields {
        let end = begin + field.len;
        json.push(',');
        push_string(&mut json, field.name);
        json.push_str(":{\"dtype\":");
        push_string(&mut json, &field.dtype.to_string());
        json.push_str(",\"shape\":[");
        for (index, size) in field.shape.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            // Writing to a String cannot fail.
            let _ = write!(json, "{comma}{size}");
        }
        let _ = write!(json, "],\"data_offsets\":[{begin},{end}]}}");
        begin = end;
    }
    json.push('}');
    let padded = json.len().next_multiple_of(8);
    let mut header = Vec::with_capacity(8 + padded);
    header.extend((padded as u64).to_le_bytes());
    header.extend(json.as_bytes());
    header.resize(8 + padded, b' ');
    header
}

fn push_string(json: &mut String, text: &str) {
    // A string always has a JSON form.
    json.push_str(&serde_json::to_string(text).unwrap_or_default());
}
