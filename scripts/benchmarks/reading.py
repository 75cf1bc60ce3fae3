"""Reads of a shown file without a loader, and what the kernel and the disk give at best."""

from collections import defaultdict

from . import reads
from .report import at_least, at_most

DEPTH = 4
DIRECT, BUFFERED = "O_DIRECT, 4 deep", "buffered, 4 deep"
# Each is measured on a mount of its own, twice, and on the native file.
WAYS = {
    DIRECT: lambda path: reads.pread_whole(path, DEPTH, direct=True),
    BUFFERED: lambda path: reads.pread_whole(path, DEPTH, direct=False),
    "read": reads.read_whole,
    "cat": reads.cat,
    "dd": reads.dd,
    "dd iflag=direct": reads.dd_direct,
}
FIO_PATTERNS = {"read": "sequential", "randread": "random"}
COLD_MOUNT, COLD_SOURCE, COLD_NATIVE = "the mount's file", "the checkpoint itself", "native file"


def run(bench):
    model = bench.models.gpt2()
    (native,) = model.native
    size = native.stat().st_size
    rates = defaultdict(list)

    def both(title, rate):
        """`rate`: bytes per second of reading a path in some way."""
        reads.warm(model.checkpoints)
        with bench.stfs.mounted(model.source, *bench.stfs.streaming) as mount_point:
            (shown,) = model.shown(mount_point)
            for kind in ("mount, first", "mount, again"):
                rates[f"{title}: {kind}"].append(rate(shown))
        reads.warm([native])
        rates[f"{title}: native"].append(rate(native))

    for _ in range(bench.rounds):
        for title, read in WAYS.items():
            both(title, lambda path: size / reads.seconds(read, path))
        for pattern, title in FIO_PATTERNS.items() if reads.has_fio() else ():
            both(f"fio {title}, O_DIRECT", lambda path: reads.fio(path, pattern, direct=True))
            both(f"fio {title}, buffered", lambda path: reads.fio(path, pattern, direct=False))

    report = bench.report
    report.section(
        "reading",
        f"Reading a file: {model.describe()}",
        "read: blocks of 1 MiB, one after another; 4 deep: preads of 1 MiB by four threads",
        "O_DIRECT: the native file comes from the disk, the mount's out of the checkpoint's page cache",
        "fio: psync, four jobs that each read a quarter; sequential in 1 MiB, random in 64 KiB",
        "first: on a mount that nobody has used; again: the same mount",
    )
    rows = report.rows("bytes/s", rates)
    if not reads.has_fio():
        report.missing("fio", "not installed")
    direct, buffered = rows[f"{DIRECT}: mount, first"], rows[f"{BUFFERED}: native"]
    ratio = report.ratio("O_DIRECT, 4 deep: mount / native, buffered, 4 deep", direct, buffered)
    for kind in ("mount, first", "mount, again"):
        report.ratio(f"read: {kind} / native", rows[f"read: {kind}"], rows["read: native"])
    report.goal("O_DIRECT preads, 1 MiB, 4 deep: speed of mount / native, buffered and warm", at_least(0.4), ratio)


def cold(bench):
    model = bench.models.gpt2()
    (source,), (native,) = model.checkpoints, model.native
    times = defaultdict(list)

    def measure(kind, path):
        reads.make_cold([source, native])
        times[kind].append(reads.seconds(reads.read_whole, path))

    for _ in range(bench.rounds):
        with bench.stfs.mounted(model.source, *bench.stfs.streaming) as mount_point:
            measure(COLD_MOUNT, *model.shown(mount_point))
        measure(COLD_SOURCE, source)
        measure(COLD_NATIVE, native)
        reads.make_cold([source, native])
        times["limit: the checkpoint, O_DIRECT, 4 deep"].append(reads.seconds(reads.pread_whole, source, DEPTH, True))

    report = bench.report
    how = "all caches are dropped" if reads.can_drop_caches() else "the files' pages are dropped (all caches as root)"
    report.section(
        "cold",
        f"Reading a whole file from the disk: {model.describe()}",
        f"before each read {how}; blocks of 1 MiB, one after another",
        "the mount is new, and works out what to serve within this time",
    )
    rows = report.rows("s", times)
    ratio = report.ratio("cold read: mount / checkpoint", rows[COLD_MOUNT], rows[COLD_SOURCE])
    report.ratio("cold read: mount / native", rows[COLD_MOUNT], rows[COLD_NATIVE])
    report.goal("cold read of a whole file: mount / the checkpoint itself", at_most(1.1), ratio)
