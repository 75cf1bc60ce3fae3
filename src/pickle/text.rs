//! Text arguments of protocol 0: floats, strings in quotes, escapes.

use std::borrow::Cow;

use super::error::ErrorKind;
use super::object::Str;

/// The first bytes of `text`, printable, for an error.
pub(super) fn excerpt(text: &[u8]) -> String {
    const LENGTH: usize = 32;
    let mut excerpt = text[..text.len().min(LENGTH)].escape_ascii().to_string();
    if text.len() > LENGTH {
        excerpt.push_str("...");
    }
    excerpt
}

/// The float that C Python's unpickler reads: no blanks, no underscores.
pub(super) fn float(text: &[u8]) -> Result<f64, ErrorKind> {
    let value: f64 = str::from_utf8(text)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| ErrorKind::NotANumber(excerpt(text)))?;
    if value.is_infinite() && text.iter().any(u8::is_ascii_digit) {
        return Err(ErrorKind::FloatOverflow(excerpt(text)));
    }
    Ok(value)
}

/// ASCII text as it stands.
pub(super) fn ascii(text: &[u8]) -> Result<&str, ErrorKind> {
    match str::from_utf8(text) {
        Ok(text) if text.is_ascii() => Ok(text),
        _ => Err(ErrorKind::NotAscii),
    }
}

/// UTF-8 text as it stands; surrogates are none.
pub(super) fn utf8(text: &[u8]) -> Result<&str, ErrorKind> {
    str::from_utf8(text).map_err(|_| ErrorKind::NotUtf8)
}

/// The bytes of a Python-2 `repr` of a `str`: quotes off, escapes decoded as
/// `codecs.escape_decode` does.
pub(super) fn quoted(text: &[u8]) -> Result<Cow<'_, [u8]>, ErrorKind> {
    let body = match text {
        [b'\'', body @ .., b'\''] | [b'"', body @ .., b'"'] => body,
        _ => return Err(ErrorKind::NotQuoted),
    };
    let Some(first) = body.iter().position(|&byte| byte == b'\\') else {
        return Ok(Cow::Borrowed(body));
    };

    let mut decoded = body[..first].to_vec();
    let mut at = first;
    while let Some(&byte) = body.get(at) {
        if byte != b'\\' {
            decoded.push(byte);
            at += 1;
            continue;
        }
        // The backslash counts as one byte of the quoted text, quote included.
        let invalid = ErrorKind::InvalidEscape(at + 1);
        let (&escaped, rest) = match body[at + 1..].split_first() {
            Some(parts) => parts,
            None => return Err(invalid),
        };
        at += 2;
        match escaped {
            b'\n' => {}
            b'\\' | b'\'' | b'"' => decoded.push(escaped),
            b'a' => decoded.push(0x07),
            b'b' => decoded.push(0x08),
            b't' => decoded.push(b'\t'),
            b'n' => decoded.push(b'\n'),
            b'v' => decoded.push(0x0b),
            b'f' => decoded.push(0x0c),
            b'r' => decoded.push(b'\r'),
            b'0'..=b'7' => {
                let more = rest.iter().take(2);
                let octal = more.take_while(|byte| matches!(byte, b'0'..=b'7'));
                let mut value = escaped - b'0';
                for digit in octal {
                    // Python keeps the low eight bits of \400 to \777.
                    value = (value << 3) | (digit - b'0');
                    at += 1;
                }
                decoded.push(value);
            }
            b'x' => match rest.get(..2).and_then(hexadecimal) {
                Some(value) => {
                    decoded.push(value as u8);
                    at += 2;
                }
                None => return Err(invalid),
            },
            _ => decoded.extend([b'\\', escaped]),
        }
    }
    Ok(Cow::Owned(decoded))
}

/// Text in Python's `raw-unicode-escape`: Latin-1 in which `\uXXXX` and
/// `\UXXXXXXXX` stand for other characters, surrogates among them.
pub(super) fn raw_unicode_escape(text: &[u8]) -> Result<Str<'_>, ErrorKind> {
    if let Ok(plain) = ascii(text)
        && !plain.contains('\\')
    {
        return Ok(Str::Utf8(Cow::Borrowed(plain)));
    }

    let mut decoded = Vec::with_capacity(text.len());
    let mut surrogates = false;
    let mut at = 0;
    while let Some(&byte) = text.get(at) {
        let digits = match (byte, text.get(at + 1)) {
            (b'\\', Some(b'u')) => 4,
            (b'\\', Some(b'U')) => 8,
            // Any other backslash stands for itself and shields the next byte.
            (b'\\', Some(&shielded)) => {
                push_code_point(&mut decoded, u32::from(byte));
                push_code_point(&mut decoded, u32::from(shielded));
                at += 2;
                continue;
            }
            _ => {
                push_code_point(&mut decoded, u32::from(byte));
                at += 1;
                continue;
            }
        };
        let code = text.get(at + 2..at + 2 + digits).and_then(hexadecimal);
        match code {
            Some(code) if code <= 0x10_ffff => {
                surrogates |= push_code_point(&mut decoded, code);
                at += 2 + digits;
            }
            _ => return Err(ErrorKind::InvalidEscape(at)),
        }
    }
    if surrogates {
        return Ok(Str::Surrogates(Cow::Owned(decoded)));
    }
    match String::from_utf8(decoded) {
        Ok(text) => Ok(Str::Utf8(Cow::Owned(text))),
        Err(_) => Err(ErrorKind::NotUtf8),
    }
}

/// Appends one code point and says whether it is a surrogate.
fn push_code_point(bytes: &mut Vec<u8>, code: u32) -> bool {
    match char::from_u32(code) {
        Some(character) => {
            bytes.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
            false
        }
        None => {
            let [low, high, ..] = code.to_le_bytes();
            let middle = ((high & 0x0f) << 2) | (low >> 6);
            bytes.extend([0xe0 | (high >> 4), 0x80 | middle, 0x80 | (low & 0x3f)]);
            true
        }
    }
}

/// The value of up to eight hexadecimal digits and nothing else.
fn hexadecimal(digits: &[u8]) -> Option<u32> {
    digits.iter().try_fold(0, |value, &digit| {
        Some((value << 4) | char::from(digit).to_digit(16)?)
    })
}
