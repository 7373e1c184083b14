"""A memory-budget planner for training sequential recommenders on large item catalogs.

    srsplan.plan(catalog="1.6M", budget="40GB")          what `srsplan recommend` finds
    srsplan.estimate(loss="cce", catalog="1.6M", ...)    what one configuration takes
    srsplan.models.load_run("runs/first")                a trained model (needs the extra `train`)
    srsplan.kernels                                      the losses as functions of tensors

Importing this imports nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from srsplan.planner.api import estimate, plan

__all__ = ["__version__", "estimate", "plan"]

ROOMS = ("kernels", "models", "profiler", "planner")
"""Subpackages that `import srsplan` alone makes usable: `srsplan.models.load_run(...)`."""


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("srsplan")
    if name in ROOMS:
        from importlib import import_module

        return import_module(f"srsplan.{name}")
    if name in __all__:
        from srsplan.planner import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
