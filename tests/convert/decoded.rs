//! Encoded storages are decoded by ranges, no further than is asked for, once for all
//! readers of a plan, and within bounded memory.

use std::collections::hash_map::DefaultHasher;
use std::ffi::OsStr;
use std::hash::{Hash, Hasher};
use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use std::thread;

use flate2::Compression;
use flate2::write::DeflateEncoder;
use safetensors::Dtype;
use stfs::checkpoint::{Backing, Checkpoint, Codec, Encoded, Storage, Tensor};
use stfs::convert::{Files, Plan, Reader, Scratch};
use stfs::source::memory::MemoryTree;
use stfs::source::{Error, Result};

use super::contiguous;
use super::support::owned;

const MIB: usize = 1 << 20;
/// Bytes before and after the encoded ones.
const MARGIN: [u8; 5] = *b"begin";
const NAME: &str = "m.pt";
const CODECS: [Codec; 2] = [Codec::Deflate, Codec::Latin1];

/// Bytes that deflating makes about half as many.
fn content(len: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let next = || {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 60) as u8 * 17
    };
    std::iter::repeat_with(next).take(len).collect()
}

fn encode(codec: Codec, content: &[u8]) -> Vec<u8> {
    match codec {
        Codec::Deflate => {
            let mut encoder = DeflateEncoder::new(Vec::new(), Compression::fast());
            encoder.write_all(content).unwrap();
            encoder.finish().unwrap()
        }
        Codec::Latin1 => {
            let text: String = content.iter().map(|byte| char::from(*byte)).collect();
            text.into_bytes()
        }
    }
}

/// A file with one encoded storage, and the plan of it.
struct Model {
    tree: MemoryTree,
    plan: Arc<Plan>,
    encoded: u64,
}

impl Model {
    /// `encoded` is said to decode to `len` bytes, which `tensor` is of.
    fn new(codec: Codec, encoded: &[u8], len: u64, tensor: Tensor) -> Model {
        let tree = MemoryTree::new();
        tree.write(NAME, [&MARGIN, encoded, &MARGIN].concat());
        let storage = Storage {
            backing: Backing::Decoded(Encoded {
                offset: MARGIN.len() as u64,
                len: encoded.len() as u64,
                codec,
            }),
            len,
        };
        let checkpoint = Checkpoint {
            tensors: vec![tensor],
            storages: vec![storage],
            ..Checkpoint::default()
        };
        let encoded = encoded.len() as u64;
        let plan = Plan::new(checkpoint, encoded + 10, None).unwrap();
        Model {
            tree,
            plan: Arc::new(plan),
            encoded,
        }
    }

    /// All of `content` as one tensor.
    fn of(codec: Codec, content: &[u8]) -> Model {
        let len = content.len() as u64;
        let tensor = contiguous("t", Dtype::U8, &[len], 0);
        Model::new(codec, &encode(codec, content), len, tensor)
    }

    fn reader(&self) -> Reader {
        let source = self.tree.root().open(OsStr::new(NAME)).unwrap();
        Reader::new(Files::new(source, Vec::new()), self.plan.clone())
    }

    fn lent(&self, room: &Arc<Room>) -> Reader {
        let reader = self.reader();
        reader.lend(room.lend());
        reader
    }

    /// Bytes of the file that `work` reads.
    fn cost(&self, work: impl FnOnce()) -> u64 {
        let (_, before) = self.tree.reads();
        work();
        self.tree.reads().1 - before
    }
}

/// Room for so many bytes, which are lost when that is asked for.
#[derive(Debug, Default)]
struct Room {
    bytes: Mutex<Vec<u8>>,
    limit: usize,
    lost: Mutex<bool>,
}

#[derive(Debug)]
struct Lent(Arc<Room>);

impl Room {
    fn new(limit: usize) -> Arc<Room> {
        let room = Room {
            limit,
            ..Room::default()
        };
        Arc::new(room)
    }

    fn lend(self: &Arc<Room>) -> Box<dyn Scratch> {
        Box::new(Lent(self.clone()))
    }

    fn used(&self) -> usize {
        self.bytes.lock().unwrap().len()
    }
}

impl Scratch for Lent {
    fn put(&self, bytes: &[u8]) -> Option<u64> {
        let mut room = self.0.bytes.lock().unwrap();
        let at = room.len();
        if at + bytes.len() > self.0.limit {
            return None;
        }
        room.extend(bytes);
        Some(at as u64)
    }

    fn read_exact_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        if *self.0.lost.lock().unwrap() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let room = self.0.bytes.lock().unwrap();
        buffer.copy_from_slice(&room[at as usize..][..buffer.len()]);
        Ok(())
    }
}

fn read(reader: &Reader, offset: usize, len: usize) -> Result<Vec<u8>> {
    Ok(owned(reader.read_tensor(0, offset as u64, len)?))
}

/// The same ranges each time.
fn ranges(seed: u64, size: usize) -> impl Iterator<Item = (usize, usize)> {
    let number = move |which: u64| {
        let mut hasher = DefaultHasher::new();
        (seed, which).hash(&mut hasher);
        hasher.finish() as usize
    };
    (0..).map(move |which| (number(2 * which) % size, number(2 * which + 1) % (MIB / 2)))
}

#[test]
fn any_range_is_that_of_the_whole() {
    let content = content(5 * MIB + 123);
    for codec in CODECS {
        let model = Model::of(codec, &content);
        for room in [None, Some(2 * MIB), Some(usize::MAX)] {
            let reader = model.reader();
            if let Some(limit) = room {
                reader.lend(Room::new(limit).lend());
            }
            for (offset, len) in ranges(1, content.len()).take(40) {
                let wanted = &content[offset..content.len().min(offset + len)];
                let found = read(&reader, offset, len).unwrap();
                assert!(found == wanted, "{codec:?} {room:?} {offset} {len}");
            }
            assert!(read(&reader, 0, content.len()).unwrap() == content);
        }
    }
}

#[test]
fn elements_are_gathered_from_what_is_decoded() {
    let (rows, columns) = (1500_u64, 1001);
    let content = content((rows * columns) as usize);
    let turned = Tensor {
        strides: [1, columns].into(),
        ..contiguous("t", Dtype::U8, &[columns, rows], 0)
    };
    let encoded = encode(Codec::Deflate, &content);
    let model = Model::new(Codec::Deflate, &encoded, rows * columns, turned);
    let place = |column| (0..rows).map(move |row| (row * columns + column) as usize);
    let places = (0..columns).flat_map(place);
    let wanted: Vec<u8> = places.map(|place| content[place]).collect();
    assert!(read(&model.reader(), 0, content.len()).unwrap() == wanted);
}

#[test]
fn nothing_is_decoded_that_nobody_asked_for() {
    let content = content(10 * MIB);
    for codec in CODECS {
        let model = Model::of(codec, &content);
        let reader = model.reader();
        let first = model.cost(|| assert_eq!(read(&reader, 0, 1).unwrap(), content[..1]));
        assert!(first <= model.encoded / 10, "{codec:?}: {first}");
        // As far as it is passed once, any place is near.
        let last = content.len() - 1;
        read(&reader, last, 1).unwrap();
        for offset in [9 * MIB, 5 * MIB, 3 * MIB, 100] {
            let cost = model.cost(|| {
                let found = read(&reader, offset, 9).unwrap();
                assert_eq!(found, content[offset..offset + 9]);
            });
            assert!(cost <= model.encoded / 2, "{codec:?}: {cost}");
        }
    }
}

#[test]
fn what_has_room_is_decoded_once_for_all_readers() {
    let content = content(6 * MIB + 7);
    let model = Model::of(Codec::Deflate, &content);
    let room = Room::new(usize::MAX);
    let first = model.lent(&room);
    let cost = model.cost(|| {
        thread::scope(|scope| {
            for number in 0..8 {
                let (model, content) = (&model, &content);
                scope.spawn(move || {
                    let reader = model.reader();
                    let all = (0..content.len()).step_by(MIB / 4);
                    // Each begins elsewhere.
                    let from = number * 3;
                    for offset in all.clone().skip(from).chain(all.take(from)) {
                        let end = content.len().min(offset + MIB / 4);
                        let found = read(&reader, offset, MIB / 4).unwrap();
                        assert!(found == content[offset..end], "{offset}");
                    }
                });
            }
        });
    });
    // A little is read twice where one stops and another goes on.
    assert!(cost <= 3 * model.encoded, "{cost} of {}", model.encoded);
    assert_eq!(room.used(), content.len());
    let again = model.cost(|| assert!(read(&first, 0, content.len()).unwrap() == content));
    assert_eq!(again, 0);

    // It goes with the last reader, not before.
    let second = model.reader();
    drop(first);
    assert_eq!(model.cost(|| drop(read(&second, 0, 9).unwrap())), 0);
    assert_eq!(Arc::strong_count(&room), 2);
    drop(second);
    assert_eq!(Arc::strong_count(&room), 1);
    assert!(model.cost(|| drop(read(&model.reader(), 0, 9).unwrap())) > 0);
}

#[test]
fn readers_without_room_get_along() {
    let content = content(6 * MIB);
    let model = Model::of(Codec::Deflate, &content);
    thread::scope(|scope| {
        for seed in 0..6 {
            let (model, content) = (&model, &content);
            scope.spawn(move || {
                let reader = model.reader();
                for (offset, len) in ranges(seed, content.len()).take(12) {
                    let wanted = &content[offset..content.len().min(offset + len)];
                    assert!(read(&reader, offset, len).unwrap() == wanted);
                }
            });
        }
    });
}

#[test]
fn what_the_room_loses_is_decoded_again() {
    let content = content(2 * MIB);
    let model = Model::of(Codec::Deflate, &content);
    let room = Room::new(usize::MAX);
    let reader = model.lent(&room);
    read(&reader, 0, content.len()).unwrap();
    *room.lost.lock().unwrap() = true;
    assert!(read(&reader, 0, content.len()).unwrap() == content);
}

fn invalid(result: Result<Vec<u8>>, words: &str) {
    match result {
        Err(Error::Io(error)) if error.kind() == io::ErrorKind::InvalidData => {
            assert!(error.to_string().contains(words), "{error}");
        }
        other => panic!("{:?}", other.map(|bytes| bytes.len())),
    }
}

#[test]
fn damage_is_an_error_where_it_is_met() {
    let content = content(2 * MIB + 1000);
    let len = content.len();
    for codec in CODECS {
        let whole = encode(codec, &content);
        let model = |encoded: &[u8], said: usize| {
            let tensor = contiguous("t", Dtype::U8, &[said as u64], 0);
            Model::new(codec, encoded, said as u64, tensor)
        };
        // Between two letters.
        let cut = (whole.len() * 3 / 4..).find(|at| !matches!(whole[*at], 0x80..=0xbf));
        let cut = cut.unwrap();
        let cases = [
            (model(&whole[..cut], len), "ends too early"),
            (model(&whole, len + 1), "ends too early"),
            (model(&whole, len - 1), "goes on after its end"),
        ];
        for (model, words) in cases {
            let room = Room::new(usize::MAX);
            let reader = model.lent(&room);
            assert_eq!(read(&reader, 0, 100).unwrap(), content[..100]);
            for _ in 0..2 {
                invalid(read(&reader, len - 100, 50), words);
                invalid(read(&reader, 0, len - 1), words);
            }
            // No byte beyond the damage is kept.
            let size = reader.plan().tensors()[0].len as usize;
            assert!(room.used() < size, "{}", room.used());
        }
    }
    let text = [&encode(Codec::Latin1, &content)[..], "Ā".as_bytes()].concat();
    let tensor = contiguous("t", Dtype::U8, &[len as u64 + 1], 0);
    let model = Model::new(Codec::Latin1, &text, len as u64 + 1, tensor);
    invalid(read(&model.reader(), len - 9, 10), "beyond Latin-1");
    // Half a letter.
    let tensor = contiguous("t", Dtype::U8, &[2], 0);
    let model = Model::new(Codec::Latin1, &[0x61, 0xc3], 2, tensor);
    invalid(read(&model.reader(), 0, 2), "beyond Latin-1");
    // The last kind of block, which there is none of.
    let tensor = contiguous("t", Dtype::U8, &[2], 0);
    let model = Model::new(Codec::Deflate, &[0xff; 9], 2, tensor);
    invalid(read(&model.reader(), 0, 2), "is not what deflating gives");
}

#[test]
fn a_length_beyond_measure_costs_nothing() {
    let content = content(MIB);
    for codec in CODECS {
        let tensor = contiguous("t", Dtype::U8, &[10], (1 << 60) - 10);
        let model = Model::new(codec, &encode(codec, &content), 1 << 60, tensor);
        let reader = model.reader();
        let cost = model.cost(|| invalid(read(&reader, 0, 10), "ends too early"));
        assert_eq!(cost, 0);
    }
}

#[test]
fn bytes_of_a_changed_file_are_never_kept() {
    let content = content(3 * MIB);
    let model = Model::of(Codec::Deflate, &content);
    let room = Room::new(usize::MAX);
    let reader = model.lent(&room);
    assert_eq!(read(&reader, 0, 9).unwrap(), content[..9]);
    let kept = room.used();
    let other: Vec<u8> = content.iter().map(|byte| !byte).collect();
    let other = encode(Codec::Deflate, &other);
    model
        .tree
        .write(NAME, [&MARGIN[..], &other, &MARGIN].concat());
    for offset in [0, 2 * MIB] {
        let found = read(&reader, offset, 9);
        assert!(matches!(found, Err(Error::Changed)), "{offset}");
    }
    assert_eq!(room.used(), kept);
}
