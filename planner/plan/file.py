"""Plan files: YAML within narrow limits, and no plan that somebody edited is ever replaced without being asked."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from srsplan.models import files, schema
from srsplan.models.errors import InputError
from srsplan.planner.plan.document import KNOWN_KEYS, VERSION, Plan

LARGEST_BYTES = 1 << 20
"""Bytes of the largest plan that is read; plans are some 10 KiB."""
DEEPEST = 20
LONGEST_SCALAR = 20_000
"""Letters of the longest value; numbers of more digits take long to read."""

HEAD = "# srsplan plan: edit a choice, then `srsplan train --plan THIS --data FILE [--rank N]`"
DIGEST = "# unedited: sha256 "
"""Begins the line that says how the rest of the file was written: as long as it holds, srsplan may replace the file."""

MAKE_ONE = "make one: srsplan recommend --catalog 1.6M --budget 40GB"
MEND = "mend it, or make the plan anew with srsplan recommend"


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """libyaml's loader where it is installed."""


_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def write_plan(plan: Plan, path: Path, overwrite: bool = False) -> None:
    """Write the plan atomically; see `check_target` for what is never replaced. SrsplanError where the disk fails."""
    check_target(path, overwrite)
    body = yaml.dump(plan.model_dump(), Dumper=_DUMPER, sort_keys=False, allow_unicode=True, width=110).encode()
    files.write_atomically(path, f"{HEAD}\n{DIGEST}{_digest(body)}\n".encode() + body)


def check_target(path: Path, overwrite: bool = False) -> None:
    """Raise InputError unless a plan may be written to `path`.

    Nothing or an unedited plan must be there; with `overwrite` an edited plan is replaced, but never another file.
    """
    edited = _is_plan(path) and not _unedited(path)
    if edited and not overwrite:
        raise InputError(f"the plan {path} was edited: it is not replaced", "give another -o, or --overwrite")
    files.check_output(path, "plan", None if edited else _unedited, "give another file with -o, or --no-plan")


def _unedited(path: Path) -> bool:
    """Tell whether a file is a plan, byte for byte as srsplan wrote it."""
    try:
        head, line, body = files.read_limited(path, "plan", "", LARGEST_BYTES).split(b"\n", 2)
    except (InputError, ValueError):
        return False
    return head == HEAD.encode() and line == f"{DIGEST}{_digest(body)}".encode()


def _is_plan(path: Path) -> bool:
    try:
        text = files.read_limited(path, "plan", "", LARGEST_BYTES)
        return text.startswith(HEAD.encode()) or bool(read_plan(path))
    except InputError:
        return False


def _digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def read_plan(path: Path) -> Plan:
    """Read and check a plan; InputError names the file, the key and what to change."""
    content = files.read_limited(path, "plan", MAKE_ONE, LARGEST_BYTES)
    document = _parsed(content, path)
    if not isinstance(document, dict):
        raise InputError(f"{path} is not a plan: it holds {schema.shown(document)}", "give the file recommend wrote")
    version = document.get("version")
    if version != VERSION:
        raise InputError(
            f"{path} is a plan of version {schema.shown(version)}; this srsplan reads version {VERSION}",
            "make the plan anew with srsplan recommend",
        )
    try:
        return Plan.model_validate(document)
    except ValidationError as error:
        raise schema.explained(error, str(path), KNOWN_KEYS, MEND) from None


def _parsed(content: bytes, path: Path) -> Any:
    """Return the document of a YAML file that is as plain as srsplan writes it."""
    try:
        text = content.decode()
        _check_plain(text, path)
        return yaml.load(text, _Loader)
    except UnicodeDecodeError:
        raise InputError(f"{path} is not text in UTF-8", "give the file that recommend wrote") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())[:200]}", MEND) from None
    except (ValueError, RecursionError) as error:
        # what looks like a date or a number, and is none
        raise InputError(
            f"{path} holds a value that cannot be read: {' '.join(str(error).split())[:200]}", MEND
        ) from None


def _check_plain(text: str, path: Path) -> None:
    """Raise InputError for what no plan has, and what makes a small file large: aliases, tags, depth, long values."""
    depth = 0
    for event in yaml.parse(text, _Loader):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise InputError(f"{path} has anchors or aliases (& or *), which a plan never has", MEND)
        if getattr(event, "tag", None) is not None:
            raise InputError(f"{path} has tags (!), which a plan never has", MEND)
        if isinstance(event, yaml.ScalarEvent) and len(event.value) > LONGEST_SCALAR:
            raise InputError(f"{path} has a value of {len(event.value):,} letters", MEND)
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > DEEPEST:
                raise InputError(f"{path} is nested deeper than {DEEPEST} levels", MEND)
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
