"""`stfs diff`: what torch says of two files, and what diff(1) does with it."""

import json
import math
import os
import shutil
import subprocess

import numpy as np
import oracle
import pytest
import torch
from conftest import REPOSITORY
from safetensors.torch import save_file
from state_dicts import random_state_dict

EXAMPLES = REPOSITORY / "examples" / "models"
# Packed in pairs: torch cannot compute with it.
F4_VALUES = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


class Diff:
    def __init__(self, stfs, directory):
        self.stfs = stfs
        self.a, self.b = directory / "a.pt", directory / "b.safetensors"

    def __call__(self, *arguments, status):
        """What it prints: lines, or an object with --json."""
        result = self.stfs.run("diff", *arguments, self.a, self.b, check=False)
        assert result.returncode == status, f"{result.returncode}\n{result.stdout}{result.stderr}"
        if status == 2:
            assert not result.stdout and result.stderr
            return result.stderr
        assert not result.stderr
        return json.loads(result.stdout) if "--json" in arguments else result.stdout.splitlines()

    def of(self, a, b, status):
        """Of a pickle of `a` and a safetensors file of `b`."""
        torch.save(a, self.a)
        save_file(b, self.b)
        lines, found = self(status=status), self("--json", status=status)
        assert found["equal"] == (status == 0) and (found["a"], found["b"]) == (str(self.a), str(self.b))
        assert len(lines) == 1 + sum(len(found[key]) for key in ("only_in_a", "only_in_b", "different"))
        assert lines[-1].startswith("the same weights: " if status == 0 else "different: ")
        return lines, found


@pytest.fixture
def diff(stfs, tmp_path):
    return Diff(stfs, tmp_path)


# Equal files


@pytest.mark.parametrize("zip_file", [True, False], ids=["zip", "legacy"])
def test_equal(zip_file, diff):
    tensors = {
        "transposed": torch.randn(300, 7).t(),
        "slice": torch.randn(40, 40)[3:9, ::2],
        "half": torch.randn(5).half(),
        "bfloat": torch.randn(5).bfloat16(),
        "long": torch.arange(9),
        "bool": torch.tensor([True, False]),
        "nan": torch.tensor([math.nan, 1.0, -math.inf]),
        "empty": torch.empty(0, 4),
        "scalar": torch.tensor(2.5),
    }
    torch.save(tensors, diff.a, _use_new_zipfile_serialization=zip_file)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, diff.b)
    size = sum(tensor.nbytes for tensor in tensors.values())
    assert diff(status=0) == [f"the same weights: 9 tensors, {size} bytes"]
    assert diff("--json", status=0) == {
        "a": str(diff.a),
        "b": str(diff.b),
        "equal": True,
        "tensors_equal": 9,
        "bytes_equal": size,
        "only_in_a": [],
        "only_in_b": [],
        "different": [],
    }


@pytest.mark.parametrize("case", range(0, 60))
def test_random_checkpoints_and_their_conversions(case, diff):
    """Every dtype, odd names, views and ties: equal to what convert.py makes, and one flipped bit is seen."""
    torch.save(random_state_dict(case), diff.a)
    data, _ = oracle.expected(diff.a)
    diff.b.write_bytes(data)
    diff(status=0)
    diff.a, diff.b = diff.b, diff.a
    diff(status=0)
    if len(data) > 8 + int.from_bytes(data[:8], "little"):
        diff.a.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        (found,) = diff("--json", status=1)["different"]
        assert found["what"] == "bytes" and found["different"] == 1


def test_examples_and_their_conversions(stfs, tmp_path):
    for path in sorted(EXAMPLES.rglob("pytorch_model*.bin")):
        converted = tmp_path / "converted.safetensors"
        converted.unlink(missing_ok=True)
        stfs.convert(path, converted)
        assert stfs.run("diff", path, converted).stdout.startswith("the same weights: ")


# Tied weights


@pytest.mark.parametrize("kept", ["lm_head.weight", "wte.weight"])
@pytest.mark.parametrize("metadata", [True, False], ids=["told", "untold"])
def test_whichever_tied_name_is_kept(kept, metadata, diff):
    weight = torch.randn(6, 4)
    torch.save({"lm_head.weight": weight, "wte.weight": weight, "bias": torch.ones(2)}, diff.a)
    (dropped,) = {"lm_head.weight", "wte.weight"} - {kept}
    tensors = {kept: weight, "bias": torch.ones(2)}
    save_file(tensors, diff.b, metadata={"format": "pt", **({dropped: kept} if metadata else {})})
    assert diff(status=0) == ["the same weights: 2 tensors, 104 bytes"]
    diff.a, diff.b = diff.b, diff.a
    assert diff(status=0) == ["the same weights: 2 tensors, 104 bytes"]


def test_a_tie_that_is_none(diff):
    """B has one tensor where A has two that differ."""
    torch.save({"lm_head.weight": torch.zeros(2), "wte.weight": torch.ones(2)}, diff.a)
    save_file({"wte.weight": torch.ones(2)}, diff.b, metadata={"lm_head.weight": "wte.weight"})
    assert diff(status=1) == [
        "other bytes: lm_head.weight  2 of 2 elements, largest difference 1.0",
        "different: 1 with other bytes; 1 equal",
    ]
    save_file({"wte.weight": torch.ones(2)}, diff.b)
    assert diff(status=1) == ["only in A: lm_head.weight  F32 [2]", "different: 1 only in A; 1 equal"]


def test_tied_names_of_one_difference(diff):
    weight = torch.zeros(4)
    torch.save({"a": weight, "b": weight}, diff.a)
    torch.save({"b": (other := torch.ones(4)), "a": other}, diff.b)
    assert diff(status=1)[0] == "other bytes: a = b  4 of 4 elements, largest difference 1.0"
    (found,) = diff("--json", status=1)["different"]
    assert (found["name"], found["also"]) == ("a", ["b"])


# Differences


def test_every_kind_of_difference(diff):
    same = {"same": torch.arange(4)}
    a = {"m": torch.zeros(2, 3), "s": torch.zeros(2, 3), "t": torch.zeros(2, 3), "st": torch.zeros(6)}
    b = {"n": torch.zeros(1).half(), "s": torch.zeros(3, 2), "t": torch.zeros(2, 3).half(), "st": torch.zeros(2).int()}
    a["values"], b["values"] = torch.zeros(600), torch.zeros(600)
    b["values"][[0, 77, 599]] = torch.tensor([0.125, -0.25, 0.0625])
    lines, found = diff.of({**a, **same}, {**b, **same}, status=1)
    assert lines == [
        "only in A: m  F32 [2, 3]",
        "only in B: n  F16 [1]",
        "other shape: s  [2, 3] against [3, 2]",
        "other type and shape: st  F32 [6] against I32 [2]",
        "other type: t  F32 against F16",
        "other bytes: values  3 of 600 elements, largest difference 0.25",
        "different: 1 only in A, 1 only in B, 1 of another type, 1 of another shape, 1 of another type and shape, "
        "1 with other bytes; 1 equal",
    ]
    assert found["only_in_a"] == [{"name": "m", "also": [], "dtype": "F32", "shape": [2, 3]}]
    assert found["only_in_b"] == [{"name": "n", "also": [], "dtype": "F16", "shape": [1]}]
    shape, both, dtype, values = found["different"]
    assert (shape["what"], shape["a"]["shape"], shape["b"]["shape"]) == ("shape", [2, 3], [3, 2])
    assert (both["what"], both["b"]) == ("dtype and shape", {"dtype": "I32", "shape": [2]})
    assert (dtype["what"], dtype["b"]["dtype"]) == ("dtype", "F16")
    assert values == {
        "name": "values",
        "also": [],
        "what": "bytes",
        "a": {"dtype": "F32", "shape": [600]},
        "b": {"dtype": "F32", "shape": [600]},
        "unit": "elements",
        "count": 600,
        "different": 3,
        "largest_difference": 0.25,
        "nan_on_one_side": 0,
        "nan_with_other_bits": 0,
    }


FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
FLOATS += [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e8m0fnu]
INTEGERS = [torch.uint8, torch.int8, torch.uint16, torch.int16, torch.uint32, torch.int32, torch.uint64, torch.int64]


def random_bits(dtype, count, generator):
    size = torch.empty(0, dtype=dtype).element_size()
    bits = torch.randint(0, 256, (count * size,), dtype=torch.uint8, generator=generator)
    return bits.view(dtype)


def bits_of(tensor):
    return tensor.contiguous().view(torch.uint8).reshape(tensor.numel(), -1)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_floats(dtype, diff):
    """All values there are of small types, random bits of the others: NaN, infinities and subnormals among them."""
    generator = torch.Generator().manual_seed(3)
    if torch.empty(0, dtype=dtype).element_size() == 1:
        every = torch.arange(256, dtype=torch.uint8)
        a, b = every.repeat(256).view(dtype), every.repeat_interleave(256).view(dtype)
    else:
        a, b = random_bits(dtype, 70_000, generator), random_bits(dtype, 70_000, generator)
    b[::7] = a[::7]
    compared(diff, a, b)
    # Without infinities, for a largest difference that says something.
    finite = a.double().isfinite() & b.double().isfinite()
    compared(diff, a[finite], b[finite])


def compared(diff, a, b):
    differ = (bits_of(a) != bits_of(b)).any(dim=1)
    wide_a, wide_b = a.double().numpy(), b.double().numpy()
    nan_a, nan_b = np.isnan(wide_a), np.isnan(wide_b)
    with np.errstate(invalid="ignore", over="ignore"):
        distances = np.abs(wide_a - wide_b)[differ.numpy() & ~nan_a & ~nan_b]
    _, found = diff.of({"t": a}, {"t": b}, status=1)
    (found,) = found["different"]
    assert (found["count"], found["different"]) == (a.numel(), int(differ.sum()))
    assert float(found["largest_difference"]) == distances.max()
    assert found["nan_on_one_side"] == np.count_nonzero(nan_a != nan_b)
    assert found["nan_with_other_bits"] == np.count_nonzero(nan_a & nan_b & differ.numpy())


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_integers(dtype, diff):
    generator = torch.Generator().manual_seed(4)
    a, b = random_bits(dtype, 5000, generator), random_bits(dtype, 5000, generator)
    b[::3] = a[::3]
    distances = [abs(int(x) - int(y)) for x, y in zip(a.numpy(), b.numpy())]
    lines, found = diff.of({"t": a}, {"t": b}, status=1)
    (found,) = found["different"]
    assert found["different"] == sum(distance != 0 for distance in distances)
    assert found["largest_difference"] == max(distances)
    assert lines[0].endswith(f"of 5000 elements, largest difference {max(distances)}")


def test_bool_and_complex(diff):
    a = {"b": torch.tensor([True, False, True]), "c": torch.tensor([1 + 2j, 3j, complex(math.nan, 0)])}
    b = {"b": torch.tensor([True, True, False]), "c": torch.tensor([4 + 6j, 3j, 1 + 0j])}
    lines, _ = diff.of(a, b, status=1)
    assert lines[:2] == [
        "other bytes: b  2 of 3 elements, largest difference 1",
        "other bytes: c  2 of 3 elements, largest difference 5.0, 1 are NaN on one side only",
    ]


def test_four_bits(diff):
    """Two values to a byte: every byte against some others."""
    every = torch.arange(256, dtype=torch.uint8)
    other = torch.roll(every, 100)
    a, b = (bits.view(torch.float4_e2m1fn_x2) for bits in (every, other))
    _, found = diff.of({"t": a}, {"t": b}, status=1)
    (found,) = found["different"]
    value = [sign * magnitude for sign in (1, -1) for magnitude in F4_VALUES]
    halves = [(x >> shift & 15, y >> shift & 15) for x, y in zip(every.tolist(), other.tolist()) for shift in (0, 4)]
    assert (found["count"], found["unit"]) == (512, "elements")
    assert found["different"] == sum(x != y for x, y in halves)
    assert found["largest_difference"] == max(abs(value[x] - value[y]) for x, y in halves)


def test_types_without_agreed_elements(diff):
    """safetensors has six-bit types; which bits an element is, nobody says. Bytes are counted."""

    def write(path, data):
        header = json.dumps({"t": {"dtype": "F6_E2M3", "shape": [8], "data_offsets": [0, 6]}}).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header + data)

    write(diff.a, b"abcdef")
    write(diff.b, b"abcxyf")
    assert diff(status=1)[0] == "other bytes: t  2 of 6 bytes"
    (found,) = diff("--json", status=1)["different"]
    assert (found["unit"], found["count"], found["different"]) == ("bytes", 6, 2)
    assert found["largest_difference"] is None


def test_what_has_no_distance(diff):
    """NaN, whose bits count, infinities, and the two zeros."""
    nan = torch.tensor([0x7FC00000, 0x7FC00001], dtype=torch.int32).view(torch.float32)
    a = {"nan": nan[[0, 0]], "one": torch.tensor([math.nan, 1.0]), "inf": torch.tensor([math.inf]), "z": torch.zeros(3)}
    b = {"nan": nan, "one": torch.tensor([1.0, 1.5]), "inf": torch.tensor([-math.inf]), "z": -torch.zeros(3)}
    lines, found = diff.of(a, b, status=1)
    assert lines[:-1] == [
        "other bytes: inf  1 of 1 elements, largest difference inf",
        "other bytes: nan  1 of 2 elements, 1 are NaN with other bits",
        "other bytes: one  2 of 2 elements, largest difference 0.5, 1 are NaN on one side only",
        "other bytes: z  3 of 3 elements, largest difference 0 (0.0 and -0.0)",
    ]
    largest = {difference["name"]: difference["largest_difference"] for difference in found["different"]}
    assert largest == {"inf": "inf", "nan": None, "one": 0.5, "z": 0.0}


def test_large_tensors(diff):
    """Differences at the borders of what is read at a time."""
    a = torch.randn(3000, 1000)
    b = a.clone()
    places = torch.tensor([0, 65_535, 65_536, 1_048_575, 1_048_576, 2_999_999])
    b.view(-1)[places] += torch.arange(1, 7) / 8
    _, found = diff.of({"t": a, "u": a.t()}, {"t": b, "u": b.t().contiguous()}, status=1)
    for entry in found["different"]:
        assert entry["different"] == 6
        assert entry["largest_difference"] == (a.double() - b.double()).abs().max().item()


def test_names_cannot_command_the_terminal(diff):
    name = "a\x1b[2Jb\nc\u202ed"
    lines, found = diff.of({name: torch.zeros(1)}, {"e": torch.zeros(1)}, status=1)
    assert lines[0] == r"only in A: a\u{1b}[2Jb\nc\u{202e}d  F32 [1]"
    assert found["only_in_a"][0]["name"] == name


def test_root(diff):
    torch.save({"ema": {"w": torch.ones(2)}, "net": {"w": torch.zeros(2)}}, diff.a)
    save_file({"w": torch.ones(2)}, diff.b)
    assert len(diff(status=1)) == 4
    assert diff("--root", "ema", status=0) == ["the same weights: 1 tensors, 8 bytes"]
    assert diff("--root", "net", status=1)[0].startswith("other bytes: w ")


# Trouble


def test_trouble(stfs, diff):
    torch.save({"w": torch.ones(2)}, diff.a)
    for json_too in ([], ["--json"]):
        assert "b.safetensors: " in diff(*json_too, status=2)
    shutil.copy(EXAMPLES / "evil.bin", diff.b)
    assert "b.safetensors: " in diff(status=2)
    diff.a, diff.b = diff.b, diff.a
    assert "b.safetensors: " in diff("--json", status=2)
    diff.b = diff.a.parent
    assert diff(status=2)
    for arguments in (["diff"], ["diff", diff.a], ["diff", diff.a, diff.a, diff.a], ["diff", "--nonsense"]):
        assert stfs.run(*arguments, check=False).returncode == 2


def test_nothing_is_written(diff, tmp_path):
    torch.save({"w": torch.ones(2)}, diff.a)
    save_file({"w": torch.ones(2)}, diff.b)
    before = sorted(os.listdir(tmp_path))
    diff(status=0)
    assert sorted(os.listdir(tmp_path)) == before


def test_a_closed_pipe_keeps_the_status(stfs, diff):
    torch.save({f"layer{index:05}.weight": torch.zeros(1) for index in range(5000)}, diff.a)
    save_file({"w": torch.ones(2)}, diff.b)
    command = [stfs.binary, "diff", diff.a, diff.b]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    errors = process.stderr.read()
    assert (process.wait(), errors) == (1, b"")


def test_a_mounted_file(diff, mounted, tmp_path):
    """A checkpoint and what a mount shows of it."""
    source = tmp_path / "source"
    source.mkdir()
    diff.a = source / "model.pt"
    torch.save({"w": torch.randn(50, 70).t(), "b": torch.randn(5)}, diff.a)
    with mounted(source) as mount_point:
        diff.b = mount_point / "model.safetensors"
        assert diff(status=0) == ["the same weights: 2 tensors, 14020 bytes"]
