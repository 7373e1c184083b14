"""Memory of a training, priced by the memory model before it starts: a plan may have been edited.

A pass has so many tokens at most, whatever the data: that is what is priced, for the implementation of the loss that
will run, with the longest histories that are ranked.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf

from srsplan.models.config import Configuration
from srsplan.models.errors import InputError, NothingFits
from srsplan.models.units import format_gib
from srsplan.planner.passes import largest_pass, whole_pass, with_pass, with_whole_pass
from srsplan.planner.words import implementation_of
from srsplan.planner.workload import Workload
from srsplan.profiler.memory.model import Memory, MemoryModel

FP32_BYTES = 4
"""Of every weight, and of each of its copies: gradient, Adam's two moments, moving average."""

USUAL_PASS = 65_536
"""Tokens of a pass where nobody says how many: larger ones are hardly faster."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bytes that a training may take of a card; None where there is no such limit."""

    budget_bytes: int | None
    """Bytes that the plan's budget leaves for the allocator."""
    device_bytes: int | None
    """Bytes of the GPU that the training will run on; None on a CPU."""

    @property
    def smallest(self) -> int | None:
        """The stricter of the two."""
        return min((size for size in (self.budget_bytes, self.device_bytes) if size is not None), default=None)


@dataclass(frozen=True, kw_only=True)
class RunMemory:
    """What the search for a pass asks about the memory of one training."""

    limit: int
    evaluation_batch: int
    workload: Workload
    model: MemoryModel

    def allocated(self, configurations: Sequence[Configuration]) -> list[int]:
        """Return the bytes of tensors at the peak of each."""
        return [size for each in configurations for size in self.model.allocated_sizes([each])]

    def fits(self, configuration: Configuration) -> bool:
        """Tell whether everything that the process may reserve is within the limit."""
        pairs = _seen_pairs(self.workload, self.evaluation_batch, configuration)
        return self.model.fits(configuration, self.evaluation_batch, pairs, self.limit)


def usual_pass(
    configuration: Configuration, evaluation_batch: int, workload: Workload, limits: Limits
) -> Configuration:
    """Return a configuration in the usual passes: a whole batch, at most 65,536 tokens, and what the GPU holds.

    Where no pass fits, or the memory model does not cover it, the passes are the usual ones all the same.
    """
    whole = with_whole_pass(configuration, workload)
    tokens = max(configuration.seq_len, min(whole.tokens, USUAL_PASS))
    if configuration.batch_tokens <= USUAL_PASS:
        tokens = configuration.batch_tokens  # surely one pass: no room for a second gradient of the table
    usual = with_pass(configuration, tokens, workload)
    return fitting_pass(usual, evaluation_batch, workload, limits.smallest) or usual


def fitting_pass(
    configuration: Configuration, evaluation_batch: int, workload: Workload, limit: int | None
) -> Configuration | None:
    """Return a configuration in the largest passes within a limit, none larger than its own.

    None where no pass fits, or the memory model does not cover the configuration.
    """
    if limit is None:
        return configuration
    memory = RunMemory(limit=limit, evaluation_batch=evaluation_batch, workload=workload, model=MemoryModel())
    try:
        return largest_pass(configuration, workload, memory, least=1)
    except InputError:
        return None


def replanned(
    configuration: Configuration, evaluation_batch: int, workload: Workload, limits: Limits
) -> tuple[Configuration, str]:
    """Return a plan's configuration, its kernel replaced by another, in passes that fit; and a sentence about that."""
    whole = max(configuration.tokens, whole_pass(workload, configuration.batch_size, configuration.seq_len))
    found = fitting_pass(with_pass(configuration, whole, workload), evaluation_batch, workload, limits.smallest)
    name = implementation_of(configuration.loss, configuration.kernel)
    if found is None:
        return configuration, f"warning: the plan is for another kernel: no pass was found that fits {name}"
    tokens = f"a pass has {found.tokens:,} tokens"
    tokens += f" instead of {configuration.tokens:,}" if found.tokens != configuration.tokens else " as before"
    return found, f"the plan is for another kernel: planned again for {name}, {tokens}"


def check_memory(
    configuration: Configuration, evaluation_batch: int, workload: Workload, limits: Limits
) -> tuple[str, ...]:
    """Return warnings about the memory of a training, with figures.

    NothingFits where it is to run on a GPU and takes more than the plan's budget. On a CPU that is a warning, and so is
    a device that is smaller than the prediction: training cuts its passes where memory runs out.
    """
    if limits.smallest is None:
        return ()
    try:
        needed = priced(configuration, evaluation_batch, workload, limits.smallest).upper_bytes
    except InputError as error:
        return (f"warning: the memory of this configuration is not predicted: {error.message}",)
    if limits.budget_bytes is not None and needed > limits.budget_bytes:
        return _over_budget(configuration, evaluation_batch, workload, limits, needed)
    if limits.device_bytes is not None and needed > limits.device_bytes:
        has = format_gib(limits.device_bytes)
        return (f"warning: this takes up to {format_gib(needed)} and the GPU has {has}: passes will be cut smaller",)
    return ()


def check_model_fits(configuration: Configuration, device_bytes: int | None) -> None:
    """Raise InputError where the model alone, with gradients and moments, is larger than the memory it is to use."""
    sizes = configuration.architecture
    matrices = 4 + 2 * configuration.kind.feed_forward  # [D, D] a block
    rows = configuration.catalog + configuration.seq_len + matrices * sizes.blocks * sizes.dim
    needed, has = configuration.table_copies * FP32_BYTES * rows * sizes.dim, device_bytes or machine_bytes()
    if has is not None and needed > has:
        raise InputError(
            f"a model of {configuration.catalog:,} items, seq_len {configuration.seq_len:,}, dim {sizes.dim} and "
            f"{sizes.blocks:,} blocks takes {format_gib(needed)} with its gradients and moments, there are "
            f"{format_gib(has)}",
            "give a smaller --dim, --seq-len or --blocks",
        )


def machine_bytes() -> int | None:
    """Return the memory of this machine; None where the system does not say."""
    if not hasattr(os, "sysconf"):
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def priced(configuration: Configuration, evaluation_batch: int, workload: Workload, limit: float = inf) -> Memory:
    """Return the memory of a configuration on these data; InputError where the memory model does not cover it.

    Within a `limit` in bytes, if it runs there: a plan that uses nearly all of its budget often takes more without one.
    """
    one = replace(configuration, batch_size=min(configuration.batch_size, workload.users or configuration.batch_size))
    pairs = _seen_pairs(workload, evaluation_batch, configuration)
    return MemoryModel().predict(one, evaluation_batch, pairs, limit)


def _seen_pairs(workload: Workload, users: int, configuration: Configuration) -> int:
    return workload.seen_pairs(users) or users * configuration.seq_len


def batch_of_all(configuration: Configuration, workload: Workload) -> tuple[str, ...]:
    """Return a warning where a batch is larger than what there is to train on."""
    if workload.users is None or configuration.batch_size <= workload.users:
        return ()
    told = f"batch_size {configuration.batch_size:,} is more than the {workload.users:,} training sequences"
    return (f"warning: {told}: every epoch is a single step on all of them",)


def _over_budget(
    configuration: Configuration, evaluation_batch: int, workload: Workload, limits: Limits, needed: int
) -> tuple[str, ...]:
    budget = limits.budget_bytes or 0
    told = f"takes up to {format_gib(needed)}, the plan's budget leaves {format_gib(budget)}"
    if limits.device_bytes is None:
        return (f"warning: on a GPU this configuration {told}: it is not what the plan was made for",)
    smaller = fitting_pass(configuration, evaluation_batch, workload, budget)
    hint = f"--pass-tokens {smaller.tokens} trains the same batch within it; or " if smaller is not None else ""
    raise NothingFits(f"this configuration {told}", f"{hint}plan again with srsplan recommend")
