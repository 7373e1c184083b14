"""A memory-budget planner for training sequential recommenders on large item catalogs."""

from __future__ import annotations

from typing import Any

__all__ = ["__version__"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("srsplan")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
