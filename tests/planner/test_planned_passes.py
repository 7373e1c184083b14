"""The pass of a configuration: the largest that fits, by memory models that are given and by the real one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srsplan.models.config import Architecture, Configuration
from srsplan.planner import pricing
from srsplan.planner.budget import make_budget
from srsplan.planner.passes import (
    SMALL_PASS,
    larger_pass,
    largest_pass,
    pass_sizes,
    smallest_pass,
    whole_pass,
    with_pass,
    with_whole_pass,
)
from srsplan.planner.search import Prices
from srsplan.planner.workload import FromData, MeanLength, Workload, WorstCase
from srsplan.profiler.memory.model import MemoryModel
from srsplan.profiler.probes.catalogue import find_gpu

MODEL = MemoryModel()
H200 = find_gpu("h200")
BASE = Configuration(
    loss="cce-", catalog=300_000, batch_size=1024, seq_len=256, negatives=512, tokens_per_set=32,
    architecture=Architecture(dim=64),
)  # fmt: skip


@dataclass
class Linear:
    """Memory that grows with a pass's tokens and reserves `spread` times the tensors; it counts what it is asked."""

    limit: int
    each: int = 1000
    fixed: int = 10**6
    spread: float = 1.07
    asked: int = field(default=0)

    def allocated(self, configurations: Sequence[Configuration]) -> list[int]:
        return [self.fixed + self.each * configuration.tokens for configuration in configurations]

    def fits(self, configuration: Configuration) -> bool:
        self.asked += 1
        return self.spread * self.allocated([configuration])[0] <= self.limit


@given(st.integers(1, 10**6), st.integers(1, 2**20))
def test_sizes_are_close_together_and_end_with_the_whole(least: int, whole: int) -> None:
    sizes = pass_sizes(least, whole)
    assert sizes == sorted(set(sizes))
    assert (sizes[0], sizes[-1]) == (min(least, whole), whole)
    assert all(after <= max(before + 1, before * 34 / 32) for before, after in pairwise(sizes))


@settings(deadline=None)
@given(
    limit=st.integers(10**6, 10**9),
    spread=st.floats(1, 2),
    length=st.sampled_from([16, 50, 512]),
    batch_size=st.integers(1, 2048),
    share=st.none() | st.floats(0.01, 1.2),
)
def test_the_pass_fits_and_the_next_larger_does_not(
    limit: int, spread: float, length: int, batch_size: int, share: float | None
) -> None:
    """Wherever the search begins, and with few questions: each is a replay."""
    workload, memory = WorstCase(), Linear(limit, spread=spread)
    whole = with_whole_pass(replace(BASE, batch_size=batch_size, seq_len=length), workload)
    found = largest_pass(whole, workload, memory, share=share)
    asked = memory.asked
    if found is None:
        assert not memory.fits(smallest_pass(whole, workload))
        return
    assert memory.fits(found)
    assert found.seq_len <= found.tokens <= whole.tokens
    larger = [size for size in pass_sizes(smallest_pass(whole, workload).tokens, whole.tokens) if size > found.tokens]
    assert not larger or not memory.fits(with_pass(whole, larger[0], workload))
    assert asked <= 20


class Islands(Linear):
    """Memory under which some sizes below the limit do not fit, as eager losses have it."""

    def fits(self, configuration: Configuration) -> bool:
        return super().fits(configuration) and not 0.5 < self.allocated([configuration])[0] / self.limit < 0.8


def test_no_larger_pass_fits_than_the_one_that_is_shown() -> None:
    workload, memory = WorstCase(), Islands(10**8, spread=1.03)
    whole = with_whole_pass(BASE, workload)
    halved = largest_pass(whole, workload, memory, share=0.3)
    assert halved is not None
    assert memory.allocated([halved])[0] <= 0.5 * memory.limit
    found = larger_pass(halved, workload, memory)
    sizes = [size for size in pass_sizes(SMALL_PASS, whole.tokens) if memory.fits(with_pass(whole, size, workload))]
    assert found == with_pass(whole, sizes[-1], workload)
    assert memory.allocated([found])[0] > 0.94 * memory.limit
    assert larger_pass(found, workload, memory) == found, "nothing larger fits"


@settings(deadline=None, max_examples=10)
@given(st.sampled_from([2.0, 3.1, 4.7, 8.0]), st.sampled_from(["cce-", "cce", "ce-", "bce"]), st.floats(5, 300))
def test_the_pass_of_the_real_memory_model_fits_and_the_next_does_not(gigabytes: float, loss: str, mean: float) -> None:
    workload = MeanLength(mean)
    budget = make_budget(int(gigabytes * 1e9), H200)
    prices = Prices(workload, budget, H200, MODEL)
    sampled = {"cce-": (512, 32), "ce-": (512, 1), "bce": (1, 1), "cce": (None, 1)}[loss]
    whole = with_whole_pass(replace(BASE, loss=loss, negatives=sampled[0], tokens_per_set=sampled[1]), workload)
    found = prices.fitted(whole)
    assert found is not None
    assert prices.choice(found).memory.upper_bytes <= budget.usable_bytes
    if found != whole:
        sizes = pass_sizes(smallest_pass(whole, workload).tokens, whole.tokens)
        following = next(size for size in sizes if size > found.tokens)
        assert not prices.fits(prices.cut(whole, following))


def test_a_whole_batch_is_one_pass_where_it_fits() -> None:
    """One question, and with unknown lengths not even a pass more is possible."""
    memory = Linear(10**10)
    whole = with_whole_pass(BASE, WorstCase())
    assert largest_pass(whole, WorstCase(), memory) == whole
    assert (whole.tokens, whole.sequences, whole.several_passes, memory.asked) == (BASE.batch_tokens, 1024, False, 1)


def test_a_pass_for_a_batch_of_data_is_as_long_as_its_sequences() -> None:
    """Of three users with 4, 1 and 2 targets a batch of two has 6 at most, of three 7; cut at 3 it has 5."""
    data = FromData(Path("d"), np.array([5, 2, 3]), np.array([1]))
    assert [whole_pass(data, batch_size, seq_len) for batch_size, seq_len in ((2, 10), (3, 10), (2, 3))] == [10, 10, 5]
    assert [data.fullest_batch(batch_size, 10) for batch_size in (1, 2, 3)] == [4, 6, 7]


WORKLOADS: list[Workload] = [
    WorstCase(), MeanLength(5.0), MeanLength(200.0), FromData(Path("d"), np.array([2, 2, 3, 900] * 900), np.array([1])),
]  # fmt: skip


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda each: type(each).__name__)
@pytest.mark.parametrize("seq_len", [8, 64, 512])
def test_the_sequences_of_a_pass_are_bounded_and_rarely_end_it(workload: Workload, seq_len: int) -> None:
    """A quarter more than the tokens hold on average; all of the batch in a whole pass."""
    for batch_size in (1, 64, 1024):
        whole = whole_pass(workload, batch_size, seq_len)
        assert workload.pass_sequences(whole, batch_size, seq_len) == batch_size
        assert seq_len <= whole <= batch_size * seq_len
    part = workload.pass_sequences(4096, 1024, seq_len)
    assert min(1024, 4096 / seq_len) <= part <= 1024
    if not isinstance(workload, WorstCase):
        assert min(1024, 1.25 * 4096 / workload.mean_tokens(seq_len)) <= part


def test_the_mean_is_that_of_sequences_with_a_target(tmp_path: Path) -> None:
    """Counted by hand: 1, 2 and 4 tokens of 2, 3 and 900 items, cut at 4; one item alone is no sequence."""
    workload = FromData(tmp_path, np.array([1, 2, 3, 900]), np.array([1]))
    assert workload.mean_tokens(4) == pytest.approx(7 / 3)
    assert MeanLength(10**6).mean_tokens(64) == pytest.approx(64, rel=0.01)


FULL = Configuration(loss="cce", catalog=500_000, batch_size=512, seq_len=128, architecture=Architecture(dim=64))
DATA = FromData(Path("data"), np.full(100_000, 200), np.full(100_000, 200))
NO_LIMITS = pricing.Limits(budget_bytes=None, device_bytes=None)


def test_the_usual_pass_is_a_batch_or_65536_tokens_or_what_the_gpu_holds() -> None:
    long, short = replace(FULL, batch_size=4096), replace(FULL, batch_size=16)
    assert pricing.usual_pass(long, 64, DATA, NO_LIMITS).tokens == 65_536
    assert pricing.usual_pass(short, 64, DATA, NO_LIMITS).tokens == 16 * 128
    brief = FromData(Path("data"), np.array([3] * 9990 + [200] * 10), np.full(10, 200))
    sure = pricing.usual_pass(short, 64, brief, NO_LIMITS)
    assert not sure.several_passes, "a second pass cannot be, and no second gradient of the table"
    small = pricing.Limits(budget_bytes=None, device_bytes=1 << 30)
    found = pricing.usual_pass(long, 64, DATA, small)
    assert 128 <= found.tokens < 65_536
    assert pricing.priced(found, 64, DATA, 1 << 30).upper_bytes <= 1 << 30
    deep = replace(long, architecture=Architecture(dim=64, blocks=9))
    assert pricing.usual_pass(deep, 64, DATA, small).tokens == 65_536, "the memory model does not cover it"


@pytest.mark.parametrize("change", [{"kernel": "triton"}, {"kernel": "chunked"}])
def test_another_kernel_gets_a_pass_of_its_own_within_the_plans_budget(change: dict[str, str]) -> None:
    """Larger or smaller than the plan's: never more than the budget, and never much less."""
    usable = 2 << 30
    limits = pricing.Limits(budget_bytes=usable, device_bytes=None)
    planned = with_pass(replace(FULL, batch_size=4096), 1 << 19, DATA)
    found, told = pricing.replanned(replace(planned, **change), 64, DATA, limits)  # type: ignore[arg-type]
    assert pricing.priced(found, 64, DATA, usable).upper_bytes <= usable
    assert found.batch_size == planned.batch_size
    assert f"a pass has {found.tokens:,} tokens instead of {planned.tokens:,}" in told
    assert {"triton": "Triton", "chunked": "chunked PyTorch"}[change["kernel"]] in told
    assert pricing.priced(with_pass(found, found.tokens * 9 // 8, DATA), 64, DATA, usable).upper_bytes > usable


def test_where_no_pass_fits_the_plan_stays_and_says_so() -> None:
    limits = pricing.Limits(budget_bytes=1 << 20, device_bytes=None)
    planned = with_pass(FULL, 4096, DATA)
    found, told = pricing.replanned(planned, 64, DATA, limits)
    assert found == planned
    assert told.startswith("warning")
