"""Configurations, catalogs and memory in words: the same ones wherever srsplan prints them."""

from __future__ import annotations

from typing import Protocol

from srsplan.planner.search.recommendation import Choice
from srsplan.planner.units import format_count, format_gib

TAG_MEANING = {
    "table": "item table, fp32",
    "table copy": "16-bit copy of the table",
    "gradient": "gradients",
    "optimizer": "Adam's two moments",
    "logits": "scores over the catalog",
    "negatives": "gathered negatives and their scores",
    "activation": "activations kept for backward",
    "workspace": "cuBLAS, attention, sorting",
    "model": "other weights",
    "batch": "the batch",
}
FIXED = ("table", "gradient", "optimizer", "model")

SPARE_SHARE = 0.5
"""Share of the budget: where the first choice needs less, something else than the budget limits it."""


class Knobs(Protocol):
    """A configuration, or its entry in a plan."""

    @property
    def loss(self) -> str: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def seq_len(self) -> int: ...
    @property
    def negatives(self) -> int | None: ...


def knobs_of(configuration: Knobs) -> str:
    """Return loss, bs, sl, ns and micro-batches in one phrase."""
    parts = [f"{configuration.loss:4} bs {configuration.batch_size:,} x sl {configuration.seq_len:,}"]
    micro_batches = getattr(configuration, "micro_batches", 1)
    if micro_batches > 1:
        parts.append(f"in {micro_batches} micro-batches of {-(-configuration.batch_size // micro_batches):,}")
    if configuration.negatives is not None:
        parts.append(f"ns {configuration.negatives:,}")
    return " ".join(parts)


def catalog_line(catalog: int, dim: int) -> str:
    """Return catalog and hidden size in words."""
    return f"{format_count(catalog)} items ({catalog:,}), D {dim}"


def what_binds(choice: Choice, usable_bytes: int | None = None) -> str:
    """Name what limits a choice: its largest holder of memory, or, with `usable_bytes`, that the budget is no limit."""
    memory = choice.memory
    if usable_bytes is not None and memory.upper_bytes < usable_bytes * SPARE_SHARE:
        return (
            "not the budget: batches end where an epoch has 20 steps (or at 8,192), negatives at 4,096, "
            "sequences at the length that holds 95% of them whole (without data, 512)"
        )
    if memory.evaluation_bytes > memory.allocated_bytes:
        return f"evaluation ({format_gib(memory.evaluation_bytes)})"
    for tag, size in memory.breakdown_bytes.items():
        if tag not in FIXED and tag != "workspace" and size > 0.1 * memory.allocated_bytes:
            way_out = "; --recompute lowers them" if tag == "activation" and not choice.configuration.recompute else ""
            return f"{TAG_MEANING.get(tag, tag)} ({format_gib(size)} at the peak){way_out}"
    return "the table, its gradient and Adam's moments: no knob changes them, only a smaller --dim or catalog"
