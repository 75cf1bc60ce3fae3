"""Faults that are really made: processes killed and stopped, sources that never answer, files made to take forever or
everything, circles, and too little of memory, descriptors and disk. Whatever it is, it ends, everything else goes on
meanwhile, and what can be read is right.

Bounds of time say "does not hang", and no more.
"""

import collections
import contextlib
import gc
import hashlib
import itertools
import json
import mmap
import os
import random
import resource
import select
import signal
import subprocess
import time
from pathlib import Path

import oracle
import pytest
import slow_sftp
import torch
from bombs import deflate, halves_of_bytes, save_bomb
from caches import wait_for
from conftest import is_mounted
from filesystems import needs_root as or_skip_without_root
from filesystems import needs_sshfs, tmpfs
from patience import (
    Died,
    command_within,
    free_what_hangs_below,
    is_gone,
    states,
    stopped,
    tasks,
    within,
)
from safetensors.torch import load_file, save, save_file
from users import needs_root

MIB = 1 << 20
# An answer that waits for nothing.
AT_ONCE_S = 1
# An answer that comes.
PATIENCE_S = 10
# `stfs status` asks each mount for two seconds at most.
STATUS_S = 4
# Longer than the kernel answers for a name by itself.
FORGOTTEN_S = 1.2

# More of each, for those who have the time.
KILLS = int(os.environ.get("STFS_FAULT_KILLS", 30))
NAMES = int(os.environ.get("STFS_FAULT_NAMES", 100_000))
REST_S = float(os.environ.get("STFS_FAULT_REST", 10))
INFLATED = int(os.environ.get("STFS_FAULT_INFLATED", 100 * MIB))


@pytest.fixture
def place(tmp_path):
    """A directory in which nothing stays mounted, whatever happens."""
    yield tmp_path
    free_what_hangs_below(tmp_path)


@pytest.fixture
def mounted(mounted, stfs, place):
    """`mounted(source, *options)` as elsewhere, which ends where a mount hangs: that fails the test."""
    numbers = itertools.count()

    @contextlib.contextmanager
    def mounted(source, *options):
        point = place / f"mount{next(numbers)}"
        point.mkdir()
        result = command_within(PATIENCE_S, stfs.binary, "mount", *options, source, point, env=stfs.environment)
        assert result.returncode == 0, result.stderr
        pid = process_of(point)
        try:
            yield point
            within(PATIENCE_S, os.listdir, point)
            # Tensors that alias a mapping of a mounted file would keep the mount busy.
            gc.collect()
            end(stfs, point, pid)
        finally:
            free_what_hangs_below(point)

    return mounted


def weights(seed, mib=1):
    generator = torch.Generator().manual_seed(seed)
    return {f"layer{index}.weight": torch.randn(mib * MIB // 16, generator=generator) for index in range(4)}


def expected(state_dict):
    return save({name: value.contiguous() for name, value in state_dict.items()}, {"format": "pt"})


def checkpoint(path, seed=1, mib=1):
    """Saves one, and returns the bytes that are owed for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state_dict = weights(seed, mib)
    torch.save(state_dict, path)
    return expected(state_dict)


def digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def process_of(mount_point):
    return int(os.getxattr(mount_point, "user.stfs.pid"))


def memory(pid, field):
    """Bytes."""
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field)) << 10


def metrics(mount_point):
    text = (mount_point / ".stfs" / "metrics").read_text()
    assert "stfs_" in text
    return text


def map_and_touch(path):
    """A mapping whose descriptor is closed, as loaders have it, with its first page read."""
    with open(path, "rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    mapping[0]
    return mapping


def end(stfs, mount_point, pid):
    """Unmounts, and nothing is left of the process."""
    result = command_within(PATIENCE_S, stfs.binary, "umount", mount_point, env=stfs.environment)
    assert result.returncode == 0, result.stderr
    wait_for(lambda: is_gone(pid), PATIENCE_S)


# Killed


def read_mapped_until_it_is_killed(mount_point, names):
    with contextlib.suppress(OSError):
        while True:
            for name in names:
                map_and_touch(mount_point / name)[::4096]


def test_killed_during_first_opens(stfs, mounted, place):
    """Each time at another moment, while everybody opens what nobody has opened yet."""
    source, point = place / "source", place / "mount"
    names = [f"model{number}" for number in range(6)]
    wanted = {name: checkpoint(source / f"{name}.pt", number) for number, name in enumerate(names)}
    shown = [f"{name}.safetensors" for name in names]
    moments = random.Random(1)
    for _ in range(KILLS):
        point.mkdir(exist_ok=True)
        cache = place / f"cache{_}"
        stfs.run("mount", "--cache-dir", cache, source, point)
        pid = process_of(point)
        orders = [moments.sample(shown, len(shown)) for _ in range(4)]
        with tasks(read_mapped_until_it_is_killed, [(point, order) for order in orders]) as readers:
            time.sleep(moments.uniform(0, 0.05))
            os.kill(pid, signal.SIGKILL)
            for reader in readers:
                # SIGBUS is what a mapping can say.
                with contextlib.suppress(Died):
                    reader.answer(PATIENCE_S)
            end(stfs, point, pid)
            assert "D" not in [state for reader in readers for state in states(reader.pid)]
    command_within(PATIENCE_S, stfs.binary, "mount", source, point, env=stfs.environment)
    pid = process_of(point)
    for name in names:
        assert within(PATIENCE_S, (point / f"{name}.safetensors").read_bytes) == wanted[name]
    end(stfs, point, pid)


def test_mounted_again_over_a_killed_mount(stfs, mounted, place):
    wanted = checkpoint(place / "source" / "model.pt")
    point = place / "mount"
    for _ in range(3):
        result = command_within(PATIENCE_S, stfs.binary, "mount", place / "source", point, env=stfs.environment)
        assert result.returncode == 0, result.stderr
        assert within(PATIENCE_S, (point / "model.safetensors").read_bytes) == wanted
        pid = process_of(point)
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda pid=pid: is_gone(pid), PATIENCE_S)
    end(stfs, point, pid)


def hold_mapped(path, pipe):
    """Maps a file and reads half of it; and the rest, when it is told to."""
    mapping = map_and_touch(path)
    half = len(mapping) // 2
    first = mapping[:half]
    os.write(pipe[1], b"x")
    os.read(pipe[2], 1)
    return sha256(first + mapping[half:])


@contextlib.contextmanager
def mapped_readers(paths):
    """Readers that have read half of their file, and a function that lets them go on."""
    ready, gone_on = os.pipe(), os.pipe()
    with tasks(hold_mapped, [(path, (ready[0], ready[1], gone_on[0])) for path in paths]) as readers:
        for _ in paths:
            os.read(ready[0], 1)
        yield readers, lambda: os.write(gone_on[1], b"x" * len(paths))
    for descriptor in (*ready, *gone_on):
        os.close(descriptor)


@pytest.mark.parametrize("how", ["stfs umount --lazy", "umount -l"])
def test_taken_away_under_mapped_readers(how, stfs, mounted, place):
    """They read on; the process ends with the last of them."""
    if how == "umount -l":
        or_skip_without_root()
    wanted = checkpoint(place / "source" / "model.pt", mib=8)
    point = place / "mount"
    stfs.run("mount", "--promote", "never", place / "source", point)
    pid = process_of(point)
    with mapped_readers([point / "model.safetensors"] * 4) as (readers, go_on):
        words = [stfs.binary, "umount", "--lazy"] if how.startswith("stfs") else ["umount", "-l"]
        result = command_within(PATIENCE_S, *words, point, env=stfs.environment)
        assert result.returncode == 0, result.stderr
        assert os.listdir(point) == []
        assert not is_gone(pid)
        go_on()
        assert {reader.answer(PATIENCE_S) for reader in readers} == {sha256(wanted)}
    wait_for(lambda: is_gone(pid), PATIENCE_S)


def test_terminated_under_mapped_readers(stfs, mounted, place):
    """The process ends, and they get an error and not a hang. Who has mapped what is promoted reads on."""
    wanted = checkpoint(place / "source" / "model.pt", mib=8)
    point = place / "mount"
    stfs.run("mount", "--promote", "never", place / "source", point)
    pid = process_of(point)
    with mapped_readers([point / "model.safetensors"] * 4) as (readers, go_on):
        os.kill(pid, signal.SIGTERM)
        wait_for(lambda: is_gone(pid), 2 * PATIENCE_S)
        go_on()
        for reader in readers:
            # What the kernel had read ahead is right; the rest is an error.
            with contextlib.suppress(Died, OSError):
                assert reader.answer(PATIENCE_S) == sha256(wanted)
    command_within(PATIENCE_S, stfs.binary, "mount", place / "source", point, env=stfs.environment)
    assert within(PATIENCE_S, (point / "model.safetensors").read_bytes) == wanted
    end(stfs, point, process_of(point))


# A source that does not answer


@pytest.fixture
def inner(mounted, place):
    """A mount, its process and what is owed for its file: one that can be stopped under another."""
    wanted = checkpoint(place / "distant" / "model.pt", seed=2, mib=16)
    (place / "distant" / "notes.txt").write_text("text")
    # Nothing is in the kernel's own hands.
    with mounted(place / "distant", "--promote", "never") as mount_point:
        yield mount_point, process_of(mount_point), wanted


def test_stopped_source_below_a_link(stfs, mounted, place, inner):
    """Ten readers wait; files of other directories and file systems, and what the mount says of itself, do not."""
    inner, pid, distant = inner
    near = checkpoint(place / "source" / "near.pt")
    (place / "source" / "distant").symlink_to(inner)
    elsewhere = place / "elsewhere"
    with contextlib.ExitStack() as ends:
        if os.geteuid() == 0:
            ends.enter_context(tmpfs(elsewhere, "size=16m"))
        other = checkpoint(elsewhere / "other.pt", seed=3)
        (place / "source" / "elsewhere").symlink_to(elsewhere)
        outer = ends.enter_context(mounted(place / "source", "--promote", "never"))
        slow = outer / "distant" / "model.safetensors"
        assert sorted(os.listdir(outer)) == ["distant", "elsewhere", "near.safetensors", "near.tensors"]
        size = slow.stat().st_size
        with tasks(digest, [(slow,)] * 10) as readers:
            with stopped(pid):
                time.sleep(FORGOTTEN_S)
                within(PATIENCE_S, metrics, outer)
                within(PATIENCE_S, os.statvfs, outer)
                within(PATIENCE_S, os.stat, outer)
                assert within(PATIENCE_S, os.stat, slow).st_size == size
                assert len(within(PATIENCE_S, os.listdir, outer / "elsewhere")) == 2
                assert within(PATIENCE_S, (outer / "near.safetensors").read_bytes) == near
                assert within(PATIENCE_S, (outer / "elsewhere" / "other.safetensors").read_bytes) == other
                for words in (["status", outer], ["status"]):
                    command_within(STATUS_S, stfs.binary, *words, env=stfs.environment)
            assert {reader.answer(PATIENCE_S) for reader in readers} == {sha256(distant)}
        assert slow.stat().st_size == size == len(distant)
        assert load_file(slow).keys() == weights(2).keys()


def test_stopped_source(stfs, mounted, place, inner):
    """The same where all of the source does not answer: what was looked at before is known."""
    inner, pid, wanted = inner
    with mounted(inner, "--promote", "never") as outer:
        slow = outer / "model.safetensors"
        with open(slow, "rb") as file:
            file.read(1000)
        names = sorted(os.listdir(outer))
        with tasks(digest, [(slow,)] * 10) as readers:
            with stopped(pid):
                within(PATIENCE_S, metrics, outer)
                within(PATIENCE_S, os.statvfs, outer)
                within(PATIENCE_S, os.stat, outer)
                assert within(PATIENCE_S, os.stat, slow).st_size == len(wanted)
                for words in (["status", outer], ["status"]):
                    command_within(STATUS_S, stfs.binary, *words, env=stfs.environment)
            assert {reader.answer(PATIENCE_S) for reader in readers} == {sha256(wanted)}
        assert sorted(os.listdir(outer)) == names


def test_ended_while_the_source_does_not_answer(stfs, mounted, place, inner):
    """With readers who wait in it: they get an error, and the process is gone."""
    inner, inner_pid, wanted = inner
    (place / "source").mkdir()
    (place / "source" / "distant").symlink_to(inner)
    point = place / "outer"
    stfs.run("mount", "--promote", "never", place / "source", point)
    pid = process_of(point)
    slow = point / "distant" / "model.safetensors"
    assert slow.stat().st_size == len(wanted)
    with stopped(inner_pid), tasks(digest, [(slow,)] * 10) as readers:
        time.sleep(FORGOTTEN_S)
        os.kill(pid, signal.SIGTERM)
        wait_for(lambda: is_gone(pid), 2 * PATIENCE_S)
        for reader in readers:
            with contextlib.suppress(OSError, Died):
                assert reader.answer(PATIENCE_S) == sha256(wanted)
        assert not is_mounted(point)


@needs_root
def test_delaying_source(mounted, place):
    """A server that takes its time for each answer delays nobody who does not ask it."""
    needs_sshfs()
    far = checkpoint(place / "distant" / "far.pt", seed=4)
    near = checkpoint(place / "source" / "near.pt")
    (place / "source" / "far").symlink_to(place / "sshfs")
    with slow_sftp.SlowServer(place, 0.4) as server, server.mounted(place / "distant", place / "sshfs"):
        with mounted(place / "source", "--promote", "never") as mount_point:
            shown = mount_point / "far" / "far.safetensors"
            with tasks(digest, [(shown,)] * 10) as readers:
                time.sleep(0.3)
                for _ in range(3):
                    assert within(PATIENCE_S, (mount_point / "near.safetensors").read_bytes) == near
                    within(PATIENCE_S, metrics, mount_point)
                    within(PATIENCE_S, os.statvfs, mount_point)
                for reader in readers:
                    assert reader.answer(60) == sha256(far)


# Much to do


def digest_from(path, offset):
    """Of the whole file, read from a place of one's own first: the kernel has nothing that others asked for."""
    with open(path, "rb") as file:
        os.pread(file.fileno(), 1000, offset)
    return digest(path)


LOOKED_AT = 3000


def longest_look(mount_point, done):
    """Seconds that the slowest first look at one of many files took, until a file says that it is enough."""
    longest = 0.0
    for number in range(LOOKED_AT):
        began = time.monotonic()
        os.stat(mount_point / f"{number}.txt")
        longest = max(longest, time.monotonic() - began)
        if done.exists():
            break
        time.sleep(0.02)
    return longest


def test_looking_while_much_inflates(mounted, place):
    """One compressed storage, eight readers; the others' files are looked at for the first time meanwhile."""
    source, done = place / "source", place / "done"
    source.mkdir()
    state_dict = {"weight": halves_of_bytes(INFLATED)}
    torch.save(state_dict, source / "deflated.pt")
    deflate(source / "deflated.pt")
    for number in range(LOOKED_AT):
        (source / f"{number}.txt").touch()
    near = checkpoint(source / "near.bin")
    wanted = sha256(expected(state_dict))
    with mounted(source, "--promote", "never") as mount_point:
        shown = mount_point / "deflated.safetensors"
        with (
            tasks(longest_look, [(mount_point, done)]) as (looks,),
            tasks(digest_from, [(shown, number * INFLATED // 8) for number in range(1, 8 + 1)]) as readers,
        ):
            assert within(PATIENCE_S, (mount_point / "near.safetensors").read_bytes) == near
            within(PATIENCE_S, metrics, mount_point)
            assert {reader.answer(120) for reader in readers} == {wanted}
            done.touch()
            assert looks.answer(PATIENCE_S) < AT_ONCE_S


def read_or_refusal(path):
    """What a mount shows for a checkpoint: its bytes, or the words of its refusal."""
    with contextlib.suppress(FileNotFoundError):
        return path.with_suffix(".safetensors").read_bytes()
    return path.with_name(f"{path.name}.refused.txt").read_text()


def test_twenty_bombs_at_once(mounted, place):
    """Each is right or refused, and the process does not take what they ask for."""
    source = place / "source"
    source.mkdir()
    wanted = {f"bomb{number}.pt": expected(save_bomb(source / f"bomb{number}.pt")) for number in range(20)}
    near = checkpoint(source / "near.bin")
    with mounted(source, "--memory", "128M") as mount_point:
        pid = process_of(mount_point)
        with tasks(read_or_refusal, [(mount_point / name,) for name in wanted]) as readers:
            assert within(PATIENCE_S, (mount_point / "near.safetensors").read_bytes) == near
            for name, reader in zip(wanted, readers, strict=True):
                shown = reader.answer(120)
                assert shown == wanted[name] or (isinstance(shown, str) and len(shown.split()) > 5)
        # What is kept, and as much again for what is being done.
        assert memory(pid, "VmHWM") < 256 * MIB, f"{memory(pid, 'VmHWM') / MIB:.0f} MiB"


def test_very_many_names(mounted, place):
    source = place / "source"
    (source / "many").mkdir(parents=True)
    for number in range(NAMES):
        os.close(os.open(source / "many" / f"name{number}.txt", os.O_CREAT | os.O_WRONLY))
    with mounted(source) as mount_point:
        pid = process_of(mount_point)
        many = mount_point / "many"
        listing = command_within(60 + NAMES / 1000, "sh", "-c", f"ls -f '{many}' | wc -l")
        # With `.` and `..`.
        assert int(listing.stdout) == NAMES + 2
        assert within(PATIENCE_S, os.stat, many / f"name{NAMES // 2}.txt").st_size == 0
        with pytest.raises(FileNotFoundError):
            within(PATIENCE_S, os.stat, many / "name.txt")
        kept = memory(pid, "RssAnon")
        assert kept < 128 * MIB + 500 * NAMES, f"{kept / MIB:.0f} MiB"


# Circles


def assert_ends(directory):
    for words in (["find", directory], ["ls", "-lR", directory]):
        command_within(2 * PATIENCE_S, *words)


def reason(mount_point, name):
    """Why something is not shown, as the mount says it."""
    return (mount_point / f"{name}.refused.txt").read_text()


def test_links_into_the_mount(mounted, place):
    source, point = place / "source", place / "mount"
    wanted = checkpoint(source / "sub" / "model.pt")
    (source / "all").symlink_to(place / "into")
    (source / "sub" / "below").symlink_to(place / "into" / "sub")
    (source / "file.safetensors").symlink_to(place / "into" / "sub" / "model.safetensors")
    with mounted(source) as point:
        # The name of the mount point is not known before.
        (place / "into").symlink_to(point)
        assert_ends(point)
        for directory, name in ((point, "all"), (point / "sub", "below"), (point, "file.safetensors")):
            assert "mount" in within(PATIENCE_S, reason, directory, name)
        assert within(PATIENCE_S, (point / "sub" / "model.safetensors").read_bytes) == wanted


@needs_root
def test_the_mount_bound_into_its_source(mounted, place):
    source = place / "source"
    wanted = checkpoint(source / "sub" / "model.pt")
    (source / "bound").mkdir()
    with mounted(source) as point:
        command_within(PATIENCE_S, "mount", "--bind", point, source / "bound")
        try:
            time.sleep(FORGOTTEN_S)
            assert_ends(point)
            assert not within(PATIENCE_S, (point / "bound" / "sub").exists)
            assert "mount" in within(PATIENCE_S, reason, point, "bound")
            assert within(PATIENCE_S, (point / "sub" / "model.safetensors").read_bytes) == wanted
        finally:
            command_within(PATIENCE_S, "umount", "-l", source / "bound")


def test_mounts_of_mounts(mounted, place):
    wanted = checkpoint(place / "source" / "model.pt")
    (place / "both").mkdir()
    with mounted(place / "source") as inner, mounted(inner) as outer:
        (place / "both" / "inner").symlink_to(inner)
        (place / "both" / "outer").symlink_to(outer)
        with mounted(place / "both") as both:
            for directory in (inner, outer, both / "inner", both / "outer"):
                assert within(PATIENCE_S, (directory / "model.safetensors").read_bytes) == wanted
                assert within(PATIENCE_S, load_file, directory / "model.safetensors").keys() == weights(1).keys()
            assert_ends(both)


def test_mounts_that_lead_into_each_other(mounted, place):
    """Each has a link into the other, and a third links to both: no walk goes round for ever, and models are right."""
    first = checkpoint(place / "first" / "model.pt", seed=1)
    second = checkpoint(place / "second" / "model.pt", seed=2)
    (place / "both").mkdir()
    (place / "first" / "other").symlink_to(place / "to-second")
    (place / "second" / "other").symlink_to(place / "to-first")
    with mounted(place / "first") as one, mounted(place / "second") as two:
        (place / "to-first").symlink_to(one)
        (place / "to-second").symlink_to(two)
        (place / "both" / "first").symlink_to(one)
        (place / "both" / "second").symlink_to(two)
        with mounted(place / "both") as both:
            for directory in (one, two, both):
                assert_ends(directory)
            for directory in (one, both / "first"):
                assert within(PATIENCE_S, (directory / "model.safetensors").read_bytes) == first
            for directory in (two, both / "second"):
                assert within(PATIENCE_S, (directory / "model.safetensors").read_bytes) == second


# Too little


def mount_with_limits(stfs, source, point, limit, *options):
    """A mount whose process, and whatever it starts, has had `limit` called on it first."""
    result = command_within(
        PATIENCE_S, stfs.binary, "mount", *options, source, point, env=stfs.environment, preexec_fn=limit
    )
    assert result.returncode == 0, result.stderr
    return process_of(point)


def open_or_error(path):
    try:
        return os.open(path, os.O_RDONLY)
    except OSError as error:
        return error


def named_once(shown, wanted):
    """Whether each is there, as what it is or as what could not be looked at, and nothing else."""
    endings = (".safetensors", ".pt.refused.txt")
    named = [name.removesuffix(ending) for name in shown for ending in endings if name.endswith(ending)]
    return len(named) == len(shown) and sorted(named) == sorted(wanted)


def test_few_descriptors(stfs, mounted, place):
    """More files are opened than the process may: errors, never a pickle that is shown raw, and never other bytes."""
    source, point = place / "source", place / "mount"
    wanted = {f"model{number}": checkpoint(source / f"model{number}.pt", number) for number in range(100)}
    pid = mount_with_limits(
        stfs, source, point, lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)), "--tensors", "hide"
    )
    opened = {name: open_or_error(point / f"{name}.safetensors") for name in wanted}
    try:
        for name, file in opened.items():
            if not isinstance(file, OSError):
                assert os.pread(file, 2 * MIB, 0) == wanted[name]
        # To answer nothing is an error, and not an empty directory.
        for look in (os.listdir, metrics, os.statvfs):
            with contextlib.suppress(OSError):
                shown = within(PATIENCE_S, look, point)
                assert look is not os.listdir or named_once(shown, wanted)
        with pytest.raises(OSError):
            within(PATIENCE_S, os.stat, point / "model1.pt")
    finally:
        for file in opened.values():
            if not isinstance(file, OSError):
                os.close(file)
    for name, data in wanted.items():
        assert (point / f"{name}.safetensors").read_bytes() == data
    end(stfs, point, pid)


class Cgroup:
    """A control group whose processes may take so much memory, of either version of control groups."""

    def __init__(self, limit):
        or_skip_without_root()
        name = f"stfs-test-{os.getpid()}"
        unified = [Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified")]
        with_memory = [
            root
            for root in unified
            if (root / "cgroup.controllers").exists() and "memory" in (root / "cgroup.controllers").read_text().split()
        ]
        try:
            if with_memory:
                (with_memory[0] / "cgroup.subtree_control").write_text("+memory")
                self.path, limits = with_memory[0] / name, {"memory.max": limit, "memory.swap.max": 0}
                self._kills = "memory.events"
            else:
                self.path, limits = Path("/sys/fs/cgroup/memory") / name, {"memory.limit_in_bytes": limit}
                self._kills = "memory.oom_control"
            self.path.mkdir()
            for file, value in limits.items():
                with contextlib.suppress(FileNotFoundError):
                    (self.path / file).write_text(str(value))
        except OSError as error:
            pytest.skip(f"no control group with a limit of memory can be made here: {error}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        wait_for(lambda: not (self.path / "cgroup.procs").read_text(), PATIENCE_S)
        self.path.rmdir()

    def enter(self):
        (self.path / "cgroup.procs").write_text(str(os.getpid()))

    @property
    def kills(self):
        lines = dict(line.split() for line in (self.path / self._kills).read_text().splitlines())
        return int(lines.get("oom_kill", 0))


def write_index(directory, names):
    directory.mkdir(parents=True)
    shard = "pytorch_model-00001-of-00001.bin"
    torch.save({names[0]: torch.zeros(4)}, directory / shard)
    index = {"metadata": {"total_size": 16}, "weight_map": dict.fromkeys(names, shard)}
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps(index))


@needs_root
def test_little_memory(stfs, mounted, place):
    """In 256 MiB, whatever asks for much at once: nothing is killed, and what is served is right."""
    source, point = place / "source", place / "mount"
    bombs = [source / f"bombs/{number}.pt" for number in range(8)]
    bombs[0].parent.mkdir(parents=True)
    for path in bombs:
        save_bomb(path)
    names = [f"model.layers.{number}.{'x' * 160}.weight" for number in range(66_000)]
    for number in range(4):
        write_index(source / f"indexes/{number}", names)
    many = {f"{'y' * 100}.{number}": torch.zeros(1) for number in range(20_000)}
    save_file(many, source / "header.safetensors", {"format": "pt"})
    torch.save({name: value.clone() for name, value in many.items()}, source / "tensors.pt")
    large = checkpoint(source / "large" / "model.pt", mib=200)
    shown = [
        *(f"indexes/{number}/model.safetensors.index.json" for number in range(4)),
        "header.safetensors",
        "tensors.safetensors",
    ]
    with Cgroup(256 * MIB) as group:
        pid = mount_with_limits(stfs, source, point, group.enter, "--memory", "128M", "--cache-dir", place / "cache")
        looks = [(read_or_refusal, point / path.relative_to(source)) for path in bombs]
        looks += [(digest, point / name) for name in [*shown, *["large/model.safetensors"] * 4]]
        with tasks(lambda look, path: look(path), looks) as running:
            answers = [task.answer(180) for task in running]
        assert set(answers[-4:]) == {sha256(large)}
        assert answers[len(bombs) + 4] == digest(source / "header.safetensors")
        assert len(os.listdir(point / "header.tensors")) == len(many)
        assert oracle.digests((point / "tensors.safetensors").read_bytes()).keys() == many.keys()
        assert not is_gone(pid) and group.kills == 0
        end(stfs, point, pid)


@needs_root
def test_a_disk_that_fills(mounted, place):
    """The cache directory has room for next to nothing: everything is served from where it lies."""
    source = place / "source"
    wanted = {f"model{number}": checkpoint(source / f"model{number}.pt", number, mib=4) for number in range(6)}
    state_dict = {"weight": halves_of_bytes(24 * MIB)}
    torch.save(state_dict, source / "deflated.pt")
    deflate(source / "deflated.pt")
    with tmpfs(place / "small", "size=6m,mode=700") as small:
        with mounted(source, "--cache-dir", small / "cache", "--promote", "always") as mount_point:
            paths = [mount_point / f"{name}.safetensors" for name in wanted]
            for _ in range(3):
                with tasks(digest, [(path,) for path in paths]) as readers:
                    digests = [reader.answer(3 * PATIENCE_S) for reader in readers]
                assert digests == [sha256(data) for data in wanted.values()]
            assert within(60, digest, mount_point / "deflated.safetensors") == sha256(expected(state_dict))
            assert len(within(PATIENCE_S, load_file, paths[0])) == 4


# At rest


def context_switches(pid):
    """Of all threads together that have one name, by that."""
    switches = collections.Counter()
    for thread in Path(f"/proc/{pid}/task").iterdir():
        lines = [line.split() for line in (thread / "status").read_text().splitlines() if "ctxt_switches" in line]
        switches[(thread / "comm").read_text().strip()] += sum(int(number) for _, number in lines)
    return switches


def test_a_mount_at_rest_does_not_wake(mounted, place):
    wanted = checkpoint(place / "source" / "model.pt")
    with mounted(place / "source") as mount_point:
        pid = process_of(mount_point)
        assert (mount_point / "model.safetensors").read_bytes() == wanted
        assert load_file(mount_point / "model.safetensors")
        command_within(PATIENCE_S, "ls", "-lR", mount_point)
        # What was begun is brought to its end first: a promotion, what is told to the kernel to forget.
        deadline = time.monotonic() + 40 + REST_S
        with open("/proc/self/mountinfo") as table:
            changes = select.poll()
            changes.register(table, select.POLLPRI)
            while True:
                changes.poll(0)
                before = context_switches(pid)
                time.sleep(REST_S)
                after = context_switches(pid)
                # Whoever mounts elsewhere on this machine wakes the thread that looks whether that covers the source.
                others = {"watch"} if changes.poll(0) else set()
                woken = {name: after[name] - before.get(name, 0) for name in after if name not in others}
                if not any(woken.values()):
                    break
                assert time.monotonic() < deadline, f"{woken} in {REST_S:g} s"


def test_a_process_that_was_stopped_goes_on(mounted, place):
    """Suspended with its shell, or by a debugger: whoever waits has his answer afterwards."""
    wanted = checkpoint(place / "source" / "model.pt", mib=8)
    with mounted(place / "source") as mount_point:
        with stopped(process_of(mount_point)):
            readers = tasks(digest, [(mount_point / "model.safetensors",)] * 4)
            running = readers.__enter__()
            time.sleep(0.5)
        assert {reader.answer(PATIENCE_S) for reader in running} == {sha256(wanted)}
        readers.__exit__(None, None, None)
