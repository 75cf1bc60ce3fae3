"""How much is asked of a source that is far away, of the process, and of the cache directory, by much that is small."""

import json
import os
import time
from pathlib import Path

import slow_sftp
import torch
from caches import SETTLED_S
from filesystems import needs_sshfs
from users import needs_root

MIB = 1 << 20
DELAY_S = 0.03
LONG_AGO = 1_000_000_000


def memory(mount_point, field):
    """Bytes."""
    pid = int(os.getxattr(mount_point, "user.stfs.pid"))
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field)) << 10


def processor_time(mount_point):
    """Seconds that the process has computed: how busy the machine is does not matter."""
    pid = int(os.getxattr(mount_point, "user.stfs.pid"))
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


@needs_root
def test_a_distant_checkpoint_is_listed_with_few_requests(tmp_path, cache):
    """The directory of the archive and the pickle are enough to know the sizes: no tensor is read for them."""
    needs_sshfs()
    distant, place = tmp_path / "distant", tmp_path / "place"
    distant.mkdir()
    tensors = {f"layer{index:03}.weight": torch.randn(64, 128) for index in range(160)}
    torch.save(tensors, distant / "model.pt")
    os.utime(distant / "model.pt", (LONG_AGO, LONG_AGO))
    with slow_sftp.SlowServer(tmp_path, DELAY_S) as server, server.mounted(distant, place):
        with cache.mounted(place) as mount_point:
            server.reset()
            with os.scandir(mount_point) as entries:
                sizes = {entry.name: entry.stat().st_size for entry in entries}
            reads, size = server.reads, server.bytes_read
            assert sizes.keys() == {"model.safetensors", "model.tensors"}
            assert sizes["model.safetensors"] > 160 * 64 * 128 * 4
            assert reads > 0, "the requests are not counted"
            assert reads <= 25 and size <= 500_000, f"{reads} reads of {size:,} bytes"

            # What was put off is still looked at before it is served.
            name = "layer007.weight"
            assert (mount_point / "model.tensors" / name).read_bytes() == tensors[name].numpy().tobytes()


def write_index(directory, names, shard="pytorch_model-00001-of-00001.bin"):
    directory.mkdir()
    torch.save({"weight": torch.zeros(4)}, directory / shard)
    path = directory / "pytorch_model.bin.index.json"
    path.write_text(json.dumps({"metadata": {"total_size": 16}, "weight_map": dict.fromkeys(names, shard)}))
    return path


def test_a_large_index_is_worked_out_once(tmp_path, mounted):
    index = write_index(tmp_path / "model", [f"model.layers.{number}.weight" for number in range(20_000)])
    time.sleep(SETTLED_S)
    with mounted(index.parent) as mount_point:
        shown = mount_point / "model.safetensors.index.json"
        idle = processor_time(mount_point)
        size = shown.stat().st_size
        first = processor_time(mount_point) - idle
        text = shown.read_text()
        assert len(text) == size
        assert set(json.loads(text)["weight_map"].values()) == {"model-00001-of-00001.safetensors"}
        # The kernel asks again once its second is over.
        time.sleep(1.1)
        idle = processor_time(mount_point)
        assert shown.stat().st_size == size
        again = processor_time(mount_point) - idle
    assert again < max(first / 4, 0.005), f"{first:.3f} s at first, {again:.3f} s again"


def test_large_indexes_stay_small_in_memory(tmp_path, mounted):
    source = tmp_path / "models"
    source.mkdir()
    names = [f"model.layers.{number}.{'x' * 160}.weight" for number in range(66_000)]
    for number in range(4):
        assert write_index(source / f"model{number}", names).stat().st_size > 14 * MIB
    with mounted(source) as mount_point:
        for _ in range(2):
            for number in range(4):
                shown = mount_point / f"model{number}" / "model.safetensors.index.json"
                assert shown.stat().st_size > 14 * MIB
        kept = memory(mount_point, "VmRSS")
        # The file's own pages are anybody's, and 32 MiB are the program and what it does at the time.
        assert kept < (128 + 32) * MIB, f"{kept / MIB:.0f} MiB"


def test_what_is_no_checkpoint_leaves_no_records(tmp_path, cache):
    """Twenty thousand empty files: each is refused in words, and nothing of them is kept on the disk."""
    source = tmp_path / "models"
    source.mkdir()
    for number in range(20_000):
        (source / f"{number}.bin").touch()
        os.utime(source / f"{number}.bin", (LONG_AGO, LONG_AGO))
    with cache.mounted(source) as mount_point:
        names = os.listdir(mount_point)
        assert len(names) == 20_000 and all(name.endswith(".bin.refused.txt") for name in names)
        for name in names[::100]:
            assert "empty" in (mount_point / name).read_text()
        kept = memory(mount_point, "RssAnon")
    records = [path.stat() for path in (cache.path / "plans").rglob("*") if path.is_file()]
    assert sum(record.st_blocks * 512 for record in records) < MIB, f"{len(records)} records"
    assert kept < 64 * MIB
