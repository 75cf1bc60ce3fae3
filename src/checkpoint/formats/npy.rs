//! `.npy`: one array behind a header, which is a Python dict written out
//! (numpy/lib/_format_impl.py).

use super::candidate::{Candidate, Holds, Request};
use crate::checkpoint::contents::{Checkpoint, Contents};
use crate::checkpoint::error;
use crate::checkpoint::layout::Layout;
use crate::checkpoint::numpy::{Numbers, Order, numbers};
use crate::checkpoint::refusal::{Cause, Refusal, malformed, unsupported};
use crate::checkpoint::storage::Storage;
use crate::checkpoint::weights::Wanted;
use crate::source::Source;

const MAGIC: &[u8] = b"\x93NUMPY";

/// Longer headers are refused: those of numbers take about a hundred bytes, and
/// numpy itself stops at 10,000.
const MAX_HEADER: u64 = 64 << 10;
/// How much is read first, which is enough for most headers.
const FIRST: u64 = 512;

pub fn sniff(file: &Candidate) -> error::Result<Option<Holds>> {
    if !file.starts_with(MAGIC) {
        return Ok(None);
    }
    let objects = match NpyHead::read(first_of(file.source)) {
        Ok(head) => head.may_hold_objects(),
        Err(error::Error::Refused(_)) => true,
        Err(error) => return Err(error),
    };
    Ok(Some(match objects {
        true => Holds::Pickles,
        false => Holds::Numbers,
    }))
}

/// Reads an array, which is called `tensor`.
pub fn read(request: &Request) -> error::Result<Checkpoint> {
    let source = request.source;
    if let Wanted::Exactly(_) = request.wanted {
        let what = "it is one array, which has nothing inside that could be asked for";
        return Err(Refusal::new(Cause::NoTensors, what).into());
    }
    let head = NpyHead::read(first_of(source))?;
    let array = head.array()?;
    let len = array.check(source.size().saturating_sub(head.data))?;
    let mut contents = Contents::default();
    contents.add("tensor", array.layout((0, 0, len))?)?;
    Ok(contents.with(vec![Storage::in_file(head.data, len)]))
}

fn first_of(source: &Source) -> impl Fn(u64) -> error::Result<Vec<u8>> {
    |len| Ok(source.read_at(0, len.min(source.size()))?)
}

/// What stands before the elements.
pub struct NpyHead {
    text: Vec<u8>,
    /// Bytes before the first element.
    pub data: u64,
}

impl NpyHead {
    /// `first` gives so many bytes from the start of the file, or all of it when
    /// it is shorter.
    pub fn read(first: impl Fn(u64) -> error::Result<Vec<u8>>) -> error::Result<NpyHead> {
        let cut_off = || Refusal::new(Cause::NotDownloaded, "the header of the array is cut off");
        let mut bytes = first(FIRST)?;
        let unread = bytes.strip_prefix(MAGIC);
        let unread = unread.ok_or_else(|| malformed("it does not begin as numpy's arrays do"))?;
        let (len, prefix): (u64, u64) = match unread {
            [1, _, a, b, ..] => (u16::from_le_bytes([*a, *b]).into(), 10),
            [2 | 3, _, a, b, c, d, ..] => (u32::from_le_bytes([*a, *b, *c, *d]).into(), 12),
            [] | [1..=3, ..] => return Err(cut_off().into()),
            _ => return Err(unsupported("its header has an unknown version").into()),
        };
        if len > MAX_HEADER {
            let what = format!("the header of the array has {len} bytes");
            return Err(Refusal::new(Cause::TooLarge, what).into());
        }
        let data = prefix + len;
        if data > bytes.len() as u64 {
            bytes = first(data)?;
        }
        let text = bytes.get(prefix as usize..data as usize);
        Ok(NpyHead {
            text: text.ok_or_else(cut_off)?.to_vec(),
            data,
        })
    }

    /// Whether some of the elements may be Python objects: no dtype of objects can
    /// be written without one of these.
    pub fn may_hold_objects(&self) -> bool {
        let has = |sign: &[u8]| self.text.windows(sign.len()).any(|at| at == sign);
        !self.text.is_ascii() || [&b"O"[..], b"obj", b"\\"].iter().any(|sign| has(sign))
    }

    /// The array that the header describes.
    pub fn array(&self) -> Result<Array, Refusal> {
        let mut literal = Literal(&self.text);
        let (mut descr, mut order, mut shape) = (None, None, None);
        literal.punctuation(b'{')?;
        while !literal.try_punctuation(b'}') {
            let key = literal.text()?;
            literal.punctuation(b':')?;
            let again = match key {
                "descr" => descr.replace(literal.descr()?).is_some(),
                "fortran_order" => order.replace(literal.order()?).is_some(),
                "shape" => shape.replace(literal.shape()?).is_some(),
                _ => return Err(malformed("its header has an unknown key")),
            };
            if again {
                return Err(malformed("its header has a key twice"));
            }
            if !literal.try_punctuation(b',') {
                literal.punctuation(b'}')?;
                break;
            }
        }
        match (literal.0.trim_ascii(), descr, order, shape) {
            ([], Some(numbers), Some(order), Some(shape)) => Ok(Array {
                numbers,
                order,
                shape,
            }),
            ([], ..) => Err(malformed("its header lacks a key")),
            _ => Err(malformed("its header goes on after its end")),
        }
    }
}

/// An array of numbers.
#[derive(Debug)]
pub struct Array {
    numbers: Numbers,
    order: Order,
    shape: Box<[u64]>,
}

impl Array {
    /// The bytes of its elements, which must be as many as `there` are.
    pub fn check(&self, there: u64) -> Result<u64, Refusal> {
        let bytes = self.numbers.bytes(&self.shape)?;
        match there.checked_sub(bytes) {
            Some(0) => Ok(bytes),
            Some(rest) => Err(unsupported(format!(
                "{rest} bytes follow the array: perhaps it is one of several in this file"
            ))),
            None => Err(Refusal::new(
                Cause::NotDownloaded,
                format!("the array is cut off: it has {there} bytes of {bytes}"),
            )),
        }
    }

    /// It lies in a storage: index, the byte that it begins at, bytes in all.
    pub fn layout(self, place: (u32, u64, u64)) -> Result<Layout, Refusal> {
        self.numbers.layout(place, self.shape, &self.order)
    }
}

/// A Python literal, as far as it was not read yet.
struct Literal<'a>(&'a [u8]);

impl<'a> Literal<'a> {
    /// Skips `mark` and the blanks before it, if it stands there.
    fn try_punctuation(&mut self, mark: u8) -> bool {
        self.0 = self.0.trim_ascii_start();
        match self.0.split_first() {
            Some((first, rest)) if *first == mark => {
                self.0 = rest;
                true
            }
            _ => false,
        }
    }

    fn punctuation(&mut self, mark: u8) -> Result<(), Refusal> {
        match self.try_punctuation(mark) {
            true => Ok(()),
            false => Err(no_literal()),
        }
    }

    /// A string in quotes, without escapes.
    fn text(&mut self) -> Result<&'a str, Refusal> {
        let quote = if self.try_punctuation(b'"') {
            b'"'
        } else {
            self.punctuation(b'\'')?;
            b'\''
        };
        let len = self.0.iter().position(|byte| *byte == quote);
        let (text, rest) = len
            .and_then(|len| Some((self.0.get(..len)?, self.0.get(len + 1..)?)))
            .ok_or_else(no_literal)?;
        self.0 = rest;
        let text = str::from_utf8(text).ok();
        text.filter(|text| !text.contains(['\\', '\n']))
            .ok_or_else(no_literal)
    }

    /// The digits and letters that stand next.
    fn word(&mut self) -> &'a [u8] {
        self.0 = self.0.trim_ascii_start();
        let end = self.0.iter().position(|byte| !byte.is_ascii_alphanumeric());
        let (word, rest) = self.0.split_at(end.unwrap_or(self.0.len()));
        self.0 = rest;
        word
    }

    fn descr(&mut self) -> Result<Numbers, Refusal> {
        if self.0.trim_ascii_start().starts_with(b"[") {
            return Err(unsupported("its elements are records"));
        }
        let text = self.text()?;
        let (order, kind) = text.split_at_checked(1).ok_or_else(no_literal)?;
        numbers(order, kind)?.ok_or_else(|| {
            Refusal::new(
                Cause::NoTensors,
                "its elements are texts or dates, not numbers",
            )
        })
    }

    fn order(&mut self) -> Result<Order, Refusal> {
        match self.word() {
            b"True" => Ok(Order::Columns),
            b"False" => Ok(Order::Rows),
            _ => Err(no_literal()),
        }
    }

    /// A tuple of numbers from 0, which Python 2 writes with an `L` behind them.
    fn shape(&mut self) -> Result<Box<[u64]>, Refusal> {
        let mut sizes = Vec::new();
        let mut comma = false;
        self.punctuation(b'(')?;
        while !self.try_punctuation(b')') {
            let word = self.word();
            let digits = word.strip_suffix(b"L").unwrap_or(word);
            let plain = digits.iter().all(u8::is_ascii_digit) && !digits.starts_with(b"0");
            let size = match digits {
                b"0" => Some(0),
                _ if plain => str::from_utf8(digits)
                    .ok()
                    .and_then(|text| text.parse().ok()),
                _ => None,
            };
            sizes.push(size.ok_or_else(|| malformed("one of its sizes is no number from 0"))?);
            comma = self.try_punctuation(b',');
            if !comma {
                self.punctuation(b')')?;
                break;
            }
        }
        match sizes.len() == 1 && !comma {
            true => Err(malformed("its shape is no tuple")),
            false => Ok(sizes.into()),
        }
    }
}

fn no_literal() -> Refusal {
    malformed("its header is not what numpy writes")
}
