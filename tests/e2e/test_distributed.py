"""Directories of torch.distributed.checkpoint: one file with what `dcp_to_torch_save` puts together."""

import os
import socket
import subprocess
import sys
import time

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load, load_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

pytestmark = pytest.mark.filterwarnings("ignore")

# A little more than the second that the kernel keeps a name for.
STALE_S = 1.2

# Four processes in a grid of two by two, which cut tensors in every way.
SAVE = """
import sys
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

def save(rank, port, path):
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=4)
    mesh = dist.init_device_mesh("cpu", (2, 2))
    torch.manual_seed(1)
    def cut(tensor, *placements):
        return distribute_tensor(tensor, mesh, placements)
    model = {
        "rows": cut(torch.randn(7, 3), Shard(0), Replicate()),
        "columns": cut(torch.randn(4, 9).bfloat16(), Replicate(), Shard(1)),
        "grid": cut(torch.randn(5, 7), Shard(0), Shard(1)),
        "both": cut(torch.randn(9, 2), Shard(0), Shard(0)),
        "middle": cut(torch.arange(60).reshape(3, 5, 4), Replicate(), Shard(1)),
        "whole": cut(torch.randn(3), Replicate(), Replicate()),
    }
    state = {"model": model, "optimizer": {"state": {"rows": cut(torch.ones(7, 3), Shard(0), Replicate())}}, "step": 5}
    dcp.save(state, checkpoint_id=path)
    dist.destroy_process_group()

if __name__ == "__main__":
    torch.multiprocessing.spawn(save, (int(sys.argv[1]), sys.argv[2]), nprocs=4)
"""


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    directory = tmp_path_factory.mktemp("dcp")
    (directory / "save.py").write_text(SAVE)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, directory / "save.py", str(port), directory / "grid"]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=120)
    return directory / "grid"


def merged(directory, target):
    """The tensors by their dotted paths, put together by torch."""
    dcp_to_torch_save(directory, target)
    found, pending = {}, [("", torch.load(target, weights_only=False))]
    while pending:
        path, value = pending.pop()
        if isinstance(value, dict):
            pending += [(f"{path}.{key}" if path else key, inner) for key, inner in value.items()]
        elif isinstance(value, torch.Tensor):
            found[path] = value
    return found


def same(actual, wanted):
    assert actual.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert actual[name].dtype == tensor.dtype and torch.equal(actual[name], tensor), name


def test_tensors_of_four_processes(grid, stfs, tmp_path):
    stfs.convert(grid, tmp_path / "out")
    assert os.listdir(tmp_path / "out") == ["model.safetensors"]
    wanted = merged(grid, tmp_path / "merged.pt")
    assert any(name.startswith("optimizer.") for name in wanted)
    # The model is the one value that holds weights.
    assert all(name.startswith(("model.", "optimizer.")) for name in wanted)
    wanted = {name.removeprefix("model."): tensor for name, tensor in wanted.items() if name.startswith("model.")}
    same(load_file(tmp_path / "out" / "model.safetensors"), wanted)


def test_root(grid, stfs, tmp_path):
    stfs.run("convert", "--root", "model", grid / ".metadata", tmp_path / "m.safetensors")
    wanted = merged(grid, tmp_path / "merged.pt")
    prefix = "model."
    wanted = {name.removeprefix(prefix): tensor for name, tensor in wanted.items() if name.startswith(prefix)}
    same(load_file(tmp_path / "m.safetensors"), wanted)


def test_mounted(tmp_path, mounted):
    source = tmp_path / "models"
    state = {"w": torch.arange(12.0).reshape(3, 4), "t": torch.arange(6).reshape(2, 3).t()}
    dcp.save(state, checkpoint_id=source / "step1", no_dist=True)
    with mounted(source) as mount_point:
        shown = mount_point / "step1"
        assert sorted(os.listdir(shown)) == ["model.safetensors", "model.tensors"]
        # Tensors that alias a mapping would keep the mount busy.
        actual = load((shown / "model.safetensors").read_bytes())
        same(actual, {name: tensor.contiguous() for name, tensor in state.items()})
        assert (shown / "model.tensors" / "w").read_bytes() == state["w"].numpy().tobytes()


def change(mount_point, part):
    """What a reader that holds the file open gets once a part was changed."""
    with open(mount_point / "step1" / "model.safetensors", "rb", buffering=0) as file:
        part.write_bytes(part.read_bytes()[:-1])
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return file.read()


def test_changed_part(tmp_path, mounted):
    source = tmp_path / "models"
    dcp.save({"w": torch.arange(12.0)}, checkpoint_id=source / "step1", no_dist=True)
    with mounted(source) as mount_point:
        with pytest.raises(OSError):
            change(mount_point, source / "step1" / "__0_0.distcp")
        shown = mount_point / "step1"
        assert os.listdir(shown) == ["step1.refused.txt"]
        assert "cut off" in (shown / "step1.refused.txt").read_text()
        os.remove(source / "step1" / "__0_0.distcp")
        time.sleep(STALE_S)
        assert "__0_0.distcp" in (shown / "step1.refused.txt").read_text()
        dcp.save({"v": torch.arange(3.0)}, checkpoint_id=source / "step1", no_dist=True)
        time.sleep(STALE_S)
        assert (shown / "model.tensors" / "v").stat().st_size == 12
