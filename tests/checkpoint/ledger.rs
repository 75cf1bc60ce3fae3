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

#[test]
fn what_an_unknown_function_is_called_with_may_be_something_else_afterwards() {
    let shared = || [tensor(0), b"q\x02".to_vec()].concat();
    let changed = call(global("operator", "zero"), &[b"h\x02".to_vec()]);
    let object = dict(&[(text("w"), shared()), (text("x"), changed.clone())]);
    refused(&archive(object), Cause::Unsupported);
    // Also where its result is replaced, dropped, or left on the stack.
    let replaced = dict(&[
        (text("w"), shared()),
        (text("x"), changed.clone()),
        (text("x"), int(1)),
    ]);
    refused(&archive(replaced), Cause::Unsupported);
    let beside = [b"N".to_vec(), shared(), b"0".to_vec(), changed].concat();
    let left = [beside, dict(&[(text("w"), b"h\x02".to_vec())])].concat();
    refused(&archive(left), Cause::Unsupported);
}

#[test]
fn a_value_that_was_replaced_is_not_there() {
    let object = dict(&[(text("w"), tensor(0)), (text("w"), tensor(1))]);
    assert_eq!(names(object), ["w"]);
}

#[test]
fn tensors_beside_what_a_tensor_is_made_of_are_not_part_of_it() {
    let mut args = view(storage("FloatStorage", "0", 4), 0, &[4], &[1]);
    args.truncate(4);
    args.extend([FALSE.to_vec(), tensor(1)]);
    let hooked = call(global("torch._utils", "_rebuild_tensor_v2"), &args);
    refused(&archive(dict(&[(text("w"), hooked)])), Cause::Unsupported);
}

#[test]
fn a_shell_has_all_of_its_state() {
    let rebuild = global("torch._tensor", "_rebuild_from_type_v2");
    let shell = global("torch._utils", "_rebuild_wrapper_subclass");
    let class = || global("mine", "Scaled");
    let state = tuple(&[tensor(0), dict(&[(text("s"), tensor(1))])]);
    let object = call(rebuild, &[shell, class(), tuple(&[class()]), state]);
    let found = names(dict(&[(text("w"), object), (text("v"), tensor(2))]));
    assert_eq!(found, ["v", "w.0", "w.1.s"]);
}

#[test]
fn packed_parameters_may_hold_themselves() {
    let class = "__torch__.torch.classes.quantized.EmbeddingPackedParamsBase";
    let object = [new(global("torch", "ScriptObject"), &[]), b"q\x02".to_vec()].concat();
    let inner = tuple(&[int(1), list(&[b"h\x02".to_vec()]), list(&[]), list(&[])]);
    let itself = build(object, tuple(&[inner, text(class)]));
    let object = dict(&[(text("w"), tensor(0)), (text("x"), itself)]);
    assert_eq!(names(object), ["w"]);
}

fn size(sizes: &[i64]) -> Vec<u8> {
    call(global("torch", "Size"), &[ints(sizes)])
}

#[test]
fn placeholders_of_spread_weights_are_no_weights() {
    let empty = rebuild(&view(storage("FloatStorage", "9", 0), 0, &[0], &[1]));
    let states = |second: Vec<u8>| {
        let module = dict(&[(text("a"), tensor(0)), (text("b"), second)]);
        let shapes = dict(&[(text("a"), size(&[4])), (text("b"), size(&[4]))]);
        let whole = dict(&[
            (text("module"), module),
            (text("param_shapes"), list(&[shapes])),
        ]);
        Archive::torch(
            &pickle(whole),
            &[("0", &[0; 16]), ("1", &[1; 16]), ("9", &[])],
        )
        .bytes()
    };
    assert_eq!(read(&states(tensor(1))).unwrap().len(), 2);
    // Small parameters are whole on every rank.
    let what = refused(&states(empty), Cause::Part);
    assert!(what.contains("zero_to_fp32.py"), "{what}");
}

#[test]
fn weights_beside_the_slots_of_an_optimizer_are_served() {
    let slot = || {
        dict(&[
            (text("exp_avg"), tensor(1)),
            (text("exp_avg_sq"), tensor(2)),
        ])
    };
    let states = || dict(&[(int(0), slot())]);
    let weights = || dict(&[(text("w"), tensor(0))]);
    let with_model = dict(&[
        (text("state"), states()),
        (text("param_groups"), list(&[])),
        (text("model"), weights()),
    ]);
    assert_eq!(names(with_model), ["model.w"]);
    let optimizer = dict(&[(text("state"), states()), (text("param_groups"), list(&[]))]);
    let beside = dict(&[(text("state_dict"), optimizer), (text("net"), weights())]);
    assert_eq!(names(beside), ["w"]);
    let in_slot = dict(&[
        (text("exp_avg"), tensor(1)),
        (text("exp_avg_sq"), tensor(2)),
        (text("weight"), tensor(0)),
    ]);
    assert_eq!(names(in_slot), ["weight"]);
    let tensors = dict(&[
        (text("state"), weights()),
        (text("param_groups"), list(&[])),
    ]);
    assert_eq!(names(tensors), ["w"]);
    let inner = dict(&[
        (text("optimizer"), weights()),
        (text("encoder"), dict(&[(text("v"), tensor(1))])),
    ]);
    assert_eq!(
        names(dict(&[(text("model"), inner)])),
        ["encoder.v", "optimizer.w"]
    );
}

#[test]
fn weights_under_the_names_of_generators_are_served() {
    let mask = rebuild(&view(storage("ByteStorage", "0", 16), 0, &[4, 4], &[4, 1]));
    assert_eq!(names(dict(&[(text("rng"), mask)])), ["rng"]);
    let named = tuple(&[text("MT19937"), tensor(0), int(1)]);
    assert_eq!(names(dict(&[(text("x"), named)])), ["x.1"]);
    let both = dict(&[
        (text("cpu"), bytes_tensor(0, 16)),
        (text("cuda"), tensor(1)),
    ]);
    assert_eq!(names(both), ["cpu", "cuda"]);
}

#[test]
fn many_references_to_what_is_left_out_cost_little() {
    let shared = [tensor(1), b"q\x02".to_vec(), b"0".to_vec()].concat();
    let attributes: Vec<(String, Vec<u8>)> = (0..20_000)
        .map(|number| (format!("a{number}"), b"h\x02".to_vec()))
        .collect();
    let attributes: Vec<(&str, Vec<u8>)> = attributes
        .iter()
        .map(|(name, value)| (&**name, value.clone()))
        .collect();
    let net = module(&[("w", tensor(0))], &attributes);
    assert_eq!(names([shared, net].concat()), ["w"]);
}
