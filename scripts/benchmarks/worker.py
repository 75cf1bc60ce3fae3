"""A process that lives over many loads and measures them, so that imports and first uses are not counted.

Tensors are copied by one thread. torch's own threads wait for each other by spinning: with the mount's process or
anything else on one of few cores, their waiting would be what is measured.

A loader that fails, or takes its process with it, is an error here and not the end of the benchmark.
"""

import gc
import multiprocessing
import time

import torch
from safetensors.torch import load_file

from . import loaders

PAGE = 4096
EXIT_S = 10


class LoaderFailed(Exception):
    pass


class Worker:
    def __init__(self):
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._connection.close()
        self._process.join(timeout=EXIT_S)
        self._process.kill()

    def prepare(self, loader):
        self._call("prepare", loader)

    def make_destinations(self, native):
        """Allocates a tensor for each one in these files, for `measure` to copy into, and copies once to try."""
        self._call("make_destinations", native)

    def measure(self, loader, paths, consume="copy"):
        """Seconds until the loader was done, and until every tensor was copied or its pages touched as well."""
        return self._call("measure", loader, paths, consume)

    def copy_memory(self):
        """Seconds for copying the destinations' bytes from other tensors in memory."""
        return self._call("copy_memory")

    def _call(self, name, *arguments):
        try:
            self._connection.send((name, arguments))
            failure, value = self._connection.recv()
        except (EOFError, OSError):
            self._process.join()
            raise LoaderFailed(f"its process ended with {self._process.exitcode}") from None
        if failure:
            raise LoaderFailed(failure)
        return value


def serve(connection):
    torch.set_num_threads(1)
    tasks = Tasks()
    while True:
        try:
            name, arguments = connection.recv()
        except EOFError:
            return
        try:
            answer = None, getattr(tasks, name)(*arguments)
        except Exception as error:
            answer = f"{type(error).__name__}: {error}".splitlines()[0], None
        # Mappings of a mounted file would keep the mount busy.
        gc.collect()
        connection.send(answer)


class Tasks:
    def __init__(self):
        self.destinations = {}

    def prepare(self, loader):
        loaders.prepare(loader)

    def make_destinations(self, native):
        self.destinations = {name: tensor.clone() for path in native for name, tensor in load_file(path).items()}
        self.measure("load_file", native, "copy")

    def measure(self, loader, paths, consume):
        consume = {"copy": self._copy, "touch": touch}[consume]
        batches = loaders.LOADERS[loader](paths)
        loading = consuming = 0.0
        gc.collect()
        gc.disable()
        try:
            # The time for freeing tensors is left out.
            while True:
                started = time.perf_counter()
                batch = next(batches, None)
                loaded = time.perf_counter()
                if batch is None:
                    return loading, loading + consuming
                for name in batch:
                    consume(name, batch[name])
                loading += loaded - started
                consuming += time.perf_counter() - loaded
                del batch
        finally:
            gc.enable()

    def copy_memory(self):
        sources = {name: tensor.clone() for name, tensor in self.destinations.items()}
        started = time.perf_counter()
        for name, tensor in sources.items():
            self._copy(name, tensor)
        return time.perf_counter() - started

    def _copy(self, name, tensor):
        self.destinations[name].copy_(tensor)


def touch(_name, tensor):
    """Reads a byte of every page."""
    if tensor.numel():
        tensor.detach().flatten().view(torch.uint8)[::PAGE].sum()
