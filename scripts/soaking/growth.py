"""What the steady mount's process holds, and what is left in the cache directory once that was cleared."""

import collections
import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20


@dataclass
class Size:
    memory: int
    descriptors: int
    threads: int
    files: int


# By how much a process may have grown that fills its own caches later than in the first tenth.
ALLOWED = Size(memory=48 * MIB, descriptors=48, threads=4, files=16)
TITLES = Size(
    memory="memory of the steady mount's process, MiB",
    descriptors="its descriptors",
    threads="its threads",
    files="files in the cleared cache",
)


def measure(pid, cache):
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return Size(
        memory=int(status["VmRSS"].split()[0]) << 10,
        descriptors=len(os.listdir(f"/proc/{pid}/fd")),
        threads=int(status["Threads"]),
        files=sum(len(files) for _, _, files in os.walk(cache)),
    )


def descriptors(pid):
    """What most of the process's descriptors are, and how many of each directory."""
    counts = collections.Counter()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            target = os.readlink(descriptor)
            deleted = " (deleted)" if target.endswith(" (deleted)") else ""
            counts[os.path.dirname(target) + deleted if target.startswith("/") else target] += 1
    return counts.most_common(8)


def rows(before, after):
    """For each figure: its title, both values, and whether it grew too much."""
    for name, title in vars(TITLES).items():
        first, last = getattr(before, name), getattr(after, name)
        unit = MIB if name == "memory" else 1
        yield title, round(first / unit), round(last / unit), last - first > getattr(ALLOWED, name)
