"""Output for people: results go to stdout, progress and errors to stderr.

Text of the user's (paths, columns, names of datasets) reaches the terminal through `plain`, or through `markup` where
it stands inside rich's markup; commands to be copied through `command`. Nothing else escapes or quotes.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.markup import escape

from srsplan.models.errors import SrsplanError


class Terminal(Console):
    """A console that leaves it to the caller what a reader who has gone means (`srsplan gpus | head -1`)."""

    def on_broken_pipe(self) -> None:
        """Raise what rich caught; its own answer is exit code 1."""
        raise BrokenPipeError


out = Terminal(highlight=False)
err = Terminal(stderr=True, highlight=False)


def plain(text: object) -> str:
    """Return text without control characters: what a terminal would obey is shown as Python writes it (`\x1b`)."""
    return "".join(
        letter if letter.isprintable() or letter in "\n\t" else letter.encode("unicode_escape").decode()
        for letter in str(text).encode("utf-8", "backslashreplace").decode()
    )


def markup(text: object) -> str:
    """Return the same for use inside rich's markup: brackets stay brackets."""
    return escape(plain(text))


def command(parts: Iterable[object]) -> str:
    """Return a command line that a shell takes apart into exactly these words."""
    return shlex.join(plain(part) for part in parts)


def print_json(document: Any) -> None:
    """Write one JSON document to stdout; NaN and infinity are refused, they are not JSON."""
    sys.stdout.write(json.dumps(document, indent=2, allow_nan=False) + "\n")


def print_error(error: SrsplanError) -> None:
    """Print one clear message: what was given, then the way out."""
    err.print(f"[bold red]error:[/] {markup(error.message)}", soft_wrap=True)
    if error.hint:
        err.print(f"[bold]  try:[/] {markup(error.hint)}", soft_wrap=True)
