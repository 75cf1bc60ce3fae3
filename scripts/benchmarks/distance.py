"""The first look at a checkpoint that lies far away: on sshfs, with a delay before each of the server's replies."""

import subprocess
import zipfile
from collections import defaultdict

import slow_sftp

from . import reads
from .report import at_most

DELAY_S = 0.03
MOUNT, AGAIN = "first ls -l", "ls -l, again on a new mount, plan cached"
SOURCE, ZIPFILE = "ls -l of the source", "the list of tensors by Python's zipfile"


def run(bench):
    model = bench.models.layers()
    (checkpoint,) = model.checkpoints
    report = bench.report
    report.section(
        "distance",
        f"A checkpoint far away, every reply after {DELAY_S * 1e3:g} ms: {model.describe()}",
        "sshfs to OpenSSH's sftp-server on this machine; requests that are under way together wait together",
        "first ls -l: on a new sshfs, with a new mount and an empty cache directory",
        "by Python's zipfile: the archive's directory and its pickle are read, which nobody can do without",
    )
    if missing := slow_sftp.missing():
        report.missing(MOUNT, missing)
        report.goal(f"first ls -l behind {DELAY_S * 1e3:g} ms", at_most(0.7, "s"), None, missing)
        return

    times, requests, read = defaultdict(list), defaultdict(list), defaultdict(list)
    with bench.stfs.scratch() as scratch, slow_sftp.SlowServer(scratch, DELAY_S) as server:

        def measure(kind, function, path):
            server.reset()
            times[kind].append(reads.seconds(function, path))
            requests[kind].append(server.reads)
            read[kind].append(server.bytes_read)

        place = scratch / "place"
        for _ in range(bench.rounds):
            with bench.stfs.scratch() as cache:
                for kind in (MOUNT, AGAIN):
                    with server.mounted(model.source, place), bench.stfs.mounted(place, cache=cache) as mount_point:
                        measure(kind, list_one, mount_point)
            with server.mounted(model.source, place):
                measure(SOURCE, list_one, place)
            with server.mounted(model.source, place):
                measure(ZIPFILE, read_pickle, place / checkpoint.name)

    rows = report.rows("s", times)
    counts = {kind: report.row(f"{kind}: requests to read", "n", values) for kind, values in requests.items()}
    sizes = {kind: report.row(f"{kind}: read from the server", "bytes", values) for kind, values in read.items()}
    report.ratio("first ls -l: mount / source", rows[MOUNT], rows[SOURCE])
    report.ratio("first ls -l / zipfile", rows[MOUNT], rows[ZIPFILE])
    report.ratio("requests to read, first ls -l / zipfile", counts[MOUNT], counts[ZIPFILE])
    report.ratio("read from the server, first ls -l / zipfile", sizes[MOUNT], sizes[ZIPFILE])
    where = f"({model.describe()}, {DELAY_S * 1e3:g} ms)"
    report.goal(f"first ls -l of a distant checkpoint {where}", at_most(0.7, "s"), rows[MOUNT].median)
    report.goal(f"bytes read for it {where}", at_most(500_000, "bytes"), sizes[MOUNT].median)


def list_one(directory):
    subprocess.run(["ls", "-l", directory], stdout=subprocess.DEVNULL, check=True)


def read_pickle(checkpoint):
    with zipfile.ZipFile(checkpoint) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        archive.read(name)
