"""Launches chosen by time: remembered per card, off by default, and never in the way."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from srsplan.kernels.launches.autotune import (
    Form,
    Key,
    Launches,
    cache_file,
    candidates,
    launch_on,
    read_launches,
    write_launches,
)
from srsplan.kernels.launches.table import Launch

DEFAULT = Launch(32, 32, 8, 2)
FORM = Form(table="torch.float16", set_tokens=32, sampler="UNIFORM", log_q=True)
KEY = Key(kernel="sampled_forward", dim=256, dtype="torch.float16", capability=80, form=FORM, triton="3.7.1")


@pytest.fixture
def card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("SRSPLAN_AUTOTUNE", raising=False)
    return "NVIDIA A100-SXM4-40GB"


class Card:
    """A card whose launches take what a rule says, and that has no room for five stages."""

    def __init__(self) -> None:
        self.tried: list[Launch] = []

    def run(self, launch: Launch) -> None:
        self.tried.append(launch)
        if launch.num_stages == 5:
            raise RuntimeError("out of resource: shared memory")

    def timer(self, call: object) -> float:
        call()  # type: ignore[operator]
        launch = self.tried[-1]
        return abs(launch.block_n - 64) + launch.num_warps - launch.num_stages


def test_the_fastest_is_found_once_and_remembered(card: str, monkeypatch: pytest.MonkeyPatch) -> None:
    here = Card()
    assert Launches(card, here.timer).choose(KEY, DEFAULT, here.run) == (DEFAULT, False)
    monkeypatch.setenv("SRSPLAN_AUTOTUNE", "1")
    launches = Launches(card, here.timer)
    best = Launch(32, 64, 4, 4)
    assert launches.choose(KEY, DEFAULT, here.run, (16, 32, 64)) == (best, True)
    tried = len(here.tried)
    assert launches.choose(KEY, DEFAULT, here.run, (16, 32, 64)) == (best, False)
    monkeypatch.delenv("SRSPLAN_AUTOTUNE")
    assert Launches(card, here.timer).choose(KEY, DEFAULT, here.run, (16, 32, 64)) == (best, False)
    other = replace(KEY, kernel="sampled_backward")
    assert Launches(card, here.timer).choose(other, DEFAULT, here.run) == (DEFAULT, False)
    assert len(here.tried) == tried
    assert cache_file(card).name == "launches-NVIDIA-A100-SXM4-40GB.json"


def good(**changed: object) -> str:
    return json.dumps({str(KEY): {"block_m": 32, "block_n": 64, "num_warps": 4, "num_stages": 1, **changed}})


@pytest.mark.parametrize(
    "content",
    [
        "", "{", "[1]", "null", "3", "\x00", "[" * 100_000, "9" * 5000, '{"a": 3}', '{"a": {"block_m": 1}}',
        good(block_m="32"), good(block_m=32.0), good(block_m=True), good(block_n=0), good(num_warps=-4),
        good(num_stages=None), good(block_n=10**9), good(extra=1), good(block_m=float("nan")),
        good() + " " * (2 << 20),
    ],
    ids=lambda content: content[:20] or "empty",
)  # fmt: skip
def test_a_file_with_anything_but_launches_is_left_aside_with_a_line(
    card: str, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = cache_file(card)
    path.parent.mkdir(parents=True)
    path.write_text(content)
    here = Card()
    assert Launches(card, here.timer).choose(KEY, DEFAULT, here.run) == (DEFAULT, False)
    assert f"{path} is left aside" in caplog.text
    assert len(caplog.records) == 1


def test_other_bytes_and_no_text_at_all(card: str, caplog: pytest.LogCaptureFixture) -> None:
    path = cache_file(card)
    assert read_launches(path) == {}
    assert not caplog.records
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\xff\xfe\x00{")
    assert read_launches(path) == {}
    assert len(caplog.records) == 1


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_file_is_neither_read_nor_replaced(card: str, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """A pipe would wait for ever, and /dev/zero never ends."""
    path = cache_file(card)
    path.parent.mkdir(parents=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    before = path.stat().st_mode
    assert read_launches(path) == {}
    assert "no regular file" in caplog.text
    write_launches(path, {str(KEY): DEFAULT})
    assert path.stat().st_mode == before
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("launch", [Launch(64, 32, 4, 1), Launch(32, 512, 4, 1), Launch(32, 32, 16, 1)])
def test_a_remembered_launch_that_is_no_candidate_is_not_used(card: str, launch: Launch) -> None:
    """Other tokens of a program than the table's would make spans of forward and backward disagree."""
    write_launches(cache_file(card), {str(KEY): launch})
    here = Card()
    assert Launches(card, here.timer).choose(KEY, DEFAULT, here.run, (16, 32, 64)) == (DEFAULT, False)


def test_launches_of_an_older_version_are_left_in_their_file_and_not_used(
    card: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Their key says less than what a launch depends on. Another environment may still use them."""
    old = {"sampled_forward/256/torch.float16": Launch(32, 64, 4, 3)}
    write_launches(cache_file(card), old)
    here = Card()
    assert Launches(card, here.timer).choose(KEY, DEFAULT, here.run, (16, 32, 64)) == (DEFAULT, False)
    monkeypatch.setenv("SRSPLAN_AUTOTUNE", "1")
    found, _ = Launches(card, here.timer).choose(KEY, DEFAULT, here.run, (16, 32, 64))
    assert read_launches(cache_file(card)) == {**old, str(KEY): found}
    assert not caplog.records


@given(st.dictionaries(st.text(min_size=1), st.builds(Launch, *[st.integers(1, 1024)] * 4)))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, launches: dict[str, Launch]) -> None:
    path = tmp_path_factory.mktemp("cache") / "launches.json"
    write_launches(path, launches)
    assert read_launches(path) == launches


def test_a_place_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    write_launches(tmp_path / "file" / "launches.json", {"a": DEFAULT})
    assert (tmp_path / "file").read_text() == ""


def test_candidates_begin_with_the_default_and_differ() -> None:
    found = list(candidates(DEFAULT, (16, 32)))
    assert found[0] == DEFAULT
    assert len(found) == len(set(found)) == 16


def test_nothing_is_tried_where_there_is_no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SRSPLAN_AUTOTUNE", "1")
    here = Card()
    assert launch_on(torch.device("cpu"), KEY, DEFAULT, here.run) == (DEFAULT, False)
    assert not here.tried
