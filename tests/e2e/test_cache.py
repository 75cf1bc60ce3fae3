"""The conversion cache on real mounts: what is promoted and when, what is shown of it, and what can happen to a
cache directory while it is in use. Whatever happens, the bytes are those that a checkpoint without a cache gives."""

import contextlib
import json
import mmap
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import oracle
import pytest
import torch
from caches import MIB, SETTLED_S, SIZE, promoted, settled, tier, wait_for
from filesystems import tmpfs
from safetensors.torch import load_file, save
from users import NOBODY, fuse_is_open_to_all, needs_root, run_where_fuse_is_open_to_all


def tensors(seed, mib=6):
    generator = torch.Generator().manual_seed(seed)
    return {f"layer{index}.weight": torch.randn(mib * MIB // 24, generator=generator) for index in range(6)}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return settled(tmp_path_factory.mktemp("cached") / "model" / "pytorch_model.bin", tensors(1))


@pytest.fixture(scope="module")
def wanted(model):
    """The bytes of the converted file, as safetensors writes them."""
    return save(torch.load(model), {"format": "pt"})


@pytest.fixture(scope="module")
def large_model(tmp_path_factory):
    return settled(tmp_path_factory.mktemp("cached") / "large" / "pytorch_model.bin", tensors(3, mib=200))


def read_mapped(path):
    """All bytes through a mapping whose descriptor is closed, as loaders do it."""
    with open(path, "rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    with mapping:
        return mapping[:]


# What is promoted, and when


def test_what_is_read_through_a_mapping_is_promoted(cache, model, wanted):
    with cache.mounted(model.parent) as mount:
        shown = mount / "model.safetensors"
        assert tier(shown) == "stream"
        assert read_mapped(shown) == wanted
        assert promoted(shown).read_bytes() == wanted
        assert load_file(shown).keys() == torch.load(model).keys()
    assert [path.read_bytes() for path in cache.data()] == [wanted]


def test_what_is_read_whole_is_promoted(cache, model, wanted):
    with cache.mounted(model.parent) as mount:
        shown = mount / "model.safetensors"
        assert shown.read_bytes() == wanted
        promoted(shown)


def test_what_is_read_once_in_pieces_is_not(cache, model):
    with cache.mounted(model.parent) as mount:
        with open(mount / "model.safetensors", "rb") as file:
            for offset in (0, 2 * MIB, 4 * MIB):
                # Around read-ahead, which would read on.
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
                os.pread(file.fileno(), 1000, offset)
        os.stat(mount / "model.safetensors")
        (mount / "model.tensors" / "layer0.weight").read_bytes()
        time.sleep(1.5)
        assert tier(mount / "model.safetensors") == "stream"
    assert not cache.data()


def test_always_promotes_what_is_opened(cache, model):
    with cache.mounted(model.parent, "--promote", "always") as mount:
        with open(mount / "model.safetensors", "rb"):
            promoted(mount / "model.safetensors")


def test_never_promotes_nothing_and_uses_what_is_there(cache, model, wanted):
    with cache.mounted(model.parent, "--promote", "never") as mount:
        shown = mount / "model.safetensors"
        assert read_mapped(shown) == wanted
        time.sleep(1.5)
        assert tier(shown) == "stream"
        cache.warm(model)
        assert promoted(shown).read_bytes() == wanted


def test_what_has_to_be_computed_is_computed_once(cache, tmp_path):
    weights = {name: tensor.reshape(-1, 64).t() for name, tensor in tensors(2).items()}
    model = settled(tmp_path / "model" / "transposed.pt", weights)
    with cache.mounted(model.parent) as mount:
        one = mount / "transposed.tensors" / "layer3.weight"
        expected = weights["layer3.weight"].contiguous().numpy().tobytes()
        assert one.read_bytes() == expected
        shown = promoted(mount / "transposed.safetensors")
        assert one.read_bytes() == expected
        assert oracle.digests(shown.read_bytes()) == oracle.digests(
            save({name: tensor.contiguous() for name, tensor in weights.items()})
        )


def test_readers_of_the_stream_go_on_through_the_switch_and_back(cache, model, wanted):
    with cache.mounted(model.parent) as mount:
        shown = mount / "model.safetensors"
        with open(shown, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapping:
            streamed = os.fstat(file.fileno()).st_ino
            assert mapping[: 2 * MIB] == wanted[: 2 * MIB]
            cache.warm(model)
            promoted(shown)
            with open(shown, "rb") as second:
                assert os.fstat(second.fileno()).st_ino != streamed
                assert second.read() == wanted
            assert mapping[:] == wanted
            assert os.pread(file.fileno(), MIB, 3 * MIB) == wanted[3 * MIB : 4 * MIB]
            cache.run("cache evict", model)
            wait_for(lambda: tier(shown) == "stream")
            assert shown.read_bytes() == wanted
            assert mapping[:] == wanted


def test_plans_and_files_outlive_the_mount(cache, model, wanted):
    with cache.mounted(model.parent) as mount:
        os.stat(mount / "model.safetensors")
    cache.warm(model)
    with cache.mounted(model.parent) as mount:
        assert tier(mount / "model.safetensors") == "promoted"
        assert (mount / "model.safetensors").read_bytes() == wanted
        plans = status(mount)["plans"]
        assert plans["checkpoint"] == 0


# What is told


def status(mount):
    return json.loads((mount / ".stfs" / "status.json").read_text())


def test_status_and_metrics(cache, stfs, model, wanted):
    cache.warm(model)
    with cache.mounted(model.parent) as mount:
        assert ".stfs" not in os.listdir(mount)
        with open(mount / "model.safetensors", "rb"), open(mount / "model.tensors" / "layer0.weight", "rb"):
            found = json.loads(stfs.run("status", "--json", mount).stdout)
            assert sorted(file["tier"] for file in found["open"]) == ["promoted", "promoted"]
            assert {file["source"] for file in found["open"]} == {str(model)}
            assert found["cache"]["files"] == 1 and found["cache"]["bytes"] >= len(wanted)
            text = (mount / ".stfs" / "metrics").read_text()
        metrics = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        assert metrics['stfs_open_files{tier="promoted"}'] == "2"
        assert metrics["stfs_cache_files"] == "1"
        names = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
        assert {name.partition("{")[0] for name in metrics} == names
        plain = stfs.run("status", mount).stdout
        assert str(mount) in plain and str(model.parent) in plain
    assert "no stfs mount" in stfs.run("status", mount.parent, check=False).stderr


def test_cache_commands(cache, model, wanted):
    assert cache.json("cache list") == []
    cache.warm(model.parent)
    [item] = cache.json("cache list")
    assert (item["source"], item["bytes"], item["in_use"]) == (str(model), len(wanted), False)
    assert str(model) in cache.run("cache list").stdout
    assert cache.json("cache status")["files"] == 1
    assert cache.json("cache verify")[0]["verdict"] == "sound"
    with open(cache.data()[0], "r+b") as file:
        file.seek(MIB)
        file.write(b"damaged")
    found = cache.run("cache verify", check=False)
    assert "gone" in found.stdout or found.returncode == 1
    assert cache.json("cache list") == []
    cache.warm(model)
    cache.run("cache evict", cache.json("cache list")[0]["name"])
    assert cache.json("cache list") == []
    assert cache.run("cache evict", model, check=False).returncode == 1
    cache.warm(model)
    cache.run("cache clear")
    assert not cache.data() and cache.json("cache status")["bytes"] == 0


def test_warm_takes_paths_in_a_mount(cache, stfs, model, wanted):
    with cache.mounted(model.parent) as mount:
        # The mount knows its own cache directory.
        stfs.run("warm", *SIZE, mount / "model.safetensors")
        assert promoted(mount / "model.safetensors").read_bytes() == wanted
        assert "was there" in stfs.run("warm", *SIZE, mount).stderr
    assert stfs.run("warm", model.parent / "absent", check=False).returncode == 1


def test_root_is_part_of_what_a_file_is(cache, tmp_path):
    state = {"plain": {"w": torch.arange(1000.0)}, "ema": {"w": torch.arange(1000.0) + 1}}
    model = settled(tmp_path / "model" / "m.pt", state)
    for root in ("plain", "ema"):
        cache.warm("--root", root, model)
    assert len(cache.data()) == 2
    for root in ("plain", "ema"):
        with cache.mounted(model.parent, "--root", root) as mount:
            assert tier(mount / "m.safetensors") == "promoted"
            assert torch.equal(load_file(mount / "m.safetensors")["w"], state[root]["w"])


# Faults


@pytest.mark.parametrize("moment", range(4))
def test_killed_while_promoting(cache, stfs, large_model, moment):
    """kill -9 at any moment: no wrong byte, and nothing is left for good."""
    model = large_model
    wanted = save(torch.load(model), {"format": "pt"})
    command = [stfs.binary, "warm", "--quiet", "--cache-dir", cache.path, *SIZE, model]
    process = subprocess.Popen(list(map(str, command)), env=stfs.environment)
    time.sleep(random.Random(moment).uniform(0.005, 0.4))
    process.send_signal(signal.SIGKILL)
    process.wait()
    with cache.mounted(model.parent, "--promote", "never") as mount:
        assert (mount / "model.safetensors").read_bytes() == wanted
        # What the dead process left is collected when a mount starts.
        wait_for(lambda: not cache.unfinished())
        kept = {item["bytes"] for item in cache.json("cache list")}
        assert kept <= {len(wanted)}
        assert len(cache.data()) == len(kept)
    cache.warm(model)
    assert [path.read_bytes() == wanted for path in cache.data()] == [True]


def test_mount_killed_while_promoting(cache, model, wanted, stfs, tmp_path):
    point = tmp_path / "mount"
    point.mkdir()
    options = ["--cache-dir", cache.path, *SIZE, "--promote", "always"]
    stfs.run("mount", *options, model.parent, point)
    file = os.open(point / "model.safetensors", os.O_RDONLY)
    pid = int(os.getxattr(point, "user.stfs.pid"))
    time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    # A close is told to the process, which is gone; the descriptor is closed all the same.
    with contextlib.suppress(OSError):
        os.close(file)
    stfs.run("mount", *options, model.parent, point)
    try:
        assert (point / "model.safetensors").read_bytes() == wanted
        promoted(point / "model.safetensors")
        assert (point / "model.safetensors").read_bytes() == wanted
    finally:
        stfs.run("umount", point)


def test_promoted_file_outlives_a_killed_mount(cache, model, wanted, stfs, tmp_path):
    """The kernel reads promoted files by itself."""
    if os.geteuid() != 0:
        pytest.skip("FUSE passthrough needs root")
    cache.warm(model)
    point = tmp_path / "mount"
    point.mkdir()
    stfs.run("mount", "--cache-dir", cache.path, *SIZE, model.parent, point)
    try:
        with open(point / "model.safetensors", "rb") as file:
            os.kill(int(os.getxattr(point, "user.stfs.pid")), signal.SIGKILL)
            assert file.read() == wanted
    finally:
        stfs.run("umount", point)


def test_two_mounts_promote_one_file_at_once(cache, model, wanted):
    with contextlib.ExitStack() as stack:
        mounts = [stack.enter_context(cache.mounted(model.parent, "--promote", "always")) for _ in range(3)]
        for mount in mounts:
            stack.enter_context(open(mount / "model.safetensors", "rb"))
        for mount in mounts:
            assert promoted(mount / "model.safetensors").read_bytes() == wanted
    assert len(cache.data()) == 1


def test_source_replaced_during_a_promotion(cache, stfs, tmp_path):
    model = settled(tmp_path / "model" / "pytorch_model.bin", tensors(4, mib=200))
    new = tmp_path / "new.bin"
    torch.save(tensors(5), new)
    command = [stfs.binary, "warm", "--quiet", "--cache-dir", cache.path, *SIZE, model]
    process = subprocess.Popen(list(map(str, command)), env=stfs.environment, stderr=subprocess.DEVNULL)
    wait_for(lambda: cache.unfinished() or process.poll() is not None)
    os.replace(new, model)
    process.wait()
    wanted = save(torch.load(model), {"format": "pt"})
    # Its name moved: that is a change of the inode.
    time.sleep(SETTLED_S)
    with cache.mounted(model.parent) as mount:
        assert (mount / "model.safetensors").read_bytes() == wanted
        assert promoted(mount / "model.safetensors").read_bytes() == wanted


def test_cache_on_a_file_system_that_fills_up(cache, model, wanted):
    with tmpfs(cache.path, "size=3m,mode=700"), cache.mounted(model.parent, "--promote", "always") as mount:
        shown = mount / "model.safetensors"
        assert read_mapped(shown) == wanted
        wait_for(lambda: status(mount)["promotions"]["failed"] == 1)
        assert tier(shown) == "stream"
        assert shown.read_bytes() == wanted
        assert not cache.data() and not cache.unfinished()


def test_cache_on_tmpfs(cache, model, wanted):
    with tmpfs(cache.path, "size=64m,mode=700"), cache.mounted(model.parent, "--promote", "always") as mount:
        read_mapped(mount / "model.safetensors")
        assert read_mapped(promoted(mount / "model.safetensors")) == wanted


def test_cache_on_overlayfs(cache, model, wanted, tmp_path):
    with tmpfs(tmp_path / "layers", "size=64m,mode=700") as layers:
        for name in ("lower", "upper", "work"):
            (layers / name).mkdir()
        cache.path.mkdir()
        options = f"lowerdir={layers}/lower,upperdir={layers}/upper,workdir={layers}/work"
        if subprocess.run(["mount", "-t", "overlay", "-o", options, "stfs-test", cache.path]).returncode != 0:
            pytest.skip("no overlayfs here")
        try:
            with cache.mounted(model.parent, "--promote", "always") as mount:
                read_mapped(mount / "model.safetensors")
                assert read_mapped(promoted(mount / "model.safetensors")) == wanted
        finally:
            subprocess.run(["umount", "-l", cache.path], check=True)


def test_cache_directory_deleted_while_mounted(cache, model, wanted):
    cache.warm(model)
    with cache.mounted(model.parent) as mount:
        shown = mount / "model.safetensors"
        with open(shown, "rb") as file:
            shutil.rmtree(cache.path)
            assert file.read() == wanted
        wait_for(lambda: tier(shown) == "stream")
        assert read_mapped(shown) == wanted
        # It is made again.
        assert promoted(shown).read_bytes() == wanted


def test_cache_directory_made_read_only(cache, model, wanted):
    with tmpfs(cache.path, "size=64m,mode=700"), cache.mounted(model.parent, "--promote", "always") as mount:
        subprocess.run(["mount", "-o", "remount,ro", cache.path], check=True)
        shown = mount / "model.safetensors"
        assert read_mapped(shown) == wanted
        wait_for(lambda: status(mount)["promotions"]["failed"] == 1)
        assert shown.read_bytes() == wanted


@pytest.mark.parametrize("part", ["record", "data", "plan"])
def test_cache_corrupted_while_mounted(cache, model, wanted, part):
    """A bit flipped here and there in every part of the cache: the bytes stay right."""
    cache.warm(model)
    chance = random.Random(part)
    with cache.mounted(model.parent) as mount:
        shown = mount / "model.safetensors"
        for _ in range(6):
            promoted(shown) if part != "plan" else os.stat(shown)
            [data] = cache.data()
            files = {
                "record": [data.with_name(data.name + ".record")],
                "data": [data],
                "plan": [path for path in (cache.path / "plans").rglob("*") if path.is_file()],
            }[part]
            for path in files:
                with open(path, "r+b") as file:
                    at = chance.randrange(path.stat().st_size)
                    file.seek(at)
                    byte = file.read(1)[0]
                    file.seek(at)
                    file.write(bytes([byte ^ 1 << chance.randrange(8)]))
            time.sleep(1.1)
            assert read_mapped(shown) == wanted
    with cache.mounted(model.parent) as mount:
        assert (mount / "model.safetensors").read_bytes() == wanted


def test_eviction_spares_what_is_mapped(cache, tmp_path):
    models = [settled(tmp_path / f"model{index}" / "m.pt", tensors(10 + index)) for index in range(3)]
    first = save(torch.load(models[0]), {"format": "pt"})
    options = ["--cache-size", str(len(first) * 2 + MIB)]
    cache.warm(models[0], size=options)
    with cache.mounted(models[0].parent) as mount:
        with open(promoted(mount / "m.safetensors"), "rb") as file:
            mapping = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        with mapping:
            for model in models[1:]:
                cache.warm(model, size=options)
            kept = {item["source"]: item["in_use"] for item in cache.json("cache list")}
            assert kept == {str(models[0]): True, str(models[2]): False}
            refused = cache.run("cache evict", models[0], check=False)
            assert refused.returncode == 1 and "in use" in refused.stderr
            cache.run("cache clear")
            assert mapping[:] == first
            assert [item["source"] for item in cache.json("cache list")] == [str(models[0])]


def test_a_changed_source_is_never_served_from_the_cache(cache, tmp_path):
    model = settled(tmp_path / "model" / "m.pt", tensors(20))
    cache.warm(model)
    with cache.mounted(model.parent) as mount:
        shown = promoted(mount / "m.safetensors")
        old = shown.read_bytes()
        with open(shown, "rb") as file:
            torch.save(tensors(21), model)
            new = save(torch.load(model), {"format": "pt"})
            wait_for(lambda: shown.read_bytes() == new)
            assert file.read() == old


def test_a_cache_directory_that_others_may_write_to_is_not_used(cache, model, wanted):
    cache.path.mkdir()
    cache.path.chmod(0o777)
    with cache.mounted(model.parent, "--promote", "always") as mount:
        assert read_mapped(mount / "model.safetensors") == wanted
        assert status(mount)["cache"] is None
    assert not list(cache.path.iterdir())
    assert "chmod go-w" in cache.run("cache status", check=False).stderr


def test_private(cache, model):
    cache.warm(model)
    for path in [cache.path, *cache.path.rglob("*")]:
        mode = path.stat().st_mode & 0o777
        assert mode == (0o700 if path.is_dir() else 0o600), path
    assert (cache.path / "CACHEDIR.TAG").read_text().startswith("Signature: 8a477f597d28d172789f06886806bc55")


@needs_root
def test_an_ordinary_user_has_the_cache_without_passthrough(stfs, mounted):
    """Through fusermount3 and without CAP_SYS_ADMIN: what is promoted is read through the background process."""
    if not shutil.which("fusermount3"):
        pytest.skip("fusermount3 is missing (package fuse3)")
    if not fuse_is_open_to_all():
        run_where_fuse_is_open_to_all(f"{__file__}::test_an_ordinary_user_has_the_cache_without_passthrough")
        return
    with tempfile.TemporaryDirectory(prefix="stfs-nobody-", dir="/tmp") as directory:
        place = Path(directory)
        model = settled(place / "model" / "m.pt", tensors(30))
        expected = save(torch.load(model), {"format": "pt"})
        program = place / "stfs"
        shutil.copy(stfs.binary, program)
        point, kept = place / "mount", place / "cache"
        point.mkdir()
        for path in [place, *place.rglob("*")]:
            os.chown(path, NOBODY, NOBODY)

        def run(*command):
            words = list(map(str, command))
            result = subprocess.run(words, user=NOBODY, group=NOBODY, capture_output=True, timeout=60)
            assert result.returncode == 0, (words, result.stderr)
            return result.stdout

        options = ["--cache-dir", kept, *SIZE, "--promote", "always"]
        run(program, "mount", *options, place / "model", point)
        try:
            shown = point / "m.safetensors"
            assert run("cat", shown) == expected

            def is_promoted():
                assert run("cat", shown) == expected
                return json.loads(run(program, "status", "--json", point))["opens"]["promoted"] > 0

            wait_for(is_promoted)
            found = json.loads(run(program, "status", "--json", point))
            # The kernel did not read it by itself.
            assert found["served_bytes"]["promoted"] >= len(expected)
        finally:
            run(program, "umount", point)
