"""The program that is measured: its mounts, what its version can do, and its background process."""

import contextlib
import gc
import os
import re
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAM = (REPOSITORY / os.environ.get("STFS", "target/release/stfs")).resolve()
SAMPLE_EVERY_S = 0.005


class Stfs:
    def __init__(self, directory):
        if not PROGRAM.is_file():
            sys.exit(f"no stfs program at {PROGRAM}: build it with `cargo build --release` or set STFS")
        self.directory = directory
        self.version = run([PROGRAM, "--version"]).strip()
        self._mount_help = run([PROGRAM, "mount", "--help"])
        self._help = run([PROGRAM, "--help"])

    def has_option(self, option):
        """Whether `stfs mount` of this version has the option."""
        return re.search(rf"{option}\b", self._mount_help) is not None

    def has_command(self, command):
        return re.search(rf"^  {command}\b", self._help, re.MULTILINE) is not None

    @property
    def streaming(self):
        """Options for a mount in which nothing is promoted, so that only the first load itself is measured."""
        return ["--promote", "never"] if self.has_option("--promote") else []

    @contextlib.contextmanager
    def scratch(self):
        """An empty directory on the disk of the models, for a mount's cache."""
        with tempfile.TemporaryDirectory(dir=self.directory, prefix="scratch-") as directory:
            yield Path(directory)

    @contextlib.contextmanager
    def mounted(self, source, *options, cache=None):
        """A new mount, with an empty cache directory unless it is given one."""
        with self.scratch() as scratch:
            mount_point = scratch / "mount"
            mount_point.mkdir()
            environment = self.environment(cache or scratch / "cache")
            run([PROGRAM, "mount", *options, source, mount_point], environment)
            try:
                yield mount_point
            finally:
                gc.collect()
                run([PROGRAM, "umount", mount_point], environment)

    def promote(self, source, cache):
        run([PROGRAM, "warm", source], self.environment(cache))

    def status(self, mount_point):
        """What the mount says about itself, or None."""
        if not self.has_command("status"):
            return None
        return run([PROGRAM, "status", "--json", mount_point])

    def environment(self, cache):
        Path(cache).mkdir(exist_ok=True)
        return {**os.environ, "XDG_CACHE_HOME": str(cache)}


def run(command, environment=None):
    result = subprocess.run(
        list(map(str, command)), env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if result.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}: exit {result.returncode}\n{result.stdout}{result.stderr}")
    return result.stdout


def daemon_of(mount_point):
    return int(os.getxattr(mount_point, "user.stfs.pid"))


def memory_of(pid):
    """The Vm and Rss fields of a process's status, in bytes."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {key: int(value.split()[0]) * 1024 for key, value in fields.items() if key.startswith(("Vm", "Rss"))}


class PeakMemory:
    """While the block runs, samples a process: `own` is what it holds beyond mapped files, `mapped` those."""

    def __init__(self, pid):
        self._pid = pid
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self.own = self.mapped = 0

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    def _sample(self):
        while True:
            memory = memory_of(self._pid)
            self.own = max(self.own, memory["RssAnon"] + memory["RssShmem"])
            self.mapped = max(self.mapped, memory["RssFile"])
            if self._stop.wait(SAMPLE_EVERY_S):
                return
