//! Real files, with what torch 2.15 made of each (`torch.load(weights_only=True)`,
//! `torch.jit.load`).

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use serde_json::Value;
use sha2::{Digest, Sha256};
use stfs::budget::Budget;
use stfs::checkpoint::{Cause, Content, sniff};
use stfs::convert::{self, Error};

use super::owned;

/// What torch reads and stfs refuses, and why.
const REFUSED: &[(&str, Cause)] = &[
    // Two entries of one name, of which torch takes the one or the other.
    (
        "zipdiff/10_duplicate_datapkl_first_w_second_evil.pt",
        Cause::Ambiguous,
    ),
    ("zipdiff/61_dup3_k1_k2_k3.pt", Cause::Ambiguous),
    ("zipdiff/62_dup4_k1_k2_k3_w.pt", Cause::Ambiguous),
    ("zipdiff/64_case_dup_lower_k1_upper_k2.pt", Cause::Ambiguous),
    ("zipdiff/65_case_dup_upper_k2_first.pt", Cause::Ambiguous),
];

/// Pickles of the scanners' tests that import nothing dangerous by its name.
const NO_ATTACKS: &[&str] = &[
    "picklescan/tests/data/benign0_v0.pkl",
    // Reaches `eval` by way of an entry that it puts into `sys.modules`.
    "picklescan/tests/data/sys_module_override_sploit.pkl",
];

/// The folder of the corpus.
fn corpus() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/corpus");
    let folder = env::var_os("STFS_CORPUS").map_or(beside, PathBuf::from);
    if folder.join("MANIFEST.tsv").exists() {
        return Some(folder);
    }
    // It is no part of this repository, and nobody can install it.
    println!("skipped: no corpus at {}", folder.display());
    None
}

/// Path and kind of every file.
fn manifest(corpus: &Path) -> Vec<(String, String)> {
    let manifest = fs::read_to_string(corpus.join("MANIFEST.tsv")).unwrap();
    manifest
        .lines()
        .skip(1)
        .map(|line| {
            let fields: Vec<&str> = line.split('\t').collect();
            (
                fields[1].to_string(),
                fields[5].trim_matches('"').to_string(),
            )
        })
        .collect()
}

/// What the first loader of torch that reads the file makes of it: the safe one,
/// `torch.jit.load`, the one that runs pickles. None when no loader was asked.
fn expected(corpus: &Path, path: &str) -> Option<Value> {
    let results = ["", ".jit", ".full"].into_iter().filter_map(|kind| {
        let file = corpus.join("expected").join(format!("{path}{kind}.json"));
        let result: Value = serde_json::from_slice(&fs::read(file).ok()?).unwrap();
        Some(result)
    });
    results.min_by_key(|result| result["ok"] != true)
}

fn dtype(torch: &str) -> Dtype {
    match torch {
        "bool" => Dtype::BOOL,
        "uint8" => Dtype::U8,
        "int16" => Dtype::I16,
        "int32" => Dtype::I32,
        "int64" => Dtype::I64,
        "float16" => Dtype::F16,
        "float32" => Dtype::F32,
        "float64" => Dtype::F64,
        other => panic!("dtype {other}"),
    }
}

/// Files whose weights are the one value that holds any, and the path of that.
const UNWRAPPED: &[(&str, &str)] = &[
    (
        "burn/crates/burn-store/pytorch-tests/tests/config/weights_with_config.pt",
        "my_model",
    ),
    (
        "burn/crates/burn-store/src/pytorch/tests/reader/test_data/complex_structure.pt",
        "state",
    ),
    (
        "candle/candle-core/tests/test_with_key.pt",
        "model_state_dict",
    ),
];

/// Name, type, sizes and hash of the bytes, sorted.
type Tensors = Vec<(String, Dtype, Vec<u64>, String)>;

fn expected_tensors(expected: &Value) -> Tensors {
    let tensors = expected["tensors"].as_array().unwrap();
    let mut tensors: Tensors = tensors
        .iter()
        .map(|tensor| {
            let shape = tensor["shape"].as_array().unwrap();
            (
                tensor["name"].as_str().unwrap().to_string(),
                dtype(tensor["dtype"].as_str().unwrap()),
                shape.iter().map(|size| size.as_u64().unwrap()).collect(),
                tensor["sha256"].as_str().unwrap().to_string(),
            )
        })
        .collect();
    tensors.sort();
    tensors
}

/// The expected tensors without what stands beside the weights; their names are paths
/// from there.
fn unwrapped(tensors: Tensors, path: &str) -> Tensors {
    let Some((_, root)) = UNWRAPPED.iter().find(|(unwrapped, _)| *unwrapped == path) else {
        return tensors;
    };
    let below = |name: &str| Some(name.strip_prefix(root)?.strip_prefix('.')?.to_string());
    let tensors = tensors.into_iter();
    tensors
        .filter_map(|tensor| Some((below(&tensor.0)?, tensor.1, tensor.2, tensor.3)))
        .collect()
}

fn read_tensors(path: &Path, names: &[String]) -> Result<Tensors, Error> {
    let reader = convert::open(path)?;
    let kept = reader.plan().tensors().len() + reader.plan().dropped().len();
    assert_eq!(kept, names.len(), "{}", path.display());
    Ok(names
        .iter()
        .map(|name| {
            let index = reader
                .plan()
                .find(name)
                .unwrap_or_else(|| panic!("no tensor {name}"));
            let tensor = &reader.plan().tensors()[index];
            let bytes = reader.read_tensor(index, 0, tensor.len as usize).unwrap();
            let hash = Sha256::digest(owned(bytes));
            let hash = hash.iter().map(|byte| format!("{byte:02x}")).collect();
            (name.clone(), tensor.dtype, tensor.shape.to_vec(), hash)
        })
        .collect())
}

#[test]
fn checkpoints_have_the_tensors_that_torch_reads() {
    let Some(corpus) = corpus() else { return };
    let (mut read, mut listed) = (0, 0);
    for (path, kind) in manifest(&corpus) {
        let file = corpus.join(&path);
        // Files that are no checkpoints by their names are shown as they are.
        let other = ["zip,", "7z"].iter().any(|other| kind.starts_with(other));
        let Some(expected) = expected(&corpus, &path).filter(|_| !other) else {
            continue;
        };
        let refused = REFUSED.iter().find(|(refused, _)| *refused == path);
        let result = convert::open(&file);
        match (expected["ok"].as_bool().unwrap(), refused) {
            (true, None) => {
                let tensors = unwrapped(expected_tensors(&expected), &path);
                let names: Vec<String> = tensors.iter().map(|tensor| tensor.0.clone()).collect();
                match read_tensors(&file, &names) {
                    Ok(found) => assert_eq!(found, tensors, "{path}"),
                    Err(error) => panic!("{path}: {error}"),
                }
                read += 1;
            }
            (true, Some((_, cause))) => match result {
                Err(Error::Refused(refusal)) => {
                    assert_eq!(refusal.cause(), *cause, "{path}: {refusal}");
                    listed += 1;
                }
                _ => panic!("{path} was not refused"),
            },
            (false, None) => match result {
                Err(Error::Refused(refusal)) => assert!(!refusal.to_string().is_empty()),
                _ => panic!("{path} was not refused"),
            },
            _ => panic!("{path} is listed, but torch says otherwise"),
        }
    }
    assert!(read >= 49, "{read} files");
    assert_eq!(listed, REFUSED.len());
}

#[test]
fn every_file_is_something_else_or_read_or_refused_in_words() {
    let Some(corpus) = corpus() else { return };
    for (path, kind) in manifest(&corpus) {
        let file = corpus.join(&path);
        let source = super::support::open(&file);
        let content = sniff(
            &source,
            convert::hint(file.file_name().unwrap()),
            &Budget::default().share(),
        )
        .unwrap();
        let result = convert::open(&file);
        match kind.split(' ').next().unwrap() {
            "safetensors" => assert!(result.is_ok() && content == Content::Safetensors, "{path}"),
            "npy" => assert!(
                content
                    .format()
                    .is_some_and(|format| format.name() == "npy"),
                "{path}: {content:?}"
            ),
            "npz," => assert!(
                content
                    .format()
                    .is_some_and(|format| format.name() == "npz"),
                "{path}: {content:?}"
            ),
            "7z" => assert_eq!(content, Content::Other, "{path}"),
            "raw:" | "tar" | "genuine" => {
                assert!(
                    content
                        .format()
                        .is_some_and(|format| ["torch stream", "torch tar", "pickle"]
                            .contains(&format.name())),
                    "{path}: {content:?}"
                );
            }
            _ => {}
        }
        if let Err(error) = result {
            assert!(matches!(error, Error::Refused(_)), "{path}: {error}");
        }
    }
}

#[test]
fn attacks_are_called_by_their_names() {
    let Some(corpus) = corpus() else { return };
    let mut attacks = 0;
    for (path, kind) in manifest(&corpus) {
        let of_a_scanner = ["picklescan/", "modelscan/"]
            .iter()
            .any(|at| path.starts_with(at));
        if !(of_a_scanner && kind.starts_with("raw:")) || NO_ATTACKS.contains(&path.as_str()) {
            continue;
        }
        match convert::open(&corpus.join(&path)) {
            Err(Error::Refused(refusal)) => {
                assert_eq!(refusal.cause(), Cause::Dangerous, "{path}: {refusal}");
            }
            _ => panic!("{path} was not refused"),
        }
        attacks += 1;
    }
    assert!(attacks > 30, "{attacks} files");
}

/// Every file that no loader of torch reads has a line that says why it is
/// refused, or as what it is read.
#[test]
fn all_others_are_refused_for_their_own_reasons() {
    let Some(corpus) = corpus() else { return };
    let table = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/corpus-refusals.tsv");
    let table = fs::read_to_string(table).unwrap();
    let mut reasons: Vec<(&str, &str)> = table
        .lines()
        .skip(1)
        .map(|line| line.split_once('\t').unwrap())
        .collect();
    for (path, _) in manifest(&corpus) {
        let is_read = expected(&corpus, &path).is_some_and(|expected| expected["ok"] == true);
        if is_read && !REFUSED.iter().any(|(refused, _)| *refused == path) {
            continue;
        }
        let at = reasons.iter().position(|(listed, _)| *listed == path);
        let at = at.unwrap_or_else(|| panic!("{path} has no line"));
        let (_, why) = reasons.swap_remove(at);
        match (
            convert::open(&corpus.join(&path)),
            why.strip_prefix("read: "),
        ) {
            (Ok(_), Some(_)) => {}
            (Err(Error::Refused(refusal)), None) => assert_eq!(refusal.to_string(), why, "{path}"),
            (Ok(_), None) => panic!("{path} was not refused"),
            (Err(error), _) => panic!("{path}: {error}"),
        }
    }
    assert!(reasons.is_empty(), "{reasons:?}");
}
