"""Files of every format that is read, against what the format's own loader finds in them.

scripts/make_format_fixtures.py wrote tests/data/formats; scripts/format_fixtures/fixture.py says what is in the
FILE.expected.json beside each file.
"""

import hashlib
import json
import os

import oracle
import pytest
from conftest import REPOSITORY, derived, read_everything, refusal

FORMATS = REPOSITORY / "tests" / "data" / "formats"


def expectations():
    return [json.loads(path.read_text()) | {"id": case_of(path)} for path in sorted(FORMATS.glob("*.expected.json"))]


def case_of(path):
    return path.name.removesuffix(".expected.json")


def parameters(cases):
    for case in cases:
        yield pytest.param(case, id=case["id"])


EXPECTATIONS = expectations()
CONVERTED = [case for case in EXPECTATIONS if "tensors" in case and "root" not in case]
ROOTED = [case for case in EXPECTATIONS if "root" in case]
REFUSED = [case for case in EXPECTATIONS if "refused" in case]


@pytest.fixture(scope="module")
def mount(mounted):
    with mounted(FORMATS) as mount_point:
        yield mount_point


def check(data, case):
    wanted = {tensor["name"]: (tensor["dtype"], tensor["shape"], tensor["sha256"]) for tensor in case["tensors"]}
    assert oracle.digests(data) == wanted
    metadata = oracle.metadata_of(data)
    assert {name: metadata.get(name) for name in case["tied"]} == case["tied"]


def shown_as(mount, file):
    """Where the converted form of a file appears. That of a directory lies in it."""
    shown = mount / file
    return shown / "model.safetensors" if (FORMATS / file).is_dir() else derived(shown)


@pytest.mark.parametrize("case", parameters(CONVERTED))
def test_converted(case, mount):
    check(shown_as(mount, case["file"]).read_bytes(), case)


@pytest.mark.parametrize("case", parameters(CONVERTED))
def test_tensors(case, mount):
    """Each tensor as a file of its own, found by the name it really has."""
    directory = shown_as(mount, case["file"]).with_suffix(".tensors")
    found = {}
    for path in directory.iterdir():
        name = os.getxattr(path, "user.stfs.name").decode()
        found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    assert found == {tensor["name"]: tensor["sha256"] for tensor in case["tensors"]}


@pytest.mark.parametrize("case", parameters(ROOTED))
def test_root(case, stfs, tmp_path):
    target = tmp_path / "converted.safetensors"
    stfs.run("convert", "--root", case["root"], FORMATS / case["file"], target)
    check(target.read_bytes(), case)


@pytest.mark.parametrize("case", parameters(REFUSED))
def test_refused(case, mount):
    if case["inert"] and (mount / case["file"]).exists():
        assert (mount / case["file"]).read_bytes() == (FORMATS / case["file"]).read_bytes()
        assert not derived(mount / case["file"]).exists()
        return
    text = refusal(mount / case["file"])
    assert [word for word in case["refused"] if word.lower() not in text.lower()] == [], text


def test_every_file_is_readable(mount):
    assert read_everything(mount) > len(EXPECTATIONS)


def test_no_two_files_have_one_name():
    """Else their converted forms would keep their endings, and this suite would not find them."""
    names = [derived(FORMATS / file).name for file in {case["file"] for case in EXPECTATIONS}]
    assert len(names) == len(set(names))
