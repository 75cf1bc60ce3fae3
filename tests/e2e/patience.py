"""Doing what may never end: in a process of its own, with a bound that says that it does not hang, and nothing more.

Whatever a test leaves stuck is freed by aborting the connection of its mount, which asks nobody.
"""

import contextlib
import faulthandler
import os
import pickle
import resource
import select
import signal
import subprocess
import time
from pathlib import Path

import pytest

CONNECTIONS = Path("/sys/fs/fuse/connections")
# Until the kernel has killed somebody.
KILLED_S = 5


class Died(Exception):
    """The process ended without an answer: by this signal."""


class Task:
    """A function in a process of its own."""

    def __init__(self, function, *arguments):
        self._name = getattr(function, "__name__", str(function))
        ours, theirs = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(ours)
            _serve(theirs, function, arguments)
        os.close(theirs)
        self._pipe = ours
        self._ended = False

    def answer(self, seconds):
        """What the function returned, or raised. Fails the test if neither comes in time."""
        deadline, blocks = time.monotonic() + seconds, []
        while True:
            ready, _, _ = select.select([self._pipe], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                where = self.where()
                self.end()
                pytest.fail(f"{self._name} has no answer after {seconds} s: it waits in {where}")
            if not (block := os.read(self._pipe, 1 << 20)):
                break
            blocks.append(block)
        self.end()
        if not blocks:
            raise Died(f"{self._name}: {signal.Signals(self._signal).name if self._signal else 'an exit'}")
        returned, value = pickle.loads(b"".join(blocks))
        if returned:
            return value
        raise value

    def where(self):
        """In which call of the kernel it waits."""
        with contextlib.suppress(OSError):
            return Path(f"/proc/{self.pid}/wchan").read_text() or "its own code"
        return "an unknown place"

    def end(self):
        if self._ended:
            return
        self._ended = True
        os.close(self._pipe)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        # What is stuck in the kernel is not waited for.
        self._signal = 0
        deadline = time.monotonic() + KILLED_S
        while time.monotonic() < deadline:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._signal = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
                return
            time.sleep(0.01)


def _serve(pipe, function, arguments):
    # SIGBUS is an answer that a mapping may give: no trace of it, no core file.
    faulthandler.disable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        answer = True, function(*arguments)
    except BaseException as error:
        answer = False, error
    with contextlib.suppress(BaseException), os.fdopen(pipe, "wb") as file:
        pickle.dump(answer, file)
    os._exit(0)


@contextlib.contextmanager
def tasks(function, argument_lists):
    """Many of them, which end with the block."""
    running = [Task(function, *arguments) for arguments in argument_lists]
    try:
        yield running
    finally:
        for task in running:
            task.end()


def within(seconds, function, *arguments):
    """What the function returns, or raises, within this time."""
    return Task(function, *arguments).answer(seconds)


def command_within(seconds, *words, **options):
    """A command that ends within this time. One that the kernel holds on to is left to it."""
    words = list(map(str, words))
    pipe = subprocess.PIPE
    # Not as a context manager, which would wait for its end.
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True, **options)
    try:
        output, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        pytest.fail(f"{' '.join(words)} does not end within {seconds} s")
    return subprocess.CompletedProcess(words, process.returncode, output, errors)


@contextlib.contextmanager
def stopped(pid):
    """A process that does nothing while the block runs."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def states(pid):
    """Of each thread of a process: R, S, D, ... Nothing of one that is gone."""
    found = []
    for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
        with contextlib.suppress(OSError):
            found.append(stat.read_text().rpartition(")")[2].split()[0])
    return found


def is_gone(pid):
    return not set(states(pid)) - {"Z", "X"}


def mounts_below(directory):
    """Pairs of a mount point and the number of its connection, the innermost first, by what the kernel says."""
    with open("/proc/self/mountinfo") as mounts:
        lines = [line.split() for line in mounts]
    found = [(Path(words[4]), int(words[2].partition(":")[2])) for words in lines]
    return [(path, number) for path, number in reversed(found) if path.is_relative_to(directory)]


def free_what_hangs_below(directory):
    """Aborts all FUSE mounts that are left there, and takes all mounts away."""
    for _, number in mounts_below(directory):
        with contextlib.suppress(OSError):
            (CONNECTIONS / str(number) / "abort").write_text("1")
    for path, _ in mounts_below(directory):
        subprocess.run(["umount", "-l", path], capture_output=True)
