"""Progress of reading interactions, for whoever listens: nothing is printed here.

    with progress.heard_by(listener):       listener("ordering", 0.4) and so on, until the block ends
        read_split(options)

The share is that of the whole work. Phases take the time that was measured at 100 million interactions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType

Listener = Callable[[str, float], None]
"""Called with what is being done, and with the share of the whole work that is done, 0 to 1."""

PHASES: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "waiting for another srsplan": (0.0, 0.0),
        "reading users": (0.0, 0.2),
        "reading items": (0.2, 0.4),
        "reading timestamps": (0.4, 0.5),
        "filtering": (0.5, 0.55),
        "ordering": (0.55, 0.8),
        "splitting": (0.8, 0.9),
        "keeping": (0.9, 1.0),
        "checking prepared data": (0.0, 1.0),
    }
)
"""Share of the whole work at which each phase begins and ends."""

_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def heard_by(listener: Listener) -> Iterator[None]:
    """Tell `listener` of all progress within the block."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def tell(phase: str, share: float) -> None:
    """Say that `share` of a phase is done, 0 to 1."""
    listener = _listener.get()
    if listener is not None:
        first, last = PHASES[phase]
        listener(phase, first + share * (last - first))
