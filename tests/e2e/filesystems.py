"""File systems for tests to put sources and caches on: images in loop devices, tmpfs, overlays, and sshfs by way of
slow_sftp.

Each is a context manager that mounts and unmounts, so that a test can mount the same thing twice. What is not
installed is a visible skip.
"""

import contextlib
import os
import shutil
import subprocess

import pytest
import slow_sftp

# Program: the Debian package that has it.
PACKAGES = {
    "mksquashfs": "squashfs-tools",
    "mkfs.erofs": "erofs-utils",
    "mkfs.btrfs": "btrfs-progs",
    "mke2fs": "e2fsprogs",
}
# The same in all images, so that these differ in nothing but what is in their files.
UUID = "01234567-89ab-cdef-0123-456789abcdef"


def needs_root():
    if os.geteuid() != 0:
        pytest.skip("mounting a file system needs root")


def needs(program):
    needs_root()
    if not shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"):
        pytest.skip(f"{program} is missing (package {PACKAGES[program]})")


def needs_sshfs():
    if missing := slow_sftp.missing():
        pytest.skip(missing)


def run(*command):
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert result.returncode == 0, (command, result.stdout + result.stderr)


def squashfs(content, image):
    """An image of a directory that tells nothing of when it was made."""
    needs("mksquashfs")
    run("mksquashfs", content, image, "-all-time", 0, "-mkfs-time", 0, "-no-progress", "-noI", "-noD", "-noF")
    return image


def erofs(content, image):
    """An image of a directory that tells nothing of when it was made, with the UUID of all others."""
    needs("mkfs.erofs")
    run("mkfs.erofs", "--quiet", "-T", 0, "-U", UUID, image, content)
    return image


def btrfs(image):
    """An empty one."""
    needs("mkfs.btrfs")
    with open(image, "wb") as file:
        file.truncate(128 << 20)
    run("mkfs.btrfs", "--quiet", image)
    return image


def whole_seconds(image):
    """An empty one whose inodes have no room for parts of a second: ext2 with inodes of 128 bytes."""
    needs("mke2fs")
    with open(image, "wb") as file:
        file.truncate(64 << 20)
    run("mke2fs", "-q", "-t", "ext2", "-I", 128, image)
    return image


@contextlib.contextmanager
def mounted(image, mount_point, *options):
    """An image in a loop device."""
    needs_root()
    os.makedirs(mount_point, exist_ok=True)
    command = ["mount", "-o", ",".join(["loop", *options]), image, mount_point]
    mount = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    for lacking in ("unknown filesystem type", "loop device"):
        if lacking in mount.stderr:
            pytest.skip(f"this kernel cannot mount it: {mount.stderr}")
    assert mount.returncode == 0, mount.stderr
    try:
        yield mount_point
    finally:
        # A background process may hold it for a moment longer: it is out of the way, and gone when that ends.
        run("umount", "-l", mount_point)


@contextlib.contextmanager
def tmpfs(mount_point, options):
    needs_root()
    mount_point.mkdir(parents=True, exist_ok=True)
    run("mount", "-t", "tmpfs", "-o", options, "stfs-test", mount_point)
    try:
        yield mount_point
    finally:
        run("umount", "-l", mount_point)


@contextlib.contextmanager
def overlay(layers, mount_point):
    """Over two directories that are made in `layers`: `lower` and `upper`."""
    needs_root()
    for directory in (layers / "lower", layers / "upper", layers / "work", mount_point):
        directory.mkdir(parents=True, exist_ok=True)
    options = f"lowerdir={layers}/lower,upperdir={layers}/upper,workdir={layers}/work"
    command = ["mount", "-t", "overlay", "-o", options, "stfs-test", mount_point]
    mount = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if mount.returncode != 0:
        pytest.skip(f"no overlay can be mounted here: {mount.stderr}")
    try:
        yield mount_point
    finally:
        run("umount", "-l", mount_point)
