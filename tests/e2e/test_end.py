"""The end of a mount always comes: dead, stopped, stuck in the kernel or in use. And `stfs status` says which."""

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from caches import wait_for
from conftest import is_mounted
from users import NOBODY, fuse_is_open_to_all, needs_root, run_where_fuse_is_open_to_all

HERE = Path(__file__).parent
BYTES = bytes(range(256)) * 4096


def connection(point):
    """Where the kernel shows the connection of a mount."""
    with open("/proc/self/mountinfo") as table:
        device = next(line.split()[2] for line in table if line.split()[4] == str(point))
    return Path("/sys/fs/fuse/connections") / device.partition(":")[2]


class Mount:
    """A mount that a test may treat as it likes."""

    def __init__(self, stfs, directory):
        self.stfs = stfs
        self.source, self.point = directory / "source", directory / "mount"
        self.source.mkdir(parents=True)
        self.point.mkdir()
        (self.source / "file").write_bytes(BYTES)
        self.mount()

    def mount(self, check=True):
        return self.stfs.run("mount", "--cache-dir", self.source.parent / "cache", self.source, self.point, check=check)

    def umount(self, *options, check=True):
        return self.stfs.run("umount", *options, self.point, check=check)

    def status(self):
        """What `stfs status` says, and how it ends."""
        result = self.stfs.run("status", "--json", self.point, check=False)
        return json.loads(result.stdout), result.returncode

    def state(self):
        report, code = self.status()
        assert code == (0 if report["state"] == "live" else 1)
        return report["state"]

    @property
    def pid(self):
        return self.status()[0]["pid"]

    def clear(self):
        """Whatever a failed test left."""
        while is_mounted(self.point):
            if self.umount("--force", check=False).returncode != 0:
                with contextlib.suppress(OSError):
                    (connection(self.point) / "abort").write_text("1")
                subprocess.run(["fusermount3", "-uz", self.point], check=False)


@pytest.fixture
def new_mount(stfs, mounted, tmp_path):
    with contextlib.ExitStack() as ends:

        def new(name):
            mount = Mount(stfs, tmp_path / name)
            ends.callback(mount.clear)
            return mount

        yield new


@pytest.fixture
def mount(new_mount):
    return new_mount("it")


@contextlib.contextmanager
def running(*command, **options):
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=60)


def state_of(pid):
    """The letter of its first thread, or none when it is gone or waits for its parent only."""
    with contextlib.suppress(OSError):
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        if state != "Z" or len(os.listdir(f"/proc/{pid}/task")) > 1:
            return state
    return None


def stop(pid):
    os.kill(pid, signal.SIGSTOP)
    wait_for(lambda: state_of(pid) == "T")


def test_killed_while_a_file_is_open(mount):
    with open(mount.point / "file", "rb"):
        os.kill(mount.pid, signal.SIGKILL)
        assert mount.state() == "dead"
        mount.umount()
        assert not is_mounted(mount.point)
    mount.mount()
    with open(mount.point / "file", "rb"):
        os.kill(mount.pid, signal.SIGKILL)
        assert "cleared" in mount.mount().stderr
    assert mount.state() == "live"
    assert (mount.point / "file").read_bytes() == BYTES


def test_stopped_under_a_reader(mount):
    pid = mount.pid
    stop(pid)
    with running("cat", mount.point / "file") as reader:
        wait_for(lambda: int((connection(mount.point) / "waiting").read_text()) > 0)
        assert mount.state() == "stopped"
        result = mount.mount(check=False)
        assert result.returncode == 1 and f"process {pid} is stopped" in result.stderr, result.stderr
        result = mount.umount(check=False)
        assert result.returncode == 1 and "in use" in result.stderr, result.stderr
        mount.umount("--force")
        assert not is_mounted(mount.point)
        assert reader.wait(timeout=60) != 0
        wait_for(lambda: state_of(pid) is None)


def test_unmounting_says_that_a_process_is_stopped(mount):
    pid = mount.pid
    stop(pid)
    result = mount.umount(check=False)
    assert result.returncode == 1 and f"kill -CONT {pid}" in result.stderr, result.stderr
    assert not is_mounted(mount.point)
    os.kill(pid, signal.SIGCONT)
    wait_for(lambda: state_of(pid) is None)


def test_force_ends_what_is_in_use(mount):
    pid = mount.pid
    directory = os.open(mount.point, os.O_RDONLY)
    try:
        mount.umount("--force")
        with pytest.raises(OSError) as raised:
            os.stat("file", dir_fd=directory)
        assert raised.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    finally:
        os.close(directory)
    assert not is_mounted(mount.point) and state_of(pid) is None


def test_whoever_uses_a_mount_is_named(mount):
    program = mount.source / "a\x1bname"
    shutil.copy(shutil.which("sleep"), program)
    with (
        open(mount.point / "file", "rb") as file,
        running("sleep", "600", cwd=mount.point) as here,
        running(program, "600", stdin=file) as opener,
    ):
        said = mount.umount(check=False).stderr
        assert f"sleep (process {here.pid}: working directory)" in said, said
        assert f"a\\u{{1b}}name (process {opener.pid}: open files)" in said and "\x1b" not in said, said
        assert f"(process {os.getpid()}: open files)" in said, said
        assert "--lazy" in said and "--force" in said, said
    assert is_mounted(mount.point)
    mount.umount()


def test_mapped_files_are_told_from_open_ones(mount):
    program = mount.source / "sleep"
    shutil.copy(shutil.which("sleep"), program)
    with running(mount.point / "sleep", "600") as sleeper:
        wait_for(lambda: "sleep" in Path(f"/proc/{sleeper.pid}/comm").read_text())
        said = mount.umount(check=False).stderr
        assert f"sleep (process {sleeper.pid}: mapped files)" in said, said
    mount.umount()


def test_many_holders_are_counted(mount):
    with contextlib.ExitStack() as ends:
        for _ in range(13):
            ends.enter_context(running("sleep", "600", cwd=mount.point))
        said = mount.umount(check=False).stderr
        assert said.count("working directory") == 10 and "and 3 more" in said, said


def test_every_state_at_once(stfs, new_mount):
    mounts = {state: new_mount(state) for state in ("live", "dead", "stopped")}
    os.kill(mounts["dead"].pid, signal.SIGKILL)
    stop(mounts["stopped"].pid)
    found = json.loads(stfs.run("status", "--json", check=False).stdout)
    found = {report["mountpoint"]: report["state"] for report in found}
    for state, mount in mounts.items():
        assert found[str(mount.point)] == state == mount.state()
    text = stfs.run("status", check=False)
    assert text.returncode == 1
    for mount in mounts.values():
        assert str(mount.point) in text.stdout


@needs_root
def test_the_same_mount_elsewhere(mount, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    pid = mount.pid
    subprocess.run(["mount", "--bind", mount.point, elsewhere], check=True)
    try:
        assert str(elsewhere) in mount.umount().stderr
        assert not is_mounted(mount.point) and is_mounted(elsewhere)
        assert (elsewhere / "file").read_bytes() == BYTES
        mount.stfs.run("umount", elsewhere)
        assert state_of(pid) is None
        mount.mount()
        subprocess.run(["mount", "--bind", mount.point, elsewhere], check=True)
        mount.umount("--force")
        assert not is_mounted(mount.point) and not is_mounted(elsewhere)
    finally:
        while is_mounted(elsewhere):
            subprocess.run(["umount", "-l", elsewhere], check=True)


@needs_root
def test_a_mount_on_top_is_left_alone(mount):
    subprocess.run(["mount", "-t", "tmpfs", "none", mount.point], check=True)
    try:
        assert "tmpfs" in mount.umount(check=False).stderr
        assert is_mounted(mount.point)
    finally:
        subprocess.run(["umount", mount.point], check=True)
    mount.umount()


def test_places_are_found_by_other_paths(mount, tmp_path):
    """Also when nothing behind the mount answers."""
    (tmp_path / "link").symlink_to(mount.point.parent)
    for path, directory in [("link/mount", tmp_path), ("mount/", mount.point.parent), ("../it/./mount", mount.point.parent)]:
        if not is_mounted(mount.point):
            mount.mount()
        stop(mount.pid)
        words = [mount.stfs.binary, "umount", "--force", path]
        result = subprocess.run(words, cwd=directory, capture_output=True, text=True, timeout=60)
        assert result.returncode == 0, (path, result.stderr)
        assert not is_mounted(mount.point), path


def test_what_is_shown_commands_no_terminal(stfs, new_mount):
    mount = new_mount("a\x1b[2Jb")
    assert "a\\u{1b}[2Jb" in (said := stfs.run("status", mount.point).stdout) and "\x1b" not in said
    stop(mount.pid)
    assert "\x1b" not in stfs.run("status", mount.point, check=False).stdout


@contextlib.contextmanager
def stuck(mount, user=0):
    """A server in the place of `mount` whose process cannot end, and a reader that waits for it."""
    mount.umount()
    with running(sys.executable, HERE / "stuck_server.py", mount.point, user) as server:
        wait_for(lambda: is_mounted(mount.point))
        try:
            yield server
        finally:
            mount.clear()


@needs_root
def test_a_mount_that_does_not_answer(mount):
    with stuck(mount) as server:
        assert mount.state() == "not answering"
        result = mount.mount(check=False)
        assert result.returncode == 1 and "already mounted" in result.stderr, result.stderr
        result = mount.umount(check=False)
        assert result.returncode == 1 and "in use" in result.stderr, result.stderr
        mount.umount("--force")
        assert not is_mounted(mount.point)
        server.wait(timeout=60)


@contextlib.contextmanager
def stuck_and_killed(mount):
    with stuck(mount) as server, running("cat", mount.point / "file") as reader:
        threads = Path(f"/proc/{server.pid}/task")

        def waits():
            return any("D" in (thread / "stat").read_text().rpartition(")")[2].split()[0] for thread in threads.iterdir())

        wait_for(waits)
        server.kill()
        wait_for(lambda: state_of(server.pid) == "Z")
        yield server
        assert reader.wait(timeout=60) != 0
        server.wait(timeout=60)


@needs_root
def test_stuck_in_the_kernel(mount):
    with stuck_and_killed(mount):
        assert mount.state() == "dead"
        mount.umount()
        assert not is_mounted(mount.point)


@needs_root
def test_mounting_over_what_is_stuck_in_the_kernel(mount):
    with stuck_and_killed(mount):
        assert "cleared" in mount.mount().stderr
        assert mount.state() == "live"


@needs_root
def test_another_users_mount(mount):
    with stuck(mount, user=NOBODY):
        assert mount.state() == "another user's"
        mount.umount()


@needs_root
def test_an_ordinary_user_ends_his_own(stfs, mounted):
    if not shutil.which("fusermount3"):
        pytest.skip("fusermount3 is missing (package fuse3)")
    if not fuse_is_open_to_all():
        run_where_fuse_is_open_to_all(f"{__file__}::test_an_ordinary_user_ends_his_own")
        return
    with tempfile.TemporaryDirectory(prefix="stfs-nobody-", dir="/tmp") as directory:
        place = Path(directory)
        source, point, program = place / "source", place / "mount", place / "stfs"
        source.mkdir()
        point.mkdir()
        (source / "file").write_bytes(BYTES)
        shutil.copy(stfs.binary, program)
        for path in [place, *place.rglob("*")]:
            os.chown(path, NOBODY, NOBODY)

        def run(*command):
            words = list(map(str, command))
            return subprocess.run(words, user=NOBODY, group=NOBODY, capture_output=True, text=True, timeout=60)

        def state(runner=run):
            return json.loads(runner(program, "status", "--json", point).stdout)

        def root(*command):
            return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60)

        try:
            for end in (signal.SIGSTOP, signal.SIGKILL):
                result = run(program, "mount", "--cache-dir", place / "cache", source, point)
                assert result.returncode == 0, result.stderr
                report = state()
                assert report["state"] == "live"
                assert state(root)["state"] == "another user's"
                os.kill(report["pid"], end)
                wait_for(lambda pid=report["pid"]: state_of(pid) in ("T", None))
                assert state()["state"] == ("stopped" if end == signal.SIGSTOP else "dead")
                result = run(program, "umount", *(["--force"] if end == signal.SIGSTOP else []), point)
                assert result.returncode == 0, result.stderr
                assert not is_mounted(point) and state_of(report["pid"]) is None
        finally:
            if is_mounted(point):
                root(program, "umount", "--force", point)
