"""Launches chosen by time: remembered per card, off by default, and never in the way."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from srsplan.kernels.launches.autotune import (
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
KEY = Key(kernel="sampled_forward", dim=256, dtype="torch.float16")


@pytest.fixture
def card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("SRSPLAN_AUTOTUNE", raising=False)
    return "NVIDIA A100-SXM4-40GB"


class Card:
    """A card whose launches take what a rule says, and that has no room for three stages."""

    def __init__(self) -> None:
        self.tried: list[Launch] = []

    def run(self, launch: Launch) -> None:
        self.tried.append(launch)
        if launch.stages == 3:
            raise RuntimeError("out of resource: shared memory")

    def timer(self, call: object) -> float:
        call()  # type: ignore[operator]
        launch = self.tried[-1]
        return abs(launch.tile - 64) + launch.warps + launch.stages


def test_the_fastest_is_found_once_and_remembered(card: str, monkeypatch: pytest.MonkeyPatch) -> None:
    here = Card()
    assert Launches(card, here.timer).choose(KEY, DEFAULT, here.run) == (DEFAULT, False)
    monkeypatch.setenv("SRSPLAN_AUTOTUNE", "1")
    launches = Launches(card, here.timer)
    best = Launch(32, 64, 4, 1)
    assert launches.choose(KEY, DEFAULT, here.run, (16, 32, 64)) == (best, True)
    tried = len(here.tried)
    assert launches.choose(KEY, DEFAULT, here.run) == (best, False)
    monkeypatch.delenv("SRSPLAN_AUTOTUNE")
    assert Launches(card, here.timer).choose(KEY, DEFAULT, here.run) == (best, False)
    other = Key(kernel="sampled_backward", dim=256, dtype="torch.float16")
    assert Launches(card, here.timer).choose(other, DEFAULT, here.run) == (DEFAULT, False)
    assert len(here.tried) == tried
    assert cache_file(card).name == "launches-NVIDIA-A100-SXM4-40GB.json"


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"a": 3}', '{"a": {"tokens": 1}}', "null"])
def test_a_damaged_file_counts_as_none(card: str, content: str) -> None:
    path = cache_file(card)
    path.parent.mkdir(parents=True)
    path.write_text(content)
    assert read_launches(path) == {}


@given(st.dictionaries(st.text(min_size=1), st.builds(Launch, *[st.integers(1, 512)] * 4)))
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
    assert len(found) == len(set(found)) == 12


def test_nothing_is_tried_where_there_is_no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SRSPLAN_AUTOTUNE", "1")
    here = Card()
    assert launch_on(torch.device("cpu"), KEY, DEFAULT, here.run) == (DEFAULT, False)
    assert not here.tried
