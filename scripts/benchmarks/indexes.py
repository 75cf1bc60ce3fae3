"""Looking at index files of very many tensors, and what the background process keeps of them."""

import os
import time

from . import reads, stfs
from .report import at_most

FIRST, LATER = "first stat of an index", "stat of an index, later"
MEMORY, IDLE = "memory of the background process, large indexes looked at", "memory of the background process, before"
NAME = "model.safetensors.index.json"
# Longer than the kernel answers for a name by itself.
FORGOTTEN_S = 1.1


def run(bench):
    small, count = bench.models.index(20_000)
    large, size = bench.models.large_indexes(4, 14 << 20)
    firsts, laters, idle, memory = [], [], [], []
    for _ in range(bench.rounds):
        with bench.stfs.mounted(small) as mount_point:
            firsts.append(reads.seconds(os.stat, mount_point / NAME))
            time.sleep(FORGOTTEN_S)
            laters.append(reads.seconds(os.stat, mount_point / NAME))
        with bench.stfs.mounted(large) as mount_point:
            idle.append(resident(mount_point))
            for _ in range(2):
                for directory in sorted(os.listdir(mount_point)):
                    os.stat(mount_point / directory / NAME)
            memory.append(resident(mount_point))

    report = bench.report
    report.section(
        "indexes",
        f"Index files: one of {count:,} tensors, and four of {size / 2**20:.1f} MiB",
        "first: on a mount that nobody has used; later: after the second that the kernel keeps a name for",
    )
    first, later = report.row(FIRST, "s", firsts), report.row(LATER, "s", laters)
    report.ratio("stat of an index: later / first", later, first)
    before, after = report.row(IDLE, "bytes", idle), report.row(MEMORY, "bytes", memory)
    report.ratio("memory: after / before", after, before)
    report.goal(f"stat of an index of {count:,} tensors, later", at_most(0.001, "s"), later.median)
    report.goal("memory of the background process, four large indexes", at_most(128_000_000, "bytes"), after.median)


def resident(mount_point):
    return stfs.memory_of(stfs.daemon_of(mount_point))["VmRSS"]
