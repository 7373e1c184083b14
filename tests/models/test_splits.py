"""Splits against slow loops over users, and against what they must never do: show the future."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import SHARED

from srsplan.models.data.interactions import Interactions, read_interactions
from srsplan.models.data.splits import LEAK, Holdout, Sequences, Split, split, split_global_time, split_leave_one_out
from srsplan.models.errors import InputError

Lists = dict[int, list[tuple[float, int]]]


def made(seed: int = 0, users: int = 60, timed: bool = True) -> Interactions:
    """Users with 1 to 12 interactions, items 1 to 25, many equal times."""
    random = np.random.default_rng(seed)
    counts = random.integers(1, 13, users)
    who = np.repeat(np.arange(users, dtype=np.int32), counts)
    times = random.integers(0, 100, len(who))
    times = times[np.lexsort((times, who))]
    return Interactions(
        users=who,
        items=np.append(random.integers(1, 26, len(who) - 1), 25).astype(np.int32),
        timestamps=times if timed else None,
        user_ids=np.arange(users),
        item_ids=np.arange(25),
        notes=(),
    )


def by_user(found: Interactions) -> Lists:
    times = np.zeros(len(found)) if found.timestamps is None else found.timestamps
    lists: Lists = {}
    for user, time, item in zip(found.users.tolist(), times.tolist(), found.items.tolist(), strict=True):
        lists.setdefault(user, []).append((time, item))
    return lists


def as_lists(sequences: Sequences) -> list[list[int]]:
    bounds = sequences.offsets.tolist()
    return [sequences.values[start:end].tolist() for start, end in pairwise(bounds)]


def pairs(holdout: Holdout) -> list[tuple[list[int], int]]:
    return list(zip(as_lists(holdout.histories), holdout.targets.tolist(), strict=True))


histories_of = st.lists(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 5)), min_size=1, max_size=7), min_size=2)
"""Users, each a list of (time, item): many equal times and items."""


def interactions_of(users: list[list[tuple[int, int]]], timed: bool = True) -> Interactions:
    rows = [(who, *each) for who, row in enumerate(users) for each in sorted(row, key=lambda each: each[0])]
    who, times, items = (np.array(column) for column in zip(*rows, strict=True))
    return Interactions(
        users=who.astype(np.int32),
        items=items.astype(np.int32),
        timestamps=times if timed else None,
        user_ids=np.arange(len(users)),
        item_ids=np.arange(5),
        notes=(),
    )


@settings(deadline=None)
@given(histories_of, st.sampled_from([0.3, 0.5, 0.9]), st.sampled_from([0.1, 0.5]), st.integers(0, 3))
def test_global_time_equals_a_loop_over_users(
    users: list[list[tuple[int, int]]], quantile: float, share: float, seed: int
) -> None:
    interactions = interactions_of(users)
    times = sorted(time for row in users for time, _ in row)
    cut = next(time for time in times if sum(other <= time for other in times) >= quantile * len(times))
    test, early = [], []
    for row in by_user(interactions).values():
        items, past = [item for _, item in row], [item for time, item in row if time <= cut]
        early.append(past)
        if len(past) < len(items) and len(items) > 1:
            test.append((items[:-1], items[-1]))
    kept = sorted(past for past in early if len(past) >= 2)
    count = max(1, round(share * len(kept)))
    if not test or len(kept) <= count:
        with pytest.raises(InputError, match="leaves no user"):
            split_global_time(interactions, time_quantile=quantile, validation_share=share, seed=seed)
        return
    found = split_global_time(interactions, time_quantile=quantile, validation_share=share, seed=seed)
    assert pairs(found.test) == test
    assert len(found.validation) == count
    held_out = [[*history, target] for history, target in pairs(found.validation)]
    assert sorted(as_lists(found.train) + held_out) == kept
    said = " ".join(found.notes)
    single = sum(len(past) == 1 for past in early)
    assert (f"{single} of {single + len(found.train)} users are left out of train" in said) == (single > 0)
    alone = sum(len(row) == 1 and row[0][0] > cut for row in users)
    assert (f"{alone} of {len(test) + alone} test users are left out" in said) == (alone > 0)


def test_global_time_never_trains_on_what_comes_after_the_cut() -> None:
    interactions = made()
    assert interactions.timestamps is not None
    later = interactions.items + np.int32(25) * (interactions.timestamps > 80)
    marked = Interactions(
        users=interactions.users,
        items=later.astype(np.int32),
        timestamps=interactions.timestamps,
        user_ids=interactions.user_ids,
        item_ids=np.arange(50),
        notes=(),
    )
    share = float((interactions.timestamps <= 80).mean())
    found = split_global_time(marked, time_quantile=share, validation_share=0.3)
    for part in (found.train.values, found.validation.histories.values, found.validation.targets):
        assert part.max() <= 25
    assert (found.test.targets > 25).all()
    assert found.test.histories.values.max() > 25


@settings(deadline=None)
@given(histories_of, st.sampled_from([None, 1, 2, 100]), st.integers(0, 3))
def test_leave_one_out_equals_a_loop_over_users(
    users: list[list[tuple[int, int]]], validation_users: int | None, seed: int
) -> None:
    interactions = interactions_of(users, timed=False)
    rows = [[item for _, item in row] for row in by_user(interactions).values()]
    trained = [part for part in (row[:-2] if len(row) >= 3 else row for row in rows) if len(part) >= 2]
    long = [row for row in rows if len(row) >= 3]
    if not long or not trained:
        with pytest.raises(InputError, match="leaves no user"):
            split_leave_one_out(interactions, validation_users=validation_users, seed=seed)
        return
    found = split_leave_one_out(interactions, validation_users=validation_users, seed=seed)
    assert pairs(found.test) == [(row[:-1], row[-1]) for row in long]
    assert as_lists(found.train) == trained
    assert len(found.validation) == min(len(long), validation_users or len(long))
    # in the order of the users, each at most once
    validating = iter((row[:-2], row[-2]) for row in long)
    assert all(pair in validating for pair in pairs(found.validation))
    assert LEAK in found.notes
    short = len(rows) - len(long)
    said = f"{short} of {len(rows)} users have fewer than three interactions"
    assert any(note.startswith(said) for note in found.notes) == (short > 0)


@settings(deadline=None)
@given(histories_of, st.integers(1, 5))
def test_notes_and_counts_of_items_equal_loops(users: list[list[tuple[int, int]]], seed: int) -> None:
    try:
        found = split_global_time(interactions_of(users), time_quantile=0.5, validation_share=0.3, seed=seed)
    except InputError:
        return
    rows = as_lists(found.train)
    assert found.item_counts.tolist() == [sum(row.count(item) for row in rows) for item in range(6)]
    assert found.users_per_item.tolist() == [sum(item in row for row in rows) for item in range(6)]
    known, said = {item for row in rows for item in row}, "\n".join(found.notes)
    total = len(found.test)
    counts = {
        f" of {total} test targets never occur": sum(target not in known for _, target in pairs(found.test)),
        f" of {total} test targets are already": sum(target in history for history, target in pairs(found.test)),
        " of 5 items never occur": 5 - len(known),
    }
    for sentence, count in counts.items():
        assert (f"{count}{sentence}" in said) == (count > 0)
        assert (sentence in said) == (count > 0)


def test_seed_chooses_who_validates() -> None:
    one, same, other = (pairs(split(made(), validation_share=0.3, seed=seed).validation) for seed in (1, 1, 2))
    assert one == same
    assert one != other
    one, same, other = (
        pairs(split(made(), "leave-one-out", validation_users=9, seed=seed).validation) for seed in (1, 1, 2)
    )
    assert one == same
    assert one != other


def test_options_reach_the_split_they_belong_to() -> None:
    interactions = made()
    assert split(interactions, time_quantile=0.5).notes == split_global_time(interactions, time_quantile=0.5).notes
    assert split(interactions, time_quantile=0.5).notes != split(interactions).notes
    assert len(split(interactions, "leave-one-out", validation_users=3).validation) == 3


def test_auto_follows_the_timestamps() -> None:
    assert split(made()).strategy == "global-time"
    untimed = split(made(timed=False))
    assert untimed.strategy == "leave-one-out"
    assert "no timestamps" in untimed.notes[0]
    asked = split(made(), "leave-one-out")
    assert asked.strategy == "leave-one-out"
    assert "no timestamps" not in asked.notes[0]


def untouched(found: Split, interactions: Interactions) -> bool:
    """Every test user's history and target together are a whole user."""
    users = {tuple(item for _, item in row) for row in by_user(interactions).values()}
    return all((*history, target) in users for history, target in pairs(found.test))


@pytest.mark.evidence
def test_movielens_and_video() -> None:
    movies = read_interactions(SHARED / "data" / "ml-100k.inter")
    found = split(movies)
    frame = pd.read_csv(SHARED / "data" / "ml-100k.inter", sep="\t", usecols=[0, 3], names=["user", "time"], header=0)
    cut = frame["time"].quantile(0.9, interpolation="lower")
    early = frame[frame["time"] <= cut]["user"].value_counts()
    assert len(found.test) == frame[frame["time"] > cut]["user"].nunique() == 166
    assert len(found.validation) == round(0.05 * (early >= 2).sum())
    assert len(found.train) == (early >= 2).sum() - len(found.validation)
    assert len(found.train.values) <= early.sum() < 90_100
    assert untouched(found, movies)
    video = read_interactions(SHARED / "data" / "video.txt")
    found = split(video)
    assert len(found.test) == len(found.validation) == 30_901
    assert untouched(found, video)


def test_large_integer_times_are_not_rounded() -> None:
    """2^60 and its neighbours are one number in float64."""
    times = 2**60 + np.arange(8)
    interactions = Interactions(
        users=np.repeat(np.arange(2, dtype=np.int32), 4),
        items=np.arange(1, 9, dtype=np.int32),
        timestamps=times,
        user_ids=np.arange(2),
        item_ids=np.arange(8),
        notes=(),
    )
    found = split_global_time(interactions, time_quantile=0.75, validation_share=0.5, seed=0)
    assert str(times[5]) in found.notes[0]
    assert pairs(found.test) == [([5, 6, 7], 8)]


def test_impossible_splits_are_refused() -> None:
    with pytest.raises(InputError, match="needs timestamps"):
        split(made(timed=False), "global-time")
    with pytest.raises(InputError, match="unknown split 'random'"):
        split(made(), "random")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"time_quantile 1.5 is outside"):
        split(made(), time_quantile=1.5)
    with pytest.raises(InputError, match=r"validation_share 0 is outside"):
        split(made(), validation_share=0)
    with pytest.raises(InputError, match="validation_users 0"):
        split(made(), "leave-one-out", validation_users=0)
    frozen = made()
    assert frozen.timestamps is not None
    frozen.timestamps[:] = 7
    with pytest.raises(InputError, match="no user for test") as caught:
        split(frozen)
    assert "from 7 to 7" in caught.value.hint


def test_users_too_short_for_a_split_are_refused() -> None:
    interactions = Interactions(
        users=np.array([0, 0, 0, 1, 1, 1], dtype=np.int32),
        items=np.array([1, 2, 3, 3, 2, 1], dtype=np.int32),
        timestamps=np.array([1, 5, 6, 2, 7, 8]),
        user_ids=np.arange(2),
        item_ids=np.arange(3),
        notes=(),
    )
    with pytest.raises(InputError, match="leave-one-out split leaves no user for train"):
        split(interactions, "leave-one-out")
    with pytest.raises(InputError, match="global-time split leaves no user for"):
        split(interactions, time_quantile=0.3)
