//! Python's unbounded integers, binary and as text.

use std::borrow::Cow;

use super::error::ErrorKind;
use super::object::Object;
use super::text::excerpt;

/// How the digits of a text integer are to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Base {
    /// Ten, with or without leading zeros: `int(text)`.
    Ten,
    /// By prefix, `0x`, `0o`, `0b` or none: `int(text, 0)`.
    Prefix,
}

/// The integer in little-endian two's complement; no bytes are zero.
pub(super) fn from_le_bytes(bytes: &[u8]) -> Object<'_> {
    let bytes = &bytes[..shortest(bytes)];
    match to_i64(bytes) {
        Some(value) => Object::Int(value),
        None => Object::BigInt(Cow::Borrowed(bytes)),
    }
}

/// The integer that Python's `int` reads from `text`: blanks around it, a sign,
/// and single underscores between digits are allowed.
///
/// # Errors
///
/// Another form, or more than `long_bytes` bytes of value.
pub(super) fn parse(
    text: &[u8],
    base: Base,
    long_bytes: usize,
) -> Result<Object<'static>, ErrorKind> {
    let malformed = || ErrorKind::NotANumber(excerpt(text));
    let (negative, digits) = match trim(text) {
        [b'-', digits @ ..] => (true, digits),
        [b'+', digits @ ..] => (false, digits),
        digits => (false, digits),
    };
    let (radix, digits) = match (base, digits) {
        (Base::Ten, _) => (10, digits),
        (Base::Prefix, [b'0', letter, digits @ ..]) if letter.is_ascii_alphabetic() => {
            let radix = match letter.to_ascii_lowercase() {
                b'x' => 16,
                b'o' => 8,
                b'b' => 2,
                _ => return Err(malformed()),
            };
            (radix, digits.strip_prefix(b"_").unwrap_or(digits))
        }
        // C reads 010 as octal, Python not at all.
        (Base::Prefix, [b'0', rest @ ..]) if rest.iter().any(|b| !matches!(b, b'0' | b'_')) => {
            return Err(malformed());
        }
        (Base::Prefix, _) => (10, digits),
    };

    // Little-endian limbs of the magnitude.
    let mut limbs: Vec<u64> = Vec::new();
    let mut after_digit = false;
    for &byte in digits {
        if byte == b'_' && after_digit {
            after_digit = false;
            continue;
        }
        let digit = char::from(byte).to_digit(radix).ok_or_else(malformed)?;
        after_digit = true;
        let mut carry = u64::from(digit);
        for limb in &mut limbs {
            let product = u128::from(*limb) * u128::from(radix) + u128::from(carry);
            *limb = product as u64;
            carry = (product >> 64) as u64;
        }
        if carry > 0 {
            limbs.push(carry);
        }
        if limbs.len() * 8 > long_bytes.saturating_add(8) {
            break;
        }
    }
    if !after_digit {
        return Err(malformed());
    }

    let mut bytes: Vec<u8> = limbs.iter().flat_map(|limb| limb.to_le_bytes()).collect();
    bytes.push(0);
    if negative {
        negate(&mut bytes);
    }
    bytes.truncate(shortest(&bytes));
    if bytes.len() > long_bytes {
        return Err(ErrorKind::Limit {
            what: "bytes in an integer",
            limit: long_bytes as u64,
        });
    }
    Ok(match to_i64(&bytes) {
        Some(value) => Object::Int(value),
        None => Object::BigInt(Cow::Owned(bytes)),
    })
}

/// `text` without the bytes around it that C's `isspace` holds for blank.
fn trim(text: &[u8]) -> &[u8] {
    let blank = |byte: &u8| matches!(byte, b' ' | 0x09..=0x0d);
    let start = text.iter().take_while(|byte| blank(byte)).count();
    let text = &text[start..];
    let end = text.iter().rev().take_while(|byte| blank(byte)).count();
    &text[..text.len() - end]
}

/// How many bytes the number needs: all but those that repeat the sign.
fn shortest(bytes: &[u8]) -> usize {
    let mut length = bytes.len();
    while let [.., below, top] = &bytes[..length] {
        let repeats_sign = matches!((top, below >> 7), (0x00, 0) | (0xff, 1));
        if !repeats_sign {
            break;
        }
        length -= 1;
    }
    length
}

fn negate(bytes: &mut [u8]) {
    let mut carry = true;
    for byte in bytes {
        (*byte, carry) = (!*byte).overflowing_add(u8::from(carry));
    }
}

fn to_i64(bytes: &[u8]) -> Option<i64> {
    let negative = bytes.last().is_some_and(|top| top >> 7 == 1);
    let mut value = [if negative { 0xff } else { 0x00 }; 8];
    value.get_mut(..bytes.len())?.copy_from_slice(bytes);
    Some(i64::from_le_bytes(value))
}
