//! Nothing is lost without a word: what is served, what is left out and by which rule,
//! and which files are refused for what they would lose.

use stfs::checkpoint::{Cause, Rule};
use stfs::convert;

use super::archive::Archive;
use super::opcodes::*;
use super::{read, refused};

/// A vector of four floats, each equal to `key`.
fn tensor(key: u8) -> Vec<u8> {
    let storage = storage("FloatStorage", &key.to_string(), 4);
    rebuild(&view(storage, 0, &[4], &[1]))
}

fn bytes_tensor(key: u8, len: i64) -> Vec<u8> {
    let storage = storage("ByteStorage", &key.to_string(), len);
    rebuild(&view(storage, 0, &[len], &[1]))
}

/// The storages 0 to 7 are of 16 bytes, 8 of 5056.
fn archive(object: Vec<u8>) -> Vec<u8> {
    let data: Vec<(String, Vec<u8>)> = (0..8_u8)
        .map(|key| {
            let value = f32::from(key).to_le_bytes();
            (key.to_string(), value.repeat(4))
        })
        .chain([("8".to_string(), vec![8; 5056])])
        .collect();
    let data: Vec<(&str, &[u8])> = data.iter().map(|(key, data)| (&**key, &**data)).collect();
    Archive::torch(&pickle(object), &data).bytes()
}

#[track_caller]
fn names(object: Vec<u8>) -> Vec<String> {
    let seen = read(&archive(object)).unwrap();
    seen.into_iter().map(|tensor| tensor.name).collect()
}

/// Paths, rules and bytes of what is left out, and the paths of other sets of weights.
fn left_out(object: Vec<u8>) -> (Vec<(String, Rule, u64)>, Vec<String>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.pt");
    std::fs::write(&path, archive(object)).unwrap();
    let reader = convert::open(&path).unwrap();
    let left_out = reader.plan().left_out().iter();
    let left_out = left_out.map(|entry| (entry.path.clone(), entry.rule, entry.bytes));
    (left_out.collect(), reader.plan().roots().to_vec())
}

fn module(entries: &[(&str, Vec<u8>)], attributes: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let named = |items: &[(&str, Vec<u8>)]| {
        let items = items
            .iter()
            .map(|(name, value)| (text(name), value.clone()));
        items.collect::<Vec<_>>()
    };
    let mut state = vec![
        (text("_parameters"), dict(&named(entries))),
        (text("_buffers"), dict(&[])),
        (text("_modules"), dict(&[])),
    ];
    state.extend(named(attributes));
    build(new(global("mine", "Net"), &[]), dict(&state))
}

#[test]
fn what_a_function_is_called_with_is_not_guessed() {
    let made = call(global("mine", "make"), &[tensor(1)]);
    let object = dict(&[(text("w"), tensor(0)), (text("x"), list(&[made]))]);
    let what = refused(&archive(object), Cause::Unsupported);
    assert!(
        what.contains("`x.0`") && what.contains("mine.make"),
        "{what}"
    );
}

/// `setter(object, state)`, whose result is dropped: the sixth part of a `__reduce__`.
#[test]
fn what_a_dropped_call_was_given_is_not_lost() {
    let setter = call(
        global("mine", "set"),
        &[b"h\x01".to_vec(), dict(&[(text("w"), tensor(1))])],
    );
    let object = new(global("mine", "Box"), &[]);
    let object = [object, b"q\x01".to_vec(), setter, b"0".to_vec()].concat();
    let whole = dict(&[(text("w"), tensor(0)), (text("x"), object)]);
    let what = refused(&archive(whole), Cause::Unsupported);
    assert!(what.contains("mine.set"), "{what}");
}

#[test]
fn attributes_of_modules_are_left_out_where_modules_hold_them_alone() {
    let both = module(&[("w", tensor(0))], &[("plain", tensor(1))]);
    let (out, _) = left_out(dict(&[(text("model"), both.clone())]));
    assert_eq!(out, [("plain".to_string(), Rule::Attribute, 16)]);
    // The same tensor in a place that nothing reads.
    let shared = [tensor(1), b"q\x02".to_vec()].concat();
    let net = module(&[("w", tensor(0))], &[("plain", shared)]);
    let made = call(global("mine", "make"), &[b"h\x02".to_vec()]);
    let object = dict(&[(text("model"), net), (text("x"), made)]);
    refused(&archive(object), Cause::Unsupported);
}

#[test]
fn an_attribute_that_is_served_under_another_name_is_not_left_out() {
    let shared = [tensor(0), b"q\x02".to_vec()].concat();
    let net = module(&[("w", shared)], &[("alias", b"h\x02".to_vec())]);
    let (out, _) = left_out(dict(&[(text("model"), net)]));
    assert_eq!(out, []);
}

#[test]
fn modules_that_unpack_their_weights_by_code_are_refused() {
    let state = dict(&[
        (text("_parameters"), dict(&[(text("weight"), tensor(0))])),
        (text("_buffers"), dict(&[])),
        (text("_modules"), dict(&[])),
    ]);
    let layer = build(
        new(global("bitsandbytes.nn.modules", "Linear4bit"), &[]),
        state,
    );
    let what = refused(&archive(dict(&[(text("fc"), layer)])), Cause::Unsupported);
    assert!(what.contains("bitsandbytes"), "{what}");
}

#[test]
fn a_file_of_nothing_but_attributes_is_refused() {
    let net = module(&[], &[("plain", tensor(1))]);
    let what = refused(&archive(net), Cause::Unsupported);
    assert!(what.contains("neither parameter nor buffer"), "{what}");
}

#[test]
fn optimizers_are_known_by_what_they_hold() {
    let adam = || {
        let slot = dict(&[
            (text("exp_avg"), tensor(1)),
            (text("exp_avg_sq"), tensor(2)),
        ]);
        let state = dict(&[(int(0), slot)]);
        dict(&[(text("state"), state), (text("param_groups"), list(&[]))])
    };
    let fastai = dict(&[
        (
            text("state"),
            list(&[dict(&[(text("grad_avg"), tensor(3))])]),
        ),
        (text("hypers"), list(&[])),
    ]);
    let object = dict(&[
        (text("w"), tensor(0)),
        (text("deep"), list(&[dict(&[(text("inner"), adam())])])),
        (text("fastai"), fastai),
    ]);
    let (out, _) = left_out(object);
    assert_eq!(
        out,
        [
            ("deep.0.inner".to_string(), Rule::OptimizerState, 32),
            ("fastai".to_string(), Rule::OptimizerState, 16),
        ]
    );
    refused(&archive(adam()), Cause::OptimizerState);
    let alone = dict(&[(text("optimizer"), adam()), (text("epoch"), int(1))]);
    refused(&archive(alone), Cause::OptimizerState);
    // Keys of the same names with something else behind them.
    let hyper = dict(&[
        (text("state"), dict(&[(text("w"), tensor(1))])),
        (text("hypers"), dict(&[(text("w"), tensor(2))])),
    ]);
    assert_eq!(names(hyper), ["hypers.w", "state.w"]);
}

#[test]
fn a_name_that_optimizers_go_by_hides_no_weights() {
    let weights = || dict(&[(text("net.weight"), tensor(0))]);
    let what = refused(
        &archive(dict(&[(text("optimizer"), weights())])),
        Cause::Unsupported,
    );
    assert!(what.contains("optimizers"), "{what}");
    // A submodule may be called so.
    let net = |inner| {
        let state = dict(&[
            (text("_parameters"), dict(&[(text("w"), tensor(1))])),
            (text("_buffers"), dict(&[])),
            (text("_modules"), dict(&[(text("optim"), inner)])),
        ]);
        build(new(global("mine", "Net"), &[]), state)
    };
    assert_eq!(
        names(net(module(&[("v", tensor(0))], &[]))),
        ["optim.v", "w"]
    );
}

#[test]
fn states_of_generators_are_known_by_name_and_size() {
    let states = |key: &str| {
        dict(&[
            (text("w"), tensor(0)),
            (text(key), list(&[bytes_tensor(8, 5056)])),
        ])
    };
    for key in [
        "rng_state",
        "torch_random_state",
        "cuda.rng",
        "torch_manual_seed",
    ] {
        let (out, _) = left_out(states(key));
        assert_eq!(out, [(key.to_string(), Rule::RngState, 5056)]);
    }
    assert_eq!(names(states("mask")), ["mask.0", "w"]);
    // Weights under such a key.
    let generator = dict(&[(text("w"), tensor(1))]);
    let object = dict(&[(text("v"), tensor(0)), (text("generator"), generator)]);
    assert_eq!(names(object), ["generator.w", "v"]);
}

#[test]
fn keys_that_are_no_text_are_named() {
    let what = refused(
        &archive(dict(&[(tuple(&[text("a"), int(3)]), tensor(0))])),
        Cause::Names,
    );
    assert!(what.contains("('a', 3)"), "{what}");
}
