"""Reserved bytes: expected <= at most <= the cap at any size, and nothing that a training process runs is left out."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srsplan.kernels.losses import LOSSES
from srsplan.models.config import LARGEST_CATALOG, LARGEST_DIM, Architecture, Configuration
from srsplan.models.errors import InputError
from srsplan.profiler.memory.allocator import replay
from srsplan.profiler.memory.model import LARGEST_BYTES, MemoryModel, Ratios
from srsplan.profiler.memory.reserved import reserved, smallest_cap
from srsplan.profiler.memory.simulate import simulate_step

MODEL = MemoryModel()
MODEL_1_5 = MemoryModel(Ratios(reserved=1.2, upper=1.5, basis="a test"))


def any_size(largest: int) -> st.SearchStrategy[int]:
    """Whole numbers of every magnitude up to the largest."""
    bits = st.integers(0, largest.bit_length())
    return bits.flatmap(lambda count: st.integers(1, min(largest, 1 << count)))


@st.composite
def configurations(draw: st.DrawFn, largest: int = 1 << 62) -> Configuration:
    """Whatever Configuration accepts, of up to four blocks; batch and length up to `largest`."""
    loss = LOSSES[draw(st.sampled_from(sorted(LOSSES)))]
    catalog = 1 + draw(any_size(LARGEST_CATALOG - 1))
    heads = draw(st.sampled_from([1, 2, 4]))
    batch_size = draw(any_size(largest))
    negatives = None
    if loss.sampled:
        negatives = loss.fixed_negatives or draw(any_size(catalog - 1))
    base = Configuration(
        loss=loss.name,
        catalog=catalog,
        batch_size=batch_size,
        seq_len=draw(any_size(largest)),
        negatives=negatives,
        tokens_per_set=draw(any_size(largest)) if loss.shares_negatives else 1,
        sampler=draw(st.sampled_from(loss.samplers)) if loss.sampled else "uniform",
        architecture=Architecture(
            dim=8 * heads * draw(st.integers(1, LARGEST_DIM // 8 // heads)), heads=heads, blocks=draw(st.integers(1, 4))
        ),
        precision=draw(st.sampled_from(["fp16", "bf16", "fp32"])),
        micro_batches=draw(any_size(batch_size)),
        recompute=draw(st.booleans()),
    )
    return replace(base, valid_tokens=draw(st.none() | any_size(base.tokens)))


@settings(deadline=None, max_examples=150)
@given(configuration=configurations(), users=st.sampled_from([1, 64, 1024]), length=st.integers(1, 500))
def test_every_configuration_has_a_prediction(configuration: Configuration, users: int, length: int) -> None:
    """In two seconds, exact; only what takes more than 8 EiB is refused, and that in words."""
    began = time.perf_counter()
    allocated = int(MODEL.allocated([configuration])[0])
    try:
        found = MODEL.predict(configuration, users, users * length)
    except InputError as error:
        assert "takes more than 8 EiB" in error.message
        assert MODEL.reserved(configuration, users, users * length).upper >= LARGEST_BYTES
    else:
        assert allocated == found.allocated_bytes == sum(found.breakdown_bytes.values())
        assert max(allocated, found.evaluation_bytes) <= found.upper_bytes < LARGEST_BYTES
        assert allocated <= found.reserved_bytes <= found.upper_bytes
    assert time.perf_counter() - began < 2
    # the last block's residual stream alone: one fp32 number for every position and hidden unit
    assert allocated >= 4 * configuration.tokens * configuration.architecture.dim


@settings(deadline=None, max_examples=80)
@given(
    configuration=configurations(largest=1 << 12),
    share=st.floats(0.3, 1.2),
    model=st.sampled_from([MODEL, MODEL_1_5]),
)
def test_expected_is_at_most_the_upper_bound_and_both_are_within_a_cap_that_fits(
    configuration: Configuration, share: float, model: MemoryModel
) -> None:
    usable = max(1, int(share * model.reserved(configuration, 64, 6400).upper))
    found = model.reserved(configuration, 64, 6400, usable)
    assert found.expected <= found.upper
    assert (found.upper <= usable) == model.fits(configuration, 64, 6400, usable)
    if share >= 1:
        assert found.upper <= usable


def test_sizes_beyond_64_bits_are_exact() -> None:
    """A row of the table, its gradient and two moments: four times 4 D bytes for every further item, whatever N is."""
    large = Configuration(loss="ce-", catalog=1000, batch_size=1 << 40, seq_len=1 << 40, negatives=8)
    longer = replace(large, batch_size=large.batch_size + 1)
    twice = replace(large, batch_size=large.batch_size + 2)
    one, two, three = (int(MODEL.allocated([each])[0]) for each in (large, longer, twice))
    assert three - two == two - one  # linear to the byte: floating point would have lost the last 30 bits
    assert one > 1 << 90
    mixed = MODEL.allocated([replace(large, batch_size=4, seq_len=8), large])
    assert [int(mixed[0]), int(mixed[1])] == [int(MODEL.allocated([replace(large, batch_size=4, seq_len=8)])[0]), one]


def test_the_cap_found_for_an_enormous_step_is_found_as_fast() -> None:
    """The search from above ends, and what it finds lies between what tensors take and the upper bound."""
    configuration = Configuration(loss="ce", catalog=100_000_000, batch_size=65_536, seq_len=512)
    upper = MODEL.reserved(configuration, 64, 64 * 512).upper
    cap = smallest_cap(configuration, 64, 64 * 512, MODEL.program)
    assert int(MODEL.allocated([configuration])[0]) <= cap <= upper
    assert cap > 65_536 * 512 * 100_000_000 * 2  # logits in 16 bit


def test_a_measured_ratio_multiplies_both_and_never_crosses_them() -> None:
    configuration = Configuration(loss="ce-", catalog=50_000, batch_size=64, seq_len=64, negatives=64)
    plain, corrected = (model.reserved(configuration, 64, 6400) for model in (MODEL, MODEL_1_5))
    assert corrected.expected == pytest.approx(1.2 * plain.expected, rel=1e-9)
    assert corrected.upper == pytest.approx(1.5 * plain.upper, rel=1e-9)
    for reserved_ratio, upper in ((1.2, 1.1), (0.9, 1.0), (1.0, float("inf")), (float("nan"), 2.0)):
        with pytest.raises(ValueError, match="ratios"):
            Ratios(reserved=reserved_ratio, upper=upper, basis="")


def test_an_evaluation_that_needs_more_than_training_is_expected() -> None:
    """1,024 users scored against chunks of 64 Mi scores; the training step is tiny."""
    configuration = Configuration(loss="cce", catalog=300_000, batch_size=1, seq_len=8)
    evaluation = MODEL.evaluation(configuration, 1024, 1024 * 8)
    assert evaluation > int(MODEL.allocated([configuration])[0]) + (64 << 20)
    found = reserved(configuration, 1024, 1024 * 8, MODEL.program)
    assert found.expected >= evaluation
    assert reserved(configuration, 1, 8, MODEL.program).expected < evaluation


def test_batches_of_other_shapes_count() -> None:
    """Independently: the ledger's traces of a full step and of a fuller mix, each through the allocator alone."""
    full = Configuration(
        loss="ce-", catalog=30_000, batch_size=128, seq_len=64, negatives=256, valid_tokens=4000, precision="fp16"
    )
    alone = simulate_step(full, steps=4)
    sizes, events = [allocation.requested_bytes for allocation in alone.trace.allocations], list(alone.trace.events)
    uniform = replay(sizes, events).reserved_bytes
    found = reserved(full, 64, 64 * 64, MODEL.program)
    assert found.expected >= uniform
    assert found.upper > 1.01 * uniform
