//! What files are, by their content and the promise of their name.

use std::fs;

use stfs::budget::Budget;
use stfs::checkpoint::{Cause, Content, Holds, Intruder, NameHint, sniff};

use super::archive::Archive;
use super::opcodes::{floats, named};
use super::{refused, support};

/// What a file is told to be.
#[derive(Debug, PartialEq)]
enum Told {
    /// A checkpoint in the container of this name, in which pickles may be.
    Pickles(&'static str),
    /// The same of numbers alone.
    Numbers(&'static str),
    Not(Content),
}

fn told(content: Content) -> Told {
    match content {
        Content::Checkpoint { format, holds } => {
            assert!(content.is_checkpoint());
            assert_eq!(content.is_hidden(), holds == Holds::Pickles);
            match holds {
                Holds::Pickles => Told::Pickles(format.name()),
                Holds::Numbers => Told::Numbers(format.name()),
            }
        }
        other => Told::Not(other),
    }
}

fn arrays(name: &'static str, objects: bool) -> Told {
    match objects {
        true => Told::Pickles(name),
        false => Told::Numbers(name),
    }
}

fn content(bytes: &[u8], promise: NameHint) -> Told {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    fs::write(&path, bytes).unwrap();
    told(sniff(&support::open(&path), promise, &Budget::default().share()).unwrap())
}

fn promised(bytes: &[u8]) -> Told {
    content(bytes, NameHint::Checkpoint)
}

/// A tar header with a member's name, and a file of 512 zeros.
fn tar(member: &str) -> Vec<u8> {
    let mut header = vec![0; 1024];
    header[..member.len()].copy_from_slice(member.as_bytes());
    header[257..263].copy_from_slice(b"ustar\0");
    header
}

#[test]
fn ordinary_files_called_bin_are_something_else() {
    // The floats 0.1, 0.2, ... as a dump of numbers.
    let floats: Vec<u8> = (1..5000)
        .flat_map(|n| (n as f32 * 0.1).to_le_bytes())
        .collect();
    let words = "the\nof\nand\nto\nin\ncat\ndog\nNone\n(a)\n.\n".repeat(50);
    let files: &[(&str, &[u8])] = &[
        ("GGML", b"lmgg\x80\xca\0\0\0\x05\0\0"),
        ("ggml", b"ggml\x01\0\0\0\0\0\0\0\0\0"),
        (
            "GGUF",
            b"GGUF\x03\0\0\0\x23\x01\0\0\0\0\0\0\x17\0\0\0\0\0\0\0",
        ),
        (
            "sentencepiece",
            b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02\n\x0c\n\x03<s>\x15\0\0\0\0",
        ),
        (
            "fastText",
            b"\xba\x16\x4f\x2f\x0c\0\0\0\x64\0\0\0\x05\0\0\0\x05\0\0\0\x01\0\0\0",
        ),
        ("ONNX", b"\x08\x07\x12\x07pytorch\x1a\x051.9.0:\xb5\x01"),
        (
            "TensorFlow",
            b"\nM\n\x05input\x12\x0bPlaceholder*\x0b\n\x05dtype\x12\x020\x01",
        ),
        ("TensorRT", b"ptrt\0\0\0\x18"),
        ("JSON", b"{\"model_type\": \"bert\"}\n"),
        ("words", words.as_bytes()),
        ("words with c first", b"cat\ndog\nfish\nbird\n"),
        ("words with I first", b"I\nyou\nhe\n"),
        ("numbers", b"0.25 0.5\n1.5 2.5\n"),
        ("floats", &floats),
        ("random", b"\x93\xe1\x7f\x03\xd2\x8a\x11\x29\x00\xfe"),
        ("zeros", &[0; 4096]),
        ("ELF", b"\x7fELF\x02\x01\x01\0"),
        ("HDF5", b"\x89HDF\r\n\x1a\n\0\0\0\0"),
        ("protobuf", b"\x08\x01\x12\x04cos\n\x1a\x02R."),
    ];
    for (what, bytes) in files {
        for promise in [NameHint::Checkpoint, NameHint::Nothing] {
            assert_eq!(content(bytes, promise), Told::Not(Content::Other), "{what}");
        }
    }
}

#[test]
fn pickles_are_found_without_a_protocol_mark() {
    let pickle = Told::Pickles("pickle");
    // Protocol 0 of CPython: {'a': [1, 2]} and set(); then Python 2's of a class.
    assert_eq!(promised(b"(dp0\nVa\np1\n(lp2\nI1\naI2\nas."), pickle);
    assert_eq!(
        promised(b"c__builtin__\nset\np0\n((lp1\ntp2\nRp3\n."),
        pickle
    );
    assert_eq!(promised(b"(imine\nNet\np0\n(dp1\nb."), pickle);
    // The same with what follows a pickle in a stream.
    assert_eq!(promised(b"I1\n.cmine\nload\n(tR."), pickle);
    // torch's magic number, version and system in protocol 0, then the objects.
    let legacy = b"L119547037146038801333356L\n.I1001\n.(d.cmine\nload\n(tR.";
    assert_eq!(promised(legacy), pickle);
}

#[test]
fn broken_pickles_stay_pickles() {
    let pickle = Told::Pickles("pickle");
    let attack = b"cmine\nrun\n(S'x'\ntR(dp1\nS'a'\nI1\ns.";
    for end in 19..attack.len() {
        assert_eq!(promised(&attack[..end]), pickle, "{end} bytes");
    }
    assert_eq!(promised(b"cos\nsystem\n(S'x'"), pickle);
    assert_eq!(promised(b"cmine\nrun\n(S'x'\ntR\xff\xff"), pickle);
    // Behind more than is read at first, and with more after it.
    let mut far = b"(lp0\n".to_vec();
    far.extend(b"I1\na".repeat(50_000));
    far.extend(b"cmine\nrun\n(tR\xff");
    far.extend(vec![b'x'; 200_000]);
    assert_eq!(promised(&far), pickle);
    // With the mark, by a single byte more.
    for bytes in [&b"\x80\x02c"[..], b"\x80\x04\x95\0\0", b"\x80\x05]"] {
        assert_eq!(content(bytes, NameHint::Nothing), pickle);
    }
}

#[test]
fn long_streams_are_pickles_when_nothing_says_otherwise() {
    // A string of 70 MB before the call; the file is sparse.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    let len = 70_u32 << 20;
    fs::write(&path, [b"T", &len.to_le_bytes()[..]].concat()).unwrap();
    let file = fs::OpenOptions::new().append(true).open(&path).unwrap();
    file.set_len(u64::from(len) + 5).unwrap();
    fs::write(dir.path().join("call"), b"").unwrap();
    std::io::Write::write_all(&mut &file, b"0cmine\nrun\n(tR.").unwrap();
    let content =
        |promise| told(sniff(&support::open(&path), promise, &Budget::default().share()).unwrap());
    assert_eq!(content(NameHint::Checkpoint), Told::Pickles("pickle"));
    // The same string in a file that ends before it does.
    file.set_len(66 << 20).unwrap();
    assert_eq!(content(NameHint::Checkpoint), Told::Not(Content::Other));
}

/// Python reads the marks of protocols 0 and 1, and never writes them.
#[test]
fn doubtful_marks_are_believed_where_a_pickle_follows() {
    let pickle = Told::Pickles("pickle");
    let other = Told::Not(Content::Other);
    let promises = [
        NameHint::Checkpoint,
        NameHint::Nothing,
        NameHint::Safetensors,
    ];
    let attack = b"cmine\nrun\n(S'x'\ntR.";
    let numbers: Vec<u8> = (0..5000_u32).flat_map(|n| (n * 77).to_le_bytes()).collect();
    for mark in [b"\x80\x00", b"\x80\x01"] {
        let file = |rest: &[u8]| [mark, rest].concat();
        for promise in promises {
            assert_eq!(content(&file(attack), promise), pickle);
            assert_eq!(content(&file(&attack[..19]), promise), pickle);
            assert_eq!(content(&file(b"}."), promise), pickle);
            for rest in [
                &numbers[..],
                b"]",
                b"\x80\x3f",
                b"cat\ndog\n",
                b"K\x05K\x06",
            ] {
                assert_eq!(content(&file(rest), promise), other, "{rest:?}");
            }
        }
    }
    // The same numbers behind the mark of a protocol that is written.
    let marked = [b"\x80\x02]", &numbers[..]].concat();
    assert_eq!(content(&marked, NameHint::Nothing), pickle);
}

/// A length that is such a mark, a pickle in the text that should be a header: the
/// name decides.
#[test]
fn doubtful_marks_make_no_safetensors() {
    let mut bytes = b"\x80\x01G\0\0\0\0\0{..0cmine\nrun\n(tR.".to_vec();
    bytes.resize(5 << 20, b' ');
    assert_eq!(promised(&bytes), Told::Pickles("pickle"));
    assert_eq!(
        content(&bytes, NameHint::Safetensors),
        Told::Not(Content::Safetensors)
    );
}

#[test]
fn streams_of_old_torch_versions() {
    let magic = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19\x2e";
    for head in [
        &b"\x80\x02"[..],
        b"\x80\x03",
        b"\x80\x04\x95\x0d\0\0\0\0\0\0\0",
    ] {
        let bytes = [head, magic].concat();
        assert_eq!(
            content(&bytes, NameHint::Nothing),
            Told::Pickles("torch stream")
        );
    }
    for member in ["sys_info", "storages", "tensors", "pickle"] {
        let mut bytes = tar(member);
        assert_eq!(
            content(&bytes, NameHint::Nothing),
            Told::Pickles("torch tar")
        );
        // The tar of 1979 has no mark.
        bytes[257..263].fill(0);
        assert_eq!(
            content(&bytes, NameHint::Nothing),
            Told::Pickles("torch tar")
        );
    }
}

#[test]
fn intruders_are_told_only_where_a_checkpoint_was_promised() {
    let page = b"\n <!DOCTYPE html><html><title>404</title>";
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n";
    let mut archive = Archive::default();
    archive.push("docs/read.me", b"hello");
    let files: &[(&[u8], Intruder)] = &[
        (b"", Intruder::Empty),
        (pointer, Intruder::LfsPointer),
        (page, Intruder::WebPage),
        (b"7z\xbc\xaf\x27\x1c\0\x04", Intruder::SevenZip),
        (b"\x1f\x8b\x08\0", Intruder::Compressed),
        // joblib's: zlib at levels 1, 3, 6 and 9, and lzma.
        (b"\x78\x01\x01", Intruder::Compressed),
        (b"\x78\x5e\x6b", Intruder::Compressed),
        (b"\x78\x9c\x6b", Intruder::Compressed),
        (b"\x78\xda\x6b", Intruder::Compressed),
        (b"\x5d\0\0\x80\0\xff\xff", Intruder::Compressed),
        (&tar("weights/model.pt"), Intruder::Tar),
        (&archive.bytes(), Intruder::ZipWithoutPickle),
    ];
    for (bytes, intruder) in files {
        assert_eq!(
            promised(bytes),
            Told::Not(Content::NotACheckpoint(*intruder))
        );
        assert_eq!(content(bytes, NameHint::Nothing), Told::Not(Content::Other));
    }
    // A pointer is one under any name that promises weights.
    assert_eq!(
        content(pointer, NameHint::Safetensors),
        Told::Not(Content::NotACheckpoint(Intruder::LfsPointer))
    );
    assert_eq!(
        content(page, NameHint::Safetensors),
        Told::Not(Content::Other)
    );
    assert!(refused(pointer, Cause::LfsPointer).contains("Git LFS"));
    refused(page, Cause::NotDownloaded);
    refused(b"", Cause::NotDownloaded);
}

#[test]
fn zip_archives_are_checkpoints_by_their_pickle() {
    let torch = Archive::torch(&named(floats()), &[("0", &[0; 16])]).bytes();
    for promise in [
        NameHint::Checkpoint,
        NameHint::Nothing,
        NameHint::Safetensors,
    ] {
        assert_eq!(content(&torch, promise), Told::Pickles("torch zip"));
    }
    // Cut off: by the entry that torch writes first.
    let cut = &torch[..torch.len() - 40];
    assert_eq!(content(cut, NameHint::Nothing), Told::Pickles("torch zip"));
    assert_eq!(
        content(cut, NameHint::Checkpoint),
        Told::Pickles("torch zip")
    );
}

/// GPT-SoVITS writes `05` or `06` over the first two bytes.
#[test]
fn archives_without_their_mark_are_told() {
    let torch = Archive::torch(&named(floats()), &[("0", &[0; 16])]).bytes();
    let replaced = |bytes: &[u8], mark: &[u8; 2]| [mark, &bytes[2..]].concat();
    let mut pictures = Archive::default();
    pictures.push("pictures/1.png", b"png");
    for mark in [
        b"05",
        b"06",
        b"\0\0",
        b"BZ",
        b"\x1f\x8b",
        b"\x80\x02",
        b"xx",
    ] {
        let bytes = replaced(&torch, mark);
        assert_eq!(
            promised(&bytes),
            Told::Not(Content::NotACheckpoint(Intruder::HeadlessZip))
        );
        assert_eq!(
            content(&bytes, NameHint::Nothing),
            Told::Not(Content::Other)
        );
        assert!(refused(&bytes, Cause::Headless).contains("first two bytes"));
        // With them, it is what it was.
        assert_eq!(replaced(&bytes, b"PK"), torch);
    }
    let pictures = replaced(&pictures.bytes(), b"05");
    assert_eq!(promised(&pictures), Told::Not(Content::Other));
    let cut = replaced(&torch[..torch.len() - 40], b"05");
    assert_eq!(promised(&cut), Told::Not(Content::Other));
}

#[test]
fn arrays_are_hidden_only_where_they_may_hold_pickles() {
    for (descr, objects) in [
        ("'<f4'", false),
        ("[('a', '<f4'), ('b', '|V3')]", false),
        ("'|O'", true),
        ("[('a', '<f4'), ('b', '|O')]", true),
        ("'object'", true),
        ("'|\\x4f'", true),
        ("'\u{ff2f}'", true),
    ] {
        let text = format!("{{'descr': {descr}, 'fortran_order': False, 'shape': ()}}\n");
        let len = (text.len() as u16).to_le_bytes();
        let array = [b"\x93NUMPY\x01\0", &len[..], text.as_bytes()].concat();
        let mut archive = Archive::default();
        archive.push("a.npy", &array);
        for promise in [NameHint::Checkpoint, NameHint::Nothing] {
            let (npy, npz) = (content(&array, promise), content(&archive.bytes(), promise));
            assert_eq!(npy, arrays("npy", objects), "{descr}");
            assert_eq!(npz, arrays("npz", objects), "{descr}");
        }
    }
    // What cannot be read may hold anything.
    let objects = true;
    assert_eq!(
        promised(b"\x93NUMPY\x01\0v\0{'descr'"),
        arrays("npy", objects)
    );
    let mut archive = Archive::default();
    archive.push("a.npy", b"no array");
    assert_eq!(promised(&archive.bytes()), arrays("npz", objects));
}

#[test]
fn sniffing_a_zip_archive_does_not_read_its_entries() {
    // Local headers that are not there are no matter as long as nobody asks.
    let mut archive = Archive::default();
    archive.push("pictures/1.png", b"png");
    archive.push("pictures/2.png", b"png");
    let mut bytes = archive.bytes();
    let second = bytes
        .windows(4)
        .rposition(|at| at == b"PK\x03\x04")
        .unwrap();
    bytes[second] = 0;
    assert_eq!(
        content(&bytes, NameHint::Nothing),
        Told::Not(Content::Other)
    );
    assert_eq!(
        promised(&bytes),
        Told::Not(Content::NotACheckpoint(Intruder::ZipWithoutPickle))
    );
}

#[test]
fn safetensors_files() {
    let header = b"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}";
    let file = |len: u64| [&len.to_le_bytes()[..], header, &[7; 1000]].concat();
    let whole = file(header.len() as u64);
    for promise in [
        NameHint::Checkpoint,
        NameHint::Nothing,
        NameHint::Safetensors,
    ] {
        assert_eq!(content(&whole, promise), Told::Not(Content::Safetensors));
    }
    // A length that is a pickle's mark and a brace where the header begins: the
    // name decides.
    let polyglot = [b"\x80\x02]\0\0\0\0\0{".to_vec(), vec![b' '; 7 << 20]].concat();
    assert_eq!(
        content(&polyglot, NameHint::Safetensors),
        Told::Not(Content::Safetensors)
    );
    assert_eq!(
        content(&polyglot, NameHint::Checkpoint),
        Told::Pickles("pickle")
    );
    // A header longer than the file.
    assert_eq!(
        content(&file(5000), NameHint::Nothing),
        Told::Not(Content::Other)
    );
}

#[test]
fn other_files_of_weights_are_called_by_their_names() {
    let dir = tempfile::tempdir().unwrap();
    for (head, name) in [
        (&b"GGUF\x03\0\0\0"[..], "GGUF"),
        (b"lmgg\x01\0\0\0", "GGML"),
        (b"\x89HDF\r\n\x1a\n\0\0", "HDF5"),
        (b"\x82\xa6params\x81", "msgpack"),
    ] {
        let path = dir.path().join("model.bin");
        std::fs::write(&path, head).unwrap();
        match stfs::convert::open(&path) {
            Err(stfs::convert::Error::Refused(refusal)) => {
                assert!(refusal.to_string().contains(name), "{refusal}");
            }
            _ => panic!("{name} was not refused"),
        }
    }
}
