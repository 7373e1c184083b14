"""Where everything printed for people goes: results to stdout, progress and errors to stderr."""

from __future__ import annotations

import json
import sys
from typing import Any

from rich.console import Console
from rich.markup import escape

from srsplan.models.errors import SrsplanError

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def print_json(document: Any) -> None:
    """Write one JSON document to stdout; NaN and infinity are refused, they are not JSON."""
    sys.stdout.write(json.dumps(document, indent=2, allow_nan=False) + "\n")


def print_error(error: SrsplanError) -> None:
    """One clear message: what was given, then the way out."""
    err.print(f"[bold red]error:[/] {escape(error.message)}", soft_wrap=True)
    if error.hint:
        err.print(f"[bold]  try:[/] {escape(error.hint)}", soft_wrap=True)
