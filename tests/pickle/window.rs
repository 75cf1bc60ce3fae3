//! Pickles read through a window of a larger file.

use std::cell::Cell;
use std::convert::Infallible;
use std::io;
use std::ops::Range;

use proptest::prelude::*;
use stfs::pickle::{
    ByteRange, Error, Limits, Object, ObjectId, ParseError, Parser, Payload, Pickle, ReadAt, Step,
    Str, Window, parse, parse_at,
};

use super::accepted::ACCEPTED;
use super::joblib;
use super::repr::repr;

/// A file in memory.
struct Bytes<'b>(&'b [u8]);

impl ReadAt for Bytes<'_> {
    type Error = Infallible;

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), Infallible> {
        let start = usize::try_from(offset).unwrap();
        buffer.copy_from_slice(&self.0[start..start + buffer.len()]);
        Ok(())
    }
}

/// A file of which the pickle may read only some bytes: any others are zeros
/// and no file has so many.
struct Sparse<'b> {
    parts: &'b [(u64, &'b [u8])],
    read: Cell<u64>,
}

impl ReadAt for Sparse<'_> {
    type Error = Infallible;

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), Infallible> {
        self.read.set(self.read.get() + buffer.len() as u64);
        for (byte, at) in buffer.iter_mut().zip(offset..) {
            let part = |(start, part): &(u64, &[u8])| {
                let index = usize::try_from(at.checked_sub(*start)?).unwrap();
                part.get(index).copied()
            };
            *byte = self.parts.iter().find_map(part).unwrap_or(0);
        }
        Ok(())
    }
}

/// A file with a bad spot.
struct Bad<'b>(&'b [u8], Range<u64>);

impl ReadAt for Bad<'_> {
    type Error = io::Error;

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset + buffer.len() as u64;
        if offset < self.1.end && self.1.start < end {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let Ok(()) = Bytes(self.0).read_exact_at(buffer, offset);
        Ok(())
    }
}

fn pickle_error<T>(result: Result<T, ParseError<Infallible>>) -> Result<T, Error> {
    result.map_err(|failure| match failure {
        ParseError::Pickle(error) => error,
        ParseError::Read(never) => match never {},
    })
}

/// All that can be told of a pickle, or of a refusal.
fn account(result: Result<Pickle<'_>, Error>) -> Result<impl PartialEq + std::fmt::Debug, Error> {
    result.map(|pickle| {
        let text = repr(&pickle, pickle.root());
        (
            text,
            pickle.end(),
            pickle.imports().to_vec(),
            pickle.calls(),
        )
    })
}

/// With every payload read, a window is a slice.
fn assert_reads_as_a_slice(input: &[u8], first_read: u64) {
    let limits = Limits {
        apart: u64::MAX,
        ..Limits::default()
    };
    let source = Bytes(input);
    let window = Window::new(&source, input.len() as u64).first_read(first_read);
    let by_window = pickle_error(parse_at(&window, 0, &limits));
    assert_eq!(
        account(by_window),
        account(parse(input, &Limits::default())),
        "{} by {first_read}",
        input.escape_ascii()
    );
}

#[test]
fn reads_as_a_slice() {
    for &(_, input, _) in ACCEPTED {
        for first_read in 1..=20 {
            assert_reads_as_a_slice(input, first_read);
            assert_reads_as_a_slice(&input[..input.len() - 1], first_read);
        }
    }
}

proptest! {
    #[test]
    fn reads_random_opcodes_as_a_slice(
        picks in prop::collection::vec(any::<prop::sample::Index>(), 0..60),
        first_read in 1u64..100,
        change in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut input: Vec<u8> = picks
            .iter()
            .flat_map(|pick| {
                let (_, pickle, _) = pick.get(ACCEPTED);
                &pickle[..pickle.len() - 1]
            })
            .copied()
            .collect();
        input.push(b'.');
        assert_reads_as_a_slice(&input, first_read);
        *change.get_mut(&mut input) = byte;
        assert_reads_as_a_slice(&input, first_read);
    }
}

#[test]
fn offsets_are_those_of_the_file() {
    let file = b"....\x80\x02cos\ngetcwd\n)R.\xff";
    let source = Bytes(file);
    let window_of = |end| Window::new(&source, end);
    let window = window_of(file.len() as u64);
    let pickle = parse_at(&window, 4, &Limits::default()).unwrap();
    assert_eq!(pickle.imports()[0].offset, 6);
    assert_eq!(pickle.end(), 20);

    let error = pickle_error(parse_at(&window, 20, &Limits::default())).unwrap_err();
    assert_eq!(error.to_string(), "byte 20: 0xff is not an opcode");
    // The window ends before the file does.
    let window = window_of(19);
    let error = pickle_error(parse_at(&window, 4, &Limits::default())).unwrap_err();
    assert_eq!(error.to_string(), "byte 19: the pickle ends without STOP");
    // Nothing follows the end.
    for offset in [19, 30, u64::MAX] {
        assert!(parse_at(&window, offset, &Limits::default()).is_err());
    }
}

#[test]
fn long_payloads_are_left_apart() {
    let limits = Limits {
        apart: 3,
        ..Limits::default()
    };
    let cases: &[(&[u8], &str)] = &[
        (b"T\x04\0\0\0abcd.", "bytes[5; 4]"),
        (b"U\x04abcd.", "bytes[2; 4]"),
        (b"B\x04\0\0\0abcd.", "bytes[5; 4]"),
        (b"C\x04abcd.", "bytes[2; 4]"),
        (b"\x8e\x04\0\0\0\0\0\0\0abcd.", "bytes[9; 4]"),
        (b"\x96\x04\0\0\0\0\0\0\0abcd.", "bytearray(bytes[9; 4])"),
        (b"X\x04\0\0\0abcd.", "str[5; 4]"),
        (b"\x8c\x04abcd.", "str[2; 4]"),
        (b"\x8d\x04\0\0\0\0\0\0\0abcd.", "str[9; 4]"),
        // Nobody has looked whether it is UTF-8.
        (b"\x8c\x04\xff\xff\xff\xff.", "str[2; 4]"),
        // No longer than the bound.
        (b"C\x03abc.", "b'abc'"),
        (b"\x8c\x03abc.", "'abc'"),
        // Within a frame.
        (b"\x95\x07\0\0\0\0\0\0\0C\x04abcd.", "bytes[11; 4]"),
        // As keys, by identity.
        (
            b"}(C\x04abcdq\0K\x01C\x04abcdK\x02h\0K\x03u.",
            "{bytes[4; 4]: 3, bytes[14; 4]: 2}",
        ),
    ];
    for (input, expected) in cases {
        let source = Bytes(input);
        let window = Window::new(&source, input.len() as u64);
        let pickle = parse_at(&window, 0, &limits).unwrap();
        assert_eq!(repr(&pickle, pickle.root()), *expected);
        assert_eq!(pickle.as_str(pickle.root()).is_some(), *expected == "'abc'");
    }

    let refused: &[(&[u8], &str)] = &[
        (
            b"\x8c\x04abcd\x8c\x01f\x93.",
            "byte 9 (STACK_GLOBAL): more than 3 bytes in the module or name of an import",
        ),
        (
            b"C\x06abcd.",
            "byte 0 (SHORT_BINBYTES): 6 bytes announced, 5 left",
        ),
        (
            b"\x8e\xff\xff\xff\xff\xff\xff\xff\xff.",
            "byte 0 (BINBYTES8): 18446744073709551615 bytes announced, 1 left",
        ),
        (
            b"\x95\x05\0\0\0\0\0\0\0C\x04abcd.",
            "byte 9 (SHORT_BINBYTES): 4 bytes announced, 3 left in the frame",
        ),
        (
            b"}\x96\x04\0\0\0\0\0\0\0abcdNs.",
            "byte 15 (SETITEM): a bytearray cannot be a dict key or set member",
        ),
    ];
    for (input, expected) in refused {
        let source = Bytes(input);
        let window = Window::new(&source, input.len() as u64);
        let error = pickle_error(parse_at(&window, 0, &limits)).unwrap_err();
        assert_eq!(error.to_string(), *expected);
    }
}

/// A thousand arrays of a terabyte each: what is read is what lies around them.
#[test]
fn arrays_are_not_read() {
    const ARRAYS: u64 = 1000;
    const LEN: u64 = 1 << 40;
    let head: &[u8] = b"\x80\x04(";
    let array = [&b"\x8e"[..], &LEN.to_le_bytes()].concat();
    let pitch = array.len() as u64 + LEN;
    let tail: &[u8] = b"l.";
    let mut parts: Vec<(u64, &[u8])> = vec![(0, head)];
    parts.extend((0..ARRAYS).map(|index| (head.len() as u64 + index * pitch, &array[..])));
    parts.push((head.len() as u64 + ARRAYS * pitch, tail));
    let end = head.len() as u64 + ARRAYS * pitch + tail.len() as u64;

    let source = Sparse {
        parts: &parts,
        read: Cell::new(0),
    };
    let window = Window::new(&source, end);
    let pickle = parse_at(&window, 0, &Limits::default()).unwrap();
    assert_eq!(pickle.end(), end);
    let Object::List(arrays) = pickle.get(pickle.root()) else {
        panic!("no list");
    };
    assert_eq!(arrays.len() as u64, ARRAYS);
    for (&array, index) in arrays.iter().zip(0..) {
        let span = ByteRange {
            offset: 3 + index * pitch + 9,
            len: LEN,
        };
        let Object::Bytes(bytes) = pickle.get(array) else {
            panic!("no bytes");
        };
        assert_eq!(*bytes, Payload::Apart(span));
    }
    assert!(source.read.get() <= 1024 * (ARRAYS + 1));
    assert_eq!(window.held(), source.read.get());

    // One byte short.
    let window = Window::new(&source, end - LEN - 2);
    let error = pickle_error(parse_at(&window, 0, &Limits::default())).unwrap_err();
    let at = 3 + (ARRAYS - 1) * pitch;
    assert_eq!(error.offset, at);
    assert!(
        error
            .to_string()
            .ends_with("1099511627776 bytes announced, 0 left")
    );
}

#[test]
fn what_is_held_is_bounded() {
    let limits = Limits {
        held: 4096,
        ..Limits::default()
    };
    let mut input = b"N0".repeat(10_000);
    input.extend(b"N.");
    let source = Bytes(&input);
    let window = Window::new(&source, input.len() as u64);
    let error = pickle_error(parse_at(&window, 0, &limits)).unwrap_err();
    assert_eq!(
        error.kind.to_string(),
        "more than 4096 bytes held of the file"
    );
    assert!(window.held() <= 4096);

    // A line that never ends is not searched to its end.
    let endless = [b"c".to_vec(), b"a".repeat(1 << 20)].concat();
    let source = Bytes(&endless);
    let window = Window::new(&source, endless.len() as u64);
    let error = pickle_error(parse_at(&window, 0, &Limits::default())).unwrap_err();
    assert_eq!(
        error.to_string(),
        "byte 0 (GLOBAL): more than 1024 bytes in the module or name of an import"
    );
    assert!(window.held() < 16 << 10);
}

#[test]
fn failing_reads_are_no_refusals() {
    let input = [
        b"\x80\x04(B\0\x20\0\0".to_vec(),
        vec![0; 0x2000],
        b"Nt.".to_vec(),
    ]
    .concat();
    let length = input.len() as u64;
    let parse = |bad: Range<u64>| {
        let source = Bad(&input, bad);
        let window = Window::new(&source, length);
        parse_at(&window, 0, &Limits::default()).map(|pickle| pickle.end())
    };
    // Within the payload nothing is read.
    assert_eq!(parse(4096..8000).unwrap(), length);
    for bad in [0..1, 7..8, length - 3..length - 2, length - 1..length] {
        match parse(bad.clone()) {
            Err(ParseError::Read(error)) => assert_eq!(error.kind(), io::ErrorKind::TimedOut),
            other => panic!("{bad:?}: {other:?}"),
        }
    }
}

/// Text that was not read has no bytes to show.
#[test]
fn text_left_apart_has_no_text() {
    let text = Str::Apart(ByteRange { offset: 1, len: 2 });
    assert_eq!(text.as_str(), None);
    assert_eq!(text.as_bytes(), None);
}

/// The attribute of a wrapper that joblib wrote.
fn attribute(parser: &Parser<'_, '_, '_, Bytes<'_>>, id: ObjectId, name: &str) -> Option<ObjectId> {
    let objects = parser.objects();
    let state = objects.as_call(id)?.state[0];
    let entries = objects.entries(state);
    let found = entries
        .iter()
        .find(|(key, _)| objects.as_str(*key) == Some(name));
    found.map(|(_, value)| *value)
}

/// Reads a stream as joblib's `NumpyUnpickler` does.
fn read_joblib<'a>(window: &'a Window<'_, Bytes<'a>>) -> Result<Pickle<'a>, Error> {
    let limits = Limits::default();
    let mut parser = Parser::new(window, 0, &limits);
    loop {
        let built = match pickle_error(parser.resume())? {
            Step::Done(pickle) => return Ok(pickle),
            Step::Built(built) => built,
        };
        let objects = parser.objects();
        let class = objects.as_call(built).unwrap().callable;
        if objects.global(class) != Some(("joblib.numpy_pickle", "NumpyArrayWrapper")) {
            continue;
        }
        let dtype = objects
            .as_call(attribute(&parser, built, "dtype").unwrap())
            .unwrap();
        let dtype = objects
            .as_str(objects.as_tuple(dtype.args).unwrap()[0])
            .unwrap();
        if dtype == "O8" {
            let inner = pickle_error(parse_at(window, parser.offset(), &limits))?;
            let len = inner.end() - parser.offset();
            pickle_error(parser.claim(built, 0, len))?;
            continue;
        }
        let shape = attribute(&parser, built, "shape").unwrap();
        let shape = objects.as_tuple(shape).unwrap();
        let elements: i64 = shape.iter().map(|&n| objects.as_int(n).unwrap()).product();
        let size: u64 = dtype[1..].parse().unwrap();
        let alignment = attribute(&parser, built, "numpy_array_alignment_bytes").unwrap();
        let gap = match objects.as_int(alignment) {
            Some(_) => 1 + u64::from(pickle_error(parser.peek())?.unwrap_or(0)),
            None => 0,
        };
        pickle_error(parser.claim(built, gap, elements as u64 * size))?;
    }
}

#[test]
fn arrays_of_joblib_lie_between_the_opcodes() {
    for (stream, aligned) in [
        (joblib::PROTOCOL_2, true),
        (joblib::PROTOCOL_4, true),
        (joblib::UNALIGNED, false),
    ] {
        let source = Bytes(stream);
        for first_read in [1, 7, 64, 512] {
            let window = Window::new(&source, stream.len() as u64).first_read(first_read);
            let pickle = read_joblib(&window).unwrap();
            assert_eq!(pickle.end(), stream.len() as u64);
            let raw = |name| {
                let entries = pickle.entries(pickle.root());
                let found = entries
                    .iter()
                    .find(|(key, _)| pickle.as_str(*key) == Some(name));
                let span = pickle.raw(found.unwrap().1).unwrap();
                if aligned && name != "o" {
                    assert_eq!(span.offset % 16, 0);
                }
                let start = span.offset as usize;
                &stream[start..start + span.len as usize]
            };
            assert_eq!(raw("a"), [1, 0, 2, 0, 3, 0, 4, 0, 5, 0, 6, 0]);
            assert_eq!(raw("b"), [7]);
            // Column by column.
            assert_eq!(raw("f"), [1, 0, 3, 0, 2, 0, 4, 0]);
            let inner = parse(raw("o"), &Limits::default()).unwrap();
            let call = inner.as_call(inner.root()).unwrap();
            assert!(repr(&inner, call.state[0]).ends_with("[None, 'x'])"));
        }
        // Cut anywhere, it is refused.
        for end in 0..stream.len() {
            let cut = Bytes(&stream[..end]);
            let window = Window::new(&cut, end as u64);
            assert!(read_joblib(&window).is_err(), "{end}");
        }
    }
}

#[test]
fn claims_stay_within_the_file_and_out_of_frames() {
    let claim = |input: &[u8], gap, len| {
        let source = Bytes(input);
        let window = Window::new(&source, input.len() as u64);
        let limits = Limits::default();
        let mut parser = Parser::new(&window, 0, &limits);
        let Ok(Step::Built(built)) = parser.resume() else {
            panic!("nothing built");
        };
        pickle_error(parser.claim(built, gap, len))?;
        match pickle_error(parser.resume())? {
            Step::Built(built) => {
                pickle_error(parser.claim(built, 0, 0)).map(|_| panic!("claimed twice"))
            }
            Step::Done(pickle) => Ok(repr(&pickle, pickle.root())),
        }
    };
    let plain = b"cm\nC\n)\x81Nb\xff\xffabc.";
    assert_eq!(
        claim(plain, 2, 3).unwrap(),
        "m.C.__new__() state [None] raw [11; 3]"
    );
    let refusal = |input, gap, len| claim(input, gap, len).unwrap_err().to_string();
    assert_eq!(
        refusal(plain, 2, 5),
        "byte 8 (BUILD): 7 bytes announced, 6 left"
    );
    assert_eq!(
        refusal(plain, u64::MAX, u64::MAX),
        "byte 8 (BUILD): 18446744073709551615 bytes announced, 6 left"
    );
    assert_eq!(
        refusal(b"\x95\x0a\0\0\0\0\0\0\0cm\nC\n)\x81NbN.", 0, 1),
        "byte 17 (BUILD): the last frame has not been read to its end (1 left)"
    );
    assert_eq!(
        claim(b"\x95\x09\0\0\0\0\0\0\0cm\nC\n)\x81Nba.", 0, 1).unwrap(),
        "m.C.__new__() state [None] raw [18; 1]"
    );
    assert_eq!(
        refusal(b"cm\nC\n)\x81NbaNb.", 0, 1),
        "byte 11 (BUILD): raw bytes follow the same object twice"
    );
}

#[test]
fn what_was_read_already_is_not_read_again() {
    let input = b"....\x80\x02]q\x00(K\x01K\x02e..";
    let source = Bytes(input);
    // Nothing else can be read: the source ends before.
    let short = Bytes(&input[..4]);
    let window = Window::new(&short, input.len() as u64).holding(4, input[4..].to_vec());
    let pickle = pickle_error(parse_at(&window, 4, &Limits::default())).unwrap();
    assert_eq!(repr(&pickle, pickle.root()), "[1, 2]");
    assert_eq!(&*window.bytes(4..pickle.end()).unwrap(), &input[4..16]);
    assert_eq!(window.held(), input.len() as u64 - 4);

    // Of what is not held, only what is asked for is read.
    let window = Window::new(&source, input.len() as u64);
    assert_eq!(&*window.bytes(2..6).unwrap(), &input[2..6]);
    assert_eq!(window.held(), 0);
}
