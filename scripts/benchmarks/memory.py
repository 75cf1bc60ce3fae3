"""What the background process of a mount holds in memory: while models are loaded, and after what asks for much."""

import json
import os
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import reads, stfs
from .report import at_most
from .worker import Worker

LIMIT = 64e6
# After what asks for much was looked at.
REST_S = 60
# Bytes at the peak and later: of what is made to take much, and of what people have.
HOSTILE, USUAL = (512e6, 64e6), (96e6, 48e6)
MEMORY = ["--memory", "512M"]


def run(bench):
    report = bench.report
    report.section(
        "memory",
        "Memory of the background process, peak while everything is loaded twice",
        "own: RssAnon and RssShmem; mapped: RssFile, pages of the checkpoints that other processes share",
        "with the options that a mount has by default",
    )
    models = [
        ("GPT-2", bench.models.gpt2()),
        ("20,000 small tensors", bench.models.small_tensors(20_000)),
        ("100,000 small tensors", bench.models.small_tensors(100_000)),
        ("Llama, two shards", bench.models.llama()),
    ]
    worst = 0
    for title, model in models:
        worst = max(worst, measure(bench, title, model.source, lambda mount_point: load_twice(model, mount_point)))
    tree, count = bench.models.tree()
    worst = max(worst, measure(bench, f"{count:,} checkpoints listed", tree, list_all))
    report.goal("memory of the background process beyond mapped pages, any model", at_most(LIMIT, "bytes"), worst)


def measure(bench, title, source, use):
    own, mapped = [], []
    for _ in range(bench.rounds):
        with bench.stfs.mounted(source) as mount_point:
            with stfs.PeakMemory(stfs.daemon_of(mount_point)) as peak:
                use(mount_point)
            status = bench.stfs.status(mount_point)
        own.append(peak.own)
        mapped.append(peak.mapped)
    row = bench.report.row(f"{title}: own", "bytes", own)
    bench.report.row(f"{title}: mapped", "bytes", mapped)
    if status:
        bench.report.note(f"{title}: status", json.loads(status))
    return max(row.values)


def load_twice(model, mount_point):
    reads.warm(model.checkpoints)
    with Worker() as worker:
        for _ in range(2):
            worker.measure("load_file", model.shown(mount_point), "touch")


def list_all(mount_point):
    subprocess.run(["ls", "-lR", mount_point], stdout=subprocess.DEVNULL, check=True)


def peaks(bench):
    """The most that the process holds while something asks for much, and what is left of it a minute later."""
    report, models = bench.report, bench.models
    indexes, size = models.large_indexes(4, 14 << 20)
    tree, count = models.tree()
    planned = models.small_tensors(100_000)
    header = models.long_header(94_000_000)
    length = int.from_bytes((header / "model.safetensors").open("rb").read(8), "little")
    report.section(
        "peaks",
        f"Memory of the background process (VmRSS): the peak, and {REST_S} s later",
        f"once each, on a new mount with an empty cache directory and {' '.join(MEMORY)}, the default where there are 8 GiB",
    )
    for title, source, use, limits in (
        ("20 bombs of 281 KB at once", models.bombs(20), look_at_all_at_once, HOSTILE),
        (f"a safetensors header of {length / 1e6:.0f} MB", header, list_tensors, HOSTILE),
        (f"four indexes of {size / 2**20:.1f} MiB", indexes, list_all, HOSTILE),
        (f"{planned.title} planned", planned.source, list_all, USUAL),
        (f"{count:,} checkpoints listed", tree, list_all, USUAL),
    ):
        with bench.stfs.mounted(source, *MEMORY) as mount_point:
            pid = stfs.daemon_of(mount_point)
            use(mount_point)
            memory = {"peak": stfs.memory_of(pid)["VmHWM"]}
            time.sleep(REST_S)
            memory["later"] = stfs.memory_of(pid)["VmRSS"]
        for (kind, value), limit in zip(memory.items(), limits, strict=True):
            row = report.row(f"{title}: {kind}", "bytes", [value])
            report.goal(f"memory of the background process, {title}: {kind}", at_most(limit, "bytes"), row.median)


def look_at_all_at_once(mount_point):
    """Names by which each would be shown: whether it is converted or refused is not known before."""
    numbers = range(20)
    with ThreadPoolExecutor(len(numbers)) as pool:
        list(pool.map(lambda number: os.path.exists(mount_point / f"bomb{number}.safetensors"), numbers))


def list_tensors(mount_point):
    for directory in Path(mount_point).glob("*.tensors"):
        subprocess.run(["ls", "-f", directory], stdout=subprocess.DEVNULL, check=True)
    subprocess.run(["ls", "-l", mount_point], stdout=subprocess.DEVNULL, check=True)
