#!/usr/bin/env python3
"""Measures stfs against what it replaces, in one run on one machine.

    scripts/bench.py [--dir DIRECTORY] [--rounds N] [--json FILE]

* looking: the first stat of a converted 548 MB checkpoint on a fresh mount, against Hugging Face's convert.py
* many tensors: listing and first stat of checkpoints of 1,000, 10,000 and 100,000 tensors
* loading: safetensors' load_file through the mount, the first and the second time, against the native file on the
  same disk and against torch.load of the checkpoint

Every source file is in the page cache before it is measured. What is compared is measured in turns, round by
round. Every mount starts with an empty cache directory of its own. Times are medians with the range around them.
Needs the packages of tests/e2e/requirements.txt and a built stfs (STFS names another program).
"""

import argparse
import contextlib
import gc
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY / "tests" / "e2e"))

import oracle
import safetensors
import torch
from safetensors.torch import load_file

STFS = (REPOSITORY / os.environ.get("STFS", "target/release/stfs")).resolve()
TENSOR_COUNTS = [1_000, 10_000, 100_000]
MILLISECOND = 1e-3


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dir", type=Path, help="where models are made and kept (default: a temporary directory)")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each kind (default: 5)")
    parser.add_argument("--json", type=Path, help="write the results to this file as well")
    parser.add_argument("--convert", nargs=2, metavar=("SOURCE", "TARGET"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.convert:
        print(json.dumps(convert(*arguments.convert)))
        return
    if not STFS.is_file():
        sys.exit(f"no stfs program at {STFS}: build it with `cargo build --release` or set STFS")
    with contextlib.ExitStack() as stack:
        directory = arguments.dir or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="stfs-bench-")))
        directory = directory.resolve()
        directory.mkdir(parents=True, exist_ok=True)
        bench = Bench(directory, arguments.rounds)
        bench.report["machine"] = machine(directory)
        print_machine(bench.report["machine"])
        bench.looking()
        bench.many_tensors()
        bench.loading()
    if arguments.json:
        arguments.json.write_text(json.dumps(bench.report, indent=2) + "\n")


class Bench:
    def __init__(self, directory, rounds):
        self.directory = directory
        self.rounds = rounds
        self.report = {"rounds": rounds}

    def looking(self):
        source = self.gpt2()
        target = self.directory / "converted.safetensors"
        stats, conversions, daemons, peaks = [], [], [], []
        for _ in range(self.rounds):
            warm(source)
            with self.mounted(source.parent) as mount_point:
                stats.append(seconds(lambda: os.stat(mount_point / "model.safetensors")))
                daemons.append(memory_of(daemon_of(mount_point)))
            warm(source)
            converted = run_json([sys.executable, __file__, "--convert", source, target])
            conversions.append(converted["seconds"])
            peaks.append(converted["peak_bytes"])
            target.unlink()
        self.heading(f"Looking at a checkpoint of {source.stat().st_size / 1e6:.0f} MB, {len(gpt2_shapes())} tensors")
        first_stat = self.times("looking", "first stat on a fresh mount", stats)
        conversion = self.times("looking", "convert.py: load, save, reload, compare", conversions)
        self.ratio("looking", "convert.py / first stat", conversion, first_stat)
        self.bytes("looking", "daemon, resident", [daemon["VmRSS"] for daemon in daemons])
        self.bytes("looking", "daemon, peak", [daemon["VmHWM"] for daemon in daemons])
        self.bytes("looking", "convert.py, peak", peaks)

    def many_tensors(self):
        self.heading("Checkpoints of many tensors")
        medians = {}
        for count in TENSOR_COUNTS:
            source = self.small_tensors(count)
            warm(source)
            listings, stats = [], []
            for _ in range(self.rounds):
                listings.append(seconds(lambda: run([STFS, "ls", source], self.environment(None))))
                with self.mounted(source.parent) as mount_point:
                    stats.append(seconds(lambda: os.stat(mount_point / "model.safetensors")))
            self.times("many_tensors", f"stfs ls, {count} tensors", listings)
            medians[count] = self.times("many_tensors", f"first stat, {count} tensors", stats)
        for fewer, more in zip(TENSOR_COUNTS, TENSOR_COUNTS[1:]):
            label = f"first stat, {more} / {fewer} tensors ({more // fewer} is linear)"
            self.ratio("many_tensors", label, medians[more], medians[fewer])

    def loading(self):
        source = self.gpt2()
        native = self.directory / "native" / "model.safetensors"
        if not native.exists():
            native.parent.mkdir(exist_ok=True)
            oracle.convert_file(source, native)
        # Clones, so that the pages of the destination exist before anything is measured.
        destination = {name: tensor.clone() for name, tensor in load_file(native).items()}

        loads = {
            "mount, first time": [],
            "mount, second time": [],
            "native file": [],
            "torch.load": [],
        }
        copies = {kind: [] for kind in loads}

        def measure(kind, load):
            gc.collect()
            started = time.perf_counter()
            tensors = load()
            loaded = time.perf_counter()
            for name, tensor in tensors.items():
                destination[name].copy_(tensor)
            loads[kind].append(loaded - started)
            copies[kind].append(time.perf_counter() - started)

        for _ in range(self.rounds):
            warm(source)
            with self.mounted(source.parent) as mount_point:
                shown = mount_point / "model.safetensors"
                measure("mount, first time", lambda: load_file(shown))
                measure("mount, second time", lambda: load_file(shown))
            warm(native)
            measure("native file", lambda: load_file(native))
            warm(source)
            measure("torch.load", lambda: torch.load(source, weights_only=True))
        self.heading(f"Loading it: {source.stat().st_size / 1e6:.0f} MB")
        for title, results in (("load", loads), ("load and copy every tensor", copies)):
            medians = {kind: self.times("loading", f"{title}: {kind}", times) for kind, times in results.items()}
            for kind in ("mount, first time", "mount, second time"):
                self.ratio("loading", f"{title}: torch.load / {kind}", medians["torch.load"], medians[kind])
                self.ratio("loading", f"{title}: {kind} / native file", medians[kind], medians["native file"])

    # Models

    def gpt2(self):
        path = self.directory / "gpt2" / "pytorch_model.bin"
        if not path.exists():
            generator = torch.Generator().manual_seed(0)
            tensors = {name: torch.randn(shape, generator=generator) for name, shape in gpt2_shapes().items()}
            save_whole(tensors, path)
        return path

    def small_tensors(self, count):
        path = self.directory / f"tensors{count}" / "model.bin"
        if not path.exists():
            generator = torch.Generator().manual_seed(count)
            names = (f"model.layers.{index // 8}.part{index % 8}.weight" for index in range(count))
            save_whole({name: torch.randn(4, 4, generator=generator) for name in names}, path)
        return path

    # stfs

    def environment(self, cache):
        cache = cache or self.directory / "cache"
        return {**os.environ, "XDG_CACHE_HOME": str(cache)}

    @contextlib.contextmanager
    def mounted(self, source):
        with tempfile.TemporaryDirectory(dir=self.directory, prefix="mount-") as scratch:
            mount_point, cache = Path(scratch, "mount"), Path(scratch, "cache")
            mount_point.mkdir()
            cache.mkdir()
            run([STFS, "mount", source, mount_point], self.environment(cache))
            try:
                yield mount_point
            finally:
                gc.collect()
                run([STFS, "umount", mount_point], self.environment(cache))

    # Results

    def heading(self, text):
        print(f"\n{text}")

    def times(self, section, label, values):
        median = self.record(section, label, "s", values)
        low, high = min(values) / MILLISECOND, max(values) / MILLISECOND
        print(f"  {label:<58} {median / MILLISECOND:>10.2f} ms  [{low:.2f} .. {high:.2f}]")
        return median

    def bytes(self, section, label, values):
        median = self.record(section, label, "bytes", values)
        print(f"  {label:<58} {median / 1e6:>10.1f} MB  [{min(values) / 1e6:.1f} .. {max(values) / 1e6:.1f}]")

    def ratio(self, section, label, numerator, denominator):
        value = numerator / denominator
        self.report.setdefault(section, {})[label] = {"ratio": value}
        print(f"  {label:<58} {value:>10.2f} x")

    def record(self, section, label, unit, values):
        median = statistics.median(values)
        self.report.setdefault(section, {})[label] = {"unit": unit, "median": median, "values": values}
        return median


def gpt2_shapes():
    """The 160 tensors of openai-community/gpt2, its causal masks included."""
    width, context, vocabulary, layers = 768, 1024, 50257, 12
    shapes = {"wte.weight": (vocabulary, width), "wpe.weight": (context, width)}
    for layer in range(layers):
        block = {
            "ln_1.weight": (width,),
            "ln_1.bias": (width,),
            "attn.bias": (1, 1, context, context),
            "attn.c_attn.weight": (width, 3 * width),
            "attn.c_attn.bias": (3 * width,),
            "attn.c_proj.weight": (width, width),
            "attn.c_proj.bias": (width,),
            "ln_2.weight": (width,),
            "ln_2.bias": (width,),
            "mlp.c_fc.weight": (width, 4 * width),
            "mlp.c_fc.bias": (4 * width,),
            "mlp.c_proj.weight": (4 * width, width),
            "mlp.c_proj.bias": (width,),
        }
        shapes |= {f"h.{layer}.{name}": shape for name, shape in block.items()}
    return shapes | {"ln_f.weight": (width,), "ln_f.bias": (width,)}


def save_whole(tensors, path):
    """An interrupted run leaves no half of a model behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(tensors, path.with_suffix(".part"))
    path.with_suffix(".part").rename(path)


def convert(source, target):
    """One conversion by the steps of convert.py, in a process of its own. The imports are not counted."""
    elapsed = seconds(lambda: oracle.convert_file(source, target))
    return {"seconds": elapsed, "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def seconds(function):
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def warm(path):
    """Brings a file into the page cache."""
    with open(path, "rb", buffering=0) as file:
        while file.read(1 << 24):
            pass


def run(command, environment=None):
    result = subprocess.run(
        list(map(str, command)), env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if result.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}: exit {result.returncode}\n{result.stdout}{result.stderr}")
    return result.stdout


def run_json(command):
    return json.loads(run(command))


def daemon_of(mount_point):
    return int(os.getxattr(mount_point, "user.stfs.pid"))


def memory_of(pid):
    """Resident and peak resident bytes of a process."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {key: int(fields[key].split()[0]) * 1024 for key in ("VmRSS", "VmHWM")}


def machine(directory):
    cpus = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").open() if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    disk = shutil.which("findmnt") and run(["findmnt", "-n", "-o", "FSTYPE", "-T", directory]).strip()
    return {
        "cpu": cpus[0] if cpus else platform.machine(),
        "cpus": os.cpu_count(),
        "memory_bytes": memory,
        "kernel": platform.release(),
        "filesystem": disk or "unknown",
        "stfs": run([STFS, "--version"]).strip(),
        "torch": torch.__version__,
        "safetensors": safetensors.__version__,
        "python": platform.python_version(),
    }


def print_machine(facts):
    memory = f"{facts['memory_bytes'] / 2**30:.0f} GiB"
    print(f"{facts['cpus']} x {facts['cpu']}, {memory}, Linux {facts['kernel']}, {facts['filesystem']}")
    print(f"{facts['stfs']}, torch {facts['torch']}, safetensors {facts['safetensors']}, Python {facts['python']}")


if __name__ == "__main__":
    main()
