"""Processes that do what they are asked. One may hang, or be killed by what it does, and is replaced then."""

import contextlib
import ctypes
import faulthandler
import multiprocessing
import os
import resource
import signal
import time
import traceback
from multiprocessing.connection import wait
from pathlib import Path

PR_SET_PDEATHSIG = 1
POLL_S = 0.2


class Died(Exception):
    """The worker's process ended: by this signal, if that is positive."""

    def __init__(self, signal_number):
        super().__init__(signal_number)
        self.signal_number = signal_number


class Worker:
    def __init__(self):
        self._start()

    def _start(self):
        context = multiprocessing.get_context("fork")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        self.operation = None

    def ask(self, operation):
        self.operation = operation
        self.asked = time.monotonic()
        self._connection.send((operation.function, operation.arguments))

    def answer(self):
        """What the function returned. Raises what it raised, or `Died`."""
        self.operation = None
        try:
            returned, value = self._connection.recv()
        except (EOFError, OSError):
            self._process.join()
            signal_number = -(self._process.exitcode or 0)
            self._connection.close()
            self._start()
            raise Died(signal_number) from None
        if not returned:
            raise RuntimeError(value)
        return value

    def where(self):
        """In which call of the kernel it waits."""
        with contextlib.suppress(OSError):
            return " < ".join(line.split()[-1] for line in Path(f"/proc/{self._process.pid}/stack").open())[:200]
        return "unknown"

    def kill(self):
        self._process.kill()

    @property
    def connection(self):
        return self._connection


def answered(workers):
    """Those that have something to say, after a moment at most."""
    asked = {worker.connection: worker for worker in workers if worker.operation}
    return [asked[connection] for connection in wait(list(asked), POLL_S)] if asked else time.sleep(POLL_S) or []


def serve(connection):
    # The end of the run is the end of its workers, even where it was killed. Signals for it are none for them.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # SIGBUS is an answer that a mapping may give: no trace of it, no core file.
    faulthandler.disable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while True:
        try:
            function, arguments = connection.recv()
        except EOFError:
            os._exit(0)
        try:
            answer = True, function(*arguments)
        except BaseException:
            answer = False, traceback.format_exc()
        connection.send(answer)
