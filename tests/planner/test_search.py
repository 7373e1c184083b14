"""The search: what it finds fits, stands in the stated order, and is the best of its neighbourhood."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from srsplan.kernels.losses import LOSSES, PLANNED
from srsplan.models.config import Architecture, Configuration
from srsplan.planner.budget import make_budget
from srsplan.planner.confirm import confirm, confirm_first
from srsplan.planner.passes import SMALL_PASS, with_pass, with_whole_pass
from srsplan.planner.search import BALANCE, Prices, Recommendation, Space, recommend
from srsplan.planner.search.space import BATCH_SIZES
from srsplan.planner.time_limit import TimeLimit
from srsplan.planner.workload import FromData, MeanLength, Workload, WorstCase
from srsplan.profiler.memory.model import MemoryModel
from srsplan.profiler.probes.catalogue import find_gpu, load_gpus

MODEL = MemoryModel()
A100 = find_gpu("a100-40gb")


def space_of(catalog: int, losses: tuple[str, ...] = PLANNED, **changes: Any) -> Space:
    values: dict[str, Any] = {"architecture": Architecture(), "precision": "fp16", "workload": WorstCase(), **changes}
    return Space(catalog=catalog, losses=losses, **values)


def prices_of(space: Space, gigabytes: float) -> Prices:
    return Prices(space.workload, make_budget(int(gigabytes * 1e9), A100), A100, MODEL)


def found_for(space: Space, gigabytes: float) -> Recommendation:
    return recommend(space, prices_of(space, gigabytes))


def in_stated_order(configurations: list[Configuration]) -> bool:
    """Largest min(batch size, negatives) first, then the longer sequence; bce's one negative is no balance."""
    keys = [
        (each.batch_size if LOSSES[each.loss].usual_negatives else each.balance, each.seq_len)
        for each in configurations
    ]
    return keys == sorted(keys, reverse=True)


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.generate],
)
@given(
    catalog=st.integers(2, 10_000_000),
    gigabytes=st.floats(1, 150),
    dim=st.sampled_from([32, 64, 256]),
    mean=st.one_of(st.none(), st.floats(1, 2000)),
    users=st.one_of(st.none(), st.integers(1, 10**6)),
)
def test_whatever_is_recommended_fits(
    catalog: int, gigabytes: float, dim: int, mean: float | None, users: int | None
) -> None:
    """For any catalog, budget and padding: expected <= at most <= usable, the stated order, and misses that miss."""
    gpu = max(load_gpus(), key=lambda each: each.capacity_bytes)
    workload: Workload = WorstCase(users=users) if mean is None else MeanLength(mean, users)
    space = space_of(catalog, architecture=Architecture(dim=dim), workload=workload)
    budget = make_budget(int(gigabytes * 1e9), gpu)
    found = recommend(space, Prices(workload, budget, gpu, MODEL))
    assert len({choice.configuration for choice in found.choices}) == len(found.choices)
    for choice in found.choices:
        memory = choice.memory
        assert memory.allocated_bytes <= memory.reserved_bytes <= memory.upper_bytes <= budget.usable_bytes
        assert memory.evaluation_bytes <= memory.upper_bytes
        assert choice.configuration.tokens >= choice.configuration.seq_len
        assert choice.passes >= 1
        assert (choice.epoch_seconds is None) == (users is None)
        assert choice.configuration.batch_size <= (1024 if users is None else min(1024, max(16, users // 20)))
    if found.choices:
        same = [
            each.configuration
            for each in found.choices
            if each.configuration.loss == found.choices[0].configuration.loss
        ]
        others = [each.configuration for each in found.choices[len(same) :]]
        assert in_stated_order(same)
        assert in_stated_order([each for each in others if each.loss not in {same[0].loss}])
        assert len(same) == 1 or not LOSSES[same[0].loss].baseline
    for miss in found.near_misses:
        assert miss.over_bytes == miss.memory.upper_bytes - budget.usable_bytes > 0
    assert found.choices or found.near_misses


@pytest.mark.parametrize("gigabytes", [12, 13.3])
def test_negatives_of_eager_forms_grow_between_the_grid(gigabytes: float) -> None:
    """They alone still take memory, whatever the pass: what fits between powers of two is found, and then ordered."""
    found = found_for(space_of(1_600_000, ("ce-",)), gigabytes)
    same = [choice.configuration for choice in found.choices]
    assert in_stated_order(same)
    assert all(each.balance <= 1024 for each in same)


def test_sizes_between_the_grid_are_found_where_time_binds() -> None:
    """An epoch may take what a batch of 700 needs: between 512 and 768 there is something that ranks above 512."""
    space = space_of(300_000, ("cce",), workload=MeanLength(50.0, 500_000))
    free = prices_of(space, 24)
    seconds = free.epoch_seconds(space.configuration("cce", 1024, 100, None))
    assert seconds is not None
    limit = TimeLimit(epoch_seconds=seconds, option="--epoch-time", epochs=1)
    timed = Prices(space.workload, free.budget, A100, MODEL, time=limit)
    first = recommend(space, timed).choices[0]
    assert first.epoch_seconds is not None
    assert first.epoch_seconds <= seconds
    assert 64 < first.configuration.seq_len < 128


@pytest.mark.parametrize(("catalog", "gigabytes"), [(300_000, 24), (1_600_000, 40), (5_000, 4)])
def test_a_baseline_is_first_only_where_nothing_else_is_asked_for(catalog: int, gigabytes: int) -> None:
    """However large its batches are."""
    found = found_for(space_of(catalog), gigabytes)
    batches = {choice.configuration.loss: choice.configuration.batch_size for choice in found.choices}
    assert batches["bce"] >= max(batches.values())
    assert found.choices[0].configuration.loss != "bce"
    assert found_for(space_of(catalog, ("ce", "bce")), gigabytes).choices[0].configuration.loss == "ce"
    assert found_for(space_of(catalog, ("bce",)), gigabytes).choices[0].configuration.loss == "bce"


def test_evaluation_takes_as_many_users_as_training_leaves_room_for() -> None:
    """The largest power of two up to 1,024 whose evaluation needs no more than training; never more than the budget."""
    space = space_of(30_000, ("cce-",))
    tight, wide = prices_of(space, 0.75), prices_of(space, 40)
    seen = set()
    for batch_size, seq_len in ((1, 512), (16, 16), (16, 64), (64, 64), (256, 32), (2048, 128)):
        configuration = space.configuration("cce-", batch_size, seq_len, 32)
        training = int(MODEL.allocated([configuration])[0])
        for prices, floor in ((tight, 1), (wide, 64)):
            users = prices.evaluation_users(configuration)
            allowed = max(training, prices.budget.usable_bytes) if users < 64 else training
            assert users == floor or MODEL.evaluation(configuration, users, users * seq_len) <= allowed
            assert users == 1024 or MODEL.evaluation(configuration, 2 * users, 2 * users * seq_len) > training
            seen.add(users)
    assert 1024 in seen
    assert len(seen) > 2


def test_seen_pairs_are_those_of_the_longest_histories(tmp_path: Path) -> None:
    """What is ranked at once is bounded by the users who have seen most, whatever their place in the file."""
    histories = np.array([3, 50, 1, 7, 2])
    workload = FromData(tmp_path, np.array([4, 9]), histories)
    assert [workload.seen_pairs(users) for users in (1, 2, 5, 64)] == [50, 57, 63, 63]


@pytest.mark.parametrize("gigabytes", [8.2, 9.3])
def test_growth_comes_before_the_order(gigabytes: float) -> None:
    """An eager loss has room for some negatives more: one of the coarse grid overtakes another when both are grown."""
    found = found_for(space_of(1_600_000, ("ce-",)), gigabytes)
    same = [choice.configuration for choice in found.choices]
    keys = [(each.balance, each.seq_len) for each in same]
    assert len(same) == 3
    assert keys == sorted(keys, reverse=True)


@pytest.mark.parametrize("batch_size", [64, 1024, 1999, 2048, 8192, 100_000])
@pytest.mark.parametrize("seq_len", [50, 512])
def test_the_mean_length_bounds_random_batches_of_any_size(batch_size: int, seq_len: int) -> None:
    """Against batches drawn from the assumed distribution: not exceeded, and not far above for large batches."""
    mean, random = 54.9, np.random.default_rng(0)
    drawn = np.minimum(np.ceil(random.exponential(mean, (20, batch_size))), seq_len).sum(axis=1)
    workload = MeanLength(mean)
    bound = workload.fullest_batch(batch_size, seq_len)
    assert workload.mean_tokens(seq_len) * batch_size == pytest.approx(drawn.mean(), rel=0.1)
    assert workload.pass_sequences(bound, batch_size, seq_len) == batch_size
    assert drawn.max() <= bound
    assert bound <= drawn.mean() * (1 + 8 / np.sqrt(min(batch_size, 16_384))) + 1


@pytest.mark.parametrize("tries", [1, 3])
@pytest.mark.parametrize("gigabytes", [3, 12])
def test_a_search_that_gives_up_early_still_finds_what_fits(
    monkeypatch: pytest.MonkeyPatch, gigabytes: int, tries: int
) -> None:
    """However few replays it may spend on the largest configurations, smaller ones are found."""
    monkeypatch.setattr("srsplan.planner.search.prices.TRIES", tries)
    space = space_of(30_000)
    prices = prices_of(space, gigabytes)
    found = recommend(space, prices)
    assert {choice.configuration.loss for choice in found.choices} == set(PLANNED)
    assert all(choice.memory.upper_bytes <= prices.budget.usable_bytes for choice in found.choices)


def test_the_time_that_counts_is_that_of_the_passes_that_fit() -> None:
    """A whole batch would be fast enough, and does not fit; in its passes an epoch takes too long."""
    space = space_of(1_600_000, ("cce-",), workload=WorstCase(users=1_000_000))
    free = prices_of(space, 12)
    first = recommend(space, free).choices[0]
    whole = with_whole_pass(first.configuration, space.workload)
    seconds, least = free.epoch_seconds(first.configuration), free.epoch_seconds(whole)
    assert seconds is not None
    assert least is not None
    assert least < seconds
    limit = TimeLimit(epoch_seconds=(seconds + least) / 2, option="--epoch-time", epochs=1)
    timed = recommend(space, Prices(space.workload, free.budget, A100, MODEL, time=limit))
    assert all((each.epoch_seconds or 0) <= limit.epoch_seconds for each in timed.choices)
    assert timed.choices[0].configuration != first.configuration


@pytest.mark.parametrize(
    ("catalog", "gigabytes", "loss"),
    [
        (1_600_000, 12, "cce-"), (300_000, 6, "cce-"), (300_000, 8, "cce"), (300_000, 4, "bce"),
        (300_000, 24, "ce"), (30_000, 8, "ce-"),
    ],
)  # fmt: skip
def test_plans_run_under_a_cap_of_their_budget_and_use_it(catalog: int, gigabytes: int, loss: str) -> None:
    """Where memory binds a pass takes 95% of what it may.

    The eager ones of these have smaller passes that do not settle under their caps: a search by halves ends at 0.8.
    Simulated under a hard cap: the ledger's own trace.
    """
    space = space_of(catalog, (loss,))
    prices = prices_of(space, gigabytes)
    first = recommend(space, prices).choices[0]
    assert first.passes > 1
    assert 0.95 * prices.limit <= first.memory.upper_bytes <= prices.limit
    found = confirm(first, prices.budget, A100)
    assert (found.fits, found.retries) == (True, 0)
    assert found.reserved_bytes <= prices.limit


@pytest.mark.parametrize(("catalog", "gigabytes", "loss"), [(30_000, 4, "ce"), (1_600_000, 24, "ce-")])
def test_a_plan_settles_whether_its_passes_are_alike_or_not(catalog: int, gigabytes: int, loss: str) -> None:
    """Larger ones of these have passes of other sizes in between, which save them from retries; full ones do not."""
    space = space_of(catalog, (loss,))
    prices = prices_of(space, gigabytes)
    found = confirm(recommend(space, prices).choices[0], prices.budget, A100)
    assert (found.fits, found.retries) == (True, 0)


def test_batch_sizes_of_the_grid_are_half_a_power_of_two_apart() -> None:
    assert BATCH_SIZES == [
        16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192,
    ]  # fmt: skip
    found = {each.batch_size for each in space_of(1000, ("ce",)).candidates("ce")}
    assert found == {size for size in BATCH_SIZES if size <= 1024}, "public runs end there"
    larger = space_of(1000, ("ce",), max_batch_size=5000).candidates("ce")
    assert {each.batch_size for each in larger} == {*(size for size in BATCH_SIZES if size < 5000), 5000}


def test_near_misses_are_the_nearest() -> None:
    """Of the first choice's loss and above it: those that take least in the smallest passes, of all that do not fit."""
    space = space_of(1_600_000, ("ce-",))
    prices = prices_of(space, 12)
    found = recommend(space, prices)
    first = found.choices[0].configuration
    above = [each for each in space.candidates("ce-") if (each.balance, each.seq_len) > (first.balance, first.seq_len)]
    assert above
    assert len(found.near_misses) == 3
    for miss in found.near_misses:
        assert (miss.configuration.balance, miss.configuration.seq_len) > (first.balance, first.seq_len)
        assert not prices.fits(miss.configuration)
    nearest = min(prices.choice(each).memory.upper_bytes for each in prices.lightest(above, SMALL_PASS)[0])
    assert found.near_misses[0].memory.upper_bytes <= nearest


def test_what_is_too_slow_and_fits_is_no_near_miss() -> None:
    """A time limit leaves longer sequences out, and memory does not: that is no miss."""
    space = space_of(300_000, ("cce-",), workload=MeanLength(100.0, 500_000))
    free = prices_of(space, 12)
    seconds = free.epoch_seconds(space.configuration("cce-", 512, 64, 512))
    assert seconds is not None
    limit = TimeLimit(epoch_seconds=seconds, option="--epoch-time", epochs=1)
    found = recommend(space, Prices(space.workload, free.budget, A100, MODEL, time=limit))
    first = found.choices[0].configuration
    above = [each for each in space.candidates("cce-") if (each.balance, each.seq_len) > (first.balance, first.seq_len)]
    lightest = [each for variants in free.lightest(above, SMALL_PASS) for each in variants]
    assert any(free.fits(each) and free.allocated([each])[0] > 0.65 * free.limit for each in lightest)
    assert all(miss.over_bytes > 0 for miss in found.near_misses)


def test_knob_costs_are_differences_of_the_model() -> None:
    """A half of the first choice's pass costs what the model says of the configuration in such passes."""
    space = space_of(300_000)
    found = found_for(space, 24)
    first = found.choices[0]
    costs = {(knob.name, knob.change): knob.bytes for knob in found.knobs}
    halved = with_pass(first.configuration, first.configuration.tokens // 2, space.workload)
    assert costs["pass_tokens", "/ 2"] == int(MODEL.allocated([halved])[0]) - first.memory.allocated_bytes < 0
    assert ("negatives", "x 2") in costs


def test_a_choice_that_does_not_run_is_left_out() -> None:
    found = found_for(space_of(300_000, ("cce-", "bce")), 16)
    # a budget that the prediction was not made for: as if it had been wrong by this much
    for gigabytes, kept in ((8, True), (2, False)):
        checked, dropped = confirm_first(found, make_budget(gigabytes * 10**9, A100), A100)
        assert dropped
        assert len(checked.choices) + len(dropped) == len(found.choices)
        assert bool(checked.choices) == kept
        if kept:
            assert checked.choices[0].confirmed is not None
            assert checked.choices[0].confirmed.fits


def test_remembered_evaluations_are_those_of_a_fresh_model() -> None:
    """Configurations that differ in one thing each, asked twice."""
    base = {"dim": 64, "heads": 2, "seq_len": 64, "precision": "fp16", "batch_size": 64, "catalog": 40_000, "blocks": 1}
    changes: list[dict[str, Any]] = [
        {}, {"dim": 128}, {"heads": 4}, {"seq_len": 200}, {"precision": "fp32"}, {"batch_size": 512},
        {"catalog": 90_000}, {"blocks": 3}, {"dim": 128, "seq_len": 200},
    ]  # fmt: skip
    shared = MemoryModel()
    for _ in range(2):
        for change in changes:
            sizes: dict[str, Any] = {**base, **change}
            configuration = Configuration(
                loss="cce", catalog=sizes["catalog"], batch_size=sizes["batch_size"], seq_len=sizes["seq_len"],
                architecture=Architecture(dim=sizes["dim"], blocks=sizes["blocks"], heads=sizes["heads"]),
                precision=sizes["precision"],
            )  # fmt: skip
            for users, pairs in ((64, 640), (256, 640), (256, 90_000)):
                fresh = MemoryModel().evaluation(configuration, users, pairs)
                assert shared.evaluation(configuration, users, pairs) == fresh


@pytest.mark.parametrize("loss", ["ce", "ce-", "cce", "cce-"])
@pytest.mark.parametrize("gigabytes", [8, 12, 40])
def test_a_guess_is_one_whose_tensors_fit(loss: str, gigabytes: float) -> None:
    """Losses are compared by it: one that no memory holds would be preferred for its balance or its speed."""
    space = space_of(1_600_000, (loss,))
    prices = prices_of(space, gigabytes)
    ordered = BALANCE.sort(space.candidates(loss))
    found = prices.guess(ordered)
    fitting = any(peak <= prices.limit for _, peak in prices.priced(ordered, 1))
    assert (found is not None) == fitting
    if found is not None:
        assert prices.allocated([found])[0] <= prices.limit
