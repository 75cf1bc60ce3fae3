"""Who reads through a shared mount gets what he could read without it, whatever is moved about under the mount.

The mount is root's, with --allow-other; `as_user` looks at it as somebody else does. What is private holds other
values and words than what is public, so one byte of it is seen wherever it comes out.
"""

import functools
import os
import pickle
import re
import shutil
import stat
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy
import oracle
import pytest
import torch
import torch.distributed.checkpoint as dcp
from users import NOBODY, SOMEBODY, as_user, needs_root

pytestmark = [needs_root, pytest.mark.filterwarnings("ignore")]

PUBLIC, PRIVATE = 0x01010101, 0x02020202
PUBLIC_WORDS, PRIVATE_WORDS = b"for everybody", b"for nobody else"
ELEMENTS = 1000
VISIBLE_S = 1.2
OTHERS = stat.S_IRWXG | stat.S_IRWXO


def fill(directory, value, words, owner=0):
    """A checkpoint and a text that everybody may read who gets to them."""
    directory.mkdir(parents=True, exist_ok=True)
    torch.save({"weight": torch.full((ELEMENTS,), value, dtype=torch.int32)}, directory / "model.bin")
    (directory / "notes.txt").write_bytes(words)
    for path in directory.iterdir():
        path.chmod(0o644)
        os.chown(path, owner, owner)
    os.chown(directory, owner, owner)
    return directory


def public(directory):
    fill(directory, PUBLIC, PUBLIC_WORDS).chmod(0o755)
    return directory


def private(directory, owner=0):
    fill(directory, PRIVATE, PRIVATE_WORDS, owner).chmod(0o700)
    return directory


@pytest.fixture
def source(tmp_path):
    return public(tmp_path / "parent" / "source")


def values(data):
    """The distinct elements in a converted file, or in a tensor of its own."""
    data_start = oracle.header_of(data)[1] if data[8:9] == b"{" else 0
    return set(numpy.unique(numpy.frombuffer(data, dtype="<i4", offset=data_start)).tolist())


def read(path):
    return Path(path).read_bytes()


def everything_readable(directory="."):
    """The contents of all that can be walked to and read."""
    found = {}
    for parent, _, names in os.walk(directory):
        for name in names:
            path = os.path.join(parent, name)
            try:
                found[os.path.relpath(path, directory)] = read(path)
            except OSError:
                continue
    return found


def shows_private(contents):
    return [
        path for path, data in contents.items() if PRIVATE_WORDS in data or PRIVATE.to_bytes(4, "little") * 2 in data
    ]


def refusal(mount_point, name):
    assert not (mount_point / name).exists()
    return (mount_point / f"{name}.refused.txt").read_text()


# The source itself


def test_the_source_is_replaced_by_a_link(source, tmp_path, cache):
    """The mount is of the directory that was named then, and not of its name."""
    secret = private(tmp_path / "secret")
    with cache.mounted(source, "--allow-other", "--promote", "always") as mount_point:
        assert values(read(mount_point / "model.safetensors")) == {PUBLIC}
        source.rename(tmp_path / "parent" / "moved")
        source.symlink_to(secret)
        torch.save({"weight": torch.full((ELEMENTS,), PRIVATE, dtype=torch.int32)}, secret / "second.bin")
        for _ in range(2):
            time.sleep(VISIBLE_S)
            contents = as_user(NOBODY, mount_point, everything_readable)
            assert not shows_private(contents)
            assert values(contents["model.safetensors"]) == {PUBLIC}
            assert contents["notes.txt"] == PUBLIC_WORDS
            assert set(contents) == {"model.safetensors", "model.tensors/weight", "notes.txt"}
        # Nor is it for root: what is not shown is not looked at.
        assert not (mount_point / "second.safetensors").exists()
    assert all(values(read(path)) == {PUBLIC} for path in cache.data())


# Changed under way

# So many that none is looked up so often that the kernel answers for it.
NAMES = 200
EXCHANGES = 10_000
RENAME_EXCHANGE, AT_FDCWD = 2, -100


EXCHANGE_AGAIN_AND_AGAIN = f"""
import ctypes, os, sys, time
libc = ctypes.CDLL(None)
first, second = map(os.fsencode, sys.argv[1:])
for _ in range({EXCHANGES}):
    assert libc.renameat2({AT_FDCWD}, first, {AT_FDCWD}, second, {RENAME_EXCHANGE}) == 0
    time.sleep(0.0001)
"""


def many(directory, value, words):
    """A directory in which there is much to look up."""
    fill(directory, value, words)
    for index in range(NAMES):
        shutil.copy(directory / "notes.txt", directory / f"{index:03}.txt")
        shutil.copy(directory / "model.bin", directory / f"{index:03}.pt")
    return directory


@pytest.mark.parametrize("kind", ["link-out", "link-in", "directory"])
def test_a_directory_is_exchanged_for_a_private_one(kind, source, tmp_path, mounted):
    """Ten thousand times while somebody reads: he gets the right bytes or an error, and never a private one."""
    many(source / "sub", PUBLIC, PUBLIC_WORDS).chmod(0o755)
    other = source / "other"
    if kind == "directory":
        many(other, PRIVATE, PRIVATE_WORDS).chmod(0o700)
    else:
        secret = (tmp_path if kind == "link-out" else source) / "secret"
        many(secret, PRIVATE, PRIVATE_WORDS).chmod(0o700)
        other.symlink_to(secret)

    with mounted(source, "--allow-other", "--promote", "never") as mount_point:
        writer = subprocess.Popen([sys.executable, "-c", EXCHANGE_AGAIN_AND_AGAIN, source / "sub", other])

        def look():
            right, wrong = 0, []
            while os.path.exists(f"/proc/{writer.pid}/exe") or right == 0:
                for index in range(NAMES):
                    for place in ("sub", "other"):
                        for name, wanted in (
                            (f"{index:03}.txt", PUBLIC_WORDS),
                            (f"{index:03}.safetensors", None),
                            (f"{index:03}.tensors/weight", None),
                        ):
                            try:
                                data = read(f"{place}/{name}")
                            except OSError:
                                continue
                            if data == wanted or (wanted is None and values(data) == {PUBLIC}):
                                right += 1
                            else:
                                wrong.append((f"{place}/{name}", data[-16:]))
                if wrong:
                    break
            return right, wrong

        try:
            right, wrong = as_user(NOBODY, mount_point, look)
        finally:
            finished = writer.wait()
        assert not wrong
        assert right > 0 and finished == 0


# Links


def test_a_link_through_a_private_directory(source, mounted):
    """Links are followed with the rights of the mount's process: only where everybody could go is that no matter."""
    theirs = private(source / "theirs", SOMEBODY)
    public(source / "shared")
    (source / "link.txt").symlink_to("theirs/notes.txt")
    (source / "link.bin").symlink_to("theirs/model.bin")
    (source / "directory").symlink_to("theirs")
    (source / "ok.txt").symlink_to("shared/notes.txt")
    (source / "ok.bin").symlink_to("shared/model.bin")
    (source / "around.txt").symlink_to("theirs/../shared/notes.txt")
    (theirs / "near.txt").symlink_to("notes.txt")
    (theirs / "near.bin").symlink_to("model.bin")
    with mounted(source, "--allow-other") as mount_point:
        for name in ("link.txt", "link.bin", "around.txt"):
            assert re.search("directory that not everybody may enter", refusal(mount_point, name)), name
        assert not (mount_point / "link.safetensors").exists()

        # A link to the directory itself may be refused, or shown as the directory that it is: nobody gets in.
        contents = as_user(NOBODY, mount_point, everything_readable)
        assert not shows_private(contents)
        assert contents["ok.txt"] == PUBLIC_WORDS
        assert values(contents["ok.safetensors"]) == {PUBLIC}

        # Whoever looks at these has entered the directory already.
        for user in (0, SOMEBODY):
            contents = as_user(user, mount_point / "theirs", everything_readable)
            assert contents["near.txt"] == PRIVATE_WORDS
            assert values(contents["near.safetensors"]) == {PRIVATE}


def links_out(source, outside):
    (source / "out.txt").symlink_to(outside / "notes.txt")
    (source / "out.bin").symlink_to(os.path.relpath(outside / "model.bin", source))
    (source / "out").symlink_to(outside)


@pytest.mark.parametrize("option", ["--allow-other", "--allow-root"])
def test_links_out_of_a_shared_mount_are_refused(option, source, tmp_path, mounted):
    links_out(source, public(tmp_path / "outside"))
    with mounted(source, option) as mount_point:
        for name in ("out.txt", "out.bin", "out"):
            assert "out of the mounted directory" in refusal(mount_point, name)
        assert not (mount_point / "out.safetensors").exists()


def test_links_lead_anywhere_in_a_mount_of_ones_own(source, tmp_path, mounted):
    links_out(source, private(tmp_path / "outside"))
    with mounted(source) as mount_point:
        assert read(mount_point / "out.txt") == PRIVATE_WORDS
        assert values(read(mount_point / "out.safetensors")) == {PRIVATE}
        assert values(read(mount_point / "out" / "model.safetensors")) == {PRIVATE}


def test_all_kinds_of_links(source, mounted):
    """In a shared mount: followed where they stay inside, refused in words where they do not."""
    public(source / "shared")
    private(source / "theirs", SOMEBODY)
    inside = {
        "absolute.txt": source / "shared" / "notes.txt",
        "absolute-directory": source / "shared",
        "twice.txt": "absolute.txt",
        "roundabout.txt": "shared/./../shared/notes.txt",
    }
    # A directory of a living process is a path like any other to whoever follows it by its text.
    with subprocess.Popen(["sleep", "60"], cwd=source / "theirs") as process:
        refused = {
            "circle.txt": "circle2.txt",
            "circle2.txt": "circle.txt",
            "itself.txt": "itself.txt",
            "root.txt": "/proc/1/root/etc/passwd",
            "self-root.txt": "/proc/self/root/etc/passwd",
            "descriptor.txt": "/proc/self/fd/3",
            "environment.txt": "/proc/self/environ",
            "device.txt": "/dev/fd/0",
            "cwd.txt": f"/proc/{process.pid}/cwd/notes.txt",
            "cwd.bin": f"/proc/{process.pid}/cwd/model.bin",
            "password.txt": "/etc/passwd",
            "up.txt": "../" * 40 + "etc/passwd",
            "dangling.txt": "nowhere.txt",
        }
        for name, target in {**inside, **refused}.items():
            (source / name).symlink_to(target)
        try:
            with mounted(source, "--allow-other") as mount_point:
                contents = as_user(NOBODY, mount_point, everything_readable)
                assert not shows_private(contents)
                for name in ("absolute.txt", "twice.txt", "roundabout.txt", "absolute-directory/notes.txt"):
                    assert contents[name] == PUBLIC_WORDS, name
                for name in refused:
                    assert len(refusal(mount_point, name).split()) > 5, name
                assert not (mount_point / "cwd.safetensors").exists()
        finally:
            process.kill()


# What is made of several files


@pytest.fixture
def distributed(tmp_path):
    source = tmp_path / "models"
    source.mkdir(mode=0o755)
    state = {"weight": torch.full((ELEMENTS,), PRIVATE, dtype=torch.int32)}
    dcp.save(state, checkpoint_id=source / "step1", no_dist=True)
    for path in (source / "step1").iterdir():
        path.chmod(0o644)
    (source / "step1").chmod(0o755)
    return source


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def assert_forbidden(mount_point):
    for path in ("step1/model.safetensors", "step1/model.tensors/weight"):
        with pytest.raises(PermissionError):
            as_user(NOBODY, mount_point, functools.partial(read, path))


def test_a_distributed_checkpoint_has_the_rights_that_all_its_files_give(distributed, mounted):
    part = distributed / "step1" / "__0_0.distcp"

    def look():
        return [
            path for path in ("model.safetensors", "model.tensors/weight") if values(read(f"step1/{path}")) == {PRIVATE}
        ]

    with mounted(distributed, "--allow-other") as mount_point:
        shown = mount_point / "step1" / "model.safetensors"
        tensor = mount_point / "step1" / "model.tensors" / "weight"
        assert mode(shown) == mode(tensor) == 0o444
        assert len(as_user(NOBODY, mount_point, look)) == 2

        part.chmod(0o600)
        time.sleep(VISIBLE_S)
        assert mode(shown) == mode(tensor) == 0o400
        assert_forbidden(mount_point)

        # Of two owners: everybody may read the one, so the rights are those of the other.
        part.chmod(0o640)
        os.chown(part, SOMEBODY, SOMEBODY)
        time.sleep(VISIBLE_S)
        assert mode(shown) == mode(tensor) == 0o440
        assert (shown.stat().st_uid, shown.stat().st_gid) == (SOMEBODY, SOMEBODY)
        assert_forbidden(mount_point)
        (distributed / "step1" / ".metadata").chmod(0o640)
        time.sleep(VISIBLE_S)
        assert mode(shown) == mode(tensor) == 0
        assert_forbidden(mount_point)
        (distributed / "step1" / ".metadata").chmod(0o644)
    part.chmod(0o600)
    with mounted(distributed, "--allow-other") as mount_point:
        assert mode(mount_point / "step1" / "model.safetensors") & OTHERS == 0


@pytest.mark.parametrize("closed", ["directory", "part"])
def test_a_copied_index_with_links_to_parts_of_somebody_else(closed, distributed, mounted):
    theirs, mine = distributed / "step1", distributed / "mine"
    mine.mkdir(mode=0o755)
    shutil.copy(theirs / ".metadata", mine)
    (mine / "__0_0.distcp").symlink_to("../step1/__0_0.distcp")
    for path in (theirs, theirs / "__0_0.distcp"):
        os.chown(path, SOMEBODY, SOMEBODY)
    if closed == "directory":
        theirs.chmod(0o700)
    else:
        (theirs / "__0_0.distcp").chmod(0o600)
    for path in (mine, mine / ".metadata"):
        os.chown(path, NOBODY, NOBODY)
    with mounted(distributed, "--allow-other") as mount_point:
        contents = as_user(NOBODY, mount_point, lambda: everything_readable("mine"))
        assert not shows_private(contents)
        assert all(name.endswith(".refused.txt") for name in contents)


def access_list(path, *entries):
    """Sets the access control list of a file: tags, permissions and ids as in linux/posix_acl_xattr.h."""
    packed = b"".join(struct.pack("<HHI", *entry) for entry in entries)
    try:
        os.setxattr(path, "system.posix_acl_access", struct.pack("<I", 2) + packed)
    except OSError as error:
        pytest.skip(f"no access control lists in {path.parent}: {error}")


def deny(path, user, others):
    """Everybody may do what `others` says, but for one user, who may do nothing."""
    nobody = 0xFFFFFFFF
    entries = ((1, 7, nobody), (2, 0, user), (4, others, nobody), (0x10, others, nobody), (0x20, others, nobody))
    access_list(path, *entries)


def test_access_control_lists_hold_in_the_mount(source, mounted):
    private(source / "listed")
    directory = public(source / "closed")
    (source / "listed").chmod(0o755)
    for name in ("model.bin", "notes.txt"):
        (source / "listed" / name).chmod(0o644)
        deny(source / "listed" / name, NOBODY, 4)
    (source / "link.txt").symlink_to("closed/notes.txt")
    deny(directory, NOBODY, 5)
    with pytest.raises(PermissionError):
        as_user(NOBODY, source, functools.partial(read, "listed/notes.txt"))
    with mounted(source, "--allow-other") as mount_point:
        paths = ("listed/model.safetensors", "listed/model.tensors/weight", "listed/notes.txt", "closed/notes.txt")
        for path in paths:
            with pytest.raises(PermissionError):
                as_user(NOBODY, mount_point, functools.partial(read, path))
        assert "link.txt.refused.txt" in os.listdir(mount_point)
        assert "not everybody" in (mount_point / "link.txt.refused.txt").read_text()
        assert (mount_point / "listed" / "notes.txt").read_bytes() == PRIVATE_WORDS


def test_a_refusal_tells_no_more_than_the_file(source, mounted):
    (source / "m.pt").write_bytes(pickle.dumps(functools.partial(os.getcwd)))
    (source / "m.pt").chmod(0o600)
    with mounted(source, "--allow-other") as mount_point:
        assert "m.pt" in (mount_point / "m.pt.refused.txt").read_text()
        with pytest.raises(PermissionError):
            as_user(NOBODY, mount_point, functools.partial(read, "m.pt.refused.txt"))


def test_shards_of_one_checkpoint_keep_their_own_rights(source, mounted):
    """The directory of the tensors of all shards is for those who may read them all."""
    model = source / "sharded"
    model.mkdir(mode=0o755)
    weight_map = {}
    for number, value, rights in ((1, PUBLIC, 0o644), (2, PRIVATE, 0o600)):
        path = model / f"pytorch_model-{number:05}-of-00002.bin"
        torch.save({f"part{number}": torch.full((ELEMENTS,), value, dtype=torch.int32)}, path)
        path.chmod(rights)
        weight_map[f"part{number}"] = path.name
    index = f'{{"metadata": {{}}, "weight_map": {weight_map}}}'.replace("'", '"')
    (model / "pytorch_model.bin.index.json").write_text(index)
    with mounted(source, "--allow-other") as mount_point:
        contents = as_user(NOBODY, mount_point, lambda: everything_readable("sharded"))
        assert not shows_private(contents)
        assert values(contents["model-00001-of-00002.tensors/part1"]) == {PUBLIC}
        assert not any(path.startswith(("model.tensors/", "model-00002")) for path in contents)
        merged = mount_point / "sharded" / "model.tensors"
        assert sorted(os.listdir(merged)) == ["part1", "part2"]
        assert mode(merged) == 0o500


# What the mount says of itself


def test_the_control_directory_is_the_owners(source, mounted):
    with mounted(source, "--allow-other") as mount_point, open(mount_point / "model.safetensors", "rb"):
        for attempt in (
            lambda: os.listdir(".stfs"),
            lambda: read(".stfs/status.json"),
            lambda: read(".stfs/metrics"),
        ):
            with pytest.raises(PermissionError):
                as_user(NOBODY, mount_point, attempt)
        assert {"metrics", "status.json"} <= set(os.listdir(mount_point / ".stfs"))
        assert b"model" in read(mount_point / ".stfs" / "status.json")
        assert read(mount_point / ".stfs" / "metrics")


# Files that are written


def test_what_is_converted_has_the_rights_that_the_mount_shows(distributed, stfs, tmp_path, mounted):
    part = distributed / "step1" / "__0_0.distcp"
    for name, rights in (("open", 0o644), ("group", 0o640), ("own", 0o600)):
        torch.save({"weight": torch.arange(10)}, distributed / f"{name}.pt")
        (distributed / f"{name}.pt").chmod(rights)
    part.chmod(0o600)
    stfs.convert(distributed, tmp_path / "directory")
    stfs.convert(distributed / "step1", tmp_path / "step1")
    stfs.convert(distributed / "step1" / ".metadata", tmp_path / "alone.safetensors")
    stfs.convert(distributed / "own.pt", tmp_path / "own.safetensors")
    with mounted(distributed) as mount_point:
        for name, wanted in (("open", 0o444), ("group", 0o440), ("own", 0o400), ("step1/model", 0o400)):
            assert mode(mount_point / f"{name}.safetensors") == wanted
            # The owner may write to what is his.
            written = mode(tmp_path / "directory" / f"{name}.safetensors")
            assert written & 0o444 == wanted and written & 0o022 == 0, name
    assert mode(tmp_path / "step1" / "model.safetensors") & 0o444 == 0o400
    assert mode(tmp_path / "own.safetensors") & 0o444 == 0o400
    assert mode(tmp_path / "alone.safetensors") & 0o444 == 0o400


def test_directories_that_are_converted_stay_closed(distributed, stfs, tmp_path):
    (distributed / "step1").chmod(0o700)
    stfs.convert(distributed, tmp_path / "converted")
    assert mode(tmp_path / "converted" / "step1") == 0o700
    assert mode(tmp_path / "converted") == 0o755
