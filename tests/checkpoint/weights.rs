//! Which value of a file is taken for the weights.

use stfs::checkpoint::Wanted;
use stfs::convert;

use super::archive::Archive;
use super::opcodes::*;

fn tensor(key: &str) -> Vec<u8> {
    rebuild(&view(storage("FloatStorage", key, 4), 0, &[4], &[1]))
}

fn weights(name: &str, key: &str) -> Vec<u8> {
    dict(&[(text(name), tensor(key))])
}

/// Names of the tensors below `root`, and the paths of other sets of weights.
fn found(object: Vec<u8>, root: Option<&str>) -> (Vec<String>, Vec<String>) {
    let data: [(&str, &[u8]); 3] = [("0", &[0; 16]), ("1", &[1; 16]), ("2", &[2; 16])];
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.pt");
    std::fs::write(&path, Archive::torch(&pickle(object), &data).bytes()).unwrap();
    let reader = convert::open_at(&path, root).unwrap();
    let names = reader.plan().tensors().iter();
    let mut names: Vec<String> = names.map(|tensor| tensor.name.to_string()).collect();
    names.sort();
    (names, reader.plan().roots().to_vec())
}

#[test]
fn the_one_value_with_weights_is_unwrapped_again_and_again() {
    let inner = dict(&[
        (text("model_args"), dict(&[(text("size"), int(3))])),
        (text("state_dict"), weights("w", "0")),
    ]);
    let chgnet = dict(&[(text("model"), inner), (text("optimizer"), NONE.to_vec())]);
    assert_eq!(found(chgnet, None).0, ["w"]);
    // Until weights stand side by side.
    let two = dict(&[
        (text("a"), weights("w", "0")),
        (text("b"), weights("w", "1")),
    ]);
    let nested = dict(&[(text("model"), two)]);
    let (names, roots) = found(nested, None);
    assert_eq!(names, ["a.w", "b.w"]);
    assert_eq!(roots, ["model.a", "model.b"]);
    // A tensor is no dictionary.
    assert_eq!(found(weights("w", "0"), None).0, ["w"]);
}

#[test]
fn of_ema_and_other_weights_the_former_is_taken() {
    let both = dict(&[
        (text("params"), weights("w", "0")),
        (text("params_ema"), weights("w", "1")),
    ]);
    let (names, roots) = found(both.clone(), None);
    assert_eq!((names, roots), (vec!["w".into()], vec!["params".into()]));
    assert_eq!(found(both, Some("params")).0, ["w"]);
}

#[test]
fn what_stands_beside_a_state_dict_is_named() {
    let object = dict(&[
        (text("state_dict"), weights("w", "0")),
        (text("state_dict_ema"), weights("v", "1")),
        (text("epoch"), int(3)),
    ]);
    let (names, roots) = found(object.clone(), None);
    assert_eq!(names, ["w"]);
    assert_eq!(roots, ["state_dict_ema"]);
    assert_eq!(found(object, Some("state_dict_ema")).0, ["v"]);
}

#[test]
fn an_embedding_goes_by_its_own_name() {
    let embedding = |name: Vec<u8>| {
        dict(&[
            (text("string_to_token"), dict(&[(text("*"), int(265))])),
            (text("string_to_param"), weights("*", "0")),
            (text("name"), name),
        ])
    };
    assert_eq!(found(embedding(text("style")), None).0, ["style"]);
    assert_eq!(found(embedding(NONE.to_vec()), None).0, ["*"]);
    let several = dict(&[
        (text("string_to_token"), dict(&[])),
        (
            text("string_to_param"),
            dict(&[(text("a"), tensor("0")), (text("b"), tensor("1"))]),
        ),
    ]);
    assert_eq!(found(several, None).0, ["a", "b"]);
}

#[test]
fn names_of_a_module_are_its_own() {
    let state = |parameters, modules| {
        dict(&[
            (text("_parameters"), parameters),
            (text("_buffers"), dict(&[])),
            (text("_modules"), modules),
        ])
    };
    let net = |state| build(new(global("mine", "Net"), &[]), state);
    let inner = net(state(weights("w", "0"), dict(&[])));
    let outer = net(state(dict(&[]), dict(&[(text("net"), inner)])));
    assert_eq!(found(outer.clone(), None).0, ["net.w"]);
    assert_eq!(found(dict(&[(text("model"), outer)]), None).0, ["net.w"]);
}

#[test]
fn a_path_that_is_preferred_is_no_condition() {
    assert_eq!(Wanted::default(), Wanted::Rule);
    let object = dict(&[
        (text("a"), weights("w", "0")),
        (text("b"), weights("w", "1")),
    ]);
    assert_eq!(found(object.clone(), Some("b")).0, ["w"]);
    assert_eq!(found(object, Some("b.w")).0, ["tensor"]);
}
