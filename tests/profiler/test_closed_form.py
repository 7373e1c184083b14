"""The shipped closed form against the ledger that it was derived from."""

from __future__ import annotations

import json
import os
import random
import sys
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_steps import random_steps

from srsplan.kernels.chunking import RANKING_CHUNK_ELEMENTS, chunk_starts, ranking_chunk_items
from srsplan.kernels.losses import LOSSES
from srsplan.models.config import Configuration, Precision
from srsplan.models.errors import InputError
from srsplan.models.kinds import MODEL_KINDS
from srsplan.planner.several_gpus import exchange_bytes, layouts
from srsplan.profiler.memory import expressions
from srsplan.profiler.memory.allocator import replay
from srsplan.profiler.memory.derive import derive_evaluation, derive_step
from srsplan.profiler.memory.generic_sizes import Kind
from srsplan.profiler.memory.model import MemoryModel
from srsplan.profiler.memory.program import Process, Program, flat, looped
from srsplan.profiler.memory.reserved import reserved, reserved_under, smallest_cap
from srsplan.profiler.memory.simulate import EvaluationSizes, simulate_evaluation, simulate_step
from srsplan.profiler.memory.symbols import NotFactored, Size, factor

MODEL = MemoryModel()
SEGMENT_BYTES = 2 << 20
"""The least that the allocator reserves at once: a loop that stands for several chunks may end in another segment."""
THOROUGH = "SRSPLAN_THOROUGH" in os.environ
"""Every random configuration, which takes minutes, instead of a part of them."""


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
@pytest.mark.parametrize("loss", LOSSES)
def test_estimate_equals_the_ledger(loss: str, precision: Precision) -> None:
    """Random configurations of every model, loss and precision, with several passes and recomputed blocks.

    Within 0.01%, most to the byte. Some of each; with SRSPLAN_THOROUGH=1 50 of each, 1,500 in all.
    """
    counts = ((1, 24), (2, 60), (3, 45), (4, 21)) if THOROUGH else ((1, 3), (2, 8), (3, 6), (4, 3))
    steps = [
        configuration
        for blocks, count in counts
        for configuration in random_steps(loss, precision, blocks, count, 77, options=True, models=[*MODEL_KINDS])
    ]
    for configuration in steps:
        allocated = int(MODEL.allocated([configuration])[0])
        assert allocated == pytest.approx(simulate_step(configuration).allocated_bytes, rel=1e-4), configuration
        assert sum(MODEL.breakdown(configuration).values()) == allocated


def test_the_chunks_that_are_traced_are_the_first_and_the_last() -> None:
    assert chunk_starts(1003, 10, traced=False) == [*range(0, 1003, 10)]
    assert chunk_starts(1003, 10, traced=True) == [0, 10, 20, 30, 1000]
    assert chunk_starts(50, 10, traced=True) == [0, 10, 20, 30, 40]


@pytest.mark.parametrize("loss", ["cce", "cce-"])
def test_a_step_of_thousands_of_chunks_is_traced_with_a_few(loss: str) -> None:
    """In seconds, and to the byte what the closed form says of all of them."""
    sampled = LOSSES[loss].sampled
    configuration = Configuration(
        loss=loss, catalog=1_600_000, batch_size=4096, seq_len=200, negatives=2048 if sampled else None,
        tokens_per_set=32 if sampled else 1,
    )  # fmt: skip
    assert expressions.chunks(expressions.step_row(configuration)) > 200
    began = time.process_time()
    assert simulate_step(configuration).allocated_bytes == int(MODEL.allocated([configuration])[0])
    assert time.process_time() - began < 15  # all of them would take minutes


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_program_reserves_what_the_trace_does(loss: str, precision: Precision) -> None:
    """The shipped program and a trace of the same three steps, each through the allocator's model."""
    for configuration in random_steps(loss, precision, 2, 8, seed=31, options=True):
        trace = simulate_step(configuration, steps=3).trace
        found = replay([allocation.requested_bytes for allocation in trace.allocations], trace.events)
        values = expressions.step_values([configuration])
        chunks = int(expressions.chunks(values)[0])
        program, process = MODEL.program(loss, configuration, chunks > 1), Process()
        sizes = [int(size[0]) for size in program.sizes(values)]
        for code in (program.setup, program.first, program.step):
            process.run(code, sizes, chunks - 2)
        assert process.allocator.peak_reserved == pytest.approx(found.reserved_bytes, rel=1e-3, abs=SEGMENT_BYTES)


@pytest.mark.parametrize("model", MODEL_KINDS)
@pytest.mark.parametrize("users", [1, 16, 1024])
@pytest.mark.parametrize("catalog", [900, 300_000, 1_600_000])
def test_evaluation_equals_the_ledger(users: int, catalog: int, model: str) -> None:
    configuration = Configuration(loss="cce", catalog=catalog, batch_size=32, seq_len=200, model=model)
    for pairs in (users * 200, 0):  # 0: nothing is filtered
        ledger = simulate_evaluation(configuration, EvaluationSizes(users=users, seen_pairs=pairs)).allocated_bytes
        assert MODEL.evaluation(configuration, users, pairs) == pytest.approx(ledger, rel=0.005)


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_evaluation_is_planned_with_fp32_scores_and_their_keys(precision: Precision) -> None:
    """12 bytes for every user and item of a chunk, in any precision; no scores in 16 bit."""
    configuration = Configuration(loss="cce", catalog=300_000, batch_size=32, seq_len=20, precision=precision)
    trace = simulate_evaluation(configuration, EvaluationSizes(users=64, seen_pairs=640)).trace
    shape = (64, ranking_chunk_items(64, 300_000))
    found = {allocation.dtype for allocation in trace.allocations if allocation.shape == shape}
    assert found == {"torch.float32", "torch.int32", "torch.int64"}
    largest = trace.peak(trace.start_of("evaluation")).live
    assert sum(each.requested_bytes for each in largest if each.shape == shape) == 12 * shape[0] * shape[1]
    assert 12 * shape[0] * shape[1] <= 12 * RANKING_CHUNK_ELEMENTS == 192 << 20


@pytest.mark.parametrize(
    ("model", "loss", "precision", "blocks", "many"),
    [("sasrec", "ce", "fp16", 2, False), ("esasrec", "cce-", "bf16", 1, True), ("bert4rec", "cce", "fp32", 2, False)],
)
def test_the_shipped_file_is_what_the_ledger_says_today(
    model: str, loss: str, precision: Precision, blocks: int, many: bool
) -> None:
    configuration = random_steps(loss, precision, blocks, 1, models=[model])[0]
    kind = Kind(loss=loss, precision=precision, blocks=blocks, model=model)
    shipped, derived = MODEL.program(loss, configuration, many), derive_step(kind, many)
    derived = Program.from_document(json.loads(json.dumps(derived.to_document())))
    if sys.version_info < (3, 11):  # it frees two temporaries of a line in the other order
        derived = replace(derived, first=shipped.first, step=shipped.step)
    assert derived == shipped


@pytest.mark.parametrize("many", [False, True])
def test_the_shipped_evaluation_is_what_the_ledger_says_today(many: bool) -> None:
    derived = derive_evaluation("bf16", 2, many)
    configuration = Configuration(loss="cce", catalog=9, batch_size=1, seq_len=1, precision="bf16")
    shipped = MODEL.program("evaluation", configuration, many)
    assert Program.from_document(json.loads(json.dumps(derived.to_document()))) == shipped


@given(st.lists(st.integers(0, 9), max_size=6), st.lists(st.integers(0, 9), max_size=6), st.lists(st.integers(0, 9)))
def test_a_loop_is_found(head: list[int], body: list[int], tail: list[int]) -> None:
    chunks = {count: [*head, *body * (count - 2), *tail] for count in range(2, 9)}
    code = looped(chunks[2], chunks[3], chunks[4])
    assert all(list(flat(code, count - 2)) == chunks[count] for count in chunks)


def test_what_is_no_loop_is_refused() -> None:
    with pytest.raises(ValueError, match="not those of one loop"):
        looped([1, 2], [1, 3, 2], [1, 3, 4, 2])


@pytest.mark.parametrize("loss", LOSSES)
def test_batches_of_other_shapes_hardly_reserve_more(loss: str) -> None:
    """Forty random batches after what the upper bound was made of: at most 5% above it."""
    draw, seen = random.Random(4), 0
    for full in random_steps(loss, "fp16", 2, 30, seed=9, options=True):
        if not 1 << 30 <= int(MODEL.allocated([full])[0]) <= 180 << 30:
            continue
        fills = [1.0, *(draw.uniform(0.7, 1.0) for _ in range(40)), 1.0]
        process = Process()
        for number, fill in enumerate(fills):
            size = max(1, int(fill * full.tokens)), max(1, int(fill * full.sequences))
            values = expressions.pass_values(full, [size])
            chunks = int(expressions.chunks(values)[0])
            program = MODEL.program(loss, full, chunks > 1)
            for code in (program.step,) if number else (program.setup, program.first):
                process.run(code, [int(size[0]) for size in program.sizes(values)], chunks - 2)
        upper = MODEL.reserved(full, users=64, seen_pairs=64 * full.seq_len).upper
        assert process.allocator.peak_reserved <= 1.05 * upper, full
        seen += 1
    assert seen >= 4


def test_a_cap_may_be_enough_where_only_the_beginning_retries() -> None:
    """Such a step asks for more than it will hold; under the cap it runs, and holds no more than that."""
    found = 0
    for full in random_steps("ce-", "fp16", 2, 60, seed=3):
        allocated = int(MODEL.allocated([full])[0])
        if not 1 << 30 <= allocated <= 180 << 30:
            continue
        free = reserved(full, 64, 64 * full.seq_len, MODEL.program)
        cap = (free.expected + free.upper) // 2
        capped = reserved_under(cap, full, 64, 64 * full.seq_len, MODEL.program)
        if capped is not None and cap < free.upper:
            found += 1
            assert allocated <= capped.upper <= cap
    assert found >= 3


@pytest.mark.parametrize("loss", ["ce", "ce-", "cce-"])
def test_every_cap_above_the_smallest_is_safe(loss: str) -> None:
    """Not only the one that was found: what fits is not monotone in the cap."""
    configuration = Configuration(
        loss=loss, catalog=100_000, batch_size=128, seq_len=64, negatives=None if loss == "ce" else 256,
        tokens_per_set=32 if loss == "cce-" else 1,
    )  # fmt: skip
    users, pairs = 64, 64 * 64
    smallest = smallest_cap(configuration, users, pairs, MODEL.program)
    free = reserved(configuration, users, pairs, MODEL.program)
    assert int(MODEL.allocated([configuration])[0]) <= smallest <= free.upper
    for share in (1.0, 1.013, 1.06, 1.2):
        found = reserved_under(smallest * share, configuration, users, pairs, MODEL.program)
        assert found is not None
        assert found.upper <= smallest * share
    below = smallest * 0.99
    assert reserved_under(below, configuration, users, pairs, MODEL.program) is None


def test_a_row_sharded_table_is_shared_and_a_replicated_one_is_not() -> None:
    """Four GPUs: of table, gradient and moments, 4 S, each holds a quarter; with one GPU nothing changes."""
    configuration = Configuration(
        loss="cce-", catalog=4_000_000, batch_size=64, seq_len=32, negatives=256, tokens_per_set=32
    )
    users, pairs = 64, 64 * 32
    alone = MODEL.reserved(configuration, users, pairs)
    replicated, sharded = layouts(configuration, 4, MODEL, users, pairs)
    assert replicated.upper_bytes == alone.upper
    assert (sharded.per_gpu_batch, sharded.global_batch) == (64, 256)
    saved = alone.upper - (sharded.upper_bytes - exchange_bytes(configuration, 4))
    assert saved == pytest.approx(3 * configuration.table_bytes, rel=0.05)
    assert {layout.upper_bytes for layout in layouts(configuration, 1, MODEL, users, pairs)} == {alone.upper}
    with pytest.raises(InputError, match="--gpus 0"):
        layouts(configuration, 0, MODEL, users, pairs)


def test_a_table_is_four_copies_and_no_more() -> None:
    """The tied table, one gradient, two moments: 4 S, where eager research code holds 5.1."""
    configuration = Configuration(
        loss="cce-", catalog=5_000_000, batch_size=16, seq_len=16, negatives=64, tokens_per_set=32
    )
    allocated = MODEL.predict(configuration, users=1, seen_pairs=16).allocated_bytes
    assert 4 * configuration.table_bytes < allocated < 4.05 * configuration.table_bytes


def test_sizes_that_do_not_factor_are_refused() -> None:
    with pytest.raises(NotFactored, match="leave 4036"):
        factor(4 * 1013 * 1009, {"V": Size("V", 1013)})
    assert factor(4 * 1013 * 1013, {"V": Size("V", 1013)}) == "4*V*V"
