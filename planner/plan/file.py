"""Plan files: YAML within narrow limits, and no plan that somebody edited is ever replaced without being asked."""

from __future__ import annotations

import hashlib
from pathlib import Path

import yaml
from pydantic import ValidationError

from srsplan.models import files, schema
from srsplan.models.errors import InputError
from srsplan.models.plain_yaml import parsed
from srsplan.planner.plan.document import KNOWN_KEYS, VERSION, Plan

LARGEST_BYTES = 1 << 20
"""Bytes of the largest plan that is read; plans are some 10 KiB."""

HEAD = "# srsplan plan: edit a choice, then `srsplan train --plan THIS --data FILE [--rank N]`"
DIGEST = "# unedited: sha256 "
"""Begins the line that says how the rest of the file was written: as long as it holds, srsplan may replace the file."""

MAKE_ONE = "make one: srsplan recommend --catalog 1.6M --budget 40GB"
MEND = "mend it, or make the plan anew with srsplan recommend"


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
    document = parsed(content, path, "plan", MEND)
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
