"""The order of interactions and their core, in blocks and partitions as small as they get, against plain Python."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srsplan.models.data import blocks, ordering
from srsplan.models.data.core import keep_core
from srsplan.models.data.ordering import put_in_order, row_order
from srsplan.models.data.rows import Rows, Times

Triple = tuple[int, int, int]
SPANS = {"close": 3, "nanoseconds": 2**61}
TABLES = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 5), st.integers(0, 3)), min_size=1, max_size=60)


def rows_of(table: list[Triple], times: Times | None) -> Rows:
    users, user_codes = np.unique([row[0] for row in table], return_inverse=True)
    items, item_codes = np.unique([row[1] for row in table], return_inverse=True)
    return Rows(
        users=user_codes.astype(np.int32),
        items=item_codes.astype(np.int32) + np.int32(1),
        times=times,
        user_ids=users,
        item_ids=items,
    )


def triples(rows: Rows) -> list[tuple[int, int, float | None]]:
    times = [None] * len(rows) if rows.times is None else rows.times.tolist()
    return list(zip(rows.user_ids[rows.users].tolist(), rows.item_ids[rows.items - 1].tolist(), times, strict=True))


def times_of(table: list[Triple], kind: str) -> Times | None:
    if kind == "none":
        return None
    steps = np.array([row[2] for row in table])
    return steps / 7 if kind == "fractions" else steps.astype(np.int64) * (SPANS[kind] // 3)


@settings(max_examples=200, deadline=None)
@given(TABLES, st.sampled_from(["close", "nanoseconds", "fractions", "none"]), st.integers(1, 9), st.integers(1, 20))
def test_by_user_then_time_and_equal_times_as_in_the_file(
    table: list[Triple], kind: str, block_rows: int, partition_rows: int
) -> None:
    times = times_of(table, kind)
    rows = rows_of(table, times)
    expected = triples(rows)
    expected.sort(key=lambda row: (row[0], row[2] or 0))  # Python's sort keeps the order of equals
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK_ROWS", block_rows)
        patch.setattr(ordering, "PARTITION_ROWS", partition_rows)
        put_in_order(rows)
    assert triples(rows) == expected
    assert rows.users.dtype == rows.items.dtype == np.dtype(np.int32)
    assert times is None or (rows.times is not None and rows.times.dtype == times.dtype)


def test_what_is_in_order_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_ROWS", 2)
    ordered = [(0, 1, 0), (0, 2, 0), (0, 1, 5), (1, 2, 3), (1, 1, 4)]
    rows = rows_of(ordered, np.array([row[2] for row in ordered]))
    items = rows.items
    put_in_order(rows)
    assert rows.items is items
    for swapped in range(4):  # at the edge of a block as well as within one
        table = [*ordered[:swapped], ordered[swapped + 1], ordered[swapped], *ordered[swapped + 2 :]]
        rows = rows_of(table, np.array([row[2] for row in table]))
        put_in_order(rows)
        assert [(user, time) for user, _, time in triples(rows)] == [(user, time) for user, _, time in ordered]


@pytest.mark.parametrize("first", [0, -(2**62), 2**62 - 2**30])
@pytest.mark.parametrize("bits", [4, 40, 58, 62])
def test_every_width_of_a_key(first: int, bits: int) -> None:
    """The key holds user, time and place where 63 bits do, the first two where those do, and else is two keys."""
    draw = np.random.default_rng(bits)
    users = draw.integers(0, 5, 500).astype(np.int32)
    times = first // 2 + draw.integers(0, 4, 500) * (2**bits // 4)
    expected = sorted(range(500), key=lambda row: (users[row], times[row]))
    assert row_order(users, times).tolist() == expected


@settings(max_examples=200, deadline=None)
@given(TABLES, st.integers(0, 4), st.integers(0, 4), st.integers(1, 9))
def test_the_core_is_what_remains_when_nothing_has_to_go(
    table: list[Triple], of_user: int, of_item: int, block_rows: int
) -> None:
    left = [(user, item, index) for index, (user, item, _) in enumerate(table)]
    while True:
        users, items = Counter(row[0] for row in left), Counter(row[1] for row in left)
        kept = [row for row in left if users[row[0]] >= of_user and items[row[1]] >= of_item]
        if kept == left:
            break
        left = kept
    rows = rows_of(table, np.arange(len(table)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK_ROWS", block_rows)
        note = keep_core(rows, of_user, of_item)
    assert triples(rows) == left
    assert (rows.user_ids.tolist(), rows.item_ids.tolist()) == (
        sorted({row[0] for row in left}),
        sorted({row[1] for row in left}),
    )
    assert f"kept {len(left):,} of {len(table):,} interactions" in note
