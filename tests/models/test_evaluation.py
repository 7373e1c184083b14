"""A holdout ranked by the model and by popularity, against loops over users that use nothing of the code they judge."""

from __future__ import annotations

import math
from collections import Counter
from statistics import fmean
from typing import NamedTuple

import numpy as np
import pytest
import torch
from sequences import on_cpu

from srsplan.kernels import chunking
from srsplan.models.config import Architecture, Configuration
from srsplan.models.data.splits import Holdout, Sequences, Split
from srsplan.models.sequence_model import PackedItems
from srsplan.models.training.evaluation import (
    Evaluation,
    Ranking,
    evaluate,
    measured,
    popularity,
    rank_holdout,
    subset,
)
from srsplan.models.training.ranking import Seen
from srsplan.models.training.step import TrainingStep

CPU = torch.device("cpu")
CATALOG, COLD = 30, {28, 29, 30}
"""Items that train does not have."""


def sequences(rows: list[list[int]]) -> Sequences:
    offsets = np.cumsum([0, *map(len, rows)])
    return Sequences(offsets, np.array([item for row in rows for item in row], dtype=np.int32))


def lists(found: Sequences) -> list[list[int]]:
    return [row.tolist() for row in np.split(found.values, found.offsets[1:-1])]


def some_split() -> Split:
    """41 users in train, many of whom repeat an item; 17 in the test, of whom 5 have a cold target."""
    draw = np.random.default_rng(6)
    train = [[*draw.integers(1, 28, draw.integers(2, 9)).tolist(), *[1 + user % 7] * 9] for user in range(41)]
    histories = [draw.permutation(30)[: draw.integers(1, 8)] + 1 for _ in range(17)]
    targets = []
    for number, history in enumerate(histories):
        left = [item for item in range(1, 31) if item not in history]
        cold = [item for item in left if item in COLD]
        targets.append(cold[0] if number < 5 and cold else int(draw.choice([i for i in left if i not in COLD])))
    holdout = Holdout(sequences([history.tolist() for history in histories]), np.array(targets, dtype=np.int32))
    return Split(
        train=sequences(train), validation=holdout, test=holdout, catalog=CATALOG, strategy="by hand", notes=()
    )


SPLIT = some_split()
HISTORIES, TARGETS = lists(SPLIT.test.histories), SPLIT.test.targets.tolist()
TRAIN = lists(SPLIT.train)


def slow_metrics(rows: list[list[int]], targets: list[int], k: int) -> dict[str, float]:
    """Surprisal by distinct users of train, coverage by items of train."""
    having = {item: sum(item in row for row in TRAIN) for item in range(1, CATALOG + 1)}
    ranks = [row[:k].index(t) + 1 if t in row[:k] else math.inf for row, t in zip(rows, targets, strict=True)]
    surprise = {i: math.log2(len(TRAIN) / n) / math.log2(len(TRAIN)) if n else 1.0 for i, n in having.items()}
    known = {item for item in having if having[item]}
    return {
        f"NDCG_{k}": fmean(1 / math.log2(rank + 1) for rank in ranks),
        f"HitRate_{k}": fmean(float(rank <= k) for rank in ranks),
        f"MRR_{k}": fmean(1 / rank for rank in ranks),
        f"Coverage_{k}": len({item for row in rows for item in row[:k]} & known) / len(known),
        f"Surprisal_{k}": fmean(sum(surprise[item] for item in row[:k]) / k for row in rows),
    }


class Expected(NamedTuple):
    all: dict[str, float]
    warm: dict[str, float]
    users: int
    warm_users: int


def expected(rows: list[list[int]], ks: tuple[int, ...]) -> Expected:
    warm = [number for number, target in enumerate(TARGETS) if any(target in row for row in TRAIN)]
    return Expected(
        all={name: value for k in ks for name, value in slow_metrics(rows, TARGETS, k).items()},
        warm={
            name: value
            for k in ks
            for name, value in slow_metrics([rows[n] for n in warm], [TARGETS[n] for n in warm], k).items()
        },
        users=len(TARGETS),
        warm_users=len(warm),
    )


def assert_same(found: Evaluation, wanted: Expected) -> None:
    assert found.all == pytest.approx(wanted.all)
    assert found.warm == pytest.approx(wanted.warm)
    assert (found.users, found.warm_users) == (wanted.users, wanted.warm_users)


def some_step() -> TrainingStep:
    torch.manual_seed(4)
    configuration = Configuration(
        loss="cce", catalog=CATALOG, batch_size=4, seq_len=5, precision="fp32", architecture=Architecture(dim=16)
    )
    return TrainingStep(configuration, CPU)


def by_popularity(filter_seen: bool, best: int) -> list[list[int]]:
    """By interactions of train, a user's repetitions included; of equal ones the lower item first."""
    counts = Counter(item for row in TRAIN for item in row)
    order = sorted(range(1, CATALOG + 1), key=lambda item: -counts[item])
    return [[item for item in order if not (filter_seen and item in seen)][:best] for seen in HISTORIES]


def test_the_fixture_is_asymmetric() -> None:
    """Otherwise mistaken users, interactions and targets would change nothing."""
    wanted = expected(by_popularity(True, 10), (10,))
    assert wanted.users not in (wanted.warm_users, len(TRAIN))
    assert wanted.warm["NDCG_10"] != wanted.all["NDCG_10"]
    assert any(len(set(row)) < len(row) for row in TRAIN)


@pytest.mark.parametrize("users", [1, 5, 17, 64])
@pytest.mark.parametrize("filter_seen", [True, False])
def test_popularity_is_that_of_interactions(users: int, filter_seen: bool) -> None:
    ranking = Ranking(users=users, tokens=40, seq_len=5, filter_seen=filter_seen, ks=(1, 5, 10))
    assert_same(popularity(SPLIT, SPLIT.test, ranking), expected(by_popularity(filter_seen, 10), (1, 5, 10)))


@pytest.mark.parametrize(("users", "tokens"), [(1, 1000), (5, 1000), (64, 1000), (64, 1), (64, 5), (3, 9), (64, 23)])
@pytest.mark.parametrize("filter_seen", [True, False])
def test_evaluation_equals_a_loop_over_users(users: int, tokens: int, filter_seen: bool) -> None:
    """However many users and tokens are ranked at once, and where one history alone has more tokens as well."""
    step, rows = some_step(), []
    step.model.train()
    ranking = Ranking(users=users, tokens=tokens, seq_len=5, filter_seen=filter_seen, ks=(1, 10))
    found = evaluate(step, SPLIT, SPLIT.test, ranking)
    for history in HISTORIES:
        with torch.no_grad():
            hidden = step.model(on_cpu([[item - 1 for item in history[-5:]]]))[-1]
            scores = (step.model.item_table @ hidden).tolist()
        order = sorted(range(1, CATALOG + 1), key=lambda item: -scores[item - 1])
        rows.append([item for item in order if not (filter_seen and item in history)])
    assert_same(found, expected(rows, (1, 10)))


def test_who_has_seen_almost_everything_is_recommended_the_rest_only() -> None:
    """Three of 30 items are left, and the target is one that was seen: no hit, and nothing is recommended twice."""
    seen = [item for item in range(1, 31) if item not in (4, 9, 21)]
    holdout = Holdout(sequences([seen]), np.array([seen[5]], dtype=np.int32))
    for found in (
        evaluate(some_step(), SPLIT, holdout, Ranking(users=8, tokens=40, seq_len=5, ks=(10,))),
        popularity(SPLIT, holdout, Ranking(users=8, tokens=40, seq_len=5, ks=(10,))),
    ):
        assert found.all["HitRate_10"] == 0
        assert found.all["Coverage_10"] == pytest.approx(3 / 27)


def test_without_a_warm_target_there_are_no_warm_metrics() -> None:
    holdout = Holdout(sequences([[1, 2]]), np.array([29], dtype=np.int32))
    found = popularity(SPLIT, holdout, Ranking(users=8, tokens=40, seq_len=5, ks=(30,)))
    assert (found.warm, found.warm_users) == ({}, 0)
    assert found.all["HitRate_30"] == 1


def test_metrics_of_given_ranks() -> None:
    top = np.array([[item, 0] for item in TARGETS])
    found = measured(top, SPLIT, SPLIT.test, Ranking(users=1, tokens=40, seq_len=5, ks=(2,)))
    assert found.all["NDCG_2"] == found.warm["NDCG_2"] == 1


def test_a_subset_keeps_histories_with_their_targets() -> None:
    few = subset(SPLIT.test, 7, seed=1)
    assert len(few) == len(few.histories) == 7
    whole = {tuple(history): target for history, target in zip(HISTORIES, TARGETS, strict=True)}
    assert len(whole) == len(HISTORIES)
    for history, target in zip(lists(few.histories), few.targets.tolist(), strict=True):
        assert whole[tuple(history)] == target
    for seed in range(5):
        assert len({tuple(history) for history in lists(subset(SPLIT.test, 12, seed=seed).histories)}) == 12
    assert lists(subset(SPLIT.test, 7, seed=1).histories) == lists(few.histories)
    assert lists(subset(SPLIT.test, 7, seed=2).histories) != lists(few.histories)
    assert subset(SPLIT.test, 10_000, seed=1) is SPLIT.test


@pytest.mark.parametrize(("users", "tokens"), [(3, 100), (8, 100), (8, 11)])
def test_scores_of_a_chunk_stay_within_what_is_planned(
    monkeypatch: pytest.MonkeyPatch, users: int, tokens: int
) -> None:
    """Every evaluation batch, the last and smaller one too, ranks as many items at once as the memory model says."""
    monkeypatch.setattr(chunking, "RANKING_CHUNK_ELEMENTS", 40)
    chunks = []

    def ranked(histories: PackedItems, seen: Seen | None) -> torch.Tensor:
        assert seen is not None
        count = len(histories.packing.cu_seqlens) - 1
        chunks.append((count, seen.chunk_items))
        return torch.zeros(count, 1, dtype=torch.long)

    rank_holdout(ranked, SPLIT.test, CATALOG, CPU, Ranking(users=users, tokens=tokens, seq_len=6))
    assert sum(count for count, _ in chunks) == len(TARGETS)
    assert all(items == max(1, min(CATALOG, 40 // count)) for count, items in chunks)
