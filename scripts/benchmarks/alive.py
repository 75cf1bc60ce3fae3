"""What a mount does for others while one file keeps it busy or its source hangs, and whether it sleeps at rest."""

import contextlib
import os
import subprocess
import time
from pathlib import Path

from patience import stopped

from . import reads, stfs
from .report import at_most

READERS = 8
INFLATED = 600_000_000
# Who has no answer by then has none.
GIVEN_UP_S = 10
REST_S = 60
# What was begun is brought to its end before.
SETTLE_S = 30
STAT, LONGEST = "stat of another file, meanwhile: median", "stat of another file, meanwhile: the longest"
METRICS, STATUS, STATFS = ".stfs/metrics", "stfs status MOUNTPOINT", "statfs of the mount"


def inflating(bench):
    """First looks at other files while a compressed storage is read by many for the first time."""
    model, size = bench.models.deflated(INFLATED)
    report = bench.report
    report.section(
        "inflating",
        f"{READERS} readers of a compressed storage of {size / 1e6:,.0f} MB, nothing inflated before",
        "another file: each is looked at for the first time, one after the other, until the last reader is done",
    )
    looks, longest, reading = [], [], []
    for _ in range(bench.rounds):
        with bench.stfs.mounted(model.source, *bench.stfs.streaming) as mount_point:
            began = time.perf_counter()
            # Each begins at a place of its own: the kernel has nothing that others asked for.
            tails = [size * number // READERS for number in range(1, READERS + 1)]
            commands = [["tail", "-c", tail, mount_point / "model.safetensors"] for tail in tails]
            with running(commands) as readers:
                times = []
                for number in range(1000):
                    times.append(reads.seconds(os.stat, mount_point / f"{number}.txt"))
                    if all(reader.poll() is not None for reader in readers):
                        break
                    time.sleep(0.02)
                for reader in readers:
                    reader.wait()
            reading.append(time.perf_counter() - began)
        looks += times
        longest.append(max(times))
    report.row(STAT, "s", looks)
    worst = report.row(LONGEST, "s", longest)
    report.row("the readers, until the last is done", "s", reading)
    question = f"stat of another file while {size / 1e6:,.0f} MB inflate, the longest"
    report.goal(question, at_most(0.05, "s"), worst.median)


def hanging(bench):
    """What a mount says of itself while its source answers nothing: another mount, whose process is stopped."""
    model = bench.models.gpt2()
    report = bench.report
    report.section(
        "hanging",
        f"While the source hangs under {READERS} readers",
        f"the source is another mount of stfs, whose process is stopped; {GIVEN_UP_S} s: no answer within that time",
    )
    times = {METRICS: [], STATUS: [], STATFS: []}
    for _ in range(bench.rounds):
        with bench.stfs.mounted(model.source, *bench.stfs.streaming) as inner:
            with bench.stfs.mounted(inner, *bench.stfs.streaming) as outer, stopped(stfs.daemon_of(inner)):
                with running([["cat", outer / "model.safetensors"]] * READERS):
                    # The kernel's second for what it knows is over.
                    time.sleep(1.2)
                    commands = {
                        METRICS: ["cat", outer / ".stfs" / "metrics"],
                        STATUS: [stfs.PROGRAM, "status", outer],
                        STATFS: ["stat", "-f", outer],
                    }
                    for kind, command in commands.items():
                        times[kind].append(seconds_at_most(command))
    for kind, values in times.items():
        row = report.row(kind, "s", values)
        limit = 2 if kind == STATUS else 0.1
        report.goal(f"{kind} while the source hangs", at_most(limit, "s"), row.median)


def idle(bench):
    """How often the threads of a mount's process wake while nobody uses it."""
    model = bench.models.gpt2()
    report = bench.report
    report.section(
        "idle",
        f"A mount at rest: how often its threads wake in {REST_S} s",
        f"all voluntary and other context switches of all threads, once, {SETTLE_S} s after a model was read",
    )
    with bench.stfs.mounted(model.source) as mount_point:
        for path in model.shown(mount_point):
            reads.read_whole(path)
        pid = stfs.daemon_of(mount_point)
        time.sleep(SETTLE_S)
        before = context_switches(pid)
        time.sleep(REST_S)
        woken = report.row("wakeups", "n", [context_switches(pid) - before])
    report.goal(f"wakeups of a mount at rest in {REST_S} s", at_most(0, "n"), woken.median)


@contextlib.contextmanager
def running(commands):
    processes = [subprocess.Popen(list(map(str, words)), stdout=subprocess.DEVNULL) for words in commands]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()


def seconds_at_most(command):
    """Seconds that a command takes, and GIVEN_UP_S if it takes longer."""
    began = time.perf_counter()
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        process.wait(GIVEN_UP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return GIVEN_UP_S
    return time.perf_counter() - began


def context_switches(pid):
    switches = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        lines = [line.split() for line in status.read_text().splitlines() if "ctxt_switches" in line]
        switches += sum(int(number) for _, number in lines)
    return switches
