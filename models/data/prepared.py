"""A folder of prepared interactions: arrays that are mapped into memory, and a manifest that tells if they are whole.

    manifest.json       what was prepared (files, options), of which version, and the size and checksum of every array
    train_values.npy    and so on: the parts of a `Split`, the ids of the items, counts of the items

Letters as in `splits`. Long arrays stay on disk and are cut there; they cost no memory that the system could not take
back. Nothing is pickled.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from srsplan.models.data import progress
from srsplan.models.data.blocks import in_threads
from srsplan.models.data.column_names import Columns
from srsplan.models.data.options import Minimums
from srsplan.models.data.splits import Holdout, ItemCounts, Sequences, Split
from srsplan.models.errors import InputError
from srsplan.models.files import read_limited
from srsplan.models.schema import Bytes, Document

MANIFEST = "manifest.json"
ITEM_IDS, TEXT_OFFSETS = "item_ids", "item_ids_offsets"
MAPPED = frozenset({"train_values", "validation_values", "test_values"})
"""Arrays with an element for every interaction; the others are read at once."""
OPTIONAL = frozenset({TEXT_OFFSETS})
NAMES = frozenset(
    {f"{part}_{array}" for part in ("train", "validation", "test") for array in ("offsets", "values")}
    | {"validation_targets", "test_targets", "item_counts", "users_per_item", ITEM_IDS, *OPTIONAL}
)
FILES = frozenset({MANIFEST, *(f"{name}.npy" for name in NAMES)})
"""All that such a folder holds. Nothing else is ever deleted from it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SplitData:
    """Interactions, read and split."""

    split: Split
    item_ids: NDArray[Any]
    """Labels [V] of the items in the file."""
    notes: tuple[str, ...]
    """Sentences that say what was done to the data."""


class Source(Document):
    """A file of interactions as it was when it was read; another inode, size or time makes it another file."""

    path: str
    size_bytes: Bytes
    modified_ns: int
    inode: int


class Wanted(Document):
    """Options that decide what is prepared from a file."""

    name: str
    """Name of the file or folder as it was given: notes repeat it."""
    columns: Columns
    minimums: Minimums
    strategy: str
    seed: int


class Key(Document):
    """What decides the arrays: prepared folders with the same key hold the same."""

    srsplan: str
    sources: tuple[Source, ...]
    wanted: Wanted


class Stored(Document):
    """An array's file."""

    size_bytes: Bytes
    crc32: Bytes


class Manifest(Document):
    """What is in the folder."""

    content: Literal["interactions prepared by srsplan"] = "interactions prepared by srsplan"
    version: Literal[1] = 1
    key: Key
    catalog: int
    strategy: str
    notes: tuple[str, ...]
    split_notes: tuple[str, ...]
    arrays: dict[str, Stored]
    crc32: Bytes = 0
    """Checksum of the manifest itself, as JSON, with a zero in its place."""

    def checksum(self) -> int:
        """Return the CRC-32 of the manifest without its own checksum."""
        return zlib.crc32(self.model_copy(update={"crc32": 0}).model_dump_json().encode())


class Unusable(Exception):
    """A prepared folder that cannot be used; the message says why."""


def arrays_of(data: SplitData) -> dict[str, NDArray[Any]]:
    """Return the arrays to be stored, by name; counting users per item is the longest part of this."""
    split = data.split
    found: dict[str, NDArray[Any]] = {"item_counts": split.item_counts, "users_per_item": split.users_per_item}
    for name, part in (("validation", split.validation), ("test", split.test)):
        found |= _sequences(name, part.histories) | {f"{name}_targets": part.targets}
    return found | _sequences("train", split.train) | _labels(data.item_ids)


def write(folder: Path, data: SplitData, arrays: Mapping[str, NDArray[Any]], key: Key) -> None:
    """Write everything into an empty folder, the manifest last. OSError where the disk refuses.

    Nothing waits for the disk: what a crash leaves does not match its checksum, and is made anew.
    """
    stored = {}
    for done, (name, array) in enumerate(arrays.items(), start=1):
        stored[name] = _save(folder / f"{name}.npy", array)
        progress.tell("keeping", done / len(arrays))
    draft = Manifest(
        key=key,
        catalog=data.split.catalog,
        strategy=data.split.strategy,
        notes=data.notes,
        split_notes=data.split.notes,
        arrays=stored,
    )
    manifest = draft.model_copy(update={"crc32": draft.checksum()})
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")


def read(folder: Path, key: Key, *, check: bool = True) -> SplitData:
    """Open a prepared folder; Unusable, with the reason, where it is damaged, outdated or of another version.

    Without `check` the checksums of the arrays are not looked at: 0.5 s a gigabyte.
    """
    manifest = manifest_of(folder)
    if manifest.key.srsplan != key.srsplan:
        raise Unusable(f"srsplan {manifest.key.srsplan} made it")
    if manifest.key.wanted != key.wanted:
        raise Unusable("it is for other options")
    if manifest.key.sources != key.sources:
        raise Unusable("the data have changed since")
    try:
        if check:
            _check(folder, manifest.arrays)
        return _assembled(manifest, {name: _load(folder, name) for name in manifest.arrays})
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise Unusable(f"it is damaged: {error}") from error


def manifest_of(folder: Path) -> Manifest:
    """Read a manifest; Unusable where there is none that srsplan wrote, of this version."""
    try:
        manifest = Manifest.model_validate_json(read_limited(folder / MANIFEST, "manifest", ""))
    except InputError as error:
        raise Unusable(error.message) from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        other = first["loc"] == ("version",)
        raise Unusable("its format is of another version" if other else "its manifest is damaged") from error
    if manifest.crc32 != manifest.checksum() or NAMES - set(manifest.arrays) - OPTIONAL:
        raise Unusable("its manifest is damaged")
    return manifest


def _sequences(name: str, sequences: Sequences) -> dict[str, NDArray[Any]]:
    return {f"{name}_offsets": sequences.offsets, f"{name}_values": sequences.values}


def _labels(item_ids: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Return numbers as they are, and text as UTF-8 with the place where each label begins."""
    if item_ids.dtype != object:
        return {ITEM_IDS: item_ids}
    encoded = [text.encode() for text in item_ids]
    offsets = np.concatenate([[0], np.cumsum([len(text) for text in encoded])])
    return {ITEM_IDS: np.frombuffer(b"".join(encoded), dtype=np.uint8), TEXT_OFFSETS: offsets.astype(np.int64)}


class _Summed:
    """A file that counts and sums what is written to it."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.size_bytes, self.crc32 = file, 0, 0

    def write(self, content: bytes) -> int:
        self.size_bytes += len(content)
        self.crc32 = zlib.crc32(content, self.crc32)
        return self.file.write(content)


def _save(path: Path, array: NDArray[Any]) -> Stored:
    with path.open("wb") as file:
        summed = _Summed(file)
        np.lib.format.write_array(summed, array, allow_pickle=False)
    return Stored(size_bytes=summed.size_bytes, crc32=summed.crc32)


def _check(folder: Path, arrays: Mapping[str, Stored]) -> None:
    """Raise ValueError where a file is not as it was written."""
    for name, stored in arrays.items():  # sizes first: what is cut off is told at once
        if (folder / f"{name}.npy").stat().st_size != stored.size_bytes:
            raise ValueError(f"{name}.npy has another size")
    sums = in_threads(lambda name: _checksum(folder / f"{name}.npy"), list(arrays))
    for done, (name, crc32) in enumerate(zip(arrays, sums, strict=True), start=1):
        progress.tell("checking prepared data", done / len(arrays))
        if crc32 != arrays[name].crc32:
            raise ValueError(f"{name}.npy has another checksum")


def _checksum(path: Path) -> int:
    """Return the CRC-32 of a file, by blocks that are read into one buffer."""
    found, buffer = 0, memoryview(bytearray(1 << 20))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            found = zlib.crc32(buffer[:count], found)
    return found


def _load(folder: Path, name: str) -> NDArray[Any]:
    path = folder / f"{name}.npy"
    if name not in MAPPED:
        loaded: NDArray[Any] = np.load(path, allow_pickle=False)
        return loaded
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))  # a plain view: slices of it are cheaper


def _assembled(manifest: Manifest, arrays: Mapping[str, NDArray[Any]]) -> SplitData:
    def sequences(name: str) -> Sequences:
        offsets, values = arrays[f"{name}_offsets"], arrays[f"{name}_values"]
        if offsets[0] != 0 or offsets[-1] != len(values):
            raise ValueError(f"{name}_offsets.npy does not fit {name}_values.npy")
        return Sequences(offsets, values)

    split = Split(
        train=sequences("train"),
        validation=Holdout(sequences("validation"), arrays["validation_targets"]),
        test=Holdout(sequences("test"), arrays["test_targets"]),
        catalog=manifest.catalog,
        strategy=manifest.strategy,
        notes=manifest.split_notes,
        counted=ItemCounts(arrays["item_counts"], arrays["users_per_item"]),
    )
    return SplitData(split=split, item_ids=_item_ids(arrays), notes=manifest.notes)


def _item_ids(arrays: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    if TEXT_OFFSETS not in arrays:
        return arrays[ITEM_IDS]
    text, offsets = arrays[ITEM_IDS].tobytes(), arrays[TEXT_OFFSETS].tolist()
    labels = np.empty(len(offsets) - 1, dtype=object)
    labels[:] = [text[first:last].decode() for first, last in pairwise(offsets)]
    return labels


def source_of(path: Path) -> Source:
    """Return what identifies a file's content without reading it."""
    real, found = os.path.realpath(path), path.stat()
    return Source(
        path=os.fsencode(real).decode("utf-8", "backslashreplace"),
        size_bytes=found.st_size,
        modified_ns=found.st_mtime_ns,
        inode=found.st_ino,
    )
