"""Fixtures of the command line: every test runs in an empty folder of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from command import Ended, srsplan


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Ended]:
    """Call `srsplan` in an empty current folder."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Ended:
        return srsplan(capsys, monkeypatch, *arguments)

    return call
