"""Reading through a mount. Each reader says what it saw, part by part; whether that is right is not for it to judge."""

import contextlib
import mmap
import os
import subprocess
import time
from dataclasses import dataclass, field

import safetensors.numpy
import safetensors.torch
from safetensors import SafetensorError, safe_open

from .contents import digest

PAGE, BLOCK = 4096, 1 << 20
HOLD_S = (0.3, 2.0)


@dataclass
class Observation:
    """What was seen of one file by one open descriptor. `opened` is when it was open; None if it never was."""

    path: str
    reader: str
    started: float
    opened: float | None = None
    ended: float = 0.0
    parts: list = field(default_factory=list)
    error: str | None = None

    def saw(self, *part, value):
        self.parts.append((part, value))


@contextlib.contextmanager
def observing(path, reader, observations):
    observation = Observation(path, reader, time.monotonic())
    observations.append(observation)
    try:
        yield observation
        observation.opened = observation.opened or time.monotonic()
    # RuntimeError is how torch says that it cannot open a file.
    except (OSError, SafetensorError, RuntimeError) as error:
        number = getattr(error, "errno", None)
        observation.error = f"{type(error).__name__}: {os.strerror(number) if number else error}"
    observation.ended = time.monotonic()


@contextlib.contextmanager
def opened(shown, observation, flags=0):
    descriptor = os.open(shown, os.O_RDONLY | flags)
    observation.opened = time.monotonic()
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def pread(descriptor, offset, length):
    """Exactly so many bytes, or those up to the end."""
    blocks = []
    while length and (block := os.pread(descriptor, length, offset)):
        blocks.append(block)
        offset, length = offset + len(block), length - len(block)
    return b"".join(blocks)


def span(size, random):
    offset = random.randrange(size)
    return offset, min(size - offset, random.choice([1, 100, PAGE, 100_000, BLOCK]))


def read(shown, seen, _random):
    with opened(shown, seen) as descriptor:
        data = pread(descriptor, 0, os.fstat(descriptor).st_size)
        seen.saw("size", value=len(data))
        seen.saw("bytes", 0, len(data), value=digest(data))


def read_spans(shown, seen, random):
    with opened(shown, seen) as descriptor:
        size = os.fstat(descriptor).st_size
        seen.saw("size", value=size)
        for _ in range(20):
            offset, length = span(size, random)
            seen.saw("bytes", offset, length, value=digest(pread(descriptor, offset, length)))


def read_direct(shown, seen, random):
    with opened(shown, seen, os.O_DIRECT) as descriptor, mmap.mmap(-1, BLOCK) as buffer:
        size = os.fstat(descriptor).st_size
        for _ in range(5):
            offset = random.randrange(size) // PAGE * PAGE
            count = os.preadv(descriptor, [buffer], offset)
            seen.saw("bytes", offset, min(BLOCK, size - offset), value=digest(buffer[:count]))


@contextlib.contextmanager
def mapped(shown, seen):
    with opened(shown, seen) as descriptor:
        mapping = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
    with mapping:
        yield mapping


def map_whole(shown, seen, _random):
    with mapped(shown, seen) as mapping:
        seen.saw("bytes", 0, len(mapping), value=digest(mapping))


def map_spans(shown, seen, random):
    with mapped(shown, seen) as mapping:
        for _ in range(20):
            offset, length = span(len(mapping), random)
            seen.saw("bytes", offset, length, value=digest(mapping[offset : offset + length]))


def hold_mapped(shown, seen, random):
    with mapped(shown, seen) as mapping:
        for wait in (0, random.uniform(*HOLD_S) / 2, random.uniform(*HOLD_S) / 2):
            time.sleep(wait)
            offset, length = span(len(mapping), random)
            seen.saw("bytes", offset, length, value=digest(mapping[offset : offset + length]))


def hold_open(shown, seen, random):
    with opened(shown, seen) as descriptor:
        size = os.fstat(descriptor).st_size
        for wait in (0, random.uniform(*HOLD_S) / 2, random.uniform(*HOLD_S) / 2):
            time.sleep(wait)
            offset, length = span(size, random)
            seen.saw("bytes", offset, length, value=digest(pread(descriptor, offset, length)))


def stat(shown, seen, _random):
    seen.saw("size", value=os.stat(shown).st_size)


def cat(shown, seen, _random):
    """A program that knows nothing of Python."""
    result = subprocess.run(["cat", shown], capture_output=True)
    if result.returncode:
        raise OSError(result.stderr.decode(errors="replace").strip().rpartition(": ")[2])
    seen.saw("bytes", 0, len(result.stdout), value=digest(result.stdout))


def load_torch(shown, seen, _random):
    _saw_arrays(seen, {name: value.numpy() for name, value in safetensors.torch.load_file(shown).items()})


def load_numpy(shown, seen, _random):
    _saw_arrays(seen, safetensors.numpy.load_file(shown))


def _saw_arrays(seen, arrays):
    seen.saw("names", value=sorted(arrays))
    for name, value in arrays.items():
        seen.saw("tensor", name, value=digest(value.tobytes()))


def slices(shown, seen, random):
    with safe_open(shown, framework=random.choice(["pt", "numpy"])) as file:
        seen.opened = time.monotonic()
        names = sorted(file.keys())
        seen.saw("names", value=names)
        for name in random.sample(names, min(4, len(names))):
            part = file.get_slice(name)
            rows = part.get_shape()[0]
            first = random.randrange(rows)
            last = random.randrange(first, rows) + 1
            # numpy is what both can become.
            value = part[first:last]
            value = value.numpy() if hasattr(value, "numpy") else value
            seen.saw("rows", name, first, last, value=digest(value.tobytes()))


def tensor_file(directory, seen, random):
    names = os.listdir(directory)
    name = random.choice(sorted(names))
    with opened(os.path.join(directory, name), seen) as descriptor:
        size = os.fstat(descriptor).st_size
        seen.saw("tensor size", name, value=size)
        seen.saw("tensor", name, value=digest(pread(descriptor, 0, size)))


FILES = [read, read_spans, map_whole, map_spans, hold_mapped, hold_open, stat, cat, read_direct]
TENSORS = [load_torch, load_numpy, slices]
READERS = {function.__name__: function for function in [*FILES, *TENSORS, tensor_file]}


def observe(reader, path, shown, random):
    observations = []
    with observing(path, reader, observations) as observation:
        READERS[reader](shown, observation, random)
    return observations


# Listing


@dataclass
class Listing:
    """Names below a mount, and their sizes where these were asked for."""

    started: float
    ended: float
    names: dict
    errors: int


def walk(mount_point):
    started, names, errors = time.monotonic(), {}, []
    for parent, _, files in os.walk(mount_point, onerror=errors.append):
        for name in files:
            path = os.path.join(parent, name)
            try:
                names[os.path.relpath(path, mount_point)] = os.stat(path).st_size
            except OSError as error:
                errors.append(error)
    return Listing(started, time.monotonic(), names, len(errors))


def find(mount_point):
    started = time.monotonic()
    result = subprocess.run(["find", mount_point, "-type", "f", "-printf", "%P\\n"], capture_output=True, text=True)
    names = dict.fromkeys(result.stdout.splitlines())
    return Listing(started, time.monotonic(), names, int(result.returncode != 0))


def ls(mount_point):
    started = time.monotonic()
    result = subprocess.run(["ls", "-lR", mount_point], capture_output=True)
    return Listing(started, time.monotonic(), {}, int(result.returncode != 0))


LISTINGS = {function.__name__: function for function in (walk, find, ls)}
