//! Files of every format that is read, against what the format's own loader
//! finds in them. `scripts/make_format_fixtures.py` wrote `tests/data/formats`;
//! `scripts/format_fixtures/fixture.py` says what is in the expectations.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use serde_json::Value;
use sha2::{Digest, Sha256};
use stfs::convert::{self, Error, Reader};

/// dtype, sizes and hash of the bytes, by name.
type Tensors = BTreeMap<String, (String, Vec<u64>, String)>;

/// `NAME.expected.json`, which belongs to a file beside it.
struct Expectation {
    /// NAME
    case: String,
    path: PathBuf,
    json: Value,
}

fn expectations() -> Vec<Expectation> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/formats");
    let mut found: Vec<Expectation> = fs::read_dir(&folder)
        .unwrap()
        .filter_map(|entry| {
            let path = entry.unwrap().path();
            let case = path
                .file_name()?
                .to_str()?
                .strip_suffix(".expected.json")?
                .to_string();
            let json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            let path = folder.join(json["file"].as_str().unwrap());
            Some(Expectation { case, path, json })
        })
        .collect();
    // Directories are no business of a reader of files.
    found.retain(|expectation| expectation.path.is_file());
    found.sort_by(|a, b| a.case.cmp(&b.case));
    assert!(!found.is_empty());
    found
}

fn open(expectation: &Expectation) -> Result<Reader, Error> {
    convert::open_at(&expectation.path, expectation.json["root"].as_str())
}

fn strings(object: &Value) -> BTreeMap<&str, &str> {
    let object = object.as_object().unwrap();
    object
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_str().unwrap()))
        .collect()
}

fn wanted(json: &Value) -> Tensors {
    let text = |value: &Value| value.as_str().unwrap().to_string();
    json["tensors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|tensor| {
            let shape = tensor["shape"].as_array().unwrap();
            let shape = shape.iter().map(|size| size.as_u64().unwrap()).collect();
            (
                text(&tensor["name"]),
                (text(&tensor["dtype"]), shape, text(&tensor["sha256"])),
            )
        })
        .collect()
}

fn read(reader: &Reader, offset: u64, len: usize) -> Vec<u8> {
    support::owned(reader.read(offset, len).unwrap())
}

fn whole(reader: &Reader) -> Vec<u8> {
    read(reader, 0, reader.plan().size() as usize)
}

fn tensors(file: &[u8]) -> Tensors {
    SafeTensors::deserialize(file)
        .unwrap()
        .iter()
        .map(|(name, view)| {
            let hash = Sha256::digest(view.data());
            let hash = hash.iter().map(|byte| format!("{byte:02x}")).collect();
            let shape = view.shape().iter().map(|size| *size as u64).collect();
            (name.to_string(), (view.dtype().to_string(), shape, hash))
        })
        .collect()
}

/// What is wrong with one expectation, if anything.
fn difference(expectation: &Expectation) -> Result<(), String> {
    let words = expectation.json["refused"].as_array();
    let reader = match (open(expectation), words) {
        (Ok(reader), None) => reader,
        (Ok(_), Some(_)) => return Err("is not refused".into()),
        (Err(Error::Refused(refusal)), Some(words)) => {
            let text = refusal.to_string().to_lowercase();
            let missing = words
                .iter()
                .find(|word| !text.contains(&word.as_str().unwrap().to_lowercase()));
            return match missing {
                Some(word) => Err(format!("is refused without the word {word}: {refusal}")),
                None => Ok(()),
            };
        }
        (Err(error), _) => return Err(error.to_string()),
    };
    let (found, wanted) = (tensors(&whole(&reader)), wanted(&expectation.json));
    if found != wanted {
        return Err(format!("\n  has   {found:?}\n  wants {wanted:?}"));
    }
    let dropped: BTreeMap<&str, &str> = reader.plan().dropped().collect();
    let tied = strings(&expectation.json["tied"]);
    match dropped == tied {
        true => Ok(()),
        false => Err(format!("drops {dropped:?}, not {tied:?}")),
    }
}

#[test]
fn files_are_what_their_loaders_say() {
    let wrong: Vec<String> = expectations()
        .iter()
        .filter_map(|expectation| {
            let difference = difference(expectation).err()?;
            Some(format!("{}: {difference}", expectation.case))
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Whatever a storage is made of, it is the same in any order and by any ranges.
#[test]
fn ranges_have_the_bytes_of_the_whole() {
    for expectation in expectations() {
        let Ok(reader) = open(&expectation) else {
            continue;
        };
        let file = whole(&reader);
        for len in [61, 1000] {
            for start in (0..file.len()).step_by(len).rev() {
                let end = file.len().min(start + len);
                let part = read(&reader, start as u64, len);
                assert_eq!(part, file[start..end], "{} at {start}", expectation.case);
            }
        }
    }
}
