"""A source that changes under the mount: old bytes or an error for those who hold a file, the new file for the rest."""

import errno
import faulthandler
import mmap
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy
import oracle
import pytest
import torch
from caches import wait_for
from conftest import derived, read_everything
from users import NOBODY, as_user, needs_root

ELEMENTS = 2_000_000
OLD, NEW = 0x01010101, 0x02020202

# A change is visible within the second that names are trusted for, and the time it takes to look again.
VISIBLE_S = 1.2

# Two versions of a file must differ in their times, whose clock ticks every few milliseconds.
TICK_S = 0.05

CHANGED = {errno.EIO, errno.ESTALE}


def save(path, value):
    """A checkpoint whose every element is `value`: a mixture or a zero is seen wherever it is."""
    torch.save({"weight": torch.full((ELEMENTS,), value, dtype=torch.int32)}, path)


def elements(data):
    """The distinct elements in a converted file."""
    _, data_start = oracle.header_of(data)
    return set(numpy.unique(numpy.frombuffer(data, dtype="<i4", offset=data_start)).tolist())


def read_all(fd, size):
    """The whole file by its descriptor; None if the kernel says that it changed."""
    blocks, offset = [], 0
    while offset < size:
        try:
            block = os.pread(fd, 1 << 20, offset)
        except OSError as error:
            assert error.errno in CHANGED
            return None
        assert block, f"the file ends at {offset} of {size} bytes without an error"
        blocks.append(block)
        offset += len(block)
    return b"".join(blocks)


def replace(path):
    save(path.with_suffix(".new"), NEW)
    os.replace(path.with_suffix(".new"), path)


def rewrite_in_place(path):
    save(path.with_suffix(".new"), NEW)
    data = path.with_suffix(".new").read_bytes()
    path.with_suffix(".new").unlink()
    assert len(data) == path.stat().st_size
    with open(path, "r+b") as file:
        file.write(data)


def truncate(path):
    os.truncate(path, path.stat().st_size // 2 + 1234)


def empty(path):
    os.truncate(path, 0)


def delete(path):
    path.unlink()


CHANGES = [replace, rewrite_in_place, truncate, empty, delete]


@pytest.fixture
def source(tmp_path):
    directory = tmp_path / "source"
    directory.mkdir()
    save(directory / "model.bin", OLD)
    time.sleep(TICK_S)
    return directory


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("read_before", [0, ELEMENTS // 2], ids=["unread", "half-read"])
def test_open_file(change, read_before, source, mounted):
    with mounted(source) as mount_point:
        shown = mount_point / "model.safetensors"
        fd = os.open(shown, os.O_RDONLY)
        try:
            size = os.fstat(fd).st_size
            os.pread(fd, read_before, 0)
            change(source / "model.bin")
            for _ in range(2):
                data = read_all(fd, size)
                assert data is None or elements(data) == {OLD}
                time.sleep(VISIBLE_S)
        finally:
            os.close(fd)
        check_visible(change, shown)


def check_visible(change, shown):
    if change in (replace, rewrite_in_place):
        assert elements(shown.read_bytes()) == {NEW}
    else:
        assert not shown.exists()
        assert (shown.parent / "model.bin.refused.txt").exists() == (change is not delete)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_mapped_file(change, source, mounted):
    """A mapping gives old bytes, or the signal that stands for an error."""
    with mounted(source) as mount_point:
        shown = mount_point / "model.safetensors"
        mapped, changed = os.pipe(), os.pipe()
        child = os.fork()
        if child == 0:
            # The signal is expected: no trace of it, no core file.
            faulthandler.disable()
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            try:
                with open(shown, "rb") as file:
                    mapping = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ, flags=mmap.MAP_PRIVATE)
                mapping[len(mapping) // 2]
                os.write(mapped[1], b"x")
                os.read(changed[0], 1)
                os._exit(0 if elements(mapping[:]) == {OLD} else 1)
            except BaseException:
                os._exit(2)
        os.read(mapped[0], 1)
        change(source / "model.bin")
        os.write(changed[1], b"x")
        _, status = os.waitpid(child, 0)
        for descriptor in (*mapped, *changed):
            os.close(descriptor)
        old_bytes = os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0
        bus_error = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGBUS
        assert old_bytes or bus_error, f"wait status {status}"
        time.sleep(VISIBLE_S)
        check_visible(change, shown)


def test_path_shows_the_new_file(source, mounted):
    """Whoever opens by name gets the new file whole: size, converted bytes and raw tensor agree."""
    with mounted(source) as mount_point:
        read_everything(mount_point)
        torch.save({"weight": torch.full((10,), NEW, dtype=torch.int32)}, source / "model.bin")
        time.sleep(VISIBLE_S)
        data, _ = oracle.expected(source / "model.bin")
        assert (mount_point / "model.safetensors").stat().st_size == len(data)
        assert (mount_point / "model.safetensors").read_bytes() == data
        assert (mount_point / "model.tensors" / "weight").stat().st_size == 40


def test_new_and_removed_checkpoints(source, mounted):
    with mounted(source) as mount_point:
        assert sorted(os.listdir(mount_point)) == ["model.safetensors", "model.tensors"]
        save(source / "second.pt", NEW)
        (source / "notes.txt").write_text("text")
        time.sleep(VISIBLE_S)
        assert "second.safetensors" in os.listdir(mount_point)
        assert (mount_point / "notes.txt").read_text() == "text"
        (source / "model.bin").unlink()
        time.sleep(VISIBLE_S)
        assert sorted(os.listdir(mount_point)) == ["notes.txt", "second.safetensors", "second.tensors"]


def test_replaced_again_and_again(source, mounted):
    """Every complete read by name is of one version, whichever it is."""
    done = threading.Event()

    def replace_repeatedly():
        for value in range(3, 60):
            save(source / "next.tmp", value)
            os.replace(source / "next.tmp", source / "model.bin")
            time.sleep(TICK_S)
        done.set()

    with mounted(source) as mount_point:
        writer = threading.Thread(target=replace_repeatedly)
        writer.start()
        reads, seen = 0, set()
        while not done.is_set():
            try:
                data = (mount_point / "model.safetensors").read_bytes()
            except OSError as error:
                assert error.errno in CHANGED
                continue
            values = elements(data)
            assert len(values) == 1 and 0 not in values
            reads += 1
            seen |= values
        writer.join()
    assert reads > 0 and len(seen) > 1


def test_written_slowly(tmp_path, mounted):
    """A checkpoint that is still being written is no checkpoint yet; once whole it is converted."""
    source = tmp_path / "source"
    source.mkdir()
    save(tmp_path / "whole.bin", OLD)
    data = (tmp_path / "whole.bin").read_bytes()
    wanted, _ = oracle.expected(tmp_path / "whole.bin")

    def write():
        with open(source / "model.bin", "wb", buffering=0) as file:
            for begin in range(0, len(data), len(data) // 20):
                file.write(data[begin : begin + len(data) // 20])
                time.sleep(0.1)

    with mounted(source) as mount_point:
        writer = threading.Thread(target=write)
        writer.start()
        while writer.is_alive():
            for name in os.listdir(mount_point):
                try:
                    shown = (mount_point / name).read_bytes() if "." in name and name != "model.tensors" else None
                except OSError as error:
                    assert error.errno in CHANGED | {errno.ENOENT}
                    continue
                assert not name.endswith(".safetensors") or shown == wanted
            time.sleep(0.03)
        writer.join()
        time.sleep(VISIBLE_S)
        assert (mount_point / "model.safetensors").read_bytes() == wanted
        assert not (mount_point / "model.bin.refused.txt").exists()


@needs_root
def test_permissions_of_the_source_hold(tmp_path, mounted):
    source = tmp_path / "source"
    (source / "private").mkdir(parents=True)
    for path in (source / "open.bin", source / "secret.bin", source / "private" / "model.bin"):
        save(path, OLD)
    source.chmod(0o755)
    (source / "open.bin").chmod(0o644)
    (source / "secret.bin").chmod(0o600)
    (source / "private").chmod(0o700)
    with mounted(source, "--allow-other") as mount_point:
        assert (mount_point / "private" / "model.safetensors").exists()

        def use():
            with open("open.safetensors", "rb") as file:
                assert elements(file.read()) == {OLD}
            for attempt in (
                lambda: open("secret.safetensors", "rb"),
                lambda: os.listdir("private"),
                lambda: os.stat("private/model.safetensors"),
                lambda: open("secret.tensors/weight", "rb"),
            ):
                with pytest.raises(PermissionError):
                    attempt()

        as_user(NOBODY, mount_point, use)


def test_dangling_links(source, mounted):
    (source / "dangling.bin").symlink_to("nowhere.bin")
    (source / "dangling.txt").symlink_to("nowhere.txt")
    (source / "around.bin").symlink_to("around.bin")
    (source / "link.pt").symlink_to("model.bin")
    with mounted(source) as mount_point:
        for name in os.listdir(mount_point):
            assert (mount_point / name).stat(), "what is listed can be looked at"
        assert (mount_point / "link.safetensors").read_bytes() == (mount_point / "model.safetensors").read_bytes()
        assert not (mount_point / "dangling.safetensors").exists()
        assert not (mount_point / "dangling.txt").exists()


@pytest.fixture
def hub_cache(tmp_path):
    """The layout of the Hugging Face cache: snapshots of links to blobs."""
    hub = tmp_path / "hub"
    repository = hub / "models--someone--model"
    for directory in ("blobs", "refs", "snapshots/0123abcd"):
        (repository / directory).mkdir(parents=True)
    (repository / "refs" / "main").write_text("0123abcd")
    save(repository / "blobs" / "f00d", OLD)
    (repository / "blobs" / "beef").write_text('{"architectures": ["GPT2LMHeadModel"]}')
    snapshot = repository / "snapshots" / "0123abcd"
    (snapshot / "pytorch_model.bin").symlink_to("../../blobs/f00d")
    (snapshot / "config.json").symlink_to("../../blobs/beef")
    return hub


@pytest.mark.parametrize("root", ["", "models--someone--model/snapshots/0123abcd"], ids=["hub", "snapshot"])
def test_hub_cache(root, hub_cache, mounted):
    snapshot = "models--someone--model/snapshots/0123abcd"
    with mounted(hub_cache / root) as mount_point:
        shown = mount_point if root else mount_point / snapshot
        assert sorted(os.listdir(shown)) == ["config.json", "model.safetensors", "model.tensors"]
        assert elements((shown / "model.safetensors").read_bytes()) == {OLD}
        assert not (shown / "config.json").is_symlink()
        assert (shown / "config.json").read_bytes() == (hub_cache / snapshot / "config.json").read_bytes()


def test_hub_cache_moves_to_another_blob(hub_cache, mounted):
    snapshot = hub_cache / "models--someone--model" / "snapshots" / "0123abcd"
    with mounted(snapshot) as mount_point:
        assert elements((mount_point / "model.safetensors").read_bytes()) == {OLD}
        save(snapshot.parent.parent / "blobs" / "cafe", NEW)
        (snapshot / "link").symlink_to("../../blobs/cafe")
        os.replace(snapshot / "link", snapshot / "pytorch_model.bin")
        time.sleep(VISIBLE_S)
        assert elements((mount_point / "model.safetensors").read_bytes()) == {NEW}


def test_links_out_of_a_shared_mount(hub_cache, mounted):
    """With --allow-other a link must not show others what lies outside the source."""
    snapshot = "models--someone--model/snapshots/0123abcd"
    with mounted(hub_cache / snapshot, "--allow-other") as mount_point:
        # What is there says why the files are not.
        assert all(name.endswith(".refused.txt") for name in os.listdir(mount_point))
        assert not (mount_point / "config.json").exists()
        assert not (mount_point / "model.safetensors").exists()
    with mounted(hub_cache, "--allow-other") as mount_point:
        assert elements((mount_point / snapshot / "model.safetensors").read_bytes()) == {OLD}


def test_copies_out(source, tmp_path, mounted):
    """cp -r of the mount is a converted model directory."""
    with mounted(source, "--tensors", "hide") as mount_point:
        shutil.copytree(mount_point, tmp_path / "copy")
    data, _ = oracle.expected(source / "model.bin")
    assert os.listdir(tmp_path / "copy") == ["model.safetensors"]
    assert derived(tmp_path / "copy" / "model.bin").read_bytes() == data


LOOK_UP = """
import os, random, sys
while True:
    try:
        os.stat(f"{sys.argv[1]}/{random.randrange(10**9)}.txt")
    except FileNotFoundError:
        pass
    except OSError:
        break
"""

CHANGE = """
import os, sys, time
while True:
    open(sys.argv[1] + "/changing", "w").close()
    time.sleep(0.01)
    # The directory is watched again. The kernel may go on answering by itself.
    os.stat(sys.argv[2])
"""


def test_killed_while_the_source_changes(stfs, tmp_path):
    """Neither the process nor who waits for an answer hangs, whatever was under way."""
    source = tmp_path / "source"
    source.mkdir()
    for number in range(100):
        (source / f"{number}.txt").write_text("text")
    for number in range(5):
        point = tmp_path / f"mount{number}"
        point.mkdir()
        stfs.run("mount", source, point)
        pid = int(os.getxattr(point, "user.stfs.pid"))
        programs = [(LOOK_UP, point), (LOOK_UP, point), (CHANGE, source, point)]
        clients = [
            subprocess.Popen([sys.executable, "-c", *map(str, program)], stderr=subprocess.DEVNULL)
            for program in programs
        ]
        time.sleep(0.7)
        os.kill(pid, signal.SIGKILL)
        try:
            for client in clients[:2]:
                client.wait(timeout=10)
            wait_for(lambda pid=pid: not os.path.exists(f"/proc/{pid}") or not os.listdir(f"/proc/{pid}/fd"), 10)
        finally:
            for client in clients:
                client.kill()
            stfs.run("umount", point)
