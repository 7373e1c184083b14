"""Configurations, catalogs and memory in words: the same ones wherever srsplan prints them."""

from __future__ import annotations

from typing import Protocol

from srsplan.kernels.losses import LOSSES, Kernel
from srsplan.models.kinds import DEFAULT_MODEL, MODEL_KINDS
from srsplan.models.units import format_count, format_gib
from srsplan.planner.search.recommendation import Choice, Recommendation
from srsplan.planner.search.space import Space
from srsplan.planner.time_limit import TimeLimit

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
    "average": "moving average of the weights (--ema)",
    "batch": "the batch",
}
FIXED = ("table", "gradient", "optimizer", "model", "average")


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
    @property
    def pass_tokens(self) -> int | None: ...


def knobs_of(configuration: Knobs) -> str:
    """Return loss, bs, sl, ns and the size of the passes, where a batch may take several, in one phrase."""
    parts = [f"{configuration.loss:4} bs {configuration.batch_size:,} x sl {configuration.seq_len:,}"]
    if configuration.negatives is not None:
        parts.append(f"ns {configuration.negatives:,}")
    tokens = configuration.pass_tokens
    if tokens is not None and tokens < configuration.batch_size * configuration.seq_len:
        parts.append(f"in passes of {tokens:,}")
    return " ".join(parts)


def implementation_of(loss: str, kernel: Kernel) -> str:
    """Return the implementation that memory and times are for: "chunked PyTorch", "Triton" or "eager PyTorch"."""
    return LOSSES[loss].implementation(kernel)


def catalog_line(catalog: int, dim: int) -> str:
    """Return catalog and hidden size in words."""
    return f"{format_count(catalog)} items ({catalog:,}), D {dim}"


def model_line(model: str, mask_share: float | None) -> dict[str, str]:
    """Return the line on a model that is not the usual one, by its label; nothing for the usual one."""
    if model == DEFAULT_MODEL:
        return {}
    masked = "" if mask_share is None else f"; {mask_share:.0%} of a sequence masked"
    return {"model": f"{model}: {MODEL_KINDS[model].title}{masked}"}


def what_binds(found: Recommendation, space: Space, time: TimeLimit | None = None) -> str:
    """Name what limits the first choice of a recommendation: time, memory, or neither any more."""
    first = found.choices[0]
    said = []
    if found.too_slow and time is not None:
        said.append(f"time: {found.too_slow:,} configurations that rank higher take longer")
    if found.near_misses or first.passes > 1:
        kind = "memory" if found.near_misses else "memory limits a pass, not the batch"
        said.append(f"{kind}: {largest_holder(first)}")
    elif not found.too_slow:
        said.append(f"not the budget: a whole batch runs in one pass. {space.ends()}")
    return "; ".join(said)


def largest_holder(choice: Choice) -> str:
    """Name what holds most of a choice's memory, apart from what nothing changes."""
    memory = choice.memory
    if memory.evaluation_bytes > memory.allocated_bytes:
        return f"evaluation ({format_gib(memory.evaluation_bytes)})"
    for tag, size in memory.breakdown_bytes.items():
        if tag not in FIXED and tag != "workspace" and size > 0.1 * memory.allocated_bytes:
            return f"{TAG_MEANING.get(tag, tag)} ({format_gib(size)} at the peak)"
    return "the table, its gradient and Adam's moments: no knob changes them, only a smaller --dim or catalog"
