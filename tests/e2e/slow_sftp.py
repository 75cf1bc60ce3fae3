"""A distant server on this machine: OpenSSH's sftp-server behind a delay, with its requests counted, for sshfs.

sshfs starts this file where it would start ssh. Each reply is held back for the delay from when it was ready, so
requests that are under way together wait together, as on a long wire.

    with SlowServer(directory, delay_s=0.03) as server, server.mounted(source, mount_point):
        ...
        server.reads, server.bytes_read

The end-to-end tests and the benchmark use it.
"""

import contextlib
import mmap
import os
import queue
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

SFTP_SERVERS = ["/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server", "/usr/lib/ssh/sftp-server"]

# Packet types of the protocol (draft-ietf-secsh-filexfer-02, section 3).
READ, DATA = 5, 103
TYPES = 256
# After the packet's length: its type, the request's number and the length of the data.
DATA_HEAD = 1 + 4 + 4
# The counters: packets of each type, requests and replies alike, then bytes in replies to READ.
BYTES_READ = TYPES
COUNTERS = TYPES + 1


def missing():
    """What is not installed of what this needs, or None."""
    if not shutil.which("sshfs"):
        return "sshfs is missing (package sshfs)"
    if not sftp_server():
        return "sftp-server is missing (package openssh-sftp-server)"
    return None


def sftp_server():
    return next((path for path in SFTP_SERVERS if os.path.exists(path)), None)


class SlowServer:
    """Counts over all its mounts. `directory` is where the counters are kept."""

    def __init__(self, directory, delay_s=0.0):
        self._delay_s = delay_s
        self._counters = Path(directory) / f"sftp-{os.getpid()}-{id(self)}"

    def __enter__(self):
        self._counters.write_bytes(bytes(8 * COUNTERS))
        self._file, self._mapping, self._counts = map_counters(self._counters)
        return self

    def __exit__(self, *_):
        self._counts.release()
        self._mapping.close()
        self._file.close()
        self._counters.unlink()

    @property
    def reads(self):
        return self._counts[READ]

    @property
    def bytes_read(self):
        return self._counts[BYTES_READ]

    def reset(self):
        for counter in range(COUNTERS):
            self._counts[counter] = 0

    def mount(self, source, mount_point, *options):
        """Mounts `source` by sshfs and returns its process id: -9 to it is a connection that is gone."""
        command = [sys.executable, __file__, str(self._delay_s), str(self._counters)]
        # sshfs cuts the command at blanks and knows backslashes; option values end at commas.
        words = " ".join(shlex.quote(word) for word in command)
        assert words == " ".join(command) and "," not in words, f"sshfs cannot take {words}"
        before = set(sshfs_processes())
        subprocess.run(
            ["sshfs", "-o", f"ssh_command={words}", *options, f"server:{source}", mount_point],
            check=True,
            stdin=subprocess.DEVNULL,
        )
        (pid,) = (pid for pid in set(sshfs_processes()) - before if mount_of(pid) == str(mount_point))
        return pid

    @contextlib.contextmanager
    def mounted(self, source, mount_point, *options):
        """Yields the process id of sshfs."""
        os.makedirs(mount_point, exist_ok=True)
        pid = self.mount(source, mount_point, *options)
        try:
            yield pid
        finally:
            unmount(mount_point)
            wait_for_end(pid)


def unmount(mount_point):
    subprocess.run(["fusermount3", "-uz", mount_point], check=True)


def kill(pid):
    """The connection breaks: sshfs ends without a word to anybody."""
    os.kill(pid, signal.SIGKILL)
    wait_for_end(pid)


def wait_for_end(pid, patience_s=10):
    deadline = time.monotonic() + patience_s
    while os.path.exists(f"/proc/{pid}") and mount_of(pid) is not None:
        assert time.monotonic() < deadline, f"sshfs ({pid}) does not end"
        time.sleep(0.01)


def sshfs_processes():
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            with contextlib.suppress(OSError):
                if Path(f"/proc/{entry}/comm").read_text() == "sshfs\n":
                    yield int(entry)


def mount_of(pid):
    """The last word of the command line; None for what has ended and was not waited for."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return None
    return os.fsdecode(words[-2]) if len(words) > 1 else None


def map_counters(path):
    file = open(path, "r+b")
    mapping = mmap.mmap(file.fileno(), 8 * COUNTERS)
    return file, mapping, memoryview(mapping).cast("Q")


# The process that stands between sshfs and sftp-server


def serve(delay_s, counts):
    """Passes packets on until either side closes."""
    server = subprocess.Popen([sftp_server()], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
    replies = queue.SimpleQueue()

    def take_replies():
        for packet in packets(server.stdout):
            count(packet, counts)
            replies.put((time.monotonic() + delay_s, packet))
        replies.put(None)

    def give_replies():
        while (item := replies.get()) is not None:
            due, packet = item
            time.sleep(max(0.0, due - time.monotonic()))
            write(sys.stdout.fileno(), packet)
        # What is left of the requests has nobody who waits for it.
        os._exit(0)

    for task in (take_replies, give_replies):
        threading.Thread(target=task, daemon=True).start()
    for packet in packets(sys.stdin.buffer):
        count(packet, counts)
        write(server.stdin.fileno(), packet)
    server.stdin.close()
    server.wait()


def packets(stream):
    while len(length := read(stream, 4)) == 4:
        yield length + read(stream, int.from_bytes(length, "big"))


def read(stream, size):
    """`size` bytes, or fewer at the end."""
    blocks = []
    while size and (block := stream.read(size)):
        blocks.append(block)
        size -= len(block)
    return b"".join(blocks)


def write(descriptor, data):
    data = memoryview(data)
    while data:
        data = data[os.write(descriptor, data) :]


def count(packet, counts):
    kind = packet[4]
    counts[kind] += 1
    if kind == DATA:
        counts[BYTES_READ] += len(packet) - 4 - DATA_HEAD


if __name__ == "__main__":
    _file, _mapping, counters = map_counters(sys.argv[2])
    with contextlib.suppress(BrokenPipeError):
        serve(float(sys.argv[1]), counters)
