"""One schema for everything read from a file: strict pydantic models, and what is wrong with a document in words."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from srsplan.models.errors import InputError

LONGEST_SHOWN = 80

Bytes = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
"""A size in bytes that a machine can have."""
Count = Annotated[int, Field(strict=True, ge=1, lt=2**63)]
Milliseconds = Annotated[float, Field(strict=True, gt=0, lt=1e12, allow_inf_nan=False)]
Seconds = Annotated[float, Field(strict=True, ge=0, lt=1e12, allow_inf_nan=False)]


class Document(BaseModel):
    """A part of a file: unknown keys, NaN and infinity are refused; values do not change afterwards.

    Sizes and times are of the types above, which take no text and no truth value for a number.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def shown(value: object) -> str:
    """Return a value as a message repeats it: never longer than a line, never a nested structure in full."""
    if isinstance(value, dict | list | tuple | set):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, int) and abs(value) >= 10**LONGEST_SHOWN:
        return "an enormous number"
    text = repr(value[: LONGEST_SHOWN + 1] if isinstance(value, str | bytes) else value)
    return text if len(text) <= LONGEST_SHOWN + 2 else text[:LONGEST_SHOWN] + "..."


def _place(parts: tuple[int | str, ...]) -> str:
    """Return a place in a document as text: `choices.0.memory`, never longer than two lines."""
    place = ".".join(map(str, parts))
    return place if len(place) <= 2 * LONGEST_SHOWN else place[: 2 * LONGEST_SHOWN] + "..."


def explained(error: ValidationError, where: str, known: Iterable[str], way_out: str) -> InputError:
    """Explain the first mistake: `where` names the file, `known` are keys to suggest, `way_out` is the hint."""
    first = error.errors(include_url=False, include_context=False)[0]
    place = _place(first["loc"])
    if first["type"] == "extra_forbidden":
        key = _place(first["loc"][-1:])
        near = get_close_matches(key, list(known), n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"remove {key!r}"
        return InputError(f"{where}: unknown key {place!r}", hint)
    if first["type"] == "missing":
        return InputError(f"{where}: {place} is missing", way_out)
    return InputError(f"{where}: {place} = {shown(first.get('input'))}: {first['msg']}", way_out)
