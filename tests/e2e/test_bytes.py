"""The bytes of converted files and of raw tensors, for hundreds of random checkpoints."""

import functools
import json
import os

import oracle
import pytest
import torch
from state_dicts import random_state_dict

CASES = range(300)
EXTENSIONS = ["bin", "pt", "pth", "ckpt"]

# One directory per architecture: it decides which name of a tied pair is kept.
ARCHITECTURES = [
    None,
    "GPT2LMHeadModel",
    "T5ForConditionalGeneration",
    "BertForMaskedLM",
    "NoSuchArchitecture",
]


def directory_of(case):
    return f"architecture{case % len(ARCHITECTURES)}"


def file_of(case):
    return f"case{case:03}.{EXTENSIONS[case // len(ARCHITECTURES) % len(EXTENSIONS)]}"


def converted_of(case):
    return f"{directory_of(case)}/case{case:03}.safetensors"


def tensors_of(case):
    return f"{directory_of(case)}/case{case:03}.tensors"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("random")
    for index, architecture in enumerate(ARCHITECTURES):
        directory = root / f"architecture{index}"
        directory.mkdir()
        if architecture is not None:
            (directory / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    for case in CASES:
        directory = root / directory_of(case)
        tied_names = sorted(oracle.discard_names(directory))
        torch.save(random_state_dict(case, tied_names), directory / file_of(case))
    return root


@pytest.fixture(scope="module")
def wanted(source):
    """`wanted(case)`: the bytes owed for a case, and the rule they come from."""

    @functools.cache
    def wanted(case):
        directory = source / directory_of(case)
        return oracle.expected(directory / file_of(case), oracle.discard_names(directory))

    return wanted


@pytest.fixture(scope="module")
def mount(source, mounted):
    with mounted(source) as mount_point:
        yield mount_point


@pytest.fixture(scope="module")
def converted(source, stfs, tmp_path_factory):
    target = tmp_path_factory.mktemp("converted") / "out"
    stfs.convert(source, target)
    return target


def test_own_rule_extends_hugging_faces(source, wanted):
    """Where convert.py loses nothing, stfs's documented rule gives the same bytes: there is no third outcome."""
    rules = set()
    for case in CASES:
        data, rule = wanted(case)
        rules.add(rule)
        directory = source / directory_of(case)
        own = oracle.lossless(oracle.load(directory / file_of(case)), oracle.discard_names(directory))
        assert oracle.difference(own, data) is None, f"case {case}"
    assert rules == {"hugging_face", "lossless"}


@pytest.mark.parametrize("case", CASES)
def test_mounted_file(case, mount, wanted):
    data, rule = wanted(case)
    path = mount / converted_of(case)
    assert path.stat().st_size == len(data), rule
    assert oracle.difference(path.read_bytes(), data) is None, rule


@pytest.mark.parametrize("case", CASES)
def test_converted_file(case, converted, wanted):
    data, rule = wanted(case)
    assert oracle.difference((converted / converted_of(case)).read_bytes(), data) is None, rule


@pytest.mark.parametrize("case", CASES)
def test_raw_tensors(case, mount, wanted):
    data, _ = wanted(case)
    header, data_start = oracle.header_of(data)
    header.pop("__metadata__", None)
    directory = mount / tensors_of(case)
    listed = set(os.listdir(directory))
    for name, info in header.items():
        file_name = raw_file_name(name)
        if file_name is None:
            continue
        begin, end = info["data_offsets"]
        assert file_name in listed
        path = directory / file_name
        assert path.stat().st_size == end - begin
        assert path.read_bytes() == data[data_start + begin : data_start + end], name
        assert os.getxattr(path, "user.stfs.dtype").decode() == info["dtype"]
        assert json.loads(os.getxattr(path, "user.stfs.shape")) == info["shape"]


def raw_file_name(name):
    """A tensor's file name; None where it is not the name itself: too long, or no name at all."""
    if name in (".", ".."):
        return name.replace(".", "%2E")
    escaped = name.replace("%", "%25").replace("/", "%2F").replace("\0", "%00")
    return escaped if 0 < len(escaped.encode()) <= 255 else None


def test_metadata_order(mount, wanted):
    """Entries come as "format" first, the rest sorted: the same checkpoint always gives the same bytes."""
    several = 0
    for case in CASES:
        metadata = oracle.metadata_of((mount / converted_of(case)).read_bytes())
        assert list(metadata) == list(oracle.canonical_order(metadata)), f"case {case}"
        several += len(metadata) > 2
    assert several > 0


@pytest.mark.parametrize("protocol", [1, 3, 4, 5])
def test_pickle_protocols(protocol, tmp_path, mounted):
    """The protocol changes the pickle, not the tensors; torch's own safe loader reads only some of them."""
    state_dict = {"a": torch.randn(3, 4), "b": torch.arange(5), "c\u00e9": torch.randn(2).to(torch.float8_e5m2)}
    torch.save(state_dict, tmp_path / "two.bin")
    torch.save(state_dict, tmp_path / "other.bin", pickle_protocol=protocol)
    data, _ = oracle.expected(tmp_path / "two.bin")
    with mounted(tmp_path) as mount_point:
        assert oracle.difference((mount_point / "two.safetensors").read_bytes(), data) is None
        assert oracle.difference((mount_point / "other.safetensors").read_bytes(), data) is None


def test_truth_values(tmp_path, mounted):
    """torch makes 0 and 1 of the bytes of truth values where it has to gather them, and leaves them where it has not."""

    def of(count):
        return (torch.arange(count) % 256).to(torch.uint8).view(torch.bool)

    views = {
        "whole": of(60),
        "transposed": of(60).view(5, 12).t(),
        "columns": of(60).view(5, 12)[:, 2:7],
        "steps": of(4000)[::3],
        "expanded": of(60).expand(3, 60),
        "permuted": of(60_000).view(2, 100, 300).permute(2, 0, 1),
    }
    torch.save(views, tmp_path / "views.pt")
    with mounted(tmp_path) as mount_point:
        for name, view in views.items():
            wanted = view.contiguous().view(torch.uint8).numpy().tobytes()
            assert (mount_point / "views.tensors" / name).read_bytes() == wanted, name


def test_no_tensors(tmp_path, mounted):
    """convert.py turns an empty state dict into a file without tensors."""
    torch.save({}, tmp_path / "empty.bin")
    data, rule = oracle.expected(tmp_path / "empty.bin")
    assert rule == "hugging_face"
    with mounted(tmp_path) as mount_point:
        assert (mount_point / "empty.safetensors").read_bytes() == data
        assert os.listdir(mount_point / "empty.tensors") == []


@pytest.mark.parametrize(
    ("architecture", "kept", "removed"),
    [
        ("GPT2LMHeadModel", "transformer.wte.weight", "lm_head.weight"),
        (None, "lm_head.weight", "transformer.wte.weight"),
    ],
)
def test_architecture_decides_the_kept_name(architecture, kept, removed, tmp_path, mounted):
    weight = torch.randn(8, 4)
    torch.save({"lm_head.weight": weight, "transformer.wte.weight": weight}, tmp_path / "pytorch_model.bin")
    if architecture:
        (tmp_path / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    with mounted(tmp_path) as mount_point:
        data = (mount_point / "model.safetensors").read_bytes()
    header, _ = oracle.header_of(data)
    assert header.pop("__metadata__") == {"format": "pt", removed: kept}
    assert list(header) == [kept]
