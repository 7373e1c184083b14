"""SASRec, interactions, metrics and the training loop.

`load_run(folder)` loads what `srsplan train` left: the model, its configuration and the ids of its items.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from srsplan.models.loading import TrainedRun, load_run

__all__ = ["TrainedRun", "load_run"]


def __getattr__(name: str) -> Any:
    """Import torch only where a model is loaded."""
    if name in __all__:
        from srsplan.models import loading

        return getattr(loading, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
