"""Splits against slow loops over users, and against what they must never do: show the future."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
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


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("quantile", [0.5, 0.9])
def test_global_time_equals_a_loop_over_users(seed: int, quantile: float) -> None:
    interactions = made(seed)
    found = split_global_time(interactions, time_quantile=quantile, validation_share=0.2, seed=seed)
    times = sorted(time for row in by_user(interactions).values() for time, _ in row)
    cut = next(time for time in times if sum(other <= time for other in times) >= quantile * len(times))

    test, early = [], []
    for row in by_user(interactions).values():
        items = [item for _, item in row]
        past = [item for time, item in row if time <= cut]
        early.append(past)
        if len(past) < len(items) and len(items) > 1:
            test.append((items[:-1], items[-1]))
    assert pairs(found.test) == test

    validating = [(past[:-1], past[-1]) for past in early if len(past) >= 2]
    assert len(found.validation) == round(0.2 * len(validating))
    assert all(pair in validating for pair in pairs(found.validation))
    held_out = [[*history, target] for history, target in pairs(found.validation)]
    assert sorted(as_lists(found.train) + held_out) == sorted(past for past in early if len(past) >= 2)


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


@pytest.mark.parametrize("validation_users", [None, 7])
def test_leave_one_out_equals_a_loop_over_users(validation_users: int | None) -> None:
    interactions = made(3, timed=False)
    found = split_leave_one_out(interactions, validation_users=validation_users)
    rows = [[item for _, item in row] for row in by_user(interactions).values()]
    assert pairs(found.test) == [(row[:-1], row[-1]) for row in rows if len(row) >= 3]
    validating = [(row[:-2], row[-2]) for row in rows if len(row) >= 3]
    if validation_users is None:
        assert pairs(found.validation) == validating
    else:
        assert len(found.validation) == validation_users
        assert all(pair in validating for pair in pairs(found.validation))
    trained = [row[:-2] if len(row) >= 3 else row for row in rows]
    assert as_lists(found.train) == [row for row in trained if len(row) >= 2]
    assert LEAK in found.notes
    short = sum(len(row) < 3 for row in rows)
    assert any(note.startswith(f"{short} of 60 users have fewer than three") for note in found.notes)


def test_counts_per_item_equal_a_loop() -> None:
    found = split(made(5))
    rows = as_lists(found.train)
    counts = [sum(row.count(item) for row in rows) for item in range(26)]
    assert found.item_counts.tolist() == counts
    assert found.users_per_item.tolist() == [sum(item in row for row in rows) for item in range(26)]
    assert (found.item_counts.dtype, found.users_per_item.dtype) == (np.int64, np.int64)


def test_notes_count_cold_and_repeated_targets() -> None:
    found = split_global_time(made(6), time_quantile=0.3)
    known = set(found.train.values.tolist())
    cold = sum(target not in known for target in found.test.targets.tolist())
    repeated = sum(target in history for history, target in pairs(found.test))
    text = "\n".join(found.notes)
    assert repeated
    assert f"{repeated} of {len(found.test)} test targets are already" in text
    assert (f"{cold} of {len(found.test)} test targets never occur" in text) == bool(cold)


def test_seed_chooses_who_validates() -> None:
    one, same, other = (pairs(split(made(), validation_share=0.3, seed=seed).validation) for seed in (1, 1, 2))
    assert one == same
    assert one != other


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
