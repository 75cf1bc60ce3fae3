"""Looking at a checkpoint without loading it, and what that costs with many tensors."""

import json
import os
import resource
import sys

from . import reads, stfs

TENSOR_COUNTS = [1_000, 10_000, 100_000]


def run(bench):
    model = bench.models.gpt2()
    (source,) = model.checkpoints
    target = bench.models.directory / "converted.safetensors"
    stats, conversions, resident, peaks = [], [], [], []
    for _ in range(bench.rounds):
        reads.warm([source])
        with bench.stfs.mounted(model.source) as mount_point:
            stats.append(reads.seconds(os.stat, *model.shown(mount_point)))
            memory = stfs.memory_of(stfs.daemon_of(mount_point))
            resident.append(memory["VmRSS"])
        reads.warm([source])
        converted = json.loads(stfs.run([sys.executable, "-m", "benchmarks.looking", source, target]))
        conversions.append(converted["seconds"])
        peaks.append(converted["peak_bytes"])
        target.unlink()

    report = bench.report
    report.section(
        "looking",
        f"Looking at a checkpoint: {model.describe()}",
        "first stat: size of the converted file, on a mount that nobody has used",
        "convert.py: load, save, reload and compare, in a process of its own; imports are not counted",
    )
    first_stat = report.row("first stat", "s", stats)
    conversion = report.row("convert.py", "s", conversions)
    report.ratio("convert.py / first stat", conversion, first_stat)
    process = report.row("memory of the background process", "bytes", resident)
    peak = report.row("memory of convert.py, peak", "bytes", peaks)
    report.ratio("memory: convert.py / background process", peak, process)


def many_tensors(bench):
    report = bench.report
    report.section(
        "many_tensors", "Checkpoints of many tensors", "stfs ls: the whole command; first stat: as under looking"
    )
    stats = {}
    for count in TENSOR_COUNTS:
        model = bench.models.small_tensors(count)
        reads.warm(model.checkpoints)
        listings, values = [], []
        for _ in range(bench.rounds):
            with bench.stfs.scratch() as cache:
                command = [stfs.PROGRAM, "ls", *model.checkpoints]
                listings.append(reads.seconds(stfs.run, command, bench.stfs.environment(cache)))
            with bench.stfs.mounted(model.source) as mount_point:
                values.append(reads.seconds(os.stat, *model.shown(mount_point)))
        report.row(f"stfs ls, {count:,} tensors", "s", listings)
        stats[count] = report.row(f"first stat, {count:,} tensors", "s", values)
    for fewer, more in zip(TENSOR_COUNTS, TENSOR_COUNTS[1:]):
        label = f"first stat, {more:,} / {fewer:,} tensors ({more // fewer} is linear)"
        report.ratio(label, stats[more], stats[fewer])


def convert(source, target):
    """One conversion by the steps of convert.py. Run as a program, so that its memory is its own."""
    import oracle

    elapsed = reads.seconds(oracle.convert_file, source, target)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": elapsed, "peak_bytes": peak}))


if __name__ == "__main__":
    convert(*sys.argv[1:])
