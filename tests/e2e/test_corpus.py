"""Checkpoints that others made, benign and hostile, against what torch loads from them.

The corpus is not part of this repository. STFS_CORPUS names its directory: MANIFEST.tsv lists the files, and
expected/PATH.json says which tensors torch finds in PATH, or that it refuses it (.jit.json: torch.jit.load).
"""

import csv
import functools
import json
import os
import shutil
from pathlib import Path

import numpy
import oracle
import pytest
import torch
from conftest import MATERIAL, REPOSITORY, derived, read_everything, refusal
from safetensors.torch import save

CORPUS = Path(os.environ.get("STFS_CORPUS", REPOSITORY.parent / "shared" / "corpus"))
CHECKPOINT_EXTENSIONS = {".pt", ".pth", ".bin", ".ckpt"}

# Archives that two readers can understand differently. torch picks one reading; refusing them is right too.
AMBIGUOUS = {
    "zipdiff/10_duplicate_datapkl_first_w_second_evil.pt": "two records are called data.pkl",
    "zipdiff/61_dup3_k1_k2_k3.pt": "three records have one name",
    "zipdiff/62_dup4_k1_k2_k3_w.pt": "four records have one name",
    "zipdiff/64_case_dup_lower_k1_upper_k2.pt": "two records differ in the case of their name only",
    "zipdiff/65_case_dup_upper_k2_first.pt": "two records differ in the case of their name only",
}

SAFETENSORS_DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}


def manifest():
    if not (CORPUS / "MANIFEST.tsv").is_file():
        return []
    with open(CORPUS / "MANIFEST.tsv", newline="") as file:
        return [row["path"] for row in csv.DictReader(file, delimiter="\t")]


def is_torch_zip(path):
    source = CORPUS / path
    return source.suffix in CHECKPOINT_EXTENSIONS and source.read_bytes()[:4] == b"PK\x03\x04"


def parameters(paths):
    """A corpus that is not there is one visible skip."""
    for path in paths:
        yield pytest.param(path)
    if not paths:
        yield pytest.param(None, id="no-corpus", marks=NEEDS_CORPUS)


# Files whose weights are the one value that holds any: names are paths from there.
UNWRAPPED = {
    "burn/crates/burn-store/pytorch-tests/tests/config/weights_with_config.pt": "my_model.",
    "burn/crates/burn-store/src/pytorch/tests/reader/test_data/complex_structure.pt": "state.",
    "candle/candle-core/tests/test_with_key.pt": "model_state_dict.",
}

PATHS = manifest()
NO_CORPUS = f"{MATERIAL}no corpus at {CORPUS}: set STFS_CORPUS"
NEEDS_CORPUS = pytest.mark.skipif(not PATHS, reason=NO_CORPUS)
TORCH_ZIPS = [path for path in PATHS if is_torch_zip(path)]
OTHER_CHECKPOINTS = [path for path in PATHS if Path(path).suffix in CHECKPOINT_EXTENSIONS and path not in TORCH_ZIPS]
ARRAYS = [path for path in PATHS if Path(path).suffix in {".npy", ".npz"}]


@pytest.fixture(scope="module")
def mount(mounted):
    if not PATHS:
        pytest.skip(NO_CORPUS)
    with mounted(CORPUS) as mount_point:
        yield mount_point


@functools.cache
def expectation(path, kind=""):
    file = CORPUS / "expected" / f"{path}{kind}.json"
    return json.loads(file.read_text()) if file.is_file() else {"ok": False}


def wanted_tensors(path):
    """What a torch loader finds in the file: name -> (dtype, shape, sha256); None if none of them reads it."""
    for kind in ("", ".jit", ".full"):
        found = expectation(path, kind)
        if found["ok"]:
            root = UNWRAPPED.get(path, "")
            return {
                tensor["name"].removeprefix(root): (SAFETENSORS_DTYPES[tensor["dtype"]], tensor["shape"], tensor["sha256"])
                for tensor in found["tensors"]
            }
    return None


def tensors_of(converted):
    """The same of a safetensors file."""
    return oracle.digests(converted.read_bytes())


@pytest.mark.parametrize("path", parameters(TORCH_ZIPS))
def test_torch_zip(path, mount, mounted, tmp_path):
    if (CORPUS / derived(Path(path))).exists():
        # A real file of the derived name wins; alone, the checkpoint is converted.
        assert (mount / derived(Path(path))).read_bytes() == (CORPUS / derived(Path(path))).read_bytes()
        shutil.copy(CORPUS / path, tmp_path)
        with mounted(tmp_path) as alone:
            check_torch_zip(path, alone / Path(path).name)
    else:
        check_torch_zip(path, mount / path)


def check_torch_zip(path, shown):
    wanted = wanted_tensors(path)
    converted = derived(shown)
    if not converted.exists():
        # Beside another file of the same stem it keeps its ending.
        converted = shown.with_name(f"{shown.name}.safetensors")
    if converted.exists() or (wanted and path not in AMBIGUOUS):
        assert tensors_of(converted) == wanted
    else:
        refusal(shown)


@pytest.mark.parametrize("path", parameters(OTHER_CHECKPOINTS))
def test_other_container(path, mount):
    """Converted as torch reads it; refused or shown as it is where torch does not read it."""
    shown = mount / path
    wanted = wanted_tensors(path)
    if wanted:
        assert tensors_of(derived(shown)) == wanted
    elif not shown.exists():
        refusal(shown)
    else:
        assert shown.read_bytes() == (CORPUS / path).read_bytes()


@pytest.mark.parametrize("path", parameters(ARRAYS))
def test_arrays(path, stfs, tmp_path):
    stfs.convert(CORPUS / path, tmp_path / "converted.safetensors")
    loaded = numpy.load(CORPUS / path)
    arrays = {"tensor": loaded} if isinstance(loaded, numpy.ndarray) else dict(loaded)
    wanted = {name: torch.from_numpy(array) for name, array in arrays.items()}
    assert tensors_of(tmp_path / "converted.safetensors") == oracle.digests(save(wanted))


def test_every_file_is_readable(mount):
    assert read_everything(mount) >= len(PATHS)


def test_no_checkpoint_is_visible(mount):
    for path in TORCH_ZIPS:
        assert not (mount / path).exists(), path
        assert Path(path).name not in os.listdir((mount / path).parent)


def test_no_pickle_is_visible(mount):
    """No file of the mount starts as a pickle of protocol 2 or later does and is one to its end."""
    for parent, _, files in os.walk(mount):
        for name in files:
            data = Path(parent, name).read_bytes()
            is_pickle = len(data) > 2 and data[0] == 0x80 and data[1] in range(2, 6) and data.endswith(b".")
            assert not is_pickle, os.path.join(parent, name)
