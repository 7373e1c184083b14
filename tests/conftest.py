"""Fixtures of the command line, and what becomes of tests whose evidence is not there.

Tests marked `evidence` compare with public data and measurements in a folder beside the checkout. Where it is absent
they are left out, and the report says how many.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from command import Ended, srsplan
from paths import SHARED

os.environ.setdefault("OMP_NUM_THREADS", "1")
"""Two workers with two threads each would wait for each other. Set before torch is imported, for children as well."""

os.environ["SRSPLAN_CACHE"] = "off"
"""Tests of prepared data have folders of their own; the others leave no traces in the user's."""

EVIDENCE_FIXTURES = {"public", "public_table"}


def pytest_report_header() -> str:
    state = "beside the checkout" if SHARED.exists() else "absent, the tests that compare with it are left out"
    return f"evidence: {state}"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Tests that want an NVIDIA GPU are asked for by name: `pytest tests/card`. Here Triton interprets."""
    asked = any("card" in argument for argument in config.args)
    return True if collection_path.name == "card" and not asked else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if SHARED.exists():
        return
    left_out = [
        item
        for item in items
        if item.get_closest_marker("evidence") or EVIDENCE_FIXTURES & set(getattr(item, "fixturenames", ()))
    ]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Ended]:
    """Call `srsplan` in an empty current folder."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Ended:
        return srsplan(capsys, monkeypatch, *arguments)

    return call
