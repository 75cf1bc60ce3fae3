"""A source that is overwritten in place while it is read: all that is read through one descriptor is of one version."""

import contextlib
import errno
import mmap
import os
import random
import threading
import time

import filesystems
import numpy
import pytest
import torch

ELEMENTS = 1 << 18
FLIPS = 1000
FILES = 50
OLD, NEW = 0x01010101, 0x02020202
CHANGED = {errno.EIO, errno.ESTALE}
# From this age on the times of a file tell every write.
SETTLED_S = 3.2


@contextlib.contextmanager
def ext4(directory):
    kind = os.popen(f"stat -f -c %T '{directory}'").read().strip()
    if kind != "ext2/ext3":
        pytest.skip(f"the temporary directory is on {kind}: set TMPDIR to one on ext4")
    yield directory


@contextlib.contextmanager
def tmpfs(directory):
    with filesystems.tmpfs(directory / "tmpfs", "size=128m") as mount_point:
        yield mount_point


@contextlib.contextmanager
def overlay(directory):
    with filesystems.overlay(directory / "layers", directory / "overlay") as mount_point:
        yield mount_point


@pytest.fixture(params=[ext4, tmpfs, overlay], ids=lambda kind: kind.__name__)
def source(request, tmp_path):
    with request.param(tmp_path) as directory:
        (directory / "source").mkdir()
        yield directory / "source"


@pytest.fixture
def versions(tmp_path):
    """Two checkpoints that differ in nothing but the elements, which are the same all over."""
    found = []
    for value in (OLD, NEW):
        torch.save({"weight": torch.full((ELEMENTS,), value, dtype=torch.int32)}, tmp_path / "model.bin")
        found.append((tmp_path / "model.bin").read_bytes())
    assert len(found[0]) == len(found[1])
    return found


def shown(mount_point, number=0):
    return mount_point / f"{number}.tensors" / "weight"


def written(source, version, files=1):
    paths = [source / f"{number}.bin" for number in range(files)]
    for path in paths:
        path.write_bytes(version)
    return paths


def overwrite(path, version):
    with open(path, "r+b", buffering=0) as file:
        assert os.pwrite(file.fileno(), version, 0) == len(version)


class Direct:
    """Reads past the page cache of the mount: each is a request."""

    def __init__(self, path):
        self.descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
        self.buffer = mmap.mmap(-1, ELEMENTS * 4)

    def read(self):
        """The distinct elements; none once the file has changed."""
        try:
            read = os.preadv(self.descriptor, [self.buffer], 0)
        except OSError as error:
            assert error.errno in CHANGED
            return set()
        return set(numpy.unique(numpy.frombuffer(self.buffer, dtype="<i4", count=read // 4)).tolist())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self.descriptor)


def read_while(writing, path):
    """Opens and reads the file until `writing` is over: each time it is of one version."""
    writer = threading.Thread(target=writing)
    writer.start()
    while writer.is_alive():
        with contextlib.suppress(OSError), Direct(path) as file:
            assert file.read() | file.read() in ({OLD}, {NEW}, set())
    writer.join()


def test_again_and_again(source, versions, mounted):
    [path] = written(source, versions[0])

    def flip():
        for number in range(FLIPS):
            overwrite(path, versions[number % 2])
            time.sleep(random.random() / 500)

    with mounted(source, "--promote=never") as mount_point:
        read_while(flip, shown(mount_point))


def test_while_it_stays_open_for_writing(source, versions, mounted):
    """It is opened by readers in the middle of a write, too."""
    [path] = written(source, versions[0])
    time.sleep(SETTLED_S)
    with open(path, "r+b", buffering=0) as file, mounted(source, "--promote=never") as mount_point:

        def flip():
            for number in range(FLIPS):
                assert os.pwrite(file.fileno(), versions[number % 2], 0) == len(versions[0])
                time.sleep(random.random() / 500)

        with Direct(shown(mount_point)) as reader:
            assert reader.read() == {OLD}
        read_while(flip, shown(mount_point))


def test_once(source, versions, mounted):
    """Files that have been there for long, each overwritten while it is read."""
    paths = written(source, versions[0], FILES)
    time.sleep(SETTLED_S)
    with mounted(source, "--promote=never") as mount_point:
        for number, path in enumerate(paths):
            with Direct(shown(mount_point, number)) as file:
                assert file.read() == {OLD}
                writer = threading.Thread(target=overwrite, args=[path, versions[1]])
                writer.start()
                while found := file.read():
                    assert found == {OLD}
                writer.join()
                assert not file.read()


def test_opened_for_writing_and_left_alone(source, versions, mounted):
    [path] = written(source, versions[0])
    time.sleep(SETTLED_S)
    with mounted(source, "--promote=never") as mount_point, Direct(shown(mount_point)) as file:
        assert file.read() == {OLD}
        with open(path, "r+b"):
            assert file.read() == {OLD}
        assert file.read() == {OLD}
