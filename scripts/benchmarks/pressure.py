"""The page cache after a model of half the memory was streamed: how fast does another one load then?"""

from collections import defaultdict

from . import machine, reads
from .report import at_most
from .worker import Worker

MOUNT, NATIVE = "mount", "native files"
FROM_DISK, LOADED_BEFORE = "another, from the disk", "another, loaded before"
STREAM = "streaming the large one"
# What a measurement of times of some seconds from a disk can tell apart.
TOLERANCE = 1.05


def run(bench):
    large = bench.models.zeros(int(machine.memory_bytes() // 2 * bench.models.scale))
    other = bench.models.llama()
    with Worker() as worker:
        worker.make_destinations(other.native)
        times = defaultdict(list)
        for _ in range(bench.rounds):
            with bench.stfs.mounted(large.source, *bench.stfs.streaming) as first:
                with bench.stfs.mounted(other.source, *bench.stfs.streaming) as second:
                    measure(times, MOUNT, worker, large.shown(first), other.shown(second), large, other)
            measure(times, NATIVE, worker, large.native, other.native, large, other)

    report = bench.report
    report.section(
        "pressure",
        f"A model of half the memory ({large.native[0].stat().st_size / 1e9:.1f} GB) is streamed, then another is "
        f"loaded and copied: {other.describe()}",
        "from the disk: caches were dropped before the large one was streamed",
        "loaded before: loaded and copied, then the large one was streamed, then loaded and copied again",
        "the large one is sparse: its own time is none of a disk",
    )
    rows = report.rows("s", times)
    ratios = {
        kind: report.ratio(f"{kind}: mount / native", rows[f"{kind}: {MOUNT}"], rows[f"{kind}: {NATIVE}"])
        for kind in (FROM_DISK, LOADED_BEFORE)
    }
    question = "after streaming a model of half the memory: {}: mount / native"
    for kind, ratio in ratios.items():
        report.goal(question.format(kind), at_most(TOLERANCE), ratio)


def measure(times, where, worker, large_paths, other_paths, large, other):
    files = [*large.checkpoints, *large.native, *other.checkpoints, *other.native]
    reads.make_cold(files)
    times[f"{STREAM}: {where}"].append(sum(reads.seconds(reads.read_whole, path) for path in large_paths))
    times[f"{FROM_DISK}: {where}"].append(worker.measure("load_file", other_paths)[1])
    # Everything of it has been read now, and is kept or not.
    for path in large_paths:
        reads.read_whole(path)
    times[f"{LOADED_BEFORE}: {where}"].append(worker.measure("load_file", other_paths)[1])
