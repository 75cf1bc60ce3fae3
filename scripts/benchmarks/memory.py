"""What the background process of a mount holds in memory while models are loaded."""

import json
import subprocess

from . import reads, stfs
from .report import at_most
from .worker import Worker

LIMIT = 64e6


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
