//! Archives of torch.export, as `torch.export.save` of torch 2.15 lays them out, and
//! what is refused of them.

use serde_json::{Value, json};
use stfs::checkpoint::Cause;
use stfs::convert;

use super::archive::Archive;
use super::{read, refused};

fn numbers(values: &[u64]) -> Value {
    values
        .iter()
        .map(|value| json!({"as_int": value}))
        .collect()
}

/// A tensor of floats in the record `path`.
fn tensor(path: &str, sizes: &[u64], strides: &[u64], offset: u64) -> Value {
    json!({
        "path_name": path,
        "is_param": true,
        "use_pickle": false,
        "tensor_meta": {
            "dtype": 7,
            "sizes": numbers(sizes),
            "requires_grad": true,
            "device": {"type": "cpu", "index": null},
            "strides": numbers(strides),
            "storage_offset": {"as_int": offset},
            "layout": 7,
        },
    })
}

fn archive(config: &Value) -> Archive {
    let mut archive = Archive::default();
    archive.push("net/archive_format", b"pt2");
    archive.push("net/byteorder", b"little");
    let data: Vec<u8> = (0..6)
        .flat_map(|value| (value as f32).to_le_bytes())
        .collect();
    archive.push("net/data/weights/weight_0", &data);
    let config = json!({ "config": config }).to_string();
    archive.push(
        "net/data/weights/model_weights_config.json",
        config.as_bytes(),
    );
    archive
}

fn floats(values: &[f32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

#[test]
fn weights_are_views_of_records() {
    let config = json!({
        "l.weight": tensor("weight_0", &[2, 3], &[3, 1], 0),
        "l.transposed": tensor("weight_0", &[3, 2], &[1, 3], 0),
        "tail": tensor("weight_0", &[2], &[1], 4),
    });
    let seen = read(&archive(&config).bytes()).unwrap();
    let seen: Vec<(&str, &[u8])> = seen
        .iter()
        .map(|seen| (&*seen.name, &*seen.bytes))
        .collect();
    assert_eq!(
        seen,
        [
            ("l.transposed", &*floats(&[0.0, 3.0, 1.0, 4.0, 2.0, 5.0])),
            ("l.weight", &floats(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0])),
            ("tail", &floats(&[4.0, 5.0])),
        ]
    );
}

#[test]
fn constants_are_left_out_by_name() {
    let mut archive = archive(&json!({"w": tensor("weight_0", &[6], &[1], 0)}));
    archive.push("net/data/constants/tensor_0", &[0; 8]);
    let constants = json!({"config": {"plain": tensor("tensor_0", &[2], &[1], 0)}});
    archive.push(
        "net/data/constants/model_constants_config.json",
        constants.to_string().as_bytes(),
    );
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("net.pt2");
    std::fs::write(&path, archive.bytes()).unwrap();
    let reader = convert::open(&path).unwrap();
    let left_out = reader.plan().left_out().iter();
    let left_out: Vec<_> = left_out
        .map(|entry| (&*entry.path, entry.rule.name(), entry.bytes))
        .collect();
    assert_eq!(left_out, [("plain", "constant of a module's code", 8)]);
}

#[test]
fn refuses_what_contradicts_itself() {
    let of = |tensor: Value| archive(&json!({ "w": tensor })).bytes();
    refused(&of(tensor("weight_0", &[7], &[1], 0)), Cause::Malformed);
    refused(
        &of(tensor("weight_0", &[2], &[1], u64::MAX)),
        Cause::Malformed,
    );
    refused(&of(tensor("weight_0", &[2, 2], &[1], 0)), Cause::Malformed);
    refused(&of(tensor("weight_9", &[1], &[1], 0)), Cause::Malformed);
    refused(
        &of(tensor("weight_0", &[1; 65], &[1; 65], 0)),
        Cause::TooLarge,
    );
    let mut symbolic = tensor("weight_0", &[1], &[1], 0);
    symbolic["tensor_meta"]["sizes"] = json!([{"as_expr": {"expr_str": "s0"}}]);
    refused(&of(symbolic), Cause::Malformed);
    let mut subclass = tensor("weight_0", &[1], &[1], 0);
    subclass["use_pickle"] = true.into();
    refused(&of(subclass), Cause::Unsupported);
    let mut unknown = tensor("weight_0", &[1], &[1], 0);
    unknown["tensor_meta"]["dtype"] = 99.into();
    refused(&of(unknown), Cause::Unsupported);
    refused(&archive(&json!([1])).bytes(), Cause::Malformed);
    refused(&archive(&json!({})).bytes(), Cause::NoTensors);
}

#[test]
fn refuses_several_programs_and_none() {
    let mut several = archive(&json!({"w": tensor("weight_0", &[6], &[1], 0)}));
    several.push("net/data/weights/other_weights_config.json", b"{}");
    refused(&several.bytes(), Cause::Unsupported);
    let mut none = Archive::default();
    none.push("net/archive_format", b"pt2");
    let what = refused(&none.bytes(), Cause::Unsupported);
    assert!(what.contains("torch.export"), "{what}");
    let mut big = archive(&json!({"w": tensor("weight_0", &[6], &[1], 0)}));
    big.entry("net/byteorder").data = b"big".to_vec();
    refused(&big.bytes(), Cause::Unsupported);
}
