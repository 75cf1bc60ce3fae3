"""Ways to read a file, timed, and ways to get it into the page cache and out of it."""

import itertools
import json
import mmap
import os
import shutil
import subprocess
import threading
import time
from pathlib import Path

BLOCK = 1 << 20
DROP_CACHES = Path("/proc/sys/vm/drop_caches")


def seconds(function, *arguments):
    started = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - started


def warm(paths):
    """Brings files into the page cache."""
    for path in paths:
        read_whole(path)


def read_whole(path):
    """Buffered, from beginning to end, in blocks of 1 MiB."""
    buffer = bytearray(BLOCK)
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def pread_whole(path, depth, direct):
    """preads of 1 MiB by `depth` threads, each taking the next block."""
    descriptor = os.open(path, os.O_RDONLY | (os.O_DIRECT if direct else 0))
    try:
        offsets = itertools.count(0, BLOCK)
        size = os.fstat(descriptor).st_size
        failures = []

        def read():
            # Anonymous mappings are aligned, as O_DIRECT wants it.
            with mmap.mmap(-1, BLOCK) as buffer:
                while (offset := next(offsets)) < size:
                    count = os.preadv(descriptor, [buffer], offset)
                    if count != min(BLOCK, size - offset):
                        failures.append(f"{path}: {count} bytes at {offset}")
                        return

        threads = [threading.Thread(target=read) for _ in range(depth)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise OSError(failures[0])
    finally:
        os.close(descriptor)


def cat(path):
    with open(os.devnull, "wb") as nowhere:
        subprocess.run(["cat", path], stdout=nowhere, check=True)


def dd(path, *flags):
    subprocess.run(["dd", f"if={path}", "of=/dev/null", "bs=1M", "status=none", *flags], check=True)


def dd_direct(path):
    dd(path, "iflag=direct")


def has_fio():
    return shutil.which("fio") is not None


def fio(path, pattern, direct):
    """Bytes per second of one pass over the file, four requests at once."""
    block = {"read": "1M", "randread": "64k"}[pattern]
    command = ["fio", "--name=read", f"--filename={path}", f"--rw={pattern}", f"--bs={block}", "--readonly"]
    command += ["--ioengine=psync", "--thread", "--numjobs=4", "--group_reporting", "--invalidate=0"]
    command += [f"--direct={int(direct)}", "--output-format=json", "--randrepeat=1"]
    # Each of the four reads its own quarter.
    command += ["--size=25%", "--offset_increment=25%"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    # fio puts warnings in front of its JSON.
    job = json.loads(result.stdout[result.stdout.index("{") :])["jobs"][0]
    return job["read"]["bw_bytes"]


def can_drop_caches():
    return os.access(DROP_CACHES, os.W_OK)


def make_cold(paths):
    """Drops the page cache: all of it as root, else of these files only."""
    os.sync()
    if can_drop_caches():
        DROP_CACHES.write_text("3\n")
        return
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
