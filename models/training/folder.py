"""The folder of a run: what srsplan writes there, how a run is recognised, and who may write into it.

    config.json                 the resolved configuration, settings and what was done to the data
    items.parquet               the item id of every row of the item table
    epochs.jsonl                one line for each epoch
    state.json                  what is resumed, and which weights belong to it
    weights-EPOCH.safetensors   weights, Adam's moments and generator states of the last epoch
    best.safetensors            weights of the best epoch
    metrics.json                the test's metrics beside popularity's
    runs.csv                    the run as a row of a run table: `srsplan analyze` reads it

Nothing else is ever replaced or deleted, and nothing at all in a folder that is not a run.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, JsonValue, TypeAdapter, ValidationError

from srsplan.models.errors import InputError
from srsplan.models.files import locked, read_limited
from srsplan.models.schema import Document, explained, shown

CONFIG, ITEMS, METRICS, ROW = "config.json", "items.parquet", "metrics.json", "runs.csv"
STATE, BEST, NEXT_BEST, EPOCHS = "state.json", "best.safetensors", "best-next.safetensors", "epochs.jsonl"
LOCK = ".srsplan.lock"
WEIGHTS = re.compile(r"weights-[0-9]{1,10}\.safetensors")
OWN_NAMES = frozenset({CONFIG, ITEMS, METRICS, ROW, STATE, BEST, NEXT_BEST, EPOCHS})
TEMPORARY = re.compile(r"\.(?P<name>.+)\.[a-z0-9_]{8}\.part")

MARKS = {
    CONFIG: frozenset({"configuration", "settings", "data", "split"}),
    STATE: frozenset({"version", "weights", "steps_done", "progress"}),
}
"""Keys that prove that a file of that name is srsplan's, of any version."""

START_ANEW = "start anew with --overwrite, or put the file back as it was"

D = TypeVar("D", bound=Document)


def read_document(path: Path, kind: type[D], what: str) -> D:
    """Read a JSON file of the run as a checked document; InputError where it is absent, no JSON, or of another form."""
    content = read_limited(path, what, START_ANEW)
    _check_version(content, kind, f"the {what} {path}")
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        if first["type"] == "json_invalid":
            raise InputError(f"the {what} {path} is damaged: {first['msg']}", START_ANEW) from None
        raise explained(error, f"the {what} {path}", kind.model_fields, START_ANEW) from None
    except InputError as error:  # a value that the configuration itself refuses
        raise InputError(f"the {what} {path}: {error.message}", START_ANEW) from None


class _Versioned(BaseModel):
    """Version of a file's form, whatever else the file holds."""

    version: JsonValue = None
    srsplan: JsonValue = None


def _check_version(content: bytes, kind: type[Document], which: str) -> None:
    """Raise InputError where the file is of another version: before all else, whose names and types differ with it."""
    known = kind.model_fields["version"].default
    try:
        found = _Versioned.model_validate_json(content)
    except ValidationError:  # no JSON, or no object: told by whoever reads it
        return
    if found.version not in (None, known):
        writer = f", {found.srsplan[:40]}" if isinstance(found.srsplan, str) else ""
        raise InputError(
            f"{which} is of another version of srsplan{writer}: its form is {shown(found.version)}, this reads {known}",
            "train again, with --overwrite or into another folder, or use the srsplan that wrote it",
        )


@dataclass(frozen=True)
class RunFolder:
    """A folder that a run is in, or will be."""

    path: Path

    def check(self, resume: bool, overwrite: bool) -> None:
        """Raise InputError unless a run may start here: the folder is new or empty, or a run to go on with or replace.

        Changes nothing. To be called before long work, and once more where the lock is held.
        """
        names = self._names()
        if names and not self.is_run():
            raise InputError(
                f"--output {self.path} is not empty, and not the folder of a run", "give another folder with -o"
            )
        if names and not (resume or overwrite):
            raise InputError(f"--output {self.path} holds a run", "--resume goes on with it, --overwrite starts anew")
        self._check_own_names(names)
        if resume and not names:
            raise InputError(f"no checkpoint in {self.path}: there is no run", "start the run without --resume")
        self._check_writable()

    def is_run(self) -> bool:
        """Tell whether the folder is a run's, by a state.json or config.json that srsplan wrote, of any version."""
        return any(_has_keys(self.path / name, keys) for name, keys in MARKS.items())

    def own_files(self) -> list[Path]:
        """Return the regular files in the folder that have srsplan's names, the state last; no one else's."""
        own = [path for path in _listed(self.path) if is_own(path.name) and path.is_file() and not path.is_symlink()]
        return sorted(own, key=lambda path: (path.name in MARKS, path.name))

    def clear(self) -> None:
        """Delete the run in the folder; files with other names stay. InputError where the folder is not a run."""
        if self._names() and not self.is_run():
            raise InputError(
                f"{self.path} is not the folder of a run: nothing is deleted", "give another folder with -o"
            )
        for path in self.own_files():
            path.unlink()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Make the folder where it does not exist, and keep other processes out of it."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot make {self.path}: {error.strerror}", "give another folder with -o") from error
        with locked(self.path / LOCK, f"--output {self.path}"):
            yield

    def _names(self) -> set[str]:
        """List the folder, but for the lock and files that a killed process did not finish."""
        return {path.name for path in _listed(self.path) if path.name != LOCK and not TEMPORARY.fullmatch(path.name)}

    def _check_own_names(self, names: set[str]) -> None:
        """Raise InputError where something that is no regular file has a name that the run will write."""
        for path in (self.path / name for name in sorted(names) if is_own(name)):
            if path.is_symlink() or not path.is_file():
                raise InputError(f"{path} is no regular file", "remove it, or give another folder with -o")

    def _check_writable(self) -> None:
        place = self.path.absolute()
        while not os.path.exists(place) and place != place.parent:  # of an endless name as well
            place = place.parent
        if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
            raise InputError(
                f"cannot write into --output {self.path}: {place} is not a writable folder", "give another -o"
            )


def is_own(name: str) -> bool:
    """Tell whether a file of that name in a run's folder is srsplan's, temporary files included."""
    temporary = TEMPORARY.fullmatch(name)
    if temporary is not None:
        name = temporary["name"]
    return name in OWN_NAMES or WEIGHTS.fullmatch(name) is not None


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except FileNotFoundError:
        return []
    except NotADirectoryError:
        raise InputError(f"--output {folder} is a file", "give a folder") from None
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise InputError(
            f"--output {str(folder)[:200]!r} cannot be a folder: {reason}", "give another folder"
        ) from None


def _has_keys(path: Path, keys: frozenset[str]) -> bool:
    try:
        document = TypeAdapter(dict[str, JsonValue]).validate_json(read_limited(path, "file", ""))
    except (InputError, ValidationError):
        return False
    return keys <= document.keys()
