//! What reading a torch zip archive costs in requests, what it takes for granted
//! until tensors are read, and what tells two archives apart.

use std::io;
use std::sync::Arc;

use stfs::budget::Budget;
use stfs::checkpoint::{self, Cause, Checkpoint, Content, NameHint, Wanted, fingerprint, sniff};
use stfs::convert::{Files, Plan, Reader};
use stfs::source::memory::MemoryTree;
use stfs::source::{self, Source, System};

use super::archive::{Archive, crc32};
use super::opcodes::*;
use super::owned;

const TENSORS: usize = 300;
/// Bytes of each.
const LEN: usize = 4096;

/// `{"t0": ..., "t1": ...}`, too long to be read at once by chance.
fn large() -> Archive {
    let keys: Vec<String> = (0..TENSORS).map(|number| number.to_string()).collect();
    let bytes: Vec<Vec<u8>> = (0..TENSORS)
        .map(|number| vec![number as u8 | 1; LEN])
        .collect();
    let tensors: Vec<_> = keys
        .iter()
        .map(|key| {
            let elements = LEN as i64 / 4;
            let storage = storage("FloatStorage", key, elements);
            let tensor = rebuild(&view(storage, 0, &[elements], &[1]));
            (text(&format!("t{key}")), tensor)
        })
        .collect();
    let storages = keys.iter().zip(&bytes);
    let storages: Vec<(&str, &[u8])> = storages.map(|(key, bytes)| (&**key, &**bytes)).collect();
    Archive::torch(&pickle(dict(&tensors)), &storages)
}

/// The file `model.pt` with these bytes, in a tree that counts reads.
struct Model(MemoryTree);

impl Model {
    /// Where every read costs.
    fn new(bytes: &[u8]) -> Model {
        let system = System::Mounted {
            mount: 1,
            device: 1,
        };
        Model::in_tree(MemoryTree::on(system), bytes)
    }

    /// On a disk of this machine.
    fn near(bytes: &[u8]) -> Model {
        Model::in_tree(MemoryTree::new(), bytes)
    }

    fn in_tree(tree: MemoryTree, bytes: &[u8]) -> Model {
        tree.write("model.pt", bytes);
        Model(tree)
    }

    fn source(&self) -> Source {
        self.0.root().open("model.pt".as_ref()).unwrap()
    }

    fn checkpoint(&self) -> Checkpoint {
        let source = self.source();
        let content = content(&source);
        self.read(&source, content).unwrap()
    }

    fn read(&self, source: &Source, content: Content) -> checkpoint::Result<Checkpoint> {
        let share = Budget::default().share();
        checkpoint::read(source, content, &*self.0.root(), Wanted::Rule, &share)
    }

    fn reader(&self, plan: &Arc<Plan>) -> Reader {
        Reader::new(Files::new(self.source(), Vec::new()), plan.clone())
    }

    /// What `work` returns, how often it reads, and how many bytes.
    fn counted<T>(&self, work: impl FnOnce() -> T) -> (T, u64, u64) {
        let before = self.0.reads();
        let value = work();
        let after = self.0.reads();
        (value, after.0 - before.0, after.1 - before.1)
    }
}

fn content(source: &Source) -> Content {
    sniff(source, NameHint::Checkpoint, &Budget::default().share()).unwrap()
}

fn planned(checkpoint: Checkpoint) -> Arc<Plan> {
    Arc::new(Plan::new(checkpoint, 1 << 30, None).unwrap())
}

#[test]
fn an_archive_of_torch_is_planned_in_a_few_requests() {
    let model = Model::new(&large().bytes());
    let source = model.source();
    let (content, requests, bytes) = model.counted(|| content(&source));
    assert!(requests <= 2 && bytes < 70_000, "{requests}, {bytes}");

    // The end of the file, and the pickle with what stands behind it.
    let (checkpoint, requests, bytes) = model.counted(|| model.read(&source, content).unwrap());
    assert_eq!(checkpoint.tensors.len(), TENSORS);
    assert!(requests <= 2 && bytes < 120_000, "{requests}, {bytes}");

    // The headers are looked at once, some at a time, for all readers of the plan.
    let plan = planned(checkpoint);
    let end = plan.size();
    let reader = model.reader(&plan);
    let (last, requests, _) = model.counted(|| owned(reader.read(end - 4, 4).unwrap()));
    assert_eq!(last.len(), 4);
    // One of them is for the bytes themselves.
    assert!((2..=5).contains(&requests), "{requests}");
    let reader = model.reader(&plan);
    let (_, requests, _) = model.counted(|| owned(reader.read(end - 4, 4).unwrap()));
    assert_eq!(requests, 1);
}

#[test]
fn headers_that_cannot_be_predicted_are_read_many_at_once() {
    let zipped_again = large().each(|entry| {
        entry.aligned = false;
        entry.descriptor = false;
        entry.flags = 0;
    });
    let model = Model::new(&zipped_again.bytes());
    let source = model.source();
    let content = content(&source);
    let (checkpoint, requests, _) = model.counted(|| model.read(&source, content).unwrap());
    assert_eq!(checkpoint.tensors.len(), TENSORS);
    assert!(requests <= 6, "{requests}");
    // Nothing is left to look at.
    let reader = model.reader(&planned(checkpoint));
    let (_, requests, _) = model.counted(|| reader.check().unwrap());
    assert_eq!(requests, 0);
}

/// Where a local header begins.
fn header(bytes: &[u8], name: &str) -> usize {
    let name = name.as_bytes();
    let at = bytes.windows(name.len()).position(|found| found == name);
    at.unwrap() - 30
}

#[track_caller]
fn refused_when_read(bytes: &[u8], what: &str) {
    let model = Model::new(bytes);
    let checkpoint = model.checkpoint();
    // Also after it was written down.
    let written = postcard::to_stdvec(&checkpoint).unwrap();
    for checkpoint in [checkpoint, postcard::from_bytes(&written).unwrap()] {
        let plan = planned(checkpoint);
        assert!(plan.refusal().is_none());
        let header = plan.header().len();
        let reader = model.reader(&plan);
        assert_eq!(owned(reader.read(0, header).unwrap()), plan.header());
        assert!(plan.refusal().is_none());
        let error = checkpoint::Error::from(reader.read(0, header + 8).unwrap_err());
        assert!(matches!(error, checkpoint::Error::Refused(_)), "{error}");

        // From the mapping, put together, and one tensor alone.
        for attempt in 0..2 {
            let reader = model.reader(&plan);
            refusing(reader.read_tensor(0, 0, 4).map(drop), what);
            refusing(reader.read(0, header + 8).map(drop), what);
            refusing(reader.read_to(0, header + 8, &mut Vec::new()), what);
            refusing(reader.check(), what);
            let refusal = plan.refusal().unwrap();
            assert_eq!(refusal.cause(), Cause::Ambiguous, "{attempt}");
        }
    }
}

#[track_caller]
fn refusing(outcome: source::Result<()>, what: &str) {
    let Err(source::Error::Io(error)) = outcome else {
        panic!("{outcome:?}");
    };
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    assert!(error.to_string().contains(what), "{error}");
}

#[test]
fn what_was_predicted_wrongly_is_never_handed_out() {
    let sound = large().bytes();
    let last = format!("model/data/{}", TENSORS - 1);
    let at = header(&sound, &last);

    let mut longer_extra = sound.clone();
    longer_extra[at + 28] += 1;
    refused_when_read(&longer_extra, "does not lie where torch puts it");

    let mut other_name = sound.clone();
    other_name[at + 30] = b'n';
    refused_when_read(&other_name, "has another name or method");

    let mut other_method = sound.clone();
    other_method[at + 8] = 8;
    refused_when_read(&other_method, "has another name or method");
}

#[test]
fn a_wrong_header_is_a_refusal_at_once_where_reads_cost_little() {
    let mut bytes = large().bytes();
    let at = header(&bytes, &format!("model/data/{}", TENSORS - 1));
    bytes[at + 30] = b'n';
    let model = Model::near(&bytes);
    let source = model.source();
    let content = content(&source);
    match model.read(&source, content) {
        Err(checkpoint::Error::Refused(refusal)) => assert_eq!(refusal.cause(), Cause::Ambiguous),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_header_that_is_read_with_its_entry_is_checked_at_once() {
    for name in ["model/data.pkl", "model/byteorder", "model/version"] {
        let mut bytes = large().bytes();
        let at = header(&bytes, name);
        bytes[at + 28] += 1;
        let model = Model::new(&bytes);
        let source = model.source();
        let content = content(&source);
        let read = model.read(&source, content);
        let error = read.unwrap_err();
        assert!(matches!(error, checkpoint::Error::Refused(_)), "{name}");
    }
}

#[test]
fn checksums_are_those_of_the_bytes_in_the_file() {
    let bytes = large().bytes();
    let plan = planned(Model::new(&bytes).checkpoint());
    let mut count = 0;
    for checksum in plan.checksums() {
        let start = checksum.offset as usize;
        let data = &bytes[start..start + checksum.len as usize];
        assert_eq!(crc32(data), checksum.crc32, "{}", checksum.name);
        assert!(checksum.name.starts_with("model/data/"));
        assert_eq!(checksum.companion, None);
        count += 1;
    }
    assert_eq!(count, TENSORS);

    let without = large().each(|entry| entry.crc = 0);
    let plan = planned(Model::new(&without.bytes()).checkpoint());
    assert_eq!(plan.checksums().count(), 0);
}

fn print(bytes: &[u8]) -> Option<[u8; 32]> {
    let model = Model::new(bytes);
    let source = model.source();
    fingerprint(&source, content(&source), &Budget::default().share()).unwrap()
}

#[test]
fn a_fingerprint_tells_contents_apart() {
    let sound = print(&large().bytes()).unwrap();
    assert_eq!(print(&large().bytes()), Some(sound));

    let mut other_weights = large();
    let entry = other_weights.entry("model/data/7");
    entry.data[100] ^= 1;
    entry.crc = crc32(&entry.data);
    // The pickle without the checksum that gives it away.
    let mut other_pickle = large();
    let entry = other_pickle.entry("model/data.pkl");
    let name = entry.data.windows(2).position(|bytes| bytes == b"t7");
    entry.data[name.unwrap() + 1] = b'8';
    let mut longer = large();
    longer.push("model/other", b"more");
    for other in [other_weights, other_pickle, longer] {
        let other = print(&other.bytes());
        assert!(other.is_some_and(|other| other != sound));
    }
    // Zipped again it has the same weights, and other bytes.
    let again = large().each(|entry| entry.aligned = false);
    assert!(print(&again.bytes()).is_some_and(|other| other != sound));
}

#[test]
fn no_fingerprint_where_checksums_are_missing() {
    let mut archive = large();
    archive.entry("model/data/7").crc = 0;
    assert_eq!(print(&archive.bytes()), None);
    // The pickle itself is read.
    let mut archive = large();
    archive.entry("model/data.pkl").crc = 0;
    assert!(print(&archive.bytes()).is_some());
    // Broken, and another container.
    let bytes = large().bytes();
    assert_eq!(print(&bytes[..bytes.len() - 4]), None);
    assert_eq!(print(b"\x80\x02}."), None);
}
