"""Object graphs at random, in every container: what Python reaches, stfs serves, names as left out, or refuses.

STFS_GRAPHS says how many graphs are tried, STFS_GRAPHS_SEED which.
"""

import os
import random
from collections import OrderedDict, deque

import graphs
import pytest
import torch
from safetensors.torch import save
from torch import nn

COUNT = int(os.environ.get("STFS_GRAPHS", "200"))
SEED = os.environ.get("STFS_GRAPHS_SEED") or str(random.SystemRandom().getrandbits(32))


@pytest.mark.parametrize("file_format", graphs.FORMATS)
@pytest.mark.parametrize("profile", graphs.PROFILES)
def test_graphs(profile, file_format, stfs, tmp_path):
    program = graphs.Program(stfs.binary, tmp_path)
    statistics = graphs.Statistics()
    for index in range(COUNT):
        if graphs.profile_of(index) == profile:
            maker, outcome, path = graphs.run_one(program, SEED, index, file_format, tmp_path)
            statistics.add(SEED, index, file_format, maker, outcome, path)
    print(statistics.report())
    verdicts = statistics.verdicts[profile]
    summary = f"STFS_GRAPHS_SEED={SEED}: {dict(verdicts)}"
    if statistics.failures:
        pytest.fail("\n".join([summary, *statistics.failures[:8]]), pytrace=False)
    if profile == "supported":
        if statistics.unwarranted():
            pytest.fail(f"{summary}\nrefused, though all of it can be named:\n{statistics.report()}", pytrace=False)
        assert verdicts[graphs.CONVERTED] >= 0.5 * (verdicts.total() - verdicts[graphs.NOT_SAVED]), summary


def names(tensors):
    return {content[2] for content in tensors}


def raw(number):
    return bytes([number])


def byte(number):
    return torch.tensor(number, dtype=torch.uint8)


def test_what_is_reached():
    """The walk itself, on a graph whose parts are known."""
    net = graphs.Net()
    net.w = nn.Parameter(byte(1), requires_grad=False)
    net.register_buffer("unsaved", byte(2), persistent=False)
    net.plain = {"deep": [byte(3)]}
    net.also_plain = shared = byte(4)
    partial = graphs.functools.partial(graphs.combine, byte(5), word=byte(6))
    record = graphs.FrozenSlottedRecord(byte(7), (graphs.SlottedWithDict(byte(8), byte(9), byte(10)),))
    attribute = byte(11)
    attribute.note = byte(12)
    reached = graphs.Reached(
        {
            "net": net,
            "shared": shared,
            "many": deque([partial, {record: {byte(13)}}, OrderedDict(x=attribute)]),
            "optimizer": [byte(14)],
            "inner": {"state": {0: byte(15)}, "param_groups": []},
        }
    )
    assert names(reached.required) == {raw(n) for n in [1, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]}
    assert {content[2][0]: rules for content, (_, rules) in reached.excused.items()} == {
        2: {graphs.NON_PERSISTENT},
        3: {graphs.ATTRIBUTE},
        14: {graphs.OPTIMIZER},
        15: {graphs.OPTIMIZER},
    }


class Pretender(graphs.Program):
    """A converter that makes the same of every file."""

    def __init__(self, tensors, words="", left_out=()):
        self.data, self.words, self.entries = tensors and save(tensors), words, list(left_out)

    def convert(self, path, *options):
        return self.data, self.words

    def left_out(self, path, *options):
        return self.entries


LEFT_OUT = {"path": "net.unsaved", "rule": graphs.NON_PERSISTENT, "bytes": 1, "tensors": 1}
NOTHING = "m.pt: it holds no tensors. Nothing needs to be done."


@pytest.mark.parametrize(
    "pretender, verdict, text",
    [
        (Pretender({"a": byte(1), "b": byte(2)}), graphs.CONVERTED, ""),
        (Pretender({"a": byte(1)}, left_out=[LEFT_OUT]), graphs.CONVERTED, ""),
        (Pretender({"a": byte(1)}), graphs.FAILED, "unlisted"),
        (Pretender({"b": byte(2)}, left_out=[LEFT_OUT]), graphs.FAILED, "lost"),
        (Pretender({"a": byte(1), "b": byte(2), "c": byte(3)}), graphs.FAILED, "not in the file"),
        (Pretender({"a": byte(1).view(torch.int8), "b": byte(2)}), graphs.FAILED, "not in the file"),
        (Pretender(None, NOTHING), graphs.FAILED, "silent"),
        (Pretender(None, "m.pt: `net` is an object of a class that is not read."), graphs.REFUSED, ""),
    ],
)
def test_what_is_a_failure(pretender, verdict, text, tmp_path):
    net = graphs.Net()
    net.w = nn.Parameter(byte(1), requires_grad=False)
    net.register_buffer("unsaved", byte(2), persistent=False)
    torch.save({"net": net}, tmp_path / "m.pt")
    outcome = graphs.check(pretender, tmp_path / "m.pt", "zip")
    assert outcome.verdict == verdict and text in outcome.text
