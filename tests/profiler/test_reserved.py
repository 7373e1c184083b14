"""Reserved bytes: expected <= at most <= the cap at any size, and nothing that a training process runs is left out."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_steps import random_steps

from srsplan.kernels.losses import LOSSES
from srsplan.models.checks import LARGEST, LARGEST_CATALOG
from srsplan.models.config import LARGEST_HEAD, Architecture, Configuration
from srsplan.models.errors import InputError
from srsplan.profiler.memory import expressions
from srsplan.profiler.memory.model import LARGEST_BYTES, MemoryModel, Ratios
from srsplan.profiler.memory.program import Process
from srsplan.profiler.memory.reserved import FILL_PERCENT, reserved, reserved_under, smallest_cap

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
    heads = draw(st.sampled_from([1, 2, 4, 16]))
    batch_size = draw(any_size(min(largest, LARGEST["batch_size"])))
    negatives = None
    if loss.sampled:
        negatives = loss.usual_negatives or draw(any_size(catalog - 1))
    base = Configuration(
        loss=loss.name,
        catalog=catalog,
        batch_size=batch_size,
        seq_len=draw(any_size(min(largest, LARGEST["seq_len"]))),
        negatives=negatives,
        tokens_per_set=draw(any_size(min(largest, LARGEST["tokens_per_set"]))) if loss.shares_negatives else 1,
        sampler=draw(st.sampled_from(loss.samplers)) if loss.sampled else "uniform",
        architecture=Architecture(
            dim=8 * heads * draw(st.integers(1, LARGEST_HEAD // 8)), heads=heads, blocks=draw(st.integers(1, 4))
        ),
        precision=draw(st.sampled_from(["fp16", "bf16", "fp32"])),
        pass_sequences=draw(st.none() | any_size(batch_size)),
        recompute=draw(st.booleans()),
    )
    more = any_size(base.batch_tokens).map(lambda tokens: max(tokens, base.seq_len))
    return replace(base, pass_tokens=draw(st.none() | more))


@settings(deadline=None, max_examples=80)
@given(configuration=configurations(), users=st.sampled_from([1, 64, 1024]), length=st.integers(1, 500))
def test_every_configuration_has_a_prediction(configuration: Configuration, users: int, length: int) -> None:
    """In two seconds, exact; only what takes more than 8 EiB is refused, and that in words."""
    began = time.process_time()
    allocated = int(MODEL.allocated([configuration])[0])
    try:
        found = MODEL.predict(configuration, users, users * length)
    except InputError as error:
        refusal = error.message
    else:
        refusal = ""
        assert allocated == found.allocated_bytes == sum(found.breakdown_bytes.values())
        assert max(allocated, found.evaluation_bytes) <= found.upper_bytes
        assert allocated <= found.reserved_bytes <= found.upper_bytes
    assert time.process_time() - began < 2
    too_large = MODEL.reserved(configuration, users, users * length).upper >= LARGEST_BYTES
    assert too_large == ("takes more than 8 EiB" in refusal) == bool(refusal)
    # the last block's residual stream alone: one fp32 number for every position and hidden unit
    assert allocated >= 4 * configuration.tokens * configuration.architecture.dim


@settings(deadline=None, max_examples=40)
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
    """Every further 128 sequences of a batch take the same number of bytes, however many there are."""
    most, length = LARGEST["batch_size"] - 256, LARGEST["seq_len"]
    large = Configuration(loss="ce", catalog=LARGEST_CATALOG, batch_size=most, seq_len=length)
    longer = replace(large, batch_size=large.batch_size + 128)
    twice = replace(large, batch_size=large.batch_size + 256)
    one, two, three = (int(MODEL.allocated([each])[0]) for each in (large, longer, twice))
    assert three - two == two - one  # linear to the byte: floating point would have lost the last bits
    assert one > 1 << 64
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
    assert corrected.expected == pytest.approx(1.2 * plain.expected, abs=1)
    assert corrected.upper == pytest.approx(1.5 * plain.upper, abs=1)
    for reserved_ratio, upper in ((1.2, 1.1), (0.9, 1.0), (1.0, float("inf")), (float("nan"), 2.0)):
        with pytest.raises(ValueError, match="ratios"):
            Ratios(reserved=reserved_ratio, upper=upper, basis="")


def test_a_measured_ratio_holds_under_a_cap_as_well() -> None:
    """Where retries at the beginning make a step fit, one that takes half as much again fits half as much again."""
    configuration = Configuration(loss="ce-", catalog=30_000, batch_size=64, seq_len=64, negatives=256)
    free = MODEL.reserved(configuration, 64, 6400)
    cap = (free.expected + free.upper) // 2
    assert MODEL.fits(configuration, 64, 6400, cap)
    assert MODEL_1_5.fits(configuration, 64, 6400, cap * 3 // 2)
    assert not MODEL_1_5.fits(configuration, 64, 6400, cap)


def test_an_evaluation_that_needs_more_than_training_is_expected() -> None:
    """1,024 users scored against chunks of 64 Mi scores; the training step is tiny."""
    configuration = Configuration(
        loss="cce", catalog=65_536, batch_size=1, seq_len=8, architecture=Architecture(dim=8, heads=1)
    )
    evaluation = MODEL.evaluation(configuration, 1024, 1024 * 8)
    assert evaluation > int(MODEL.allocated([configuration])[0]) + (32 << 20)
    found = reserved(configuration, 1024, 1024 * 8, MODEL.program)
    assert found.expected >= evaluation
    assert reserved(configuration, 1, 8, MODEL.program).expected < evaluation


def held_after(full: Configuration, passes: list[tuple[int, int]]) -> int:
    """Reserved bytes of a process that trains passes of (tokens, sequences), through the allocator alone."""
    process = Process()
    for number, size in enumerate(passes):
        values = expressions.pass_values(full, [size])
        chunks = int(expressions.chunks(values)[0])
        program = MODEL.program(full.loss, full, chunks > 1)
        for code in (program.step,) if number else (program.setup, program.first):
            process.run(code, [int(size[0]) for size in program.sizes(values)], max(0, chunks - 2))
    return process.allocator.peak_reserved


@pytest.mark.parametrize(
    "full",
    [
        Configuration(
            loss="cce-", catalog=3447, batch_size=2560, seq_len=276, negatives=1269, sampler="popularity",
            pass_tokens=38_154, pass_sequences=87, architecture=Architecture(dim=32, heads=4),
        ),
        Configuration(
            loss="cce", catalog=217_274, batch_size=3946, seq_len=176, pass_tokens=525_733, pass_sequences=2246,
            architecture=Architecture(dim=128),
        ),
    ],
    ids=lambda full: full.loss,
)  # fmt: skip
def test_batches_of_other_shapes_count(full: Configuration) -> None:
    """They cut the free blocks anew: more is held after them than after full batches alone, and the bound knows it."""
    most = full.tokens, full.sequences
    others = [(full.tokens * percent // 100, full.sequences * percent // 100) for percent in (93, 81, 97, 88)]
    last = full.tokens // 3, full.sequences // 3
    alone, mixed = held_after(full, [most] * 8), held_after(full, [most, most, *others, most, last, most])
    assert mixed > alone
    found = reserved(full, 1, 8, MODEL.program)
    assert alone <= found.expected < mixed <= found.upper


def retries_by_round(configuration: Configuration, users: int, cap: int, rounds: int) -> list[int]:
    """All retries so far, after each round of a full step and an evaluation, of a process under a cap."""
    values = expressions.step_values([configuration])
    ranked = expressions.evaluation_values(configuration, users, users * configuration.seq_len)
    count = int(expressions.chunks(values)[0])
    chunks = int(expressions.chunks(ranked)[0])
    program = MODEL.program(configuration.loss, configuration, count > 1)
    ranking = MODEL.program(expressions.EVALUATION, configuration, chunks > 1)
    sizes, ranked_sizes = (
        [int(size[0]) for size in each.sizes(of)] for each, of in ((program, values), (ranking, ranked))
    )
    process, found = Process(cap), list[int]()
    for code in (program.setup, program.first):
        process.run(code, sizes, max(0, count - 2))
    for _ in range(rounds):
        process.run(program.step, sizes, max(0, count - 2))
        process.run(ranking.step, ranked_sizes, max(0, chunks - 2))
        found.append(process.allocator.retries)
    return found


def lived(full: Configuration, users: int, cap: int | None = None) -> tuple[int, int, int]:
    """The life of a training process, everything of it run: bytes held early on, bytes needed, retries after that."""
    process = Process(cap)

    def run(row: dict[str, int], loss: str, *codes: str) -> None:
        chunks = expressions.chunks(row)
        program = MODEL.program(loss, full, chunks > 1)
        for code in codes:
            process.run(getattr(program, code), program.numbers(row), max(0, chunks - 2))

    def train(tokens: int, *codes: str) -> None:
        sequences = max(1, min(tokens, full.sequences * tokens // full.tokens))
        run(expressions.pass_row(full, tokens, sequences), full.loss, *(codes or ("step",)))

    def rank() -> None:
        run(expressions.evaluation_row(full, users, users * full.seq_len), expressions.EVALUATION, "step")

    train(full.tokens, "setup", "first", "step")
    rank()
    train(full.tokens)
    early, before = process.allocator.peak_reserved, process.allocator.retries
    for percent in (93, 100, 81, 97, 100, 88, 100) if full.several_passes else ():
        train((percent * full.tokens + 50) // 100)
    train(max(1, full.tokens // 3))
    train(full.tokens)
    rank()
    train(full.tokens)
    needed = max(process.allocator.peak_reserved, process.allocator.peak_asked)
    return early, needed, process.allocator.retries - before


LARGE = [
    full
    for loss in ("ce", "cce-", "cce")
    for full in random_steps(loss, "fp16", 2, 16, seed=3, options=True)
    if 1 << 30 <= int(MODEL.allocated([full])[0]) <= 180 << 30
]


def test_what_is_left_out_of_a_life_changes_nothing() -> None:
    """Parts that are known to end as they began are not run again: the figures are those of the whole life."""
    for full in LARGE:
        found = reserved(full, 64, 64 * full.seq_len, MODEL.program)
        assert (found.expected, found.upper, 0) == lived(full, 64), full
        assert reserved_under(found.upper, full, 64, 64 * full.seq_len, MODEL.program) == found


def test_under_the_upper_bound_nothing_is_ever_given_back() -> None:
    """Not even where a request asks for more than is held afterwards."""
    for full in LARGE:
        upper = reserved(full, 64, 64 * full.seq_len, MODEL.program).upper
        assert retries_by_round(full, 64, upper, 3) == [0, 0, 0], full
    assert len(LARGE) >= 10


def test_under_the_smallest_cap_settled_training_hardly_ever_gives_back() -> None:
    """Once in a round of a step and an evaluation at most: more, and every step would be slow. So much is accepted."""
    given_back = []
    for full in LARGE:
        cap = smallest_cap(full, 64, 64 * full.seq_len, MODEL.program)
        first, *_, last = retries_by_round(full, 64, cap, 6)
        given_back.append(last - first)
    assert 0 < max(given_back) <= 5


def test_a_cap_with_one_late_retry_is_small_enough() -> None:
    """One is what a cap may cost later on: refused, plans would ask for more than training needs."""
    full = Configuration(
        loss="ce", catalog=54_631, batch_size=254, seq_len=95, pass_tokens=6894,
        architecture=Architecture(dim=64, heads=4),
    )  # fmt: skip
    cap = smallest_cap(full, 64, 64 * full.seq_len, MODEL.program)
    assert lived(full, 64, cap)[2] == 1
    assert reserved_under(cap, full, 64, 64 * full.seq_len, MODEL.program) is not None
    assert lived(full, 64, reserved(full, 64, 64 * full.seq_len, MODEL.program).upper)[2] == 0


def test_no_later_batch_is_fuller_than_the_fullest() -> None:
    """One token of padding is all that there is: a batch of 101% would not be possible at all."""
    base = Configuration(loss="ce-", catalog=50_000, batch_size=64, seq_len=64, negatives=64)
    almost = replace(base, pass_tokens=base.batch_tokens - 1)
    found = reserved(almost, 64, 64 * 64, MODEL.program)
    assert found.upper >= int(MODEL.allocated([almost])[0])


def test_the_fills_of_later_batches_are_those_that_were_compared() -> None:
    """With forty random batches (see reserved.py), which is to be done again where one of them changes."""
    assert FILL_PERCENT == (93, 100, 81, 97, 100, 88, 100)
