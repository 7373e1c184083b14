"""The configuration that is trained: a plan's, or the paper's defaults, with what the user says instead."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from srsplan.kernels.losses import DEFAULT_LOSS
from srsplan.models.checks import LARGEST_CATALOG, find_loss, find_model
from srsplan.models.config import Architecture, Configuration
from srsplan.models.errors import InputError
from srsplan.planner.plan import read_plan
from srsplan.planner.search import TOKENS_PER_SET

LARGEST_RANK = 1000
EVALUATION_BATCH = 256
"""Users ranked at once where no plan says how many fit."""

Value = int | float | str | bool


@dataclass(frozen=True, kw_only=True)
class PlannedChoice:
    """A choice of a plan, as `train` needs it."""

    configuration: Configuration
    evaluation_batch: int
    """Users ranked at once."""
    usable_bytes: int
    """Bytes that the plan's budget leaves for the allocator."""


def planned_choices(path: Path, ranks: tuple[int, ...]) -> list[PlannedChoice]:
    """Return the choices of these ranks; InputError where the plan has no such choice, or cannot be read."""
    plan = read_plan(path)
    return [
        PlannedChoice(
            configuration=plan.configuration(rank),
            evaluation_batch=plan.choice(rank).eval_batch_size,
            usable_bytes=plan.budget.usable_bytes,
        )
        for rank in ranks
    ]


def parse_ranks(text: str) -> tuple[int, ...]:
    """Parse the ranks in "2", "1-3" or "1,3", in that order, each once; InputError for anything else."""
    ranks: list[int] = []
    for part in text.split(","):
        first, dash, last = (word.strip() for word in part.partition("-"))
        ends = (first, last if dash else first)
        if not all(end.isascii() and end.isdigit() and 1 <= int(end[:10]) <= LARGEST_RANK for end in ends):
            raise InputError(f"--rank {text[:80]!r} is no rank of a plan", "give one such as 2, or several: 1-3 or 1,3")
        ranks += range(int(ends[0]), int(ends[1]) + 1)
    if not ranks:
        raise InputError(f"--rank {text[:80]!r} names no rank", "give the smaller rank first: 1-3")
    return tuple(dict.fromkeys(ranks))


def changed(planned: Configuration | None, loss: str | None, given: Mapping[str, Value]) -> Configuration:
    """Return a plan's configuration, or the paper's defaults, with what is `given` by name instead."""
    names = {field.name for field in fields(Architecture)}
    sizes: dict[str, Any] = {name: value for name, value in given.items() if name in names}
    knobs: dict[str, Any] = {name: value for name, value in given.items() if name not in names}
    if planned is None:
        return _default(loss or DEFAULT_LOSS, Architecture(**sizes), knobs)
    following = {} if loss is None else _knobs_of(loss, planned)
    if "model" in knobs and not find_model(knobs["model"]).masked:
        following["mask_share"] = None
    if "pass_tokens" in knobs:  # the plan's number of sequences is for its own passes
        following["pass_sequences"] = None
    architecture = replace(planned.architecture, **sizes)
    return replace(planned, **{**following, **knobs}, architecture=architecture)


def _default(loss: str, architecture: Architecture, knobs: Mapping[str, Any]) -> Configuration:
    """Return the paper's defaults. The largest possible catalog stands for that of the data until they are read."""
    kind = find_loss(loss)
    base: dict[str, Any] = {
        "batch_size": 256,
        "seq_len": 50,
        "negatives": (kind.usual_negatives or 512) if kind.sampled else None,
        "tokens_per_set": TOKENS_PER_SET if kind.shares_negatives else 1,
    }
    return Configuration(loss=kind.name, catalog=LARGEST_CATALOG, architecture=architecture, **{**base, **knobs})


def _knobs_of(loss: str, planned: Configuration) -> dict[str, Any]:
    """Adapt a plan to another loss: knobs that the loss does not have are not the user's to unset."""
    kind = find_loss(loss)
    changes: dict[str, Any] = {"loss": kind.name}
    if not kind.sampled or kind.usual_negatives:
        changes["negatives"] = kind.usual_negatives
    if not kind.chunked:
        changes["kernel"] = "chunked"
    if planned.sampler not in kind.samplers:
        changes |= {"sampler": "uniform", "in_batch_share": None, "candidates": None}
    if not kind.calibrated:
        changes["calibration"] = None
    if kind.shares_negatives != find_loss(planned.loss).shares_negatives:
        changes["tokens_per_set"] = TOKENS_PER_SET if kind.shares_negatives else 1
    return changes
