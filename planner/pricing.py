"""Memory of a training, priced by the memory model before it starts: a plan may have been edited.

The figures are those of the data at hand: the fullest batch that they can give, the longest histories that are ranked.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from srsplan.models.config import Configuration
from srsplan.models.errors import InputError, NothingFits
from srsplan.planner.units import format_gib
from srsplan.planner.workload import FromData
from srsplan.profiler.memory.model import Memory, MemoryModel

COPIES, FP32_BYTES = 4, 4
"""Every weight is there four times: itself, its gradient and Adam's two moments."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bytes that a training may take of a card; None where there is no such limit."""

    budget_bytes: int | None
    """Bytes that the plan's budget leaves for the allocator."""
    device_bytes: int | None
    """Bytes of the GPU that the training will run on; None on a CPU."""
    exact: bool = True
    """The implementation of the loss is the one that the memory model describes."""


def check_memory(
    configuration: Configuration, evaluation_batch: int, workload: FromData, limits: Limits
) -> tuple[str, ...]:
    """Return warnings about the memory of a training, with figures.

    NothingFits where it is to run on a GPU and takes more than the plan's budget. On a CPU that is a warning, and so is
    a device that is smaller than the prediction: training cuts its batches where memory runs out.
    """
    if limits.budget_bytes is None and limits.device_bytes is None:
        return ()
    try:
        needed = priced(configuration, evaluation_batch, workload).upper_bytes
    except InputError as error:
        return (f"warning: the memory of this configuration is not predicted: {error.message}",)
    if limits.budget_bytes is not None and needed > limits.budget_bytes:
        return _over_budget(configuration, evaluation_batch, workload, limits, needed)
    if limits.device_bytes is not None and needed > limits.device_bytes:
        has = format_gib(limits.device_bytes)
        return (
            f"warning: this takes up to {format_gib(needed)} and the GPU has {has}: batches will be cut into parts",
        )
    return ()


def check_model_fits(configuration: Configuration, device_bytes: int | None) -> None:
    """Raise InputError where the model alone, with gradients and moments, is larger than the memory it is to use."""
    sizes = configuration.architecture
    rows = configuration.catalog + configuration.seq_len + 6 * sizes.blocks * sizes.dim  # six D x D matrices a block
    needed, has = COPIES * FP32_BYTES * rows * sizes.dim, device_bytes or _machine_bytes()
    if has is not None and needed > has:
        raise InputError(
            f"a model of {configuration.catalog:,} items, seq_len {configuration.seq_len:,}, dim {sizes.dim} and "
            f"{sizes.blocks:,} blocks takes {format_gib(needed)} with its gradients and moments, there are "
            f"{format_gib(has)}",
            "give a smaller --dim, --seq-len or --blocks",
        )


def _machine_bytes() -> int | None:
    """Return the memory of this machine; None where the system does not say."""
    if not hasattr(os, "sysconf"):
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def priced(configuration: Configuration, evaluation_batch: int, workload: FromData) -> Memory:
    """Return the memory of a configuration on these data; InputError where the memory model does not cover it."""
    size = min(configuration.micro_batch_size, workload.users)
    one_part = replace(configuration, batch_size=size, micro_batches=1, valid_tokens=None)
    tokens = min(one_part.tokens, workload.valid_tokens(size, configuration.seq_len))
    parts = min(configuration.micro_batches, max(1, configuration.batch_size // size))
    # several parts hold gradients while the next part runs: the whole batch is what the model needs to know
    whole = replace(one_part, batch_size=size * parts, micro_batches=parts, valid_tokens=tokens)
    pairs = workload.seen_pairs(evaluation_batch) or evaluation_batch * configuration.seq_len
    return MemoryModel().predict(whole, evaluation_batch, pairs)


def batch_of_all(configuration: Configuration, workload: FromData) -> tuple[str, ...]:
    """Return a warning where a batch is larger than what there is to train on."""
    if configuration.batch_size <= workload.users:
        return ()
    told = f"batch_size {configuration.batch_size:,} is more than the {workload.users:,} training sequences"
    return (f"warning: {told}: every epoch is a single step on all of them",)


def _over_budget(
    configuration: Configuration, evaluation_batch: int, workload: FromData, limits: Limits, needed: int
) -> tuple[str, ...]:
    budget = limits.budget_bytes or 0
    told = f"takes up to {format_gib(needed)}, the plan's budget leaves {format_gib(budget)}"
    if limits.device_bytes is None or not limits.exact:
        return (f"warning: on a GPU this configuration {told}: it is not what the plan was made for",)
    hint = _parts_that_fit(configuration, evaluation_batch, workload, budget)
    raise NothingFits(f"this configuration {told}", f"{hint}plan again with srsplan recommend, or lower --batch-size")


def _parts_that_fit(configuration: Configuration, evaluation_batch: int, workload: FromData, budget: int) -> str:
    """Return advice with the fewest micro-batches, a power of two, that fit; "" where none do."""
    parts = 2 * configuration.micro_batches
    while parts <= min(configuration.batch_size, workload.users):
        if priced(replace(configuration, micro_batches=parts), evaluation_batch, workload).upper_bytes <= budget:
            return f"--micro-batches {parts} trains the same batch within it; or "
        parts *= 2
    return ""
