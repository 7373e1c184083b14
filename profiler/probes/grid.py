"""Choice of the probes to run: few, spread over the knobs and over memory, up to nearly the budget. Imports no torch.

The rule: of all combinations of powers of two that fit, the one nearest to the budget comes first, because there a
wrong prediction hurts most; then, again and again, the one farthest from everything chosen, by the logarithms of batch
size, sequence length, negatives, catalog and predicted memory: where a smooth model of the error, which is all that a
profile adds, would be least sure. Run in order of size, so that what fails fails late, and is replaced by others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from srsplan.kernels.losses import LOSSES
from srsplan.models.config import Architecture, Configuration, Precision
from srsplan.models.kinds import DEFAULT_MODEL

BATCH_SIZES = (16, 64, 256, 1024, 4096)
SEQ_LENS = (16, 64, 200, 512)
NEGATIVES = (32, 128, 512, 2048)
FULLEST = 0.95
"""The largest share of the budget that is predicted for a probe: beyond it every probe would fail."""

SMALLER = 0.8
"""A probe in the place of a failed one takes at most this share of the failed one's bytes."""

Sized = tuple[int, Configuration]
Predict = Callable[[Sequence[Configuration]], Sequence[int]]
"""Predicted bytes of configurations that share a loss."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The configurations that a profile is about, and how many of them are probed."""

    losses: tuple[str, ...]
    catalogs: tuple[int, ...]
    architecture: Architecture
    precision: Precision
    budget_bytes: int
    count: int
    """Probes of each loss."""
    model: str = DEFAULT_MODEL
    """The model that is trained in a probe."""


def choose_probes(wanted: Wanted, predict: Predict) -> list[Configuration]:
    """Return at most `count` configurations of each loss, smallest first; fewer where fewer fit."""
    chosen: list[Sized] = []
    for loss in dict.fromkeys(wanted.losses):
        chosen += _spread(_fitting(loss, wanted, predict), wanted.count)
    return [configuration for _, configuration in sorted(chosen, key=lambda pair: pair[0])]


def replace_failed(
    wanted: Wanted, predict: Predict, tried: Sequence[Configuration], failed: Sequence[Configuration]
) -> list[Configuration]:
    """Return others in the place of those that failed, farthest from those that did not, smallest first.

    Smaller by a fifth than whatever failed of their loss: one of its size would fail as well.
    """
    found: list[Sized] = []
    for loss in dict.fromkeys(wanted.losses):
        lost = [each for each in failed if each.loss == loss]
        if lost:
            kept = [each for each in tried if each.loss == loss and each not in lost]
            taken = [*zip(map(int, predict(kept)), kept, strict=True)] if kept else []
            limit, fitting = min(map(int, predict(lost))), _fitting(loss, wanted, predict)
            smaller = [pair for pair in fitting if pair[0] <= SMALLER * limit and pair not in taken]
            found += _spread(smaller, min(wanted.count, len(fitting)) - len(kept), taken)
    return [configuration for _, configuration in sorted(found, key=lambda pair: pair[0])]


def _fitting(loss: str, wanted: Wanted, predict: Predict) -> list[Sized]:
    candidates = list(_grid(loss, wanted))
    sizes = predict(candidates) if candidates else []
    pairs = ((int(size), each) for size, each in zip(sizes, candidates, strict=True))
    return [pair for pair in pairs if pair[0] <= FULLEST * wanted.budget_bytes]


def _grid(loss: str, wanted: Wanted) -> Iterator[Configuration]:
    kind = LOSSES[loss]
    for catalog in dict.fromkeys(wanted.catalogs):
        counts: Sequence[int | None] = [None]
        if kind.sampled:
            counts = [kind.usual_negatives] if kind.usual_negatives else [n for n in NEGATIVES if n < catalog]
        for batch_size in BATCH_SIZES:
            for seq_len in SEQ_LENS:
                for negatives in counts:
                    yield Configuration(
                        loss=loss, catalog=catalog, batch_size=batch_size, seq_len=seq_len, negatives=negatives,
                        tokens_per_set=kind.default_tokens_per_set,
                        architecture=wanted.architecture, precision=wanted.precision, model=wanted.model,
                    )  # fmt: skip


def _spread(pairs: Sequence[Sized], count: int, taken: Sequence[Sized] = ()) -> list[Sized]:
    """Select by farthest points from `pairs`, away from what is `taken`; the largest first where nothing is."""
    if not pairs:
        return []
    places = [_place(*pair) for pair in pairs]
    others = [_place(*pair) for pair in taken]
    picked: list[int] = []
    nearest = [min((math.dist(place, other) for other in others), default=math.inf) for place in places]
    while len(picked) < min(count, len(pairs)):
        farthest = max(range(len(pairs)), key=lambda index: (nearest[index], pairs[index][0]))
        picked.append(farthest)
        nearest = [min(old, math.dist(place, places[farthest])) for old, place in zip(nearest, places, strict=True)]
    return [pairs[index] for index in picked]


def _place(size: int, configuration: Configuration) -> tuple[float, ...]:
    knobs = (configuration.batch_size, configuration.seq_len, configuration.negatives or 1, configuration.catalog, size)
    return tuple(math.log2(knob) for knob in knobs)
