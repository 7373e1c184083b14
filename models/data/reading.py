"""Interactions, read and split, for every verb that takes `--data`; large ones are prepared once and used again."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from importlib.metadata import version

from srsplan.models.data import progress
from srsplan.models.data.interactions import read_interactions
from srsplan.models.data.options import DEFAULT_SEED, DataOptions, Minimums
from srsplan.models.data.parts import Parts, parts_of
from srsplan.models.data.prepared import Key, Source, SplitData, Unusable, Wanted, source_of
from srsplan.models.data.shelf import WAIT_SECONDS, Shelf, cache_folder
from srsplan.models.data.splits import split
from srsplan.models.errors import InputError

KEPT_FROM_BYTES = 8 << 20
"""Size from which on an input is kept prepared: smaller ones are read in half a second, and leave no traces."""

NO_MINIMUMS = Minimums()


def read_split(options: DataOptions, *, minimums: Minimums = NO_MINIMUMS, seed: int = DEFAULT_SEED) -> SplitData:
    """Read and split interactions, or open what an earlier command prepared of the same file with the same options.

    InputError where they cannot be read. Where they cannot be kept, a note says so, and nothing else changes.
    """
    parts = parts_of(options.path)
    cache = cache_folder()

    def read() -> SplitData:
        return _read(options, minimums, seed)

    if cache is None or parts.size_bytes < KEPT_FROM_BYTES:
        return read()
    wanted = Wanted(name=parts.name, columns=options.columns, minimums=minimums, strategy=options.strategy, seed=seed)
    key = Key(srsplan=version("srsplan"), sources=_sources(parts), wanted=wanted)
    shelf = Shelf(cache, options.path, key)
    return _found(shelf)[0] or _prepared(shelf, parts, read)


def _read(options: DataOptions, minimums: Minimums, seed: int) -> SplitData:
    interactions = read_interactions(
        options.path,
        columns=options.columns,
        min_user_interactions=minimums.user,
        min_item_interactions=minimums.item,
    )
    progress.tell("splitting", 0.0)
    parts = split(interactions, options.strategy, seed=seed)
    return SplitData(split=parts, item_ids=interactions.item_ids, notes=(*interactions.notes, *parts.notes))


def _found(shelf: Shelf) -> tuple[SplitData | None, tuple[str, ...]]:
    """Return what is prepared; or None, with a note where it is there and cannot be used."""
    try:
        found = shelf.find()
    except Unusable as reason:
        return None, (f"what was prepared in {shelf.entry} is made anew: {reason}",)
    note = f"{shelf.key.wanted.name} was not read again: it is prepared in {shelf.entry}"
    return (None if found is None else _noted(found, note)), ()


def _prepared(shelf: Shelf, parts: Parts, read: Callable[[], SplitData]) -> SplitData:
    progress.tell("waiting for another srsplan", 0.0)
    with ExitStack() as held:
        try:
            held.enter_context(shelf.held(WAIT_SECONDS))
        except (OSError, InputError) as error:
            return _noted(read(), _not_kept(shelf, error))
        found, notes = _found(shelf)  # another command may have prepared it while this one waited
        return found or _kept(shelf, parts, _noted(read(), *notes))


def _kept(shelf: Shelf, parts: Parts, data: SplitData) -> SplitData:
    """Put the data on the shelf; they stay in memory, and a note says why, where that fails."""
    if _sources(parts_of(parts.path)) != shelf.key.sources:
        return _noted(data, f"warning: {parts.name} changed while it was read")
    try:
        stored = shelf.keep(data)
    except (OSError, Unusable) as error:
        return _noted(data, _not_kept(shelf, error))
    return _noted(stored, f"prepared for the next command in {shelf.entry}")


def _not_kept(shelf: Shelf, error: Exception) -> str:
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return f"warning: the prepared data could not be kept in {shelf.folder} ({reason}): the next command reads again"


def _noted(data: SplitData, *notes: str) -> SplitData:
    return replace(data, notes=(*data.notes, *notes))


def _sources(parts: Parts) -> tuple[Source, ...]:
    return tuple(source_of(file) for file in parts.files)
