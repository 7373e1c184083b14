"""The histories of a file's users, in the numbers of a trained run's items.

Letters: R interactions, U users, V items of the run. Items are 1 to V here, 0 is one that the run does not know.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from srsplan.models.data.blocks import counts, offsets_of
from srsplan.models.data.column_names import Columns
from srsplan.models.data.interactions import read_interactions
from srsplan.models.data.splits import Sequences
from srsplan.models.errors import InputError
from srsplan.models.schema import shown

if TYPE_CHECKING:
    import pyarrow as pa

SHOWN_USERS = 3
"""Users that a message names."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Histories:
    """What U users of a file did, as far as the run knows the items."""

    path: Path
    """The file or folder, as it was given."""
    user_ids: NDArray[Any]
    """Ids [U] in the file, in ascending order, or in the order in which they were asked for."""
    sequences: Sequences
    """Items of each user, the oldest first; empty where the run knows none of them."""
    notes: tuple[str, ...]
    """Sentences for the user: which column became what, what was left out."""

    def with_items(self) -> Histories:
        """Return the users of whom the run knows an item; a note says how many others there are."""
        known = self.sequences.lengths > 0
        without = int((~known).sum())
        if not without:
            return self
        note = f"{without:,} of {len(known):,} users have no item that the model knows: they get no recommendations"
        ends = self.sequences.offsets[1:][known]  # of users without items nothing stands between the others
        return replace(
            self,
            user_ids=self.user_ids[known],
            sequences=Sequences(np.concatenate([ends[:0], [0], ends]), self.sequences.values),
            notes=(*self.notes, note),
        )

    def of(self, asked: Iterable[str]) -> Histories:
        """Return these users, each once, in the order of asking; InputError names those who are not there.

        Ids are compared as text: a file that holds numbers has the user 7 where "7" is asked for.
        """
        names = list(dict.fromkeys(asked))
        rows = self._rows(names)
        self._require(names, rows >= 0, "not in {path}", f"ids are those of the file, such as {example(self.user_ids)}")
        with_items = self.sequences.lengths[rows] > 0
        self._require(names, with_items, "without an item that the model knows", "leave them out")
        return self._of(rows)

    def of_those_there(self, asked: Iterable[str]) -> Histories:
        """Return the same without an error for users who are not there: a note says how many they are."""
        names = list(dict.fromkeys(asked))
        rows = self._rows(names)
        absent = int((rows < 0).sum())
        notes = (f"{absent:,} of the {len(names):,} users asked for are not in {self.path.name}",) if absent else ()
        return self._of(rows[rows >= 0], *notes).with_items()

    def _rows(self, names: list[str]) -> NDArray[np.int64]:
        """Return the place of each user, -1 where there is none."""
        import pyarrow as pa

        return _places(pa.array(names, pa.string()), pa.array(self.user_ids))

    def _require(self, names: list[str], good: NDArray[np.bool_], what: str, hint: str) -> None:
        bad = [names[at] for at in np.flatnonzero(~good)]
        if bad:
            named = ", ".join(shown(name) for name in bad[:SHOWN_USERS]) + (", ..." if len(bad) > SHOWN_USERS else "")
            users = "user" if len(bad) == 1 else "users"
            raise InputError(f"{len(bad):,} {users} {what.format(path=self.path)}: {named}", hint)

    def _of(self, rows: NDArray[np.int64], *notes: str) -> Histories:
        lengths = self.sequences.lengths[rows]
        offsets = offsets_of(lengths)
        starts = self.sequences.offsets[rows]
        places = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
        sequences = Sequences(offsets, self.sequences.values[places])
        return replace(self, user_ids=self.user_ids[rows], sequences=sequences, notes=(*self.notes, *notes))


def read_histories(path: Path, item_ids: NDArray[Any], columns: Columns) -> Histories:
    """Read what users did, from every format that training reads; `item_ids` [V] are those of the run.

    InputError where the file cannot be read, or the run knows none of its items. Memory at the peak is that of
    `read_interactions`.
    """
    found = read_interactions(path, columns=columns, several=False)
    numbers = _numbers(found.item_ids, item_ids)
    if not numbers.any():
        raise InputError(
            f"{path} holds no item that the model knows: ids are such as {example(found.item_ids)} there, and such as "
            f"{example(item_ids)} in the run",
            "is it the right column? --item-column names another",
        )
    items = numbers[found.items]
    known = items > 0
    sequences = Sequences(offsets_of(counts(found.users, found.user_count, known)), items[known])
    return Histories(
        path=path,
        user_ids=found.user_ids,
        sequences=sequences,
        notes=(*found.notes, *_left_out(numbers[1:], len(items), len(sequences.values))),
    )


def example(ids: NDArray[Any]) -> str:
    """Return the first of some ids as a message shows it."""
    return shown(ids[:1].tolist()[0])


def _left_out(numbers: NDArray[np.int32], before: int, after: int) -> tuple[str, ...]:
    unknown = int((numbers == 0).sum())
    if not unknown:
        return ()
    left_out = f"{before - after:,} of {before:,} interactions"
    return (f"{left_out} are with {unknown:,} items that the model does not know: the histories are without them",)


def _numbers(given: NDArray[Any], known: NDArray[Any]) -> NDArray[np.int32]:
    """Return the number in the run of each item of the file, int32 [V of the file + 1]: 1 to V, and 0 for none."""
    import pyarrow as pa

    numbers = np.zeros(len(given) + 1, dtype=np.int32)
    numbers[1:] = _places(pa.array(given), pa.array(known)) + 1
    return numbers


def _places(wanted: pa.Array, among: pa.Array) -> NDArray[np.int64]:
    """Return where each value stands, -1 where it does not; as text where the types differ."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if wanted.type != among.type:
        wanted, among = wanted.cast(pa.string()), among.cast(pa.string())
    found: NDArray[np.int64] = pc.fill_null(pc.index_in(wanted, value_set=among), -1).to_numpy().astype(np.int64)
    return found
