"""`python -m srsplan.profiler.bench`: `srsplan bench` where only torch, Triton and numpy are installed.

Options, exit codes, files and JSON are those of `srsplan bench`; what is found is printed at once, a line each. From a
source tree: PYTHONPATH=TREE/.typing python -m srsplan.profiler.bench
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from srsplan.models.errors import InputError, MissingExtra, SrsplanError
from srsplan.profiler.bench.request import HELP, Asked, request_of

if TYPE_CHECKING:
    from srsplan.profiler.bench.bout import Bout, Report
    from srsplan.profiler.bench.environment import Environment
    from srsplan.profiler.bench.results import Found

NAME = "python -m srsplan.profiler.bench"
KINDS = {"scale": float, "repeats": int, "minutes": float, "output": Path}
"""Types of the options that are not text; those that are False without being given take no value."""
METAVARS = {float: "NUMBER", int: "COUNT", Path: "FILE", str: "TEXT"}
EXAMPLES = f"""examples:
  {NAME} --shapes 512x3Kx64x64
  {NAME} --shapes zvuk --peers -o zvuk.csv
  {NAME} --shapes megamarket --only 'triton cce' --kernels --sweep -o launches.csv
"""
INTERRUPTED, UNREAD = 130, 141
"""Exit codes for Ctrl-C and for output that nobody reads any more, as shells report them."""


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are errors as all others are."""

    def error(self, message: str) -> NoReturn:
        """Raise what is wrong with the command line."""
        raise InputError(message, f"`{NAME} --help` lists what there is")


def parser() -> Parser:
    """Return the parser of all options."""
    made = Parser(
        prog=NAME,
        description="Time and memory of every form of the losses, beside others' kernels and the device's limits.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for field in fields(Asked):
        names = (*(("-o",) if field.name == "output" else ()), f"--{field.name}")
        if field.default is False:
            made.add_argument(*names, action="store_true", help=HELP[field.name])
            continue
        shown = "" if field.default is None else f" [default: {field.default}]"
        kind = KINDS.get(field.name, str)
        made.add_argument(
            *names, type=kind, default=field.default, metavar=METAVARS[kind], help=HELP[field.name] + shown
        )
    return made


class Lines:
    """Prints what is found, a line each, at once; and on stderr what begins, so that a stop says where."""

    def __init__(self, json_wanted: bool) -> None:
        self._json = json_wanted

    def introduced(self, bout: Bout, environment: Environment) -> None:
        """Print the hardware and the device's limits, and say what is scaled down."""
        from srsplan.profiler.bench.lines import head_lines, scaled_line

        if bout.scaled:
            _tell(scaled_line(bout.scaled))
        self._print(head_lines(environment))

    def began(self, match: str) -> None:
        """Name what runs."""
        _tell(f"... {match}")

    def finished(self, found: Found) -> None:
        """Print a finding."""
        from srsplan.profiler.bench.lines import line_of

        self._print(line_of(found))

    def warned(self, sentence: str) -> None:
        """Say what the file lacks."""
        _tell(f"warning: {sentence}")

    def _print(self, text: str) -> None:
        if not self._json:
            print(text, flush=True)  # noqa: T201


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201


def run(arguments: Sequence[str]) -> Report:
    """Run the comparison that a command line asks for; SrsplanError for what cannot be had."""
    asked = Asked(**vars(parser().parse_args(arguments)))
    request = request_of(asked)
    try:
        from srsplan.profiler.bench.bout import run_bout
        from srsplan.profiler.bench.results import document_of
    except ModuleNotFoundError as error:
        raise MissingExtra((error.name or "").partition(".")[0], "bench", NAME) from error
    report = run_bout(request, Lines(asked.json))
    if asked.json:
        document = {**report.environment.document(), **document_of(report.found)}
        print(json.dumps(document, indent=2, allow_nan=False), flush=True)  # noqa: T201
    return report


def main(arguments: Sequence[str]) -> int:
    """Run a command line and return its exit code, after one message where it failed."""
    try:
        failure = run(arguments).failure
    except SrsplanError as error:
        failure = error
    except KeyboardInterrupt:
        _tell("stopped")
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return UNREAD
    if failure is None:
        return 0
    _tell(f"error: {failure.message}")
    if failure.hint:
        _tell(f"  try: {failure.hint}")
    return failure.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
