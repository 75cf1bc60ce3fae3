"""What is said of a file that is not shown is true, and what it says to do leads to the weights."""

import os
import shutil
import subprocess
import zipfile

import pytest
import torch
from conftest import refusal
from safetensors.torch import load

WEIGHTS = {"w": torch.arange(6.0).reshape(2, 3)}


def shown(path):
    """The tensors of a converted file. Nothing of it is mapped."""
    return load(path.read_bytes())


@pytest.mark.parametrize("mark", [b"05", b"06"])
def test_gpt_sovits(mark, tmp_path, mounted):
    """GPT-SoVITS writes the version of its model over the first two bytes, and torch's loader is lost."""
    path = tmp_path / "s2G_v2Pro.pth"
    torch.save(WEIGHTS, path)
    original = path.read_bytes()
    path.write_bytes(mark + original[2:])
    with pytest.raises(Exception):
        torch.load(path)
    with mounted(tmp_path) as mount_point:
        assert not (mount_point / path.name).exists()
        text = refusal(mount_point / path.name)
        assert "first two bytes" in text and "GPT-SoVITS" in text
        copy = tmp_path / "copy.pth"
        shutil.copy(path, copy)
        (command,) = [part for part in text.split("`") if "COPY" in part]
        subprocess.run(command.replace("COPY", str(copy)), shell=True, check=True, capture_output=True)
        assert copy.read_bytes() == original
        assert torch.equal(shown(mount_point / "copy.safetensors")["w"], WEIGHTS["w"])


@pytest.mark.skipif(not shutil.which("zip"), reason="zip is missing (package zip)")
def test_unpacked_by_a_browser(tmp_path, mounted):
    torch.save(WEIGHTS, tmp_path / "u.pth")
    zipfile.ZipFile(tmp_path / "u.pth").extractall(tmp_path)
    os.remove(tmp_path / "u.pth")
    with mounted(tmp_path) as mount_point:
        text = refusal(mount_point / "u" / "data.pkl")
        assert "unpacked" in text
        (command,) = [part for part in text.split("`") if "FOLDER" in part]
        subprocess.run(command.replace("FOLDER", "u").split(), cwd=tmp_path, check=True, capture_output=True)
        assert torch.equal(torch.load(tmp_path / "model.pth")["w"], WEIGHTS["w"])
        assert torch.equal(shown(mount_point / "model.safetensors")["w"], WEIGHTS["w"])


@pytest.mark.parametrize("mark", [b"\x80\x00", b"\x80\x01"])
def test_raw_data_is_shown_as_it_is(mark, tmp_path, mounted):
    """Python's pickles never begin like this."""
    raw = mark + torch.randn(5000, generator=torch.Generator().manual_seed(0)).numpy().tobytes()
    (tmp_path / "raw.bin").write_bytes(raw)
    attack = mark + b"cos\nsystem\n(S'true'\ntR."
    for name in ["attack.bin", "attack.dat"]:
        (tmp_path / name).write_bytes(attack)
    with mounted(tmp_path) as mount_point:
        assert sorted(os.listdir(mount_point)) == ["attack.bin.refused.txt", "attack.dat.refused.txt", "raw.bin"]
        assert (mount_point / "raw.bin").read_bytes() == raw
