//! joblib's uncompressed files: pickles in which the bytes of each array stand
//! between the opcodes, right after the BUILD of what stands for the array
//! (joblib/numpy_pickle.py, `NumpyArrayWrapper`).

use super::array::numbers_of;
use super::rebuild::dimensions;
use super::unsupported;
use crate::checkpoint::numpy::{Numbers, Order};
use crate::checkpoint::refusal::Refusal;
use crate::checkpoint::{Result, danger, stream};
use crate::pickle::{self, Call, Limits, Object, ObjectId, Objects, Parser, Pickle, Step, Window};
use crate::source::Source;

/// The class that stands for an array.
const WRAPPER: (&str, &str) = ("joblib.numpy_pickle", "NumpyArrayWrapper");

/// What a wrapper says of its array.
pub struct Wrapped {
    pub numbers: Numbers,
    pub shape: Box<[u64]>,
    pub order: Order,
    /// A byte before the array says how much padding follows it.
    padded: bool,
}

/// The pickle at the start of the file behind `window`, with the bytes of arrays
/// in it left where they are: [`Objects::raw`] tells of them.
pub fn parse<'a>(window: &'a Window<'_, Source>) -> Result<Pickle<'a>> {
    let limits = Limits::default();
    let mut parser = Parser::new(window, 0, &limits);
    loop {
        match parser.resume().map_err(stream::refuse)? {
            Step::Done(pickle) => return Ok(pickle),
            Step::Built(id) => {
                let wrapped = match wrapped(parser.objects(), id) {
                    None => continue,
                    Some(Ok(wrapped)) => wrapped,
                    // Objects are a pickle of their own. Whoever comes to the array
                    // is told why it is not read.
                    Some(Err(_)) => {
                        let start = parser.offset();
                        let objects = pickle::parse_at(window, start, &limits);
                        let objects = objects.map_err(stream::refuse)?;
                        if let Some(attack) = danger::find(objects.imports()) {
                            return Err(attack.into());
                        }
                        let len = objects.end().saturating_sub(start);
                        parser.claim(id, 0, len).map_err(stream::refuse)?;
                        continue;
                    }
                };
                let len = wrapped.numbers.bytes(&wrapped.shape)?;
                let gap = match (wrapped.padded, parser.peek().map_err(stream::refuse)?) {
                    (true, Some(padding)) => 1 + u64::from(padding),
                    _ => 0,
                };
                parser.claim(id, gap, len).map_err(stream::refuse)?;
            }
        }
    }
}

/// What the object `id` says, when it stands for an array.
pub fn wrapped(objects: &Objects, id: ObjectId) -> Option<std::result::Result<Wrapped, Refusal>> {
    let Object::Call(call) = objects.get(id) else {
        return None;
    };
    (objects.global(call.callable) == Some(WRAPPER)).then(|| read(objects, call))
}

fn read(objects: &Objects, call: &Call) -> std::result::Result<Wrapped, Refusal> {
    let unknown = || unsupported("it is an array that joblib wrote in an unknown way");
    let [state] = *call.state else {
        return Err(unknown());
    };
    let attributes = objects.entries(state);
    let attribute = |name| {
        let found = attributes
            .iter()
            .find(|(key, _)| objects.as_str(*key) == Some(name));
        found.map(|(_, value)| *value)
    };
    let dtype = attribute("dtype").ok_or_else(unknown)?;
    let shape = attribute("shape").ok_or_else(unknown)?;
    let order = attribute("order").and_then(|order| objects.as_str(order));
    let numbers = numbers_of(objects, dtype)?;
    Ok(Wrapped {
        numbers: numbers.ok_or_else(|| unsupported("it is an array of texts or dates"))?,
        shape: dimensions(objects, shape, "sizes")?,
        order: match order {
            Some("C") => Order::Rows,
            Some("F") => Order::Columns,
            _ => return Err(unknown()),
        },
        // joblib before 1.2 knows no padding.
        padded: attribute("numpy_array_alignment_bytes")
            .is_some_and(|alignment| objects.as_int(alignment).is_some()),
    })
}
