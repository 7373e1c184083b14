"""The memory of a configuration on each of several GPUs, on paper: srsplan trains on one.

Two ways to cut the work, the batch and the passes of a GPU being the configuration's in both (M tokens a pass):

- data parallel: table, gradient and moments on every GPU; gradients are reduced where they are
  (DistributedDataParallel with gradient_as_bucket_view), so that a GPU needs what it needs alone;
- row-sharded table: a GPU holds 1 / n of the table's rows with their gradient and moments. The rows that its tokens
  look up come from the others through a buffer [M, D]; a full softmax scores all GPUs' tokens [n M, D] against its
  rows, so that logits stay as large as alone; a sampled one receives its negatives' rows through a buffer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from srsplan.kernels import chunking
from srsplan.kernels.losses import LOSSES
from srsplan.models.config import Configuration
from srsplan.models.errors import InputError
from srsplan.profiler.memory import reserved as lifetime
from srsplan.profiler.memory.model import MemoryModel
from srsplan.profiler.memory.program import Program

MOST_GPUS = 1024


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One way to use several GPUs."""

    name: str
    per_gpu_batch: int
    """Sequences a GPU sees in a step."""
    global_batch: int
    """Sequences of all GPUs in a step: what the optimizer's step is made of."""
    reserved_bytes: int
    """Bytes that each GPU is expected to reserve."""
    upper_bytes: int
    """Bytes that must fit on each GPU."""


def layouts(
    configuration: Configuration, gpus: int, model: MemoryModel, users: int, seen_pairs: int
) -> tuple[Layout, ...]:
    """Return the two ways to use so many GPUs: data parallel, and row-sharded. InputError for an impossible number."""
    if not 1 <= gpus <= MOST_GPUS:
        raise InputError(f"--gpus {gpus} is outside 1..{MOST_GPUS}", "say how many GPUs train together")

    def shard(loss: str, each: Configuration, many_chunks: bool) -> Program:
        return replace(model.program(loss, each, many_chunks), shards=gpus)

    alone = model.reserved(configuration, users, seen_pairs)
    shared = lifetime.reserved(configuration, users, seen_pairs, shard)
    exchange = exchange_bytes(configuration, gpus)

    def layout(name: str, found: lifetime.Reserved, more: int) -> Layout:
        return Layout(
            name=name,
            per_gpu_batch=configuration.batch_size,
            global_batch=gpus * configuration.batch_size,
            reserved_bytes=found.expected + more,
            upper_bytes=found.upper + more,
        )

    return layout("data parallel, table replicated", alone, 0), layout("row-sharded table", shared, exchange)


def exchange_bytes(configuration: Configuration, gpus: int) -> int:
    """Return the bytes of buffers that row-sharded GPUs exchange: rows looked up, and what the loss needs of others."""
    if gpus == 1:
        return 0
    dim, element = configuration.architecture.dim, 4 if configuration.precision == "fp32" else 2
    rows = 4 * configuration.tokens * dim
    if not LOSSES[configuration.loss].sampled:
        return rows + gpus * configuration.tokens * dim * element
    tokens, negatives = configuration.tokens, configuration.negatives or 1
    sets = tokens
    if LOSSES[configuration.loss].chunked:
        sets = chunking.sampled_chunk_sets(tokens, negatives, dim, configuration.tokens_per_set)
    return rows + 4 * sets * negatives * dim
