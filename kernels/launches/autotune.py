"""Launches chosen by time, once per card: off unless SRSPLAN_AUTOTUNE=1 is set, and remembered in a file.

The first call of a kernel with a hidden size and a type tries a few launches on its own tensors and keeps the fastest
in $XDG_CACHE_HOME/srsplan/launches-CARD.json (~/.cache without it). A launch that was found is used from then on, with
or without the variable; without the file the table of kernels.tuning is. A damaged file counts as none.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from srsplan.kernels.launches.table import Launch

VARIABLE = "SRSPLAN_AUTOTUNE"
WARPS, STAGES = (4, 8), (1, 2, 3)

Timer = Callable[[Callable[[], object]], float]
"""Milliseconds of a call; raises what the call raises."""


@dataclass(frozen=True, kw_only=True)
class Key:
    """What a launch is chosen for."""

    kernel: str
    dim: int
    dtype: str

    def __str__(self) -> str:
        return f"{self.kernel}/{self.dim}/{self.dtype}"


def candidates(default: Launch, tiles: tuple[int, ...] = ()) -> Iterator[Launch]:
    """The default first, then other warps and stages, and other tiles where the kernel leaves them free."""
    yield default
    for tile in tiles or (default.tile,):
        for warps in WARPS:
            for stages in STAGES:
                launch = replace(default, tile=tile, warps=warps, stages=stages)
                if launch != default:
                    yield launch


def cache_file(card: str) -> Path:
    """Where a card's launches are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "srsplan" / f"launches-{re.sub('[^A-Za-z0-9]+', '-', card)}.json"


def read_launches(path: Path) -> dict[str, Launch]:
    """What is kept there; nothing where the file is missing or damaged."""
    try:
        return {key: Launch(**values) for key, values in json.loads(path.read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def write_launches(path: Path, launches: Mapping[str, Launch]) -> None:
    """Whole or not at all; a place that cannot be written is no reason to stop."""
    text = json.dumps({key: asdict(launch) for key, launch in launches.items()}, indent=1)
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text + "\n")
        os.replace(partial, path)
    except OSError:
        with suppress(OSError):
            partial.unlink()


def fastest(run: Callable[[Launch], object], launches: Iterator[Launch], timer: Timer) -> Launch:
    """The launch with the least time; one that the card has no room for is passed over. The first must run."""
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
        self, key: Key, default: Launch, run: Callable[[Launch], object], tiles: tuple[int, ...] = ()
    ) -> tuple[Launch, bool]:
        """The launch for a call that `run` makes, and whether `run` was called to find it."""
        if str(key) in self.known:
            return self.known[str(key)], False
        if os.environ.get(VARIABLE) != "1":
            return default, False
        self.known[str(key)] = fastest(run, candidates(default, tiles), self.timer)
        write_launches(self.path, {**read_launches(self.path), **self.known})
        return self.known[str(key)], True


_cards: dict[str, Launches] = {}


def launch_on(
    device: torch.device, key: Key, default: Launch, run: Callable[[Launch], object], tiles: tuple[int, ...] = ()
) -> tuple[Launch, bool]:
    """`Launches.choose` for the card that tensors are on; the default everywhere else."""
    if device.type != "cuda":
        return default, False
    card = torch.cuda.get_device_name(device)
    if card not in _cards:
        _cards[card] = Launches(card, _benchmark)
    return _cards[card].choose(key, default, run, tiles)


def _benchmark(run: Callable[[], object]) -> float:
    from triton.testing import do_bench

    return float(do_bench(run, warmup=10, rep=50))
