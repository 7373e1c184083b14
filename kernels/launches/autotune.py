"""Launches chosen by time, once per card: off unless SRSPLAN_AUTOTUNE=1 is set, and remembered in a file.

The first call of a kernel that is compiled or walks in a way of its own (`Key`) tries a few launches on its own tensors
and keeps the fastest in $XDG_CACHE_HOME/srsplan/launches-CARD.json (~/.cache without it). A launch that was found is
used from then on, with or without the variable; without the file the table of kernels.launches.table is. A file that
holds anything but launches is left aside with a warning; a launch that is none of a kernel's candidates, or was found
for other tables or by another Triton, is not used.

The tokens of a program are always the table's: grids, spans and what a program leaves to others follow from them. So
the full softmax is not tried in blocks of other sizes, such as 64 tokens by 64 items in 4 warps.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import torch

from srsplan.kernels.launches.cache import card_file, content_of, replace_file
from srsplan.kernels.launches.table import TABLES, Launch

VARIABLE = "SRSPLAN_AUTOTUNE"
WARPS, STAGES = (4, 8), (2, 3, 4, 5)
"""What is tried beside the default: copies overlap the products from three stages on, from five where items are looked
up before their rows are."""

LOG = logging.getLogger(__name__)

Timer = Callable[[Callable[[], object]], float]
"""Milliseconds of a call; raises what the call raises."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """What a kernel is compiled with, or walks over, beside hidden states of a size and a type."""

    table: str
    """Type of the table's rows as the kernel reads them: hidden's, where they are copied."""
    set_tokens: int = 0
    """Tokens of a set, rounded up to a power of two; 0 where there are no sets."""
    sampler: str = ""
    log_q: bool = False
    deterministic: bool = False
    """Sums are taken in fixed point."""
    with_grad: bool = False
    """Hidden states want a gradient, where that decides how the full softmax is cut into blocks."""
    split: bool = False
    """Programs see a part of the catalog."""


@dataclass(frozen=True, kw_only=True)
class Key:
    """The calls that share a launch."""

    kernel: str
    dim: int
    dtype: str
    capability: int
    form: Form
    triton: str
    """Version of the compiler."""

    def __str__(self) -> str:
        parts = {**asdict(self), **asdict(self.form), "tables": TABLES}
        return " ".join(f"{name}={value}" for name, value in parts.items() if name != "form")


def candidates(default: Launch, block_n: tuple[int, ...] = ()) -> Iterator[Launch]:
    """Yield the default, then other warps and stages, and other tiles where the kernel leaves them free."""
    yield default
    for items in block_n or (default.block_n,):
        for warps in WARPS:
            for stages in STAGES:
                launch = replace(default, block_n=items, num_warps=warps, num_stages=stages)
                if launch != default:
                    yield launch


def cache_file(card: str) -> Path:
    """Return the file that a card's launches are kept in."""
    return card_file("launches", card)


def read_launches(path: Path) -> dict[str, Launch]:
    """Return the launches kept in a file; none where it is missing, or, with a warning, holds anything else."""
    try:
        return _parsed(content_of(path))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        LOG.warning("%s is left aside: %s", path, error)
        return {}


def _parsed(content: bytes) -> dict[str, Launch]:
    document = json.loads(content)
    if not isinstance(document, dict):
        raise ValueError("it is no table of launches")
    return {key: _launch(key, values) for key, values in document.items()}


def _launch(key: str, values: object) -> Launch:
    names = {field.name for field in fields(Launch)}
    if not isinstance(values, dict) or set(values) != names:
        raise ValueError(f"{key[:100]!r} is no launch: it wants {', '.join(sorted(names))}")
    if not all(type(number) is int and 0 < number <= 1024 for number in values.values()):
        raise ValueError(f"{key[:100]!r} is no launch: its values are whole numbers from 1 to 1024")
    return Launch(**values)


def write_launches(path: Path, launches: Mapping[str, Launch]) -> None:
    """Write the file atomically; a place that cannot be written is no reason to stop, and only a file is replaced."""
    replace_file(path, {key: asdict(launch) for key, launch in launches.items()})


def fastest(run: Callable[[Launch], object], launches: Iterator[Launch], timer: Timer) -> Launch:
    """Return the launch with the least time, without those that the card has no room for; the first must run."""
    best, least = next(launches), 0.0
    least = timer(lambda: run(best))
    for launch in launches:
        try:
            found = timer(lambda launch=launch: run(launch))  # type: ignore[misc]
        except Exception:  # the compiler's and the driver's refusals have no common type
            continue
        if found < least:
            best, least = launch, found
    return best


class Launches:
    """The launches of one card."""

    def __init__(self, card: str, timer: Timer) -> None:
        self.path, self.timer = cache_file(card), timer
        self.known = read_launches(self.path)

    def choose(
        self, key: Key, default: Launch, run: Callable[[Launch], object], block_n: tuple[int, ...] = ()
    ) -> tuple[Launch, bool]:
        """Return the launch for a call that `run` makes, and whether `run` was called to find it."""
        known = self.known.get(str(key))
        if known is not None and known in candidates(default, block_n):
            return known, False
        if os.environ.get(VARIABLE) != "1":
            return default, False
        self.known[str(key)] = fastest(run, candidates(default, block_n), self.timer)
        write_launches(self.path, {**read_launches(self.path), **self.known})
        return self.known[str(key)], True


_cards: dict[str, Launches] = {}


def launch_on(
    device: torch.device, key: Key, default: Launch, run: Callable[[Launch], object], block_n: tuple[int, ...] = ()
) -> tuple[Launch, bool]:
    """Call `Launches.choose` for the card that tensors are on; take the default everywhere else."""
    if device.type != "cuda":
        return default, False
    card = torch.cuda.get_device_name(device)
    if card not in _cards:
        _cards[card] = Launches(card, _benchmark)
    return _cards[card].choose(key, default, run, block_n)


def _benchmark(run: Callable[[], object]) -> float:
    from triton.testing import do_bench

    return float(do_bench(run, warmup=10, rep=50))
