"""Becoming somebody else: the second user of a mount that is shared, and an ordinary user with mounts of his own."""

import contextlib
import os
import pickle
import subprocess
import sys
import tempfile

import pytest

# Neither root nor the owner of anything.
NOBODY = 65534
# Somebody who owns things, and is not NOBODY.
SOMEBODY = 12345

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


def as_user(user, directory, function):
    """What `function` returns, or raises, in a process of `user` whose working directory is `directory`.

    The directory is entered first: the user may not be able to walk there.
    """
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(ours)
            os.chdir(directory)
            os.setgroups([])
            os.setgid(user)
            os.setuid(user)
            answer = True, function()
        except BaseException as error:
            answer = False, error
        with os.fdopen(theirs, "wb") as pipe, contextlib.suppress(BaseException):
            pickle.dump(answer, pipe)
        os._exit(0)
    os.close(theirs)
    with os.fdopen(ours, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    assert answer, "the other user's process ended without an answer"
    returned, value = pickle.loads(answer)
    if returned:
        return value
    raise value


# In a mount namespace of its own; $1 is an empty directory, the rest the command.
OPEN_TO_ALL = """
mknod "$1/fuse" c 10 229 && chmod 666 "$1/fuse" && mount --bind "$1/fuse" /dev/fuse || exit 77
shift; exec "$@"
"""


def fuse_is_open_to_all():
    return os.stat("/dev/fuse").st_mode & 0o006 == 0o006


def run_where_fuse_is_open_to_all(test):
    """Runs a test by its node id once more, in a namespace where ordinary users may mount."""
    if os.environ.get("STFS_NAMESPACE"):
        pytest.skip("/dev/fuse stays closed to ordinary users")
    with tempfile.TemporaryDirectory() as directory:
        command = ["unshare", "--mount", "sh", "-c", OPEN_TO_ALL, "sh", directory]
        command += [sys.executable, "-m", "pytest", "-q", test]
        environment = {**os.environ, "STFS_NAMESPACE": "1"}
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
    if result.returncode == 77:
        pytest.skip(f"no namespace with an open /dev/fuse: {result.stderr}")
    assert "1 passed" in result.stdout, result.stdout + result.stderr
