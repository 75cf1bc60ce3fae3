"""Every way to read a converted file gives the same bytes: those that Hugging Face's conversion writes."""

import mmap
import os
import random
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import oracle
import pytest
import torch

PAGE = 4096


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """24 MiB: tensors that lie as they are, transposed ones, and a tail that fills no page."""
    torch.manual_seed(5)
    directory = tmp_path_factory.mktemp("reads")
    tensors = {
        "rows": torch.randn(1500, 1025),
        "columns": torch.randn(1201, 1900).t(),
        "cube": torch.randint(-(2**60), 2**60, (20, 60, 200)).permute(2, 0, 1),
        "halves": torch.randn(513, 700).to(torch.float16)[:, ::2],
        "bytes": torch.randint(0, 256, (4321,), dtype=torch.uint8),
    }
    torch.save(tensors, directory / "model.bin")
    return directory


@pytest.fixture(scope="module")
def expected(source, tmp_path_factory):
    target = tmp_path_factory.mktemp("expected") / "model.safetensors"
    oracle.convert_file(source / "model.bin", target)
    return target.read_bytes()


@pytest.fixture
def path(source, mounted):
    """On a mount of its own each time, so that no page is in the cache yet, and streamed: what is promoted is read
    by the kernel from its own file, where O_DIRECT wants everything aligned."""
    with mounted(source, "--promote", "never") as mount_point:
        yield mount_point / "model.safetensors"


def spans(size, count, seed):
    """Random spans, many of them across the borders of pages, tensors and requests, some beyond the end."""
    generator = random.Random(seed)
    for _ in range(count):
        length = generator.choice([1, 7, PAGE, PAGE + 1, 100_000, 1 << 20, 5 << 20])
        yield generator.randrange(size + PAGE), length


def test_read_whole(path, expected):
    assert path.read_bytes() == expected


def test_read_at_any_offset(path, expected):
    with open(path, "rb", buffering=0) as file:
        for offset, length in spans(len(expected), 400, seed=1):
            assert os.pread(file.fileno(), length, offset) == expected[offset : offset + length]


def test_direct(path, expected):
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        buffer = mmap.mmap(-1, 8 << 20)
        for offset, length in [(0, 1 << 20), (PAGE, 8 << 20), (len(expected) // PAGE * PAGE, PAGE)]:
            read = os.preadv(fd, [memoryview(buffer)[:length]], offset)
            assert buffer[:read] == expected[offset : offset + length]
        # Unlike a disk, FUSE takes any offset and length.
        for offset, length in spans(len(expected), 100, seed=2):
            length = min(length, len(buffer))
            read = os.preadv(fd, [memoryview(buffer)[:length]], offset)
            assert buffer[:read] == expected[offset : offset + length]
    finally:
        os.close(fd)


@pytest.mark.parametrize("flags", [mmap.MAP_PRIVATE, mmap.MAP_SHARED], ids=["private", "shared"])
def test_mapped(flags, path, expected):
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, flags=flags, prot=mmap.PROT_READ) as mapping:
        for offset, length in spans(len(expected), 200, seed=3):
            assert mapping[offset : offset + length] == expected[offset : offset + length]
        assert mapping[:] == expected


def test_sendfile(path, expected):
    ours, theirs = socket.socketpair()
    received = bytearray()

    def receive():
        while block := theirs.recv(1 << 20):
            received.extend(block)

    receiver = threading.Thread(target=receive)
    receiver.start()
    with open(path, "rb") as file, ours:
        offset = 0
        while sent := os.sendfile(ours.fileno(), file.fileno(), offset, 3_000_001):
            offset += sent
    receiver.join()
    theirs.close()
    assert received == expected


@pytest.mark.parametrize("direct", [False, True], ids=["buffered", "direct"])
def test_threads_share_a_descriptor(direct, path, expected):
    fd = os.open(path, os.O_RDONLY | (os.O_DIRECT if direct else 0))

    def read(seed):
        return all(
            os.pread(fd, length, offset) == expected[offset : offset + length]
            for offset, length in spans(len(expected), 40, seed)
        )

    try:
        with ThreadPoolExecutor(16) as pool:
            assert all(pool.map(read, range(16)))
    finally:
        os.close(fd)


def test_directory_of_many_tensors(tmp_path, mounted):
    """Each is listed once, found by name, and has its own size and bytes."""
    count = 100_000
    flat = torch.arange(2 * count, dtype=torch.int32)
    torch.save(
        {f"layer.{index}": flat[index : index + 1 + index % 2].clone() for index in range(count)}, tmp_path / "many.pt"
    )
    with mounted(tmp_path) as mount_point:
        directory = mount_point / "many.tensors"
        names = os.listdir(directory)
        assert sorted(names) == sorted(f"layer.{index}" for index in range(count))
        for index in random.Random(4).sample(range(count), 50):
            wanted = flat[index : index + 1 + index % 2].numpy().tobytes()
            tensor = directory / f"layer.{index}"
            assert (tensor.stat().st_size, tensor.read_bytes()) == (len(wanted), wanted)


def test_directory_of_many_checkpoints(tmp_path, mounted):
    for index in range(1000):
        torch.save({"weight": torch.full((3,), index)}, tmp_path / f"c{index}.pt")
    with mounted(tmp_path, "--tensors", "hide") as mount_point:
        with os.scandir(mount_point) as entries:
            sizes = {entry.name: entry.stat().st_size for entry in entries}
        assert sizes.keys() == {f"c{index}.safetensors" for index in range(1000)}
        for index in (0, 17, 999):
            shown = mount_point / f"c{index}.safetensors"
            data = shown.read_bytes()
            assert len(data) == sizes[shown.name]
            assert data.endswith(torch.full((3,), index).numpy().tobytes())


def test_looked_at_by_many_at_once(source, mounted, expected):
    with mounted(source) as mount_point:
        barrier = threading.Barrier(16)

        def look(_):
            barrier.wait()
            return (mount_point / "model.safetensors").stat()

        with ThreadPoolExecutor(16) as pool:
            looks = list(pool.map(look, range(16)))
        assert {look.st_size for look in looks} == {len(expected)}
        assert len({look.st_ino for look in looks}) == 1
