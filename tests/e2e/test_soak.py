"""A minute of `scripts/soak`: mounts in use while everything around them changes, another minute each time."""

import subprocess

from conftest import REPOSITORY
from users import needs_root

SECONDS = 60
# Making files, waiting for what is under way, and ending; on a busy machine.
BEYOND_S = 120


@needs_root
def test_a_minute(stfs, mounted):
    command = [REPOSITORY / "scripts" / "soak", "--seconds", SECONDS, "--seed", "random", "--stfs", stfs.binary]
    # pytest shows what was printed, the seed first, where the test fails.
    result = subprocess.run([str(word) for word in command], timeout=SECONDS + BEYOND_S)
    assert result.returncode == 0
