"""Train, validation and test: by one moment for everybody, or by each user's last items.

Letters: R interactions, U users, V items, H users held out. Items are 1 to V, 0 is padding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from srsplan.models.data import progress
from srsplan.models.data.blocks import BLOCK_ROWS, counts, in_threads, offsets_of
from srsplan.models.data.interactions import Interactions
from srsplan.models.errors import InputError

Strategy = Literal["global-time", "leave-one-out", "auto"]

LEAK = (
    "warning: leave-one-out leaks the future: train holds what other users did after the moment of a target, "
    "so scores come out too good; a global-time split does not"
)


@dataclass(frozen=True, eq=False)
class Sequences:
    """n sequences of items as one jagged array: the k-th is values[offsets[k]:offsets[k + 1]], oldest first."""

    offsets: NDArray[np.int64]
    """Places [n + 1] in `values`: sequence k is values[offsets[k]:offsets[k + 1]]."""
    values: NDArray[np.int32]
    """Item numbers [offsets[n]], 1 to V."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Return how many items each sequence has, [n]."""
        return np.diff(self.offsets)

    @property
    def rows(self) -> NDArray[np.int64]:
        """Return the number of the sequence that each value stands in, [offsets[n]]."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def pieces(self) -> Iterator[tuple[slice, Sequences]]:
        """Yield which sequences, and these sequences as views: about a block of items each, or one longer sequence."""
        first = 0
        while first < len(self):
            last = max(first + 1, int(np.searchsorted(self.offsets, self.offsets[first] + BLOCK_ROWS, "right")) - 1)
            offsets = self.offsets[first : last + 1]
            yield slice(first, last), Sequences(offsets - offsets[0], self.values[offsets[0] : offsets[-1]])
            first = last

    def __len__(self) -> int:
        return len(self.offsets) - 1


@dataclass(frozen=True, eq=False)
class Holdout:
    """The histories of H held-out users that the model sees, and the one item that it should name for each."""

    histories: Sequences
    targets: NDArray[np.int32]
    """Item number [H] that each user's ranking should name."""

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True, eq=False)
class ItemCounts:
    """What train says of each item, int64 [V + 1]; the first is that of padding and 0."""

    items: NDArray[np.int64]
    """Interactions of train."""
    users: NDArray[np.int64]
    """Distinct users of train."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """Three parts of one file, and what was done to get them."""

    train: Sequences
    """One sequence a user, each of two items or more."""
    validation: Holdout
    test: Holdout
    catalog: int
    """V of the whole file: items that only the test part has are scored too."""
    strategy: str
    notes: tuple[str, ...]
    """Sentences for the user: the cut, what was dropped, which targets cannot be hit."""

    counted: ItemCounts | None = None
    """What prepared data hold already; None where it is counted when somebody asks."""

    @cached_property
    def item_counts(self) -> NDArray[np.int64]:
        """Return how many interactions of train each item has, int64 [V + 1]."""
        return self.counted.items if self.counted else counts(self.train.values, self.catalog + 1)

    @cached_property
    def users_per_item(self) -> NDArray[np.int64]:
        """Return how many distinct users of train each item has, int64 [V + 1]."""
        if self.counted:
            return self.counted.users
        found = np.zeros(self.catalog + 1, dtype=np.int64)
        for items in in_threads(_distinct, [piece for _, piece in self.train.pieces()]):
            np.add.at(found, items, 1)  # counting by np.bincount would make an array of V for every piece
        return found


def split(
    interactions: Interactions,
    strategy: Strategy = "auto",
    *,
    time_quantile: float = 0.9,
    validation_share: float = 0.05,
    validation_users: int | None = None,
    seed: int = 42,
) -> Split:
    """Split by name; `auto` is global-time where there are timestamps, leave-one-out otherwise.

    `time_quantile` and `validation_share` belong to global-time, `validation_users` to leave-one-out.
    """
    if strategy not in get_args(Strategy):
        raise InputError(f"unknown split {strategy!r}", f"splits are {', '.join(get_args(Strategy))}")
    timed = interactions.timestamps is not None
    if strategy == "global-time" or (strategy == "auto" and timed):
        return split_global_time(
            interactions, time_quantile=time_quantile, validation_share=validation_share, seed=seed
        )
    reason = () if strategy != "auto" else ("no timestamps: split by leave-one-out, in the order of the file",)
    return split_leave_one_out(interactions, validation_users=validation_users, seed=seed, notes=reason)


def split_global_time(
    interactions: Interactions, *, time_quantile: float = 0.9, validation_share: float = 0.05, seed: int = 42
) -> Split:
    """Split at one moment T, the `time_quantile` of all timestamps: the model is trained on what came up to T.

    Test: users with an interaction after T; the target is their last interaction, the history everything of theirs
    before it, what came after T included: a model in service has seen that too, even where it was not trained on it.
    Validation: `validation_share` of the users with two interactions up to T, taken out of train; the target is their
    last interaction up to T, the history the rest of them. InputError where a part would be empty.
    """
    if interactions.timestamps is None:
        raise InputError("a global-time split needs timestamps", "--split leave-one-out, or name --timestamp-column")
    for name, share in (("time_quantile", time_quantile), ("validation_share", validation_share)):
        if not 0 < share < 1:
            raise InputError(f"{name} {share} is outside (0, 1)", "0.9 and 0.05 are usual")
    cut = _quantile(interactions.timestamps, time_quantile)
    bounds = interactions.bounds
    past = interactions.timestamps <= cut
    early = counts(interactions.users, interactions.user_count, past)
    progress.tell("splitting", 0.2)
    test, test_notes = _hold_out(interactions, np.flatnonzero(early < np.diff(bounds)), bounds[1:] - 1)

    eligible = np.flatnonzero(early >= 2)
    chosen = _sample(eligible, max(1, round(validation_share * len(eligible))), seed)
    validation, _ = _hold_out(interactions, chosen, bounds[:-1] + early - 1)
    early[chosen] = 0
    notes = (
        f"global-time split at {cut}, the {time_quantile:g} quantile: {len(test):,} users are tested after it",
        f"{len(chosen):,} users are out of train and validate (seed {seed})",
    )
    train, single = _train(interactions, early)
    draft = Split(
        train=train,
        validation=validation,
        test=test,
        catalog=interactions.catalog,
        strategy="global-time",
        notes=(*notes, *test_notes),
    )
    first, last = interactions.timestamps.min(), interactions.timestamps.max()
    return _finished(
        draft, single, f"timestamps run from {first} to {last} and the cut is {cut}: --split leave-one-out"
    )


def split_leave_one_out(
    interactions: Interactions,
    *,
    validation_users: int | None = None,
    seed: int = 42,
    notes: tuple[str, ...] = (),
) -> Split:
    """Test on each user's last item, validate on the one before, and train on the rest.

    Users with fewer than three interactions are all train. `validation_users` caps how many users validate, chosen
    with `seed`; the last but one item of the others is not trained on either. `notes` stand before this split's own.
    """
    if validation_users is not None and validation_users < 1:
        raise InputError(f"validation_users {validation_users} is below one", "leave it out to validate on all")
    bounds = interactions.bounds
    kept = np.diff(bounds)
    tested = np.flatnonzero(kept >= 3)
    test, test_notes = _hold_out(interactions, tested, bounds[1:] - 1)
    chosen = tested if validation_users is None else _sample(tested, validation_users, seed)
    validation, _ = _hold_out(interactions, chosen, bounds[1:] - 2)
    kept[tested] -= 2
    notes += (
        f"leave-one-out split: {len(test):,} users are tested on their last item, {len(validation):,} validate",
        LEAK,
    )
    short = interactions.user_count - len(tested)
    if short:
        notes += (f"{short:,} of {len(kept):,} users have fewer than three interactions: they are not tested",)
    train, single = _train(interactions, kept)
    draft = Split(
        train=train,
        validation=validation,
        test=test,
        catalog=interactions.catalog,
        strategy="leave-one-out",
        notes=(*notes, *test_notes),
    )
    return _finished(draft, single, "users with four interactions or more are needed")


def _finished(draft: Split, single: int, hint: str) -> Split:
    """Return the draft with its last notes; `single` users were left out of train. InputError where a part is empty."""
    for part, size in (("train", len(draft.train)), ("validation", len(draft.validation)), ("test", len(draft.test))):
        if not size:
            raise InputError(f"the {draft.strategy} split leaves no user for {part}", hint)
    progress.tell("splitting", 0.8)
    notes = draft.notes
    if single:
        total = single + len(draft.train)
        notes += (f"{single:,} of {total:,} users are left out of train: nothing follows their one interaction",)
    return replace(draft, notes=(*notes, *_unreachable(draft.train, draft.test, draft.catalog)))


def _quantile(times: NDArray[np.int64] | NDArray[np.float64], quantile: float) -> int | float:
    """Return the smallest time that `quantile` of all do not exceed: one of them, exact where float64 is not."""
    place = max(0, int(np.ceil(quantile * len(times))) - 1)
    value: int | float = np.partition(times, place)[place].item()
    return value


def _sample(users: NDArray[np.intp], count: int, seed: int) -> NDArray[np.intp]:
    """Draw `count` of the users, all where there are not so many, in ascending order."""
    return np.sort(np.random.default_rng(seed).choice(users, min(count, len(users)), replace=False))


def _hold_out(
    interactions: Interactions, users: NDArray[np.intp], targets: NDArray[np.int64]
) -> tuple[Holdout, tuple[str, ...]]:
    """Hold out the interaction targets[u] of each user, with what the user did before; drop users who did nothing."""
    starts = interactions.bounds[users]
    ends = targets[users]
    seen = ends > starts
    starts, ends = starts[seen], ends[seen]
    empty = len(users) - len(starts)
    notes = (f"{empty:,} of {len(users):,} test users are left out: nothing precedes their target",) if empty else ()
    return Holdout(_ranges(interactions.items, starts, ends), interactions.items[ends]), notes


def _train(interactions: Interactions, kept: NDArray[np.int64]) -> tuple[Sequences, int]:
    """Return the first kept[u] items of each user that keeps two or more, and how many users keep only one."""
    users = np.flatnonzero(kept >= 2)
    starts = interactions.bounds[users]
    return _ranges(interactions.items, starts, starts + kept[users]), int((kept == 1).sum())


def _ranges(items: NDArray[np.int32], starts: NDArray[np.int64], ends: NDArray[np.int64]) -> Sequences:
    """Return items[starts[k]:ends[k]] for ascending, disjoint, non-empty ranges."""
    edges = np.zeros(len(items) + 1, dtype=np.int8)
    edges[starts] = 1
    edges[ends] -= 1  # a range may start where another ends
    return Sequences(offsets_of(ends - starts), items[np.cumsum(edges[:-1], dtype=np.int8).view(bool)])


def _unreachable(train: Sequences, test: Holdout, catalog: int) -> tuple[str, ...]:
    """Say in sentences which part of the test no model can hit."""
    known = counts(train.values, catalog + 1) > 0
    cold = int((~known[test.targets]).sum())
    repeated = sum(_repeated(piece, test.targets[which]) for which, piece in test.histories.pieces())
    notes = []
    if cold:
        notes.append(f"{cold:,} of {len(test):,} test targets never occur in train: they can hardly be hit")
    if repeated:
        notes.append(
            f"{repeated:,} of {len(test):,} test targets are already in the user's history: they cannot be hit where "
            "seen items are filtered"
        )
    unseen = catalog - int(known.sum())
    if unseen:
        notes.append(f"{unseen:,} of {catalog:,} items never occur in train")
    return tuple(notes)


def _distinct(sequences: Sequences) -> NDArray[np.int64]:
    """Return every item of each sequence once, in no order that means anything."""
    size = int(sequences.values.max(initial=0)) + 1
    pairs = sequences.rows * size + sequences.values
    pairs.sort()  # np.unique takes ten times as long
    return pairs[np.diff(pairs, prepend=-1) > 0] % size


def _repeated(histories: Sequences, targets: NDArray[np.int32]) -> int:
    """Return how many targets stand in their user's history."""
    rows = histories.rows
    return len(np.unique(rows[histories.values == targets[rows]]))
