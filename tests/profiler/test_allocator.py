"""The model of the caching allocator: against 24 reserved peaks and 40 caps of an H200, and its own invariants."""

from __future__ import annotations

import csv
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from measured_model import Measured, trace
from paths import SHARED

from srsplan.models.config import Architecture
from srsplan.planner.budget import make_budget
from srsplan.planner.confirm import confirm
from srsplan.planner.search import Prices, Space, recommend
from srsplan.planner.workload import WorstCase
from srsplan.profiler.memory.allocator import LARGE_SEGMENT_BYTES, Block, CachingAllocator, CapReachedError, replay
from srsplan.profiler.memory.ledger import Trace
from srsplan.profiler.memory.model import MemoryModel
from srsplan.profiler.probes.catalogue import find_gpu

MIB = 1 << 20


def table(name: str) -> list[dict[str, str]]:
    with (SHARED / "measured" / name).open() as lines:
        return list(csv.DictReader(lines))


def measured(row: dict[str, str]) -> Measured:
    return Measured(
        loss=row["loss"], catalog=int(row["catalog"]), batch_size=int(row["batch_size"]), seq_len=int(row["seq_len"]),
        negatives=int(row["negatives"]), precision=row["amp"], optimizer=row["adam"],
    )  # fmt: skip


def starts(recorded: Trace) -> list[int]:
    """Events at which steps begin, and the end of the last."""
    return [event for event, name in recorded.marks if name in ("forward", "end")]


@pytest.mark.evidence
def test_reserved_and_allocated_peaks_of_24_steps() -> None:
    """One process ran all of them: build, a step, empty_cache, then two steps whose peaks were read."""
    allocator, key = CachingAllocator(), 0
    for number, row in enumerate(table("h200_step_memory.csv")):
        recorded, _ = trace(measured(row), steps=3, warm_process=number > 0)
        _, second, third, end = starts(recorded)
        allocator.empty_cache()
        peaks: tuple[int, int] | None = None
        for position, event in enumerate(recorded.events):
            if position == second:
                allocator.empty_cache()
                allocator.reset_peaks()
            if position == end:
                peaks = allocator.peak_allocated, allocator.peak_reserved
            index = event if event >= 0 else ~event
            if event >= 0:
                allocator.allocate(key + index, recorded.allocations[index].requested_bytes)
            else:
                allocator.free(key + index)
        assert peaks is not None
        assert third > second
        key += len(recorded.allocations)
        assert peaks[0] == pytest.approx(int(row["allocated_peak_bytes"]), rel=0.001), row
        assert peaks[1] == pytest.approx(int(row["reserved_peak_bytes"]), rel=0.001), row


@pytest.mark.evidence
def test_which_of_40_caps_fit() -> None:
    """A fresh process each, 8 steps: whether they fit, in both modes of the allocator."""
    rows = {
        f"{row['loss'].replace('_neg', '-')} V={row['catalog']} bs={row['batch_size']} sl={row['seq_len']}"
        + (f" ns={row['negatives']}" if row["negatives"] != "0" else ""): row
        for row in table("h200_step_memory.csv")
        if row["adam"] == "foreach"
    }
    traces: dict[str, Trace] = {}
    for cap in table("h200_fit_under_cap.csv"):
        row = rows[cap["config"]]
        if cap["config"] not in traces:
            traces[cap["config"]] = trace(measured(row), steps=8)[0]
        recorded = traces[cap["config"]]
        limit = int(int(row["allocated_peak_bytes"]) * float(cap["cap_over_allocated_peak"]))
        sizes = [allocation.requested_bytes for allocation in recorded.allocations]
        found = replay(sizes, recorded.events, limit, cap["expandable_segments"] == "1")
        assert found.fits == (cap["fits"] == "1"), cap
        if found.fits:
            assert found.retries == int(cap["alloc_retries"]), cap
            ratio = found.reserved_bytes / int(row["allocated_peak_bytes"])
            assert ratio == pytest.approx(float(cap["reserved_over_allocated"]), abs=0.001), cap


SIZES = st.one_of(st.integers(1, 4000), st.integers(1, 3 * MIB), st.integers(8 * MIB, 90 * MIB))


@settings(deadline=None)
@given(
    steps=st.lists(st.tuples(SIZES, st.integers(0, 5)), max_size=60),
    expandable=st.booleans(),
    cap=st.one_of(st.none(), st.integers(20 * MIB, 400 * MIB)),
)
def test_invariants(steps: list[tuple[int, int]], expandable: bool, cap: int | None) -> None:
    """Live blocks never overlap, hold what was asked for, and count for no more than is reserved, under the cap."""
    allocator = CachingAllocator(cap, expandable)
    live: dict[int, Block] = {}
    for key, (size, frees) in enumerate(steps):
        try:
            allocator.allocate(key, size)
        except CapReachedError:
            assert cap is not None
        else:
            live[key] = allocator._live[key]
            assert live[key].size >= size
        for old in list(live)[:frees]:
            allocator.free(old)
            del live[old]
        spans = sorted((block.address, block.address + block.size) for block in live.values())
        assert all(end <= start for (_, end), (start, _) in pairwise(spans))
        assert sum(block.size for block in live.values()) == allocator.allocated <= allocator.reserved
        # an expandable segment grows by whole pages, the cap is only asked for the request: PyTorch's own rule
        assert cap is None or allocator.peak_reserved < cap + (LARGE_SEGMENT_BYTES if expandable else 1)
    for key in list(live):
        allocator.free(key)
    allocator.empty_cache()
    assert allocator.allocated == allocator.reserved == 0


def test_the_rules_one_by_one() -> None:
    allocator = CachingAllocator()
    allocator.allocate(1, 1)
    assert (allocator.allocated, allocator.reserved) == (512, 2 * MIB)
    allocator.allocate(2, 3 * MIB)
    assert allocator.reserved == 22 * MIB
    allocator.allocate(3, 11 * MIB)
    assert allocator.reserved == 22 * MIB  # from the rest of the large segment
    allocator.allocate(4, 11 * MIB)
    assert allocator.reserved == 34 * MIB  # 11 MiB, rounded up to 2
    assert allocator.allocated == 512 + 3 * MIB + 11 * MIB + 12 * MIB  # a rest of 1 MiB is not split off
    allocator.free(4)
    allocator.allocate(5, 12 * MIB)
    assert allocator.reserved == 34 * MIB


@pytest.mark.parametrize("catalog", [30_000, 1_600_000])
@pytest.mark.parametrize("gigabytes", [16, 40])
def test_rank_1_runs_under_a_hard_cap_of_its_budget(catalog: int, gigabytes: int) -> None:
    """Four steps of the chosen configuration, what the allocator may reserve capped at what the plan may use."""
    gpu = find_gpu("a100-40gb")
    space = Space(
        catalog=catalog, losses=("ce-", "cce", "cce-", "bce"), architecture=Architecture(), precision="fp16",
        workload=WorstCase(),
    )  # fmt: skip
    budget = make_budget(gigabytes * 10**9, gpu)
    choice = recommend(space, Prices(space.workload, budget, gpu, MemoryModel())).choices[0]
    found = confirm(choice, budget, gpu)
    assert found.fits
    assert found.retries == 0
    assert found.allocated_bytes == pytest.approx(choice.memory.allocated_bytes, rel=0.01)
    assert found.reserved_bytes == pytest.approx(choice.memory.reserved_bytes, rel=0.04)
