"""Checkpoints whose records are deflated: decoded as far as they are read, into the cache directory while they are
open, and never into the directory for temporary files, which is not even there."""

import os
import time
import zipfile

import pytest
import torch
from caches import MIB, SETTLED_S, wait_for
from safetensors.torch import load_file, save


@pytest.fixture(scope="module")
def state_dict():
    generator = torch.Generator().manual_seed(5)
    large = torch.randn(3000, 2000, generator=generator)
    return {"large": large, "turned": large[:700].clone().T, "small": torch.randn(7, generator=generator)}


@pytest.fixture(scope="module")
def model(tmp_path_factory, state_dict):
    """What torch.save wrote, zipped again."""
    directory = tmp_path_factory.mktemp("compressed") / "model"
    directory.mkdir()
    path = directory / "pytorch_model.bin"
    plain = directory.parent / "plain.bin"
    torch.save(state_dict, plain)
    with zipfile.ZipFile(plain) as records, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as deflated:
        for record in records.infolist():
            deflated.writestr(record.filename, records.read(record))
    assert torch.load(path, weights_only=True).keys() == state_dict.keys()
    time.sleep(SETTLED_S)
    return path


@pytest.fixture(scope="module")
def wanted(state_dict):
    contiguous = {name: tensor.contiguous() for name, tensor in state_dict.items()}
    return save(contiguous, {"format": "pt"})


@pytest.fixture(autouse=True)
def nowhere_for_temporary_files(stfs, tmp_path, monkeypatch):
    monkeypatch.setitem(stfs.environment, "TMPDIR", str(tmp_path / "missing"))


def test_decoded_bytes_lie_in_the_cache_while_the_file_is_open(cache, model, wanted):
    with cache.mounted(model.parent, "--promote", "never") as mount:
        shown = mount / "model.safetensors"
        with open(shown, "rb") as file:
            assert file.read() == wanted
            assert len(cache.unfinished()) == 1
            for offset in (len(wanted) - 9, MIB, 17 * MIB, 0):
                assert os.pread(file.fileno(), 9, offset) == wanted[offset : offset + 9]
        wait_for(lambda: not cache.unfinished())
        loaded = load_file(shown)
        assert torch.equal(loaded["turned"], torch.load(model)["turned"])
        del loaded
    assert not cache.unfinished()
    assert not cache.data()


def test_the_promoted_file_takes_its_place(cache, model, wanted):
    with cache.mounted(model.parent) as mount:
        with open(mount / "model.safetensors", "rb") as file:
            assert file.read() == wanted
            wait_for(cache.data)
        wait_for(lambda: not cache.unfinished())
        assert (mount / "model.safetensors").read_bytes() == wanted


@pytest.mark.parametrize("room", ["no cache", "no room"])
def test_it_works_without(stfs, mounted, tmp_path, monkeypatch, model, wanted, room):
    options = ["--cache-size", "0", "--cache-dir", tmp_path / "cache"]
    if room == "no cache":
        options = []
        monkeypatch.delitem(stfs.environment, "XDG_CACHE_HOME")
        monkeypatch.delitem(stfs.environment, "HOME", raising=False)
    with mounted(model.parent, *options) as mount:
        assert (mount / "model.safetensors").read_bytes() == wanted
        raw = (mount / "model.tensors" / "turned").read_bytes()
        assert raw == torch.load(model)["turned"].contiguous().numpy().tobytes()


def test_commands_need_no_temporary_files(stfs, tmp_path, model, wanted):
    stfs.convert(model, tmp_path / "out.safetensors")
    assert (tmp_path / "out.safetensors").read_bytes() == wanted
