"""Closed forms in archives: what is written is read back, part by part, and a model without one has none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from srsplan.profiler.memory import files
from srsplan.profiler.memory.files import read_program, read_programs, write_programs

PROGRAMS = {
    "cce/fp16/1/one": '{"a":1}',
    "cce-/fp16/1/one": '{"b":2}',
    "cce-/fp16/1/one/in-batch/recompute": '{"c":[3,-1]}',
    "cce-/fp16/1/one/adaptive-mixed": "{}",
    "evaluation/fp16/1/one": '{"d":4}',
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    def forget() -> None:
        files._part.cache_clear()
        files._parts.cache_clear()

    monkeypatch.setattr(files, "FOLDER", tmp_path)
    forget()
    yield tmp_path
    forget()


def test_what_is_written_is_read_back(folder: Path) -> None:
    prefixed = {f"bert4rec/{key}": text for key, text in PROGRAMS.items()}
    for model, programs in (("sasrec", PROGRAMS), ("bert4rec", prefixed)):
        write_programs(model, programs)
        assert read_programs(model) == programs
        assert {key: read_program(model, key) for key in programs} == programs
    assert read_program("sasrec", "cce/fp16/9/one") is None
    assert read_program("sasrec", "bce/fp16/1/one") is None


def test_a_part_is_a_loss_with_a_sampler(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_programs("sasrec", PROGRAMS)
    read: list[str] = []

    def none(model: str, part: str) -> dict[str, str]:
        read.append(part)
        return {}

    with monkeypatch.context() as patched:
        patched.setattr(files, "_part", none)
        for key in PROGRAMS:
            read_program("sasrec", key)
    assert read == ["cce uniform", "cce- uniform", "cce- in-batch", "cce- adaptive-mixed", "evaluation uniform"]


def test_equal_programs_make_equal_files(folder: Path) -> None:
    for programs in (PROGRAMS, dict(reversed(PROGRAMS.items()))):
        write_programs("sasrec", programs)
        (folder / "sasrec.zip").rename(folder / f"{len([*folder.iterdir()])}.zip")
    first, second = sorted(folder.iterdir())
    assert first.read_bytes() == second.read_bytes()


def test_a_model_without_an_archive_has_no_programs() -> None:
    assert read_programs("esasrec") == {}
    assert read_program("esasrec", "esasrec/cce/fp16/1/one") is None
