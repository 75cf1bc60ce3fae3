//! Zip archives as torch writes them, as others write them again, and as nobody
//! should. What torch 2.15 makes of each was measured.

use safetensors::Dtype;
use std::io::Read;

use stfs::checkpoint::Cause;
use stfs::convert;

use super::archive::{Archive, Entry};
use super::opcodes::{floats, named};
use super::{Seen, read, refused};

const FLOATS: [u8; 16] = [0, 0, 128, 63, 0, 0, 0, 64, 0, 0, 64, 64, 0, 0, 128, 64];

/// `{"w": torch.tensor([1., 2., 3., 4.])}`
fn torch() -> Archive {
    Archive::torch(&named(floats()), &[("0", &FLOATS)])
}

#[track_caller]
fn accepted(archive: &Archive) {
    let expected = Seen {
        name: "w".into(),
        dtype: Dtype::F32,
        shape: vec![4],
        bytes: FLOATS.to_vec(),
    };
    assert_eq!(read(&archive.bytes()).unwrap(), [expected]);
}

#[test]
fn reads_what_torch_writes() {
    accepted(&torch());
}

#[test]
fn reads_archives_that_were_zipped_again() {
    // No 64-bit record, no padding, sizes in the local headers.
    let mut plain = torch().each(|entry| {
        entry.aligned = false;
        entry.descriptor = false;
        entry.flags = 0;
    });
    plain.zip64 = false;
    accepted(&plain);
    // Folders as entries.
    for (at, folder) in ["model/", "model/data/", "model/.data/"].iter().enumerate() {
        plain.entries.insert(at, Entry::new(folder, b""));
    }
    accepted(&plain);
    // What macOS leaves.
    plain
        .entries
        .insert(0, Entry::new("__MACOSX/model/._data.pkl", b"junk"));
    accepted(&plain);
    // A comment, and bytes after it.
    plain.comment = b"made by hand".to_vec();
    accepted(&plain);
    plain.after = vec![0; 100];
    accepted(&plain);
}

#[test]
fn reads_64_bit_sizes_and_offsets() {
    accepted(&torch().each(|entry| entry.zip64 = true));
}

#[test]
fn ignores_checksums_as_torch_does() {
    accepted(&torch().each(|entry| entry.crc = 0));
    accepted(&torch().each(|entry| entry.crc ^= 1));
}

#[test]
fn finds_entries_without_regard_to_case() {
    let mut archive = torch();
    archive.entry("model/data.pkl").name = b"model/DATA.PKL".to_vec();
    archive.entry("model/data/0").name = b"model/Data/0".to_vec();
    accepted(&archive);
}

#[test]
fn needs_no_record_beside_the_pickle_and_its_storages() {
    let mut archive = torch();
    archive
        .entries
        .retain(|entry| [&b"model/data.pkl"[..], b"model/data/0"].contains(&&*entry.name));
    accepted(&archive);
}

#[test]
fn refuses_two_entries_of_one_name() {
    for name in [
        "model/data.pkl",
        "model/DATA.pkl",
        "model/data/0",
        "MODEL/data/0",
    ] {
        let mut archive = torch();
        archive.push(name, b"other");
        refused(&archive.bytes(), Cause::Ambiguous);
    }
}

#[test]
fn refuses_a_second_checkpoint() {
    let mut archive = torch();
    archive.push("other/data.pkl", &named(floats()));
    refused(&archive.bytes(), Cause::Ambiguous);
}

#[test]
fn refuses_local_headers_that_contradict_the_directory() {
    let change = |change: fn(&mut Entry)| {
        let mut archive = torch();
        change(archive.entry("model/data/0"));
        refused(&archive.bytes(), Cause::Ambiguous);
    };
    change(|entry| entry.local_name = Some(b"model/data/1".to_vec()));
    change(|entry| entry.local_name = Some(b"model/data/00".to_vec()));
    change(|entry| entry.local_method = Some(8));
    change(|entry| entry.local_flags = Some(0x0809));
    // A Unicode path: Info-ZIP's own name for the entry.
    change(|entry| entry.extra = b"up\x11\0\x01\0\0\0\0model/data/9".to_vec());
}

#[test]
fn accepts_a_unicode_path_that_says_the_same() {
    let mut archive = torch();
    archive.entry("model/data/0").extra = b"up\x11\0\x01\0\0\0\0model/data/0".to_vec();
    accepted(&archive);
}

#[test]
fn refuses_overlapping_entries() {
    let mut archive = torch();
    let same = archive.entries.len();
    archive.push("model/data/1", &FLOATS);
    archive.entries[same].header = Some(0);
    archive.entries[same].local_name = None;
    // Its header is that of data.pkl, under another name.
    refused(&archive.bytes(), Cause::Ambiguous);

    // It reaches over the entry behind it.
    let mut archive = torch();
    let entry = archive.entry("model/data/0");
    entry.size = Some(150);
    entry.stored_size = Some(150);
    refused(&archive.bytes(), Cause::Ambiguous);
}

#[test]
fn refuses_entries_that_reach_out_of_the_archive() {
    for size in [100_000, u32::MAX - 1] {
        let mut archive = torch();
        let entry = archive.entry("model/data/0");
        entry.size = Some(size);
        entry.stored_size = Some(size);
        refused(&archive.bytes(), Cause::Malformed);
    }
    for header in [1, 100_000, u32::MAX - 1] {
        let mut archive = torch();
        archive.entry("model/data/0").header = Some(header);
        refused(&archive.bytes(), Cause::Malformed);
    }
    // 64-bit fields announced and missing, or cut off.
    for extra in [&b""[..], b"\x01\0\x04\0abcd", b"\x01\0\xff\xff"] {
        let mut archive = torch();
        let entry = archive.entry("model/data/0");
        entry.size = Some(u32::MAX);
        entry.extra = extra.to_vec();
        refused(&archive.bytes(), Cause::Malformed);
    }
}

#[test]
fn refuses_64_bit_fields_at_the_end_of_the_number_range() {
    // The last 64-bit field of the entry is its offset, the others are sizes.
    for field in 0..3 {
        for value in [u64::MAX, u64::MAX - 60, 1 << 63] {
            let mut archive = torch();
            let entry = archive.entry("model/data/0");
            let mut fields = [16_u64, 16, 0];
            fields[field] = value;
            let fields: Vec<u8> = fields
                .iter()
                .flat_map(|field| field.to_le_bytes())
                .collect();
            entry.extra = [&b"\x01\0\x18\0"[..], &fields].concat();
            (entry.size, entry.stored_size, entry.header) =
                (Some(u32::MAX), Some(u32::MAX), Some(u32::MAX));
            assert!(read(&archive.bytes()).is_err());
        }
    }
}

#[test]
fn refuses_what_is_not_stored_as_it_is() {
    // Compressed by bzip2, encrypted, a patch, strongly encrypted, masked.
    for (method, flags) in [(12, 0), (0, 1), (0, 0x20), (0, 0x40), (0, 0x2000)] {
        for name in ["model/data.pkl", "model/data/0"] {
            let mut archive = torch();
            let entry = archive.entry(name);
            entry.method = method;
            entry.flags = flags;
            refused(&archive.bytes(), Cause::Unsupported);
        }
    }
}

fn dir_with(name: &str, bytes: &[u8]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(name), bytes).unwrap();
    dir
}

/// Makes an entry a deflated one of `size` bytes.
pub fn deflate(entry: &mut Entry, size: usize) {
    let mut deflated = Vec::new();
    let mut encoder = flate2::read::DeflateEncoder::new(entry.data.as_slice(), Default::default());
    encoder.read_to_end(&mut deflated).unwrap();
    entry.size = Some(size as u32);
    entry.method = 8;
    entry.data = deflated;
}

#[test]
fn reads_deflated_entries() {
    let mut archive = torch();
    for entry in &mut archive.entries {
        let size = entry.data.len();
        deflate(entry, size);
    }
    accepted(&archive);
}

#[test]
fn a_damaged_deflated_entry_is_an_error_and_no_data() {
    for size in [15, 17] {
        let mut archive = torch();
        let entry = archive.entry("model/data.pkl");
        let len = entry.data.len();
        deflate(entry, len + size - 16);
        refused(&archive.bytes(), Cause::Malformed);
    }
    let mut archive = torch();
    let entry = archive.entry("model/data/0");
    deflate(entry, 16);
    entry.data.truncate(4);
    let file = dir_with("model.pt", &archive.bytes());
    let reader = convert::open(&file.path().join("model.pt")).unwrap();
    assert!(reader.read(0, 1 << 20).is_err());
}

#[test]
fn refuses_a_bomb_before_anything_is_inflated() {
    let mut archive = torch();
    let entry = archive.entry("model/data/0");
    entry.data = vec![0; 4 << 20];
    deflate(entry, 4 << 20);
    refused(&archive.bytes(), Cause::TooLarge);
}

#[test]
fn refuses_an_entry_of_two_sizes() {
    let mut archive = torch();
    archive.entry("model/data/0").size = Some(15);
    refused(&archive.bytes(), Cause::Ambiguous);
}

#[test]
fn refuses_storages_of_another_size_than_the_pickle_says() {
    for len in [0, 15, 17, 24] {
        let mut archive = torch();
        archive.entry("model/data/0").data = vec![0; len];
        refused(&archive.bytes(), Cause::Malformed);
    }
    let mut archive = torch();
    archive.entry("model/data/0").name = b"model/data/1".to_vec();
    refused(&archive.bytes(), Cause::Malformed);
}

#[test]
fn refuses_names_that_torch_reads_up_to_a_nul() {
    let mut archive = torch();
    archive.push("model/data/0\0evil", &[0; 16]);
    refused(&archive.bytes(), Cause::Malformed);
}

#[test]
fn refuses_archives_that_begin_or_end_elsewhere() {
    let mut archive = torch();
    archive.comment = [&torch().bytes()[..], b"PK\x05\x06", &[0; 18]].concat();
    refused(&archive.bytes(), Cause::Ambiguous);

    // Two archives in a row: torch reads the first, Python's zipfile the second.
    let mut archive = torch();
    refused(&archive.bytes().repeat(2), Cause::Ambiguous);
    archive.zip64 = false;
    refused(&archive.bytes().repeat(2), Cause::Ambiguous);

    // More behind it than any reader looks through.
    let mut archive = torch();
    archive.after = vec![0; 100_000];
    refused(&archive.bytes(), Cause::NotDownloaded);
}

#[test]
fn refuses_end_records_that_disagree() {
    let bytes = torch().bytes();
    let end = bytes.len() - 22;
    for at in [4, 6, 8, 10, 12, 16] {
        let mut bytes = bytes.clone();
        bytes[end + at] ^= 1;
        assert!(read(&bytes).is_err(), "end record, byte {at}");
    }
    for at in [12, 16, 20, 24, 32, 40, 48] {
        let mut bytes = bytes.clone();
        bytes[end - 76 + at + 4] ^= 1;
        assert!(read(&bytes).is_err(), "64-bit end record, byte {}", at + 4);
    }
}

#[test]
fn reads_big_endian_numbers() {
    let mut archive = torch();
    archive.entry("model/byteorder").data = b"big".to_vec();
    archive
        .entry("model/data/0")
        .data
        .chunks_mut(4)
        .for_each(<[u8]>::reverse);
    accepted(&archive);
}

#[test]
fn refuses_unknown_byte_orders_and_versions() {
    let mut archive = torch();
    archive.entry("model/byteorder").data = b"middle".to_vec();
    refused(&archive.bytes(), Cause::Malformed);
    for version in ["0\n", "11\n", "x", ""] {
        let mut archive = torch();
        archive.entry("model/version").data = version.into();
        refused(&archive.bytes(), Cause::Unsupported);
    }
}

#[test]
fn refuses_archives_of_other_kinds() {
    let mut package = torch();
    package.push("model/.data/extern_modules", b"");
    refused(&package.bytes(), Cause::Unsupported);
    // torch wants a folder, and its separator is the slash.
    for (name, cause) in [
        ("data.pkl", Cause::Unsupported),
        ("model\\data.pkl", Cause::Backslashes),
    ] {
        let mut archive = Archive::default();
        archive.push(name, &named(floats()));
        refused(&archive.bytes(), cause);
    }
}

#[test]
fn refuses_an_archive_cut_off_anywhere() {
    let bytes = torch().bytes();
    for len in 0..bytes.len() {
        assert!(
            read(&bytes[..len]).is_err(),
            "{len} of {} bytes",
            bytes.len()
        );
    }
    let cut = refused(&bytes[..bytes.len() - 30], Cause::NotDownloaded);
    assert!(cut.contains("cut off"), "{cut}");
}
