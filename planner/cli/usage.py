"""Mistakes in a command line's form (an unknown option, a word for a number), said as every other error is said."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import typer

from srsplan.models.errors import InputError

LONGEST_SHOWN = 80

REASONS = {
    "valid integer": "is not a whole number",
    "as an integer": "is not a whole number of a size that makes sense",
    "valid number": "is not a number",
    "valid boolean": "is neither true nor false",
    "range": "is out of range",
}
"""Parts of the parser's messages, and what they mean."""


REPLACED = {
    "--micro-batches": "--pass-tokens says how many tokens run at a time: a batch takes as many passes as it needs"
}
"""Options that are gone, and what took their place."""


def is_usage_error(error: Exception) -> bool:
    """Tell whether the parser raised it, by the base classes of typer.BadParameter: not every version names them."""
    kinds = typer.BadParameter.__mro__
    return isinstance(error, kinds[: kinds.index(Exception)])


def usage_error(error: Any, arguments: Sequence[str]) -> InputError:
    """Return the parser's error as ours: what was given, what is wrong with it, and where the options are listed."""
    path = getattr(getattr(error, "ctx", None), "command_path", None) or "srsplan"
    hint = f"`{path} --help` lists what there is"
    kind = type(error).__name__
    if kind == "NoSuchOption":
        if error.option_name in REPLACED:
            return InputError(f"{error.option_name} is no option any more", REPLACED[error.option_name])
        known = {option.lstrip("-"): option for option in _options(error)}  # dashes would count as likeness
        near = get_close_matches(error.option_name.lstrip("-"), known, n=1)
        return InputError(f"unknown option {error.option_name}", f"did you mean {known[near[0]]}?" if near else hint)
    if kind == "MissingParameter":
        return InputError(f"{_name(error)} is missing", hint)
    if getattr(error, "param", None) is not None:
        return _wrong_value(error, arguments, hint)
    return _other(error, hint)


def _options(error: Any) -> list[str]:
    """Return every option of the verb that was asked for."""
    context = getattr(error, "ctx", None)
    if context is None:
        return []
    return [option for parameter in context.command.get_params(context) for option in parameter.opts]


def _name(error: Any) -> str:
    """Return the option or the argument that the parser complains about."""
    parameter = error.param
    if parameter is None:
        return "an option"
    long = [option for option in parameter.opts if option.startswith("--")]
    return str((long or parameter.opts or [parameter.name])[0])


def _wrong_value(error: Any, arguments: Sequence[str], hint: str) -> InputError:
    """Return the error for a value of the wrong type or out of range."""
    said = str(error.message).rstrip(".")
    reason = next((words for part, words in REASONS.items() if part in said), None)
    value = _given(error.param.opts, arguments)
    if value is None:
        return InputError(f"{_name(error)}: {said}", hint)
    return InputError(f"{_name(error)} {_shortened(value)} {reason or 'is not possible'} ({said})", hint)


def _given(options: Sequence[str], arguments: Sequence[str]) -> str | None:
    """Return the last value that was given for an option."""
    found = None
    for word, following in zip(arguments, [*arguments[1:], None], strict=True):
        name, equals, value = word.partition("=")
        if name in options:
            found = value if equals else following
    return found


def _shortened(value: str) -> str:
    return repr(value if len(value) <= LONGEST_SHOWN else value[:LONGEST_SHOWN] + "...")


def _other(error: Any, hint: str) -> InputError:
    """Return the error for a missing value or an argument too many: the parser's own words are clear."""
    message = str(error.message).rstrip(".")
    return InputError(message[:1].lower() + message[1:], hint)
