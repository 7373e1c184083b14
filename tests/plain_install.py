"""What a plain `pip install srsplan` must do without torch, pandas and the other packages of the extras.

    python tests/plain_install.py      in an environment with srsplan and nothing else (CI makes one)

tests/test_packaging.py runs the same here, with those packages hidden.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

HEAVY = (
    "torch",
    "triton",
    "safetensors",
    "pandas",
    "pyarrow",
    "scipy",
    "sklearn",
    "matplotlib",
    "statsmodels",
    "scikit_posthocs",
)
"""Import names of what only extras bring."""

START = "from srsplan.planner.cli.app import main; main()"
HIDDEN = "import sys; sys.modules.update(dict.fromkeys({names!r})); "
CASES: tuple[tuple[str, int, str], ...] = (
    ("--help", 0, "recommend"),
    ("recommend --catalog 1.6M --budget 40GB", 0, "cce-"),
    ("recommend --catalog 300K --gpu a100-40gb --json", 0, "choices"),
    ("estimate --loss cce- --catalog 1.6M --batch-size 512 --seq-len 200 --negatives 512", 0, "GiB"),
    ("gpus a100", 0, "a100-40gb"),
    ("train --data clicks.csv --loss cce", 2, "pip install 'srsplan[train]'"),
    ("predict runs/first --data clicks.csv", 2, "pip install 'srsplan[train]'"),
    ("export runs/first --onnx model.onnx", 2, "pip install 'srsplan[export]'"),
    ("compare clicks.yaml", 2, "pip install 'srsplan[compare]'"),
    ("profile --gpu a100-40gb --probes 1", 2, "pip install 'srsplan[train]'"),
    ("doctor", 1, "pip install 'srsplan[train]'"),
    ("bench", 2, "pip install 'srsplan[bench]'"),
    ("analyze clicks.csv", 2, "pip install 'srsplan[analyze]'"),
    ("recommend --data clicks.csv --budget 2GB", 2, "pip install 'srsplan[data]'"),
)
"""A command line, its exit code, and a word of what it must say."""


def check(line: str, code: int, word: str, *, hide: bool, folder: Path) -> str:
    """What is wrong with a command's end; empty where nothing is."""
    start = HIDDEN.format(names=HEAVY) + START if hide else START
    done = subprocess.run(
        [sys.executable, "-c", start, *line.split()], cwd=folder, capture_output=True, text=True, check=False
    )
    said = done.stdout + done.stderr
    if done.returncode != code or word not in said or "Traceback" in said:
        return f"srsplan {line}: exit code {done.returncode}, expected {code} and {word!r}:\n{said}"
    return ""


def clicks(folder: Path) -> None:
    """A small table of interactions."""
    rows = (f"{user},{item},{user + item}" for user in range(40) for item in range(9))
    (folder / "clicks.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]))


def main() -> None:
    """Run every case; exit with what is wrong."""
    from importlib.util import find_spec

    present = [name for name in HEAVY if find_spec(name)]
    if present:
        sys.exit(f"this environment is no plain install: it has {', '.join(present)}")
    with tempfile.TemporaryDirectory() as name:
        clicks(Path(name))
        wrong = [said for case in CASES if (said := check(*case, hide=False, folder=Path(name)))]
    print(f"{len(CASES) - len(wrong)} of {len(CASES)} commands of a plain install do what they should")
    sys.exit("\n".join(wrong) or None)


if __name__ == "__main__":
    main()
