"""Arrays that numpy saved, by itself, in pickles and in torch files: the values are those that numpy reads."""

import json
import pickle

import numpy as np
import oracle
import pytest
import torch
from safetensors.numpy import load_file

NAMES = ["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8"]


def arrays():
    """Arrays of every type in several layouts, by name."""
    rng = np.random.default_rng(0)
    found = {}
    for name in NAMES:
        values = (rng.standard_normal((3, 4, 5)) * 100).astype(np.dtype(name))
        found |= {
            f"{name}/rows": values,
            f"{name}/columns": np.asfortranarray(values),
            f"{name}/big": values.astype(values.dtype.newbyteorder(">")),
            f"{name}/big.columns": np.asfortranarray(values).astype(values.dtype.newbyteorder(">")),
            f"{name}/transposed": values.transpose(1, 0, 2),
            f"{name}/reversed": values[::-1, ::2],
            f"{name}/none": values[:0],
            f"{name}/one": np.array(values[1, 2, 3]),
        }
    found["long"] = np.arange(100_000, dtype=np.uint16)
    return found


def convert(stfs, source, *options):
    target = source.parent / "out.safetensors"
    stfs.run("convert", "--force", *options, source, target)
    header, _ = oracle.header_of(target.read_bytes())
    return load_file(target), header["__metadata__"]


def same(actual, wanted):
    """Names, types but for their byte order, shapes and bits."""
    assert actual.keys() == wanted.keys()
    for name, array in wanted.items():
        native = np.ascontiguousarray(array, array.dtype.newbyteorder("=")).reshape(array.shape)
        assert (actual[name].dtype, actual[name].shape) == (native.dtype, native.shape), name
        assert actual[name].tobytes() == native.tobytes(), name


def test_npy(stfs, tmp_path):
    for array in arrays().values():
        np.save(tmp_path / "x.npy", array)
        same(convert(stfs, tmp_path / "x.npy")[0], {"tensor": array})


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_versions_of_npy(version, stfs, tmp_path):
    array = np.arange(6).reshape(2, 3)
    with open(tmp_path / "x.npy", "wb") as file:
        np.lib.format.write_array(file, array, version)
    same(convert(stfs, tmp_path / "x.npy")[0], {"tensor": array})


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(save, stfs, tmp_path):
    save(tmp_path / "x.npz", **arrays())
    same(convert(stfs, tmp_path / "x.npz")[0], arrays())


@pytest.mark.parametrize("protocol", range(6))
def test_pickles(protocol, stfs, tmp_path):
    # Protocol 5 keeps the order of dimensions of what it views.
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(arrays(), protocol))
    same(convert(stfs, tmp_path / "x.pkl")[0], arrays())


def test_torch_files(stfs, tmp_path):
    value = {"w": torch.arange(3), "a": np.arange(4.0), "best": np.float32(1), "words": np.array(["a", "b"])}
    for zipped in [True, False]:
        torch.save(value, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
        actual, _ = convert(stfs, tmp_path / "x.pt")
        same(actual, {"w": np.arange(3), "a": np.arange(4.0)})
    listing = json.loads(stfs.run("ls", "--json", tmp_path / "x.pt").stdout)
    assert {other["path"] for other in listing["others"]} == {"best", "words"}


def test_complex128(stfs, tmp_path):
    array = np.array([[1 + 2j, 3 - 4j]]).T
    np.save(tmp_path / "x.npy", array)
    actual, metadata = convert(stfs, tmp_path / "x.npy")
    same(actual, {"tensor": np.stack([array.real, array.imag], -1)})
    assert json.loads(metadata["stfs"]) == {"tensor": {"dtype": "complex128"}}


def test_detectron2(stfs, tmp_path):
    value = {"model": {"stem.weight": np.ones((2, 3), "f4")}, "__author__": "somebody", "matching_heuristics": True}
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(value))
    wanted = value["model"]
    same(convert(stfs, tmp_path / "x.pkl")[0], wanted)
    same(convert(stfs, tmp_path / "x.pkl", "--root", "model")[0], wanted)


def test_mount(tmp_path, mounted):
    array = np.arange(6, dtype=">f4").reshape(2, 3)
    np.save(tmp_path / "numbers.npy", array)
    np.savez(tmp_path / "several.npz", array=array)
    np.save(tmp_path / "objects.npy", np.array([None]))
    np.savez(tmp_path / "mixed.npz", array=array, objects=np.array([None]))
    with mounted(tmp_path) as mount_point:
        assert sorted(path.name for path in mount_point.iterdir()) == [
            "mixed.npz.refused.txt", "numbers.npy", "numbers.safetensors", "numbers.tensors",
            "objects.npy.refused.txt", "several.npz", "several.safetensors", "several.tensors",
        ]
        assert (mount_point / "numbers.npy").read_bytes() == (tmp_path / "numbers.npy").read_bytes()
        same(load_file(mount_point / "numbers.safetensors"), {"tensor": array})
        same(load_file(mount_point / "several.safetensors"), {"array": array})
        assert (mount_point / "several.tensors" / "array").read_bytes() == array.astype("<f4").tobytes()
        assert "objects" in (mount_point / "mixed.npz.refused.txt").read_text()


@pytest.mark.parametrize("value", [
    np.array([None]),
    np.zeros(1, [("a", "f4"), ("b", "i2")]),
    np.zeros(1, np.longdouble),
    np.ma.masked_array([1, 2], [True, False]),
], ids=["objects", "records", "longdouble", "masked"])
def test_refused(value, stfs, tmp_path):
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"good": np.ones(1), "bad": value}))
    result = stfs.run("ls", tmp_path / "x.pkl", check=False)
    assert result.returncode == 1 and "`bad`" in result.stderr
