"""`python -m srsplan.profiler.bench`: on a machine with torch and numpy, and without the packages of srsplan's own."""

from __future__ import annotations

import csv
import io
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

from srsplan.kernels.losses import CE
from srsplan.models.errors import InputError
from srsplan.profiler.bench import __main__ as bare
from srsplan.profiler.bench.logits import Logits
from srsplan.profiler.bench.measuring import Measurement
from srsplan.profiler.bench.request import HELP, Asked, request_of
from srsplan.profiler.bench.results import COLUMNS, Result
from srsplan.profiler.bench.shapes import Shape

BLOCKED = (
    "typer", "click", "rich", "pydantic", "pydantic_core", "yaml", "pyarrow", "pandas", "safetensors", "scipy",
    "sklearn", "joblib", "matplotlib", "srsplan.planner",
)  # fmt: skip
"""What is not installed there. torch itself brings filelock."""
START = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({BLOCKED!r}))
runpy.run_module("srsplan.profiler.bench", run_name="__main__", alter_sys=True)
"""


def command(folder: Path, *arguments: object, blocked: str = "") -> subprocess.CompletedProcess[str]:
    """Run it from the source tree alone, as its documentation says; perhaps without another module."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / ".typing"), "PYTHONWARNINGS": "error", "COLUMNS": "100"}
    start = f"import sys; sys.modules[{blocked!r}] = None\n{START}" if blocked else START
    return subprocess.run(
        [sys.executable, "-c", start, *map(str, arguments)],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_its_help_needs_nothing_and_ends_with_examples(tmp_path: Path) -> None:
    done = command(tmp_path, "--help", blocked="torch")
    assert (done.returncode, done.stderr) == (0, "")
    said = " ".join(done.stdout.split())
    for name, text in HELP.items():
        assert f"--{name}" in said
        assert text[:40] in said, name
    assert done.stdout.rstrip().endswith(bare.EXAMPLES.rstrip().splitlines()[-1])


@pytest.mark.parametrize("line", [line for line in bare.EXAMPLES.splitlines() if bare.NAME in line])
def test_its_examples_mean_something(line: str) -> None:
    asked = Asked(**vars(bare.parser().parse_args(shlex.split(line)[3:])))
    assert request_of(asked).shapes


def test_it_measures_prints_and_keeps_every_row(tmp_path: Path) -> None:
    options = ("--repeats", 2, "--logits", "random", "--kernels", "-o", "rows.csv")
    done = command(tmp_path, "--shapes", "96x700x32x20", *options)
    assert done.returncode == 0, done.stderr
    with (tmp_path / "rows.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert list(rows[0])[: 1 + len(COLUMNS)] == ["row", *COLUMNS]
    ran = {(row["contestant"], row["deviation"], row["tokens_per_set"]): row for row in rows if row["status"] == "ok"}
    assert set(ran) == {
        ("eager ce", "0.8", "1"), ("chunked cce", "0.8", "1"), ("eager ce", "1.0", "1"), ("chunked cce", "1.0", "1"),
        ("eager ce-", "1.0", "1"), ("chunked cce-", "1.0", "1"), ("chunked cce-", "1.0", "32"),
    }  # fmt: skip
    assert all(float(row["total_ms"]) > 0 and row["repeats"] == "2" for row in ran.values())
    assert float(ran["chunked cce", "0.8", "1"]["loss_error"]) < 1e-5
    assert float(ran["eager ce", "0.8", "1"]["value"]) < float(ran["eager ce", "1.0", "1"]["value"])
    assert len([row for row in rows if row["row"] == "kernel"]) == len(ran)
    assert done.stdout.startswith("CPU")
    assert "96x700x32x20, random logits of deviation 0.8, chunked cce: forward " in done.stdout
    assert "kernels: absent, times of kernels are not available on a CPU" in done.stdout
    assert "... 96x700x32x20: chunked cce- 32 a set" in done.stderr


def test_json_is_one_document(tmp_path: Path) -> None:
    options = ("--only", "chunked cce", "--logits", "trained", "--repeats", 1, "--json")
    done = command(tmp_path, "--shapes", "96x700x32x20", *options)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    (row,) = document["results"]
    assert (row["contestant"], row["status"], row["logits"], row["deviation"]) == ("chunked cce", "ok", "trained", None)
    assert document["ceilings"]["add_rows_small_s"] > 0
    assert (document["kernels"], document["launches"]) == ([], [])


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["--shape", "zvuk"], "unrecognized arguments: --shape zvuk", "--help` lists what there is"),
        (["--scale", "half"], "argument --scale: invalid float value: 'half'", "--help` lists what there is"),
        (["--repeats"], "argument --repeats: expected one argument", "--help` lists what there is"),
        (["--shapes", "zvk"], "unknown shape 'zvk'", "named ones are ml20m"),
        (["--only", "nobody"], "--only 'nobody' names no contestant", "there are eager ce"),
        (["--device", "tpu"], "unknown --device 'tpu'", "devices are auto, cpu, cuda"),
        (["-o", "no/folder/x.csv"], "no/folder/x.csv", "-o"),
    ],
)
def test_what_is_wrong_is_said_with_the_way_out(
    arguments: list[str], message: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bare.main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    error, way_out = printed.err.splitlines()
    assert error.startswith("error: ")
    assert message in error
    assert hint in way_out


def test_without_torch_the_message_says_so(tmp_path: Path) -> None:
    done = command(tmp_path, blocked="torch")
    assert done.returncode == 2
    assert "needs torch, which is not installed here" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_line_is_out_before_the_next_contestant_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a pipe Python keeps thousands of characters back: a run that is stopped would have shown nothing."""
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8"))
    shape = Shape(name="tiny", tokens=96, catalog=700, negatives=20, dim=32)
    found = Measurement(
        shape=shape, logits=Logits(), contestant="eager ce", loss=CE, tokens_per_set=1, status="ok", forward_ms=1.0,
        total_ms=3.0,
    )  # fmt: skip
    bare.Lines(json_wanted=False).finished(Result(measured=found, times_the_floor=2.0))
    assert raw.getvalue().decode() == (
        "tiny, random logits of deviation 1, eager ce: forward 1.00 ms, + backward 3.00 ms, 2.0 x floor\n"
    )


def test_a_failure_to_keep_rows_is_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    class Kept:
        failure = InputError("cannot write x.csv", "make room")

    monkeypatch.setattr(bare, "run", lambda arguments: Kept)
    assert bare.main([]) == 2
    monkeypatch.setattr(bare, "run", lambda arguments: (_ for _ in ()).throw(KeyboardInterrupt))
    assert bare.main([]) == 130
