"""What sizes, shares and names may be, and the one message that says what is wrong with them. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from srsplan.kernels.losses import LOSSES, Loss
from srsplan.models.errors import InputError
from srsplan.models.kinds import MODEL_KINDS, ModelKind

LARGEST_CATALOG = 100_000_000
LARGEST_DIM = 4096
LARGEST = {
    "catalog": LARGEST_CATALOG,
    "batch_size": 1 << 20,
    "seq_len": 1 << 16,
    "pass_tokens": 1 << 36,
    "pass_sequences": 1 << 20,
    "tokens_per_set": 1 << 20,
    "dim": LARGEST_DIM,
    "blocks": 64,
    "heads": 512,
}
"""The largest value of every size, far above what anybody trains. With them the bytes of one storage stay countable,
and a model of so many blocks can be built."""


def require_positive(**values: object) -> None:
    """Raise InputError unless every value is an int above zero, and at most what `LARGEST` says of its name."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(
                f"{name} {shown_value(value)} is not a whole number above zero", f"give {name} a positive size"
            )
        if value > LARGEST.get(name, value):
            raise InputError(f"{name} {shown_value(value)} is above {LARGEST[name]}", f"give a smaller {name}")


def require_share(name: str, value: object) -> None:
    """Raise InputError unless the value is a number from 0 to 1."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= value <= 1:  # type: ignore[operator]
        raise InputError(f"{name} {shown_value(value)} is outside [0, 1]", f"give {name} a number from 0 to 1")


def shown_value(value: object) -> str:
    from srsplan.models.schema import shown  # with pydantic, which takes longer than everything else here

    return shown(value)


def reject_unknown_keys(document: Mapping[str, Any], known: list[str], where: str) -> None:
    """Raise InputError naming the first key that is not known, with the nearest one that is."""
    for key in document:
        if key not in known:
            near = get_close_matches(str(key)[:80], known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"keys are {', '.join(known)}"
            raise InputError(f"unknown key {shown_value(key)} in the {where}", hint)


def find_loss(name: str) -> Loss:
    """Find the loss of that name; InputError with the nearest name otherwise."""
    if isinstance(name, str) and name in LOSSES:
        return LOSSES[name]
    near = get_close_matches(str(name)[:80].lower(), LOSSES, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise InputError(f"unknown loss {shown_value(name)}", f"{hint}losses are {', '.join(LOSSES)}")


def find_model(name: str) -> ModelKind:
    """Find the model of that name; InputError with the nearest name otherwise."""
    if isinstance(name, str) and name in MODEL_KINDS:
        return MODEL_KINDS[name]
    near = get_close_matches(str(name)[:80].lower(), MODEL_KINDS, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise InputError(f"unknown model {shown_value(name)}", f"{hint}models are {', '.join(MODEL_KINDS)}")
