"""Tests that want an NVIDIA GPU: `pytest tests/card -n 0`. Elsewhere all are skipped, but for the kernels' own where
TRITON_INTERPRET=1 lets them run on CPU tensors, slowly."""

from __future__ import annotations

import os

import pytest
import torch

HERE = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def pytest_configure(config: pytest.Config) -> None:
    """A card has the torch and the Triton that it has: what they say about themselves and each other is no error here.

    Warnings are errors everywhere else: a deprecation of ours is raised in a module of ours.
    """
    for kind in ("DeprecationWarning", "PendingDeprecationWarning", "FutureWarning"):
        for package in ("torch", "triton"):
            config.addinivalue_line("filterwarnings", rf"ignore::{kind}:{package}(\..*)?")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not HERE and not (INTERPRETED and "interpreted" in item.keywords):
            item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU here"))


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if HERE else "cpu")
