"""Directories of torch.distributed.checkpoint: of one process, and with tensors split over two."""

import shutil
import socket

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from fixture import Fixtures

FIXTURES = Fixtures(f"dcp_to_torch_save of torch {torch.__version__.split('+')[0]}")


def fresh(name):
    shutil.rmtree(FIXTURES.path(name), ignore_errors=True)
    return FIXTURES.path(name)


def expect(name, about):
    merged = FIXTURES.path(f"{name}.merged")
    dcp_to_torch_save(FIXTURES.path(name), merged)
    loaded = torch.load(merged, weights_only=False)
    merged.unlink()
    FIXTURES.expect(name, about, loaded, weights="model")


def save_shards(rank, port, path):
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    mesh = dist.init_device_mesh("cpu", (2,))
    torch.manual_seed(8)
    # 5 rows on two ranks: 3 and 2.
    rows = distribute_tensor(torch.randn(5, 3), mesh, [Shard(0)])
    columns = distribute_tensor(torch.randn(4, 6), mesh, [Shard(1)])
    everywhere = distribute_tensor(torch.randn(2), mesh, [Replicate()])
    dcp.save({"model": {"rows": rows, "columns": columns, "bias": everywhere}, "step": 5}, checkpoint_id=path)
    dist.destroy_process_group()


def main():
    torch.manual_seed(8)
    base = torch.randn(3, 4)
    state = {"model": {"weight": base, "transposed": base.t(), "half": torch.ones(2).half()}, "step": 3, "lr": [0.1]}
    dcp.save(state, checkpoint_id=fresh("single"), no_dist=True)
    expect("single", "one process")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(save_shards, (port, fresh("two-ranks")), nprocs=2)
    expect("two-ranks", "tensors split over two processes by rows and by columns")


if __name__ == "__main__":
    main()
