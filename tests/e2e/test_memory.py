"""The memory of a mount: bounded for the process as a whole, and small again when the work is done.

What counts is what the kernel says of the process behind the mount, at its peak and a while later.
"""

import contextlib
import io
import json
import os
import re
import struct
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

MIB = 2**20
BUDGET_MIB = 512
# What is left of the largest work, once it is over for so long.
REST_MIB = 64
PATIENCE_S = 60


class Process:
    """The process that serves a mount."""

    def __init__(self, mount_point):
        [self.pid] = [
            int(pid)
            for pid in os.listdir("/proc")
            if pid.isdigit() and str(mount_point).encode() in arguments_of(pid) and b"mount" in arguments_of(pid)
        ]

    def mib(self, field):
        with open(f"/proc/{self.pid}/status") as status:
            return int(re.search(rf"^{field}:\s+(\d+) kB", status.read(), re.MULTILINE)[1]) / 1024

    def peak(self):
        return self.mib("VmHWM")

    def rests_at(self, most):
        """Whether no more than so much stays, in the end."""
        deadline = time.monotonic() + PATIENCE_S
        while self.mib("VmRSS") > most and time.monotonic() < deadline:
            time.sleep(0.5)
        return self.mib("VmRSS") <= most


def arguments_of(pid):
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as arguments:
            return arguments.read().split(b"\0")
    except OSError:
        return []


@pytest.fixture
def served(mounted, tmp_path):
    """`served(source)`: a mount point, and the process behind it."""

    @contextlib.contextmanager
    def served(source):
        with mounted(source, "--memory", f"{BUDGET_MIB}M", "--cache-dir", tmp_path / "cache") as mount_point:
            yield mount_point, Process(mount_point)

    return served


def at_once(work, items):
    with ThreadPoolExecutor(len(items)) as pool:
        return list(pool.map(work, items))


def bomb(opcodes, start=b""):
    """A torch archive of 281 KB whose pickle has a hundred times as many bytes, and makes objects of all of them."""
    pickle = b"\x80\x02" + start + opcodes * (28_000_000 // len(opcodes)) + b"."
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("m/data.pkl", pickle, zipfile.ZIP_DEFLATED)
        archive.writestr("m/version", b"3\n")
        archive.writestr("m/data/0", os.urandom(281_000 - file.tell()))
    return file.getvalue()


def test_bombs_looked_at_at_once(served, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    kinds = [(b"]",), (b"]Na",), (b"}NNs",), (b")R", b"cm\nf\n"), (b"N\x85",)]
    bombs = [bomb(*kind) for kind in kinds]
    for number in range(20):
        (source / f"{number}.pt").write_bytes(bombs[number % len(bombs)])
    with served(source) as (mount_point, process):
        refusals = [mount_point / f"{number}.pt.refused.txt" for number in range(20)]
        texts = at_once(lambda path: path.read_text(), refusals)
        assert all("memory" in text for text in texts), texts
        assert process.peak() <= BUDGET_MIB
        assert process.rests_at(REST_MIB)


def test_a_header_of_a_million_tensors(served, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    tensors = (
        f'"model.layers.{number}.weight":{{"dtype":"F32","shape":[1],"data_offsets":[{4 * number},{4 * number + 4}]}}'
        for number in range(1_000_000)
    )
    header = ("{" + ",".join(tensors) + "}").encode()
    with open(source / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + 4_000_000)
    with served(source) as (mount_point, process):
        assert os.path.getsize(mount_point / "model.tensors" / "model.layers.77.weight") == 4
        assert process.peak() <= BUDGET_MIB
        assert process.rests_at(REST_MIB)


def test_long_indexes(served, tmp_path):
    for number in range(4):
        tensors, size = {}, 0
        while size < 13 * MIB:
            name = f"model.layers.{len(tensors)}.weight.of.model.{number}"
            tensors[name] = f"pytorch_model-{len(tensors) % 4 + 1:05}-of-00004.bin"
            size += len(name) + len(tensors[name]) + 8
        model = tmp_path / "source" / str(number)
        model.mkdir(parents=True)
        (model / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": tensors}))
    with served(tmp_path / "source") as (mount_point, process):
        indexes = [mount_point / str(number) / "model.safetensors.index.json" for number in range(4)]
        assert all(len(text) > 13 * MIB for text in at_once(lambda path: path.read_bytes(), indexes))
        assert process.peak() <= BUDGET_MIB
        assert process.rests_at(REST_MIB)


def test_a_plan_of_100_000_tensors(served, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    names = [f"model.layers.{number // 10}.block.{number % 10}.weight" for number in range(100_000)]
    torch.save({name: torch.zeros(1) for name in names}, source / "model.pt")
    with served(source) as (mount_point, process):
        assert os.path.getsize(mount_point / "model.safetensors") > 4 * len(names)
        assert process.peak() <= 176
        assert process.rests_at(48)


def test_many_checkpoints_listed(served, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    file = io.BytesIO()
    torch.save({"weight": torch.ones(4, 4), "bias": torch.zeros(4)}, file)
    for number in range(10_000):
        (source / f"{number}.pt").write_bytes(file.getvalue())
    with served(source) as (mount_point, process):
        with os.scandir(mount_point) as entries:
            assert sum(entry.stat().st_size > 0 for entry in entries) >= 10_000
        assert process.peak() <= 96
        assert process.rests_at(REST_MIB)


def test_empty_files_leave_no_records(served, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for number in range(20_000):
        (source / f"{number}.bin").touch()
    with served(source) as (mount_point, process):
        assert len(os.listdir(mount_point)) == 20_000
        assert process.peak() <= 96
    records = (path.stat() for path in (tmp_path / "cache").rglob("*") if path.is_file())
    assert sum(record.st_blocks * 512 for record in records) <= MIB
