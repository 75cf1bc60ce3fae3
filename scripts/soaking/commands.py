"""The stfs program: its commands, the mounts that it makes, and what can be done to them."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

# Nothing takes so long, whatever else the machine does.
GIVEN_UP_S = 60
CONNECTIONS = Path("/sys/fs/fuse/connections")


@dataclass
class Step:
    """One command of a longer operation."""

    name: str
    started: float
    ended: float
    status: int
    words: str


class Stfs:
    def __init__(self, program, directory):
        self.program = program
        self.cache = directory / "cache"
        self.environment = {**os.environ, "XDG_CACHE_HOME": str(directory / "home")}

    def run(self, *words):
        started = time.monotonic()
        result = subprocess.run(
            [self.program, *map(str, words)],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=GIVEN_UP_S,
        )
        return Step(f"stfs {words[0]}", started, time.monotonic(), result.returncode, result.stdout + result.stderr)

    def mount(self, source, mount_point, options):
        return self.run("mount", "--cache-dir", self.cache, *options, source, mount_point)

    def cache_command(self, command, *paths):
        return self.run("cache", command, "--cache-dir", self.cache, *paths)

    def warm(self, *paths):
        return self.run("warm", "--quiet", "--cache-dir", self.cache, "--cache-size", "1G", *paths)

    def delete_cache(self):
        started = time.monotonic()
        shutil.rmtree(self.cache, ignore_errors=True)
        return Step("rm -r of the cache", started, time.monotonic(), 0, "")


def process_of(mount_point):
    """Of a mount that answers."""
    return int(os.getxattr(mount_point, "user.stfs.pid"))


def kill(pid, number):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def stop_and_continue(pid, seconds):
    kill(pid, signal.SIGSTOP)
    time.sleep(seconds)
    kill(pid, signal.SIGCONT)


def end(stfs, how, mount_point, pid):
    """Ends a mount in one of many ways. What is left of it is for the next `stfs mount`."""
    match how:
        case "SIGKILL":
            kill(pid, signal.SIGKILL)
            return []
        case "SIGKILL, stfs umount":
            kill(pid, signal.SIGKILL)
            return [stfs.run("umount", mount_point)]
        case "SIGTERM":
            kill(pid, signal.SIGTERM)
            return []
        case "stfs umount --lazy":
            return [stfs.run("umount", "--lazy", mount_point)]
        case "umount -l":
            return [command("umount", "-l", mount_point)]
        case "stfs umount":
            # Refused while somebody reads: then it stays.
            return [stfs.run("umount", mount_point)]
    raise ValueError(how)


# What leaves readers without an answer.
DEADLY = ["SIGKILL", "SIGKILL, stfs umount", "SIGTERM"]
GENTLE = ["stfs umount --lazy", "umount -l", "stfs umount"]


def command(*words):
    started = time.monotonic()
    result = subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=GIVEN_UP_S)
    return Step(" ".join(map(str, words[:-1])), started, time.monotonic(), result.returncode, result.stderr)


# What asks no mount: it may never answer


def mounts_below(directory):
    """Pairs of a mount point and the number of its connection."""
    with open("/proc/self/mountinfo") as mounts:
        for line in mounts:
            words = line.split()
            if Path(words[4]).is_relative_to(directory):
                yield Path(words[4]), int(words[2].partition(":")[2])


def is_mounted(mount_point):
    return any(path == mount_point for path, _ in mounts_below(mount_point))


def abort(connection):
    """The last resort: everybody who waits for an answer gets an error."""
    with contextlib.suppress(OSError):
        (CONNECTIONS / str(connection) / "abort").write_text("1")


def is_alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"
