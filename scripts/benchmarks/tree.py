"""Mounting, listing and searching a tree of very many small checkpoints."""

import os
import subprocess
import time
from collections import defaultdict

from . import reads
from .report import at_most

HIDE = ["--tensors", "hide"]
MOUNT, MOUNT_CACHED = "mount answers, nothing planned", "mount answers, plans cached"
LIST, LIST_CACHED, LIST_AGAIN = "ls -lR, nothing planned", "ls -lR, plans cached", "ls -lR, plans cached, again"
FIND, FIND_AGAIN = "find, plans cached, after ls -lR", "find, plans cached, again"
SOURCE, FIND_SOURCE = "ls -lR of the source", "find of the source"


def run(bench):
    source, count = bench.models.tree()
    times = defaultdict(list)

    def measure(kind, function, *arguments):
        times[kind].append(reads.seconds(function, *arguments))

    list_all(source)
    find_all(source)
    for _ in range(bench.rounds):
        with bench.stfs.scratch() as cache:
            for mount, listing in ((MOUNT, LIST), (MOUNT_CACHED, LIST_CACHED)):
                started = time.perf_counter()
                with bench.stfs.mounted(source, *HIDE, cache=cache) as mount_point:
                    os.listdir(mount_point)
                    times[mount].append(time.perf_counter() - started)
                    measure(listing, list_all, mount_point)
                    if listing == LIST_CACHED:
                        measure(LIST_AGAIN, list_all, mount_point)
                        measure(FIND, find_all, mount_point)
                        measure(FIND_AGAIN, find_all, mount_point)
        measure(SOURCE, list_all, source)
        measure(FIND_SOURCE, find_all, source)

    report = bench.report
    report.section(
        "tree",
        f"{count:,} small checkpoints in {count // 10:,} directories, mounted with --tensors hide",
        "mount answers: `stfs mount`, until the top was listed; ls -lR: every file's size, so every checkpoint's plan",
        "plans cached: a new mount with the cache directory of one that was listed before",
    )
    rows = report.rows("s", times)
    ratio = report.ratio("ls -lR, plans cached: mount / source", rows[LIST_CACHED], rows[SOURCE])
    again = report.ratio("ls -lR, again: mount / source", rows[LIST_AGAIN], rows[SOURCE])
    report.ratio("find: mount / source", rows[FIND], rows[FIND_SOURCE])
    find = report.ratio("find, again: mount / source", rows[FIND_AGAIN], rows[FIND_SOURCE])
    report.goal("mount of 10,000 checkpoints answers, plans cached", at_most(0.1, "s"), rows[MOUNT_CACHED].median)
    report.goal("ls -lR of 10,000 checkpoints, plans cached: mount / source", at_most(3), ratio)
    report.goal("ls -lR of 10,000 checkpoints, again: mount / source", at_most(3), again)
    report.goal("find among 10,000 checkpoints, again: mount / source", at_most(2), find)


def find_all(directory):
    """By names alone."""
    subprocess.run(["find", directory, "-name", "no such name"], stdout=subprocess.DEVNULL, check=True)


def list_all(directory):
    subprocess.run(["ls", "-lR", directory], stdout=subprocess.DEVNULL, check=True)
