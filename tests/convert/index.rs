//! Index files against the output of CPython's `json.dump(index, f, indent=4)`.

use stfs::convert::index::Index;

#[test]
fn is_written_as_python_writes_it() {
    let json = r#"{"metadata": {"total_size": 1e16, "b": 0.00001, "c": 1.5, "d": 123456789012345680000.0,
        "e": -0.0, "f":1e-7,"g":0.0001,"h":5e-324,"i":100000.0, "del":"\u007f",
        "uni":"\u00e9\ud83d\ude00/\b\f\u0001\\\"","empty":{},"list":[],"nest":[1,[true,null]],
        "big":18446744073709551615,"neg":-3},
        "weight_map": {"z":"pytorch_model-00001-of-00002.bin","a":"pytorch_model-00002-of-00002.bin"}}"#;
    let expected = r#"{
    "metadata": {
        "total_size": 1e+16,
        "b": 1e-05,
        "c": 1.5,
        "d": 1.2345678901234568e+20,
        "e": -0.0,
        "f": 1e-07,
        "g": 0.0001,
        "h": 5e-324,
        "i": 100000.0,
        "del": "\u007f",
        "uni": "\u00e9\ud83d\ude00/\b\f\u0001\\\"",
        "empty": {},
        "list": [],
        "nest": [
            1,
            [
                true,
                null
            ]
        ],
        "big": 18446744073709551615,
        "neg": -3
    },
    "weight_map": {
        "z": "model-00001-of-00002.safetensors",
        "a": "model-00002-of-00002.safetensors"
    }
}"#;
    let rename = |name: &str| {
        name.replace("pytorch_model", "model")
            .replace(".bin", ".safetensors")
    };
    let index = Index::parse(json.as_bytes()).unwrap();
    assert_eq!(String::from_utf8(index.renamed(rename)).unwrap(), expected);
}

#[test]
fn files_are_named_once_with_their_tensors() {
    let index = Index::parse(br#"{"weight_map":{"c":"2","a":"1","b":"2"}}"#).unwrap();
    let files: Vec<_> = index.files().into_iter().collect();
    assert_eq!(files, [("1", vec!["a"]), ("2", vec!["c", "b"])]);
}

#[test]
fn other_json_is_no_index() {
    for json in [
        "",
        "[]",
        "{}",
        r#"{"weight_map":[]}"#,
        r#"{"weight_map":{"a":1}}"#,
        r#"{"weight_map":{"a":"b"}} x"#,
        r#"{"weight_map":{"a":"\ud800"}}"#,
    ] {
        assert!(Index::parse(json.as_bytes()).is_none(), "{json}");
    }
    let deep = format!(
        "{{\"weight_map\":{{}},\"x\":{}{}}}",
        "[".repeat(100_000),
        "]".repeat(100_000)
    );
    assert!(Index::parse(deep.as_bytes()).is_none());
}
