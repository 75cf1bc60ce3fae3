//! Streams of torch.save from before 1.6: the pickles around the object hold what
//! torch writes there, or the file is refused, at no cost.

use safetensors::Dtype;
use stfs::checkpoint::Cause;

use super::opcodes::*;
use super::{Seen, read, refused};

const FLOATS: [u8; 16] = [0, 0, 128, 63, 0, 0, 0, 64, 0, 0, 64, 64, 0, 0, 128, 64];

/// `{"w": torch.tensor([1., 2., 3., 4.])}`, with something else for some of the
/// pickles around it.
struct Stream {
    magic: Vec<u8>,
    version: Vec<u8>,
    keys: Vec<u8>,
}

impl Stream {
    fn new() -> Stream {
        Stream {
            magic: b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19".to_vec(),
            version: int(1001),
            keys: list(&[text("7")]),
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let id = [
            text("storage"),
            global("torch", "FloatStorage"),
            text("7"),
            text("cpu"),
            int(4),
            NONE.to_vec(),
        ];
        let storage = [tuple(&id), b"Q".to_vec()].concat();
        let machine = dict(&[(text("little_endian"), TRUE.to_vec())]);
        [
            pickle(self.magic.clone()),
            pickle(self.version.clone()),
            pickle(machine),
            named(rebuild(&view(storage, 0, &[4], &[1]))),
            pickle(self.keys.clone()),
            4_u64.to_le_bytes().to_vec(),
            FLOATS.to_vec(),
        ]
        .concat()
    }
}

#[track_caller]
fn accepted(stream: &Stream) {
    let expected = Seen {
        name: "w".into(),
        dtype: Dtype::F32,
        shape: vec![4],
        bytes: FLOATS.to_vec(),
    };
    assert_eq!(read(&stream.bytes()).unwrap(), [expected]);
}

#[test]
fn reads_what_all_versions_of_python_write() {
    accepted(&Stream::new());
    // The number as text, and the key as the bytes of Python 2.
    let mut old = Stream::new();
    old.magic = b"L119547037146038801333356L\n".to_vec();
    old.version = b"I1001\n".to_vec();
    old.keys = b"]U\x017a".to_vec();
    // A file without a mark is no legacy stream: the mark stands in the first pickle.
    assert!(read(&old.bytes()).is_err());
    old.magic = Stream::new().magic;
    accepted(&old);
    // Memoized, as every list and text is.
    let mut memoized = Stream::new();
    memoized.keys = b"]q\x00U\x017q\x01a".to_vec();
    accepted(&memoized);
}

#[test]
fn refuses_other_values() {
    let refuse = |change: fn(&mut Stream), cause| {
        let mut stream = Stream::new();
        change(&mut stream);
        refused(&stream.bytes(), cause)
    };
    let what = refuse(|stream| stream.version = int(1002), Cause::Unsupported);
    assert!(what.contains("version"), "{what}");
    refuse(|stream| stream.version = text("1001"), Cause::Unsupported);
    refuse(|stream| stream.keys = text("7"), Cause::Malformed);
    refuse(|stream| stream.keys = list(&[int(7)]), Cause::Malformed);
    refuse(|stream| stream.keys = list(&[text("8")]), Cause::Malformed);
    refuse(
        |stream| stream.keys = list(&[text("7"), text("7")]),
        Cause::Malformed,
    );
    // In no order.
    refuse(
        |stream| stream.keys = b"\x8f(U\x017\x90".to_vec(),
        Cause::Malformed,
    );
}

/// What would break a reader that calls itself for each value inside another, or
/// copies what is shared.
#[test]
fn refuses_what_costs_more_than_it_should() {
    let deep = [vec![b']'; 200_000], vec![b'a'; 199_999]].concat();
    // Never part of the value itself.
    let deep_and_gone = [&deep[..], b"0]U\x017a"].concat();
    // Each list holds the one before it twice.
    let mut doubling = b"]q\x00".to_vec();
    for index in 0..60 {
        doubling.extend([
            b'0',
            b']',
            b'q',
            index + 1,
            b'(',
            b'h',
            index,
            b'h',
            index,
            b'e',
        ]);
    }
    let itself = b"]q\x00h\x00a".to_vec();
    // One list, put on the stack again and again.
    let again = [&b"]("[..], &vec![b'N'; 50_000], b"e", &vec![b'2'; 50_000]].concat();
    let marks = [vec![b'('; 500_000], list(&[text("7")])].concat();
    let many = [&b"]("[..], &vec![b'N'; 3_000_000], b"e"].concat();
    let import = global("collections", "OrderedDict");
    for keys in [
        deep,
        deep_and_gone,
        doubling,
        itself,
        again,
        marks,
        many,
        import,
    ] {
        let mut stream = Stream::new();
        stream.keys = keys.clone();
        let what = refused(&stream.bytes(), Cause::TooLarge);
        assert!(what.contains("plain values"), "{what}");
        let mut stream = Stream::new();
        stream.version = keys;
        refused(&stream.bytes(), Cause::TooLarge);
    }
}
