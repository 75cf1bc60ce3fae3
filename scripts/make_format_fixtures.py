#!/usr/bin/env python3
"""Writes tests/data/formats: small files of every kind that stfs reads, and what their own loaders find in them.

    scripts/make_format_fixtures.py [WRITER ...]

Each writer in scripts/format_fixtures runs with the libraries it is about, in a virtual environment that is made
under target/format-fixtures (or STFS_FIXTURE_VENVS) when it is not there. Beside each FILE lies FILE.expected.json;
scripts/format_fixtures/fixture.py says what is in it. Storage keys of old torch formats are addresses: their bytes
change from run to run, their tensors do not.
"""

import os
import subprocess
import sys
import venv
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
WRITERS = Path(__file__).resolve().parent / "format_fixtures"
FIXTURES = REPOSITORY / "tests" / "data" / "formats"
VENVS = Path(os.environ.get("STFS_FIXTURE_VENVS", REPOSITORY / "target" / "format-fixtures"))

# Virtual environment: what is installed in it. torch 1.13 needs Python 3.7 to 3.11.
ENVIRONMENTS = {
    "torch-1.13": ["torch==1.13.1", "numpy==1.26.4"],
    "torch-2.15": ["torch==2.15.0", "numpy==2.4.6", "lightning==2.6.6", "joblib==1.6.0"],
    "numpy-1.26": ["numpy==1.26.4", "joblib==1.6.0"],
    "numpy-2": ["numpy==2.4.6"],
}

# Writer, environment, and what its files' names start with.
RUNS = [
    ("torch_files", "torch-1.13", "torch113"),
    ("torch_files", "torch-2.15", "torch215"),
    ("torch_legacy", "torch-2.15", "legacy"),
    ("torchscript", "torch-1.13", "torchscript113"),
    ("torchscript", "torch-2.15", "torchscript215"),
    ("layouts", "torch-2.15", "layout"),
    ("lightning_checkpoint", "torch-2.15", "lightning"),
    ("distributed", "torch-2.15", "dcp"),
    ("numpy_pickles", "numpy-1.26", "numpy126"),
    ("numpy_pickles", "numpy-2", "numpy2"),
    ("numpy_files", "numpy-2", "numpy"),
    ("paddle", "numpy-2", "paddle"),
    ("joblib_files", "numpy-1.26", "joblib-numpy126"),
    ("joblib_files", "torch-2.15", "joblib-numpy2"),
]


def interpreter(name):
    python = VENVS / name / "bin" / "python"
    if not python.exists():
        print(f"making {VENVS / name}")
        venv.create(VENVS / name, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *ENVIRONMENTS[name]], check=True)
    return python


def main():
    chosen = sys.argv[1:] or sorted({writer for writer, _, _ in RUNS})
    FIXTURES.mkdir(parents=True, exist_ok=True)
    for writer, environment, prefix in RUNS:
        if writer in chosen:
            print(f"{writer} ({environment})", flush=True)
            # Sets of strings are pickled in hash order.
            subprocess.run(
                [interpreter(environment), "-W", "ignore", WRITERS / f"{writer}.py", FIXTURES, prefix],
                check=True,
                env={**os.environ, "PYTHONHASHSEED": "0"},
            )


if __name__ == "__main__":
    main()
