"""The committed example models, mounted as the README does."""

import os

import oracle
import pytest
from conftest import REPOSITORY, derived, read_everything, refusal

EXAMPLES = REPOSITORY / "examples" / "models"
CHECKPOINTS = sorted(
    str(path.relative_to(EXAMPLES))
    for path in EXAMPLES.rglob("*")
    if path.suffix in (".bin", ".ckpt") and path.name != "evil.bin"
)


@pytest.fixture(scope="module")
def mount(mounted):
    with mounted(EXAMPLES) as mount_point:
        yield mount_point


@pytest.mark.parametrize("path", CHECKPOINTS)
def test_converted(path, mount):
    data, _ = oracle.expected(EXAMPLES / path, oracle.discard_names((EXAMPLES / path).parent))
    assert oracle.difference(derived(mount / path).read_bytes(), data) is None


def test_listing(mount):
    assert sorted(os.listdir(mount)) == [
        "checkpoint.safetensors",
        "checkpoint.tensors",
        "evil.bin.refused.txt",
        "tiny-bert-sharded",
        "tiny-clip-native",
        "tiny-gpt2",
        "tiny-gpt2-lora",
        "tiny-stable-diffusion",
    ]
    assert sorted(os.listdir(mount / "tiny-gpt2")) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "model.tensors",
    ]


def test_command_is_refused(mount):
    assert "system" in refusal(mount / "evil.bin")


def test_plain_and_native_files_are_themselves(mount):
    same = ["tiny-gpt2/config.json", "tiny-clip-native/model.safetensors", "tiny-stable-diffusion/model_index.json"]
    for path in same:
        assert (mount / path).read_bytes() == (EXAMPLES / path).read_bytes()


def test_native_file_has_tensors(mount):
    directory = mount / "tiny-clip-native"
    data = (directory / "model.safetensors").read_bytes()
    header, data_start = oracle.header_of(data)
    header.pop("__metadata__", None)
    assert sorted(os.listdir(directory / "model.tensors")) == sorted(header)
    for name, info in header.items():
        begin, end = info["data_offsets"]
        assert (directory / "model.tensors" / name).read_bytes() == data[data_start + begin : data_start + end]


def test_everything_is_readable(mount):
    assert read_everything(mount) > 100


def test_tensors_option(mounted):
    """hide: reachable and not listed; off: not there."""
    name = "transformer.wte.weight"
    with mounted(EXAMPLES, "--tensors", "hide") as mount_point:
        assert "model.tensors" not in os.listdir(mount_point / "tiny-gpt2")
        assert (mount_point / "tiny-gpt2" / "model.tensors" / name).stat().st_size > 0
    with mounted(EXAMPLES, "--tensors", "off") as mount_point:
        assert "model.tensors" not in os.listdir(mount_point / "tiny-gpt2")
        assert not (mount_point / "tiny-gpt2" / "model.tensors").exists()


def test_show_pickles(mounted):
    with mounted(EXAMPLES, "--show-pickles") as mount_point:
        path = "tiny-gpt2/pytorch_model.bin"
        assert (mount_point / path).read_bytes() == (EXAMPLES / path).read_bytes()
        assert derived(mount_point / path).exists()


def test_read_only(mount):
    path = mount / "tiny-gpt2" / "model.safetensors"
    assert path.stat().st_mode & 0o222 == 0
    for attempt in (
        lambda: open(path, "r+b"),
        lambda: open(mount / "new", "wb"),
        lambda: os.unlink(path),
        lambda: os.mkdir(mount / "directory"),
    ):
        with pytest.raises(OSError):
            attempt()


def test_attributes(mount):
    """Times and owner are the checkpoint's."""
    source = (EXAMPLES / "tiny-gpt2" / "pytorch_model.bin").stat()
    shown = (mount / "tiny-gpt2" / "model.safetensors").stat()
    assert (shown.st_mtime_ns, shown.st_uid, shown.st_gid) == (source.st_mtime_ns, source.st_uid, source.st_gid)
