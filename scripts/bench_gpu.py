#!/usr/bin/env python3
"""Loads a 4 GB bfloat16 model into a GPU's memory, through a mount and from native files, in one run.

    target/venv/bin/python scripts/bench_gpu.py [--dir DIRECTORY] [--rounds N] [--json FILE]

* safetensors: load_file(device="cuda")
* fastsafetensors, without GPUDirect Storage
* pinned copies: plain reads into two pinned buffers, copied to the GPU in turns; nothing else can be in the way

Needs a GPU with 10 GB of free memory and CUDA, /dev/fuse, a built stfs (or STFS), 20 GB of memory, 9 GB of disk, and
the virtual environment that scripts/bench makes. Files are in the page cache before they are measured.
"""

import argparse
import gc
import json
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.append(str(REPOSITORY / "tests" / "e2e"))

try:
    import torch
    from benchmarks import machine, reads
    from benchmarks.models import Models
    from benchmarks.report import Report
    from benchmarks.stfs import Stfs
    from safetensors.torch import load_file
except ImportError as error:
    sys.exit(f"{error}: run this with target/venv/bin/python, the environment that scripts/bench makes")

DEVICE = "cuda:0"
CHUNK = 64 << 20


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dir", type=Path, help="where the model is made and kept (default: a temporary directory)")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each kind (default: 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file as well")
    parser.add_argument("--scale", type=float, default=1, help="size of the model, to try the benchmark itself")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit(f"no GPU: torch {torch.__version__} finds no CUDA device. One with 10 GB of free memory is needed.")
    if not Path("/dev/fuse").exists():
        sys.exit("/dev/fuse is missing: nothing can be mounted here")
    with tempfile.TemporaryDirectory(prefix="stfs-bench-") as temporary:
        directory = (arguments.dir or Path(temporary)).resolve()
        directory.mkdir(parents=True, exist_ok=True)
        report = measure(directory, arguments.rounds, arguments.scale)
    if arguments.json:
        arguments.json.write_text(json.dumps(report.data, indent=2) + "\n")


def measure(directory, rounds, scale):
    stfs = Stfs(directory)
    facts = machine.describe(directory, stfs) | {"gpu": torch.cuda.get_device_name(DEVICE)}
    report = Report(facts, rounds, scale)
    machine.print_facts(facts)
    print(facts["gpu"])
    model = Models(directory, scale).llama()
    report.section(
        "gpu",
        f"Into GPU memory: {model.describe()}",
        "until every tensor is there; first: on a mount that nobody has used, again: the same mount",
    )
    pinned = PinnedCopies()
    loaders = {"safetensors": safetensors, "fastsafetensors": fastsafetensors, "pinned copies": pinned}
    for title, loader in loaders.items():
        try:
            samples = in_turns(stfs, model, loader, rounds)
        except Exception as error:
            report.missing(title, f"failed: {type(error).__name__}: {error}".splitlines()[0])
            continue
        rows = {kind: report.row(f"{title}: {kind}", "s", values) for kind, values in samples.items()}
        for kind in ("mount, first", "mount, again"):
            report.ratio(f"{title}: {kind} / native files", rows[kind], rows["native files"])
    limits = [pinned.limit(model.size) for _ in range(rounds)]
    report.row("limit: as many bytes out of pinned memory", "s", limits)
    return report


def in_turns(stfs, model, loader, rounds):
    samples = {"mount, first": [], "mount, again": [], "native files": []}
    reads.warm(model.native)
    # The first load also starts CUDA and gets the GPU's memory.
    timed(loader, model.native)
    for _ in range(rounds):
        reads.warm(model.checkpoints)
        with stfs.mounted(model.source, *stfs.streaming) as mount_point:
            for kind in ("mount, first", "mount, again"):
                samples[kind].append(timed(loader, model.shown(mount_point)))
        reads.warm(model.native)
        samples["native files"].append(timed(loader, model.native))
    return samples


def timed(loader, paths):
    torch.cuda.synchronize()
    started = time.perf_counter()
    held = loader(paths)
    torch.cuda.synchronize()
    elapsed = time.perf_counter() - started
    del held
    gc.collect()
    return elapsed


def safetensors(paths):
    return [load_file(path, device=DEVICE) for path in paths]


def fastsafetensors(paths):
    from fastsafetensors import SafeTensorsFileLoader, SingleGroup

    loader = SafeTensorsFileLoader(SingleGroup(), device=DEVICE, nogds=True)
    try:
        loader.add_filenames({0: [str(path) for path in paths]})
        buffers = loader.copy_files_to_device()
        try:
            for name in buffers.key_to_rank_lidx:
                buffers.get_tensor(name)
            torch.cuda.synchronize()
        finally:
            buffers.close()
    finally:
        loader.close()


class PinnedCopies:
    def __init__(self):
        self._buffers = [torch.empty(CHUNK, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
        self._free = [torch.cuda.Event() for _ in self._buffers]

    def __call__(self, paths):
        return [self._load(path) for path in paths]

    def _load(self, path):
        size = path.stat().st_size
        target = torch.empty(size, dtype=torch.uint8, device=DEVICE)
        with open(path, "rb", buffering=0) as file:
            offset = turn = 0
            while offset < size:
                buffer, free = self._buffers[turn % 2], self._free[turn % 2]
                # An event that was never recorded is over.
                free.synchronize()
                count = file.readinto(memoryview(buffer.numpy()))
                if not count:
                    raise OSError(f"{path} ends at {offset} of {size}")
                target[offset : offset + count].copy_(buffer[:count], non_blocking=True)
                free.record()
                offset += count
                turn += 1
        return target

    def limit(self, size):
        """Seconds for as many bytes out of a buffer that is there already."""
        target = torch.empty(CHUNK, dtype=torch.uint8, device=DEVICE)
        torch.cuda.synchronize()
        started = time.perf_counter()
        for offset in range(0, size, CHUNK):
            count = min(CHUNK, size - offset)
            target[:count].copy_(self._buffers[0][:count], non_blocking=True)
        torch.cuda.synchronize()
        return time.perf_counter() - started


if __name__ == "__main__":
    main()
