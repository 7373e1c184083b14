"""The command line: a verb is imported when it is asked for, and every error becomes one message and an exit code.

The exit codes are those of models/errors.py, and 130 for Ctrl-C, 141 where nobody reads the output any more.
"""

from __future__ import annotations

import gc
import os
import sys
from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
import typer.main
from typer.core import TyperGroup

from srsplan.models.errors import InputError, SrsplanError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typer._click import Command, Context, HelpFormatter


class Verb(NamedTuple):
    """The place of a verb's function, and what `srsplan --help` says about it without importing it."""

    module: str
    function: str
    summary: str
    """The first line of the function's docstring; a test compares them."""
    brief: bool = False
    """True where looking for cyclic garbage takes longer (a tenth of the time) than there is memory to be found."""


VERBS = {
    "recommend": Verb(
        "recommend",
        "recommend_command",
        "Which loss, batch size, sequence length and negatives fit a budget, which to try first, and why.",
        brief=True,
    ),
    "estimate": Verb(
        "estimate",
        "estimate_command",
        "The memory and step time of one configuration, or of many in a table; exit code 3 where none fits.",
        brief=True,
    ),
    "profile": Verb(
        "profile",
        "profile_command",
        "Try a few configurations, spread up to nearly the whole card; every finished probe is kept.",
    ),
    "train": Verb(
        "train",
        "train_command",
        "Train a plan's configuration, test it by full ranking, and keep everything needed to repeat it.",
    ),
    "predict": Verb(
        "predict",
        "predict_command",
        "Recommend the best items to the users of a file, in the file's own ids.",
    ),
    "export": Verb(
        "export",
        "export_command",
        "Write a trained model as ONNX, or as weights that another library's model loads.",
    ),
    "compare": Verb(
        "compare",
        "compare_command",
        "Train many configurations with several seeds, each run once, and say which differences can be trusted.",
    ),
    "gpus": Verb(
        "gpus",
        "gpus_command",
        "List the GPUs that --gpu knows: memory that CUDA can hand out, bandwidth, peak throughput.",
    ),
    "analyze": Verb(
        "analyze",
        "analyze_command",
        "Correlate the three knobs with quality, fit forests, and say which figures to trust.",
    ),
    "doctor": Verb(
        "doctor",
        "doctor_command",
        "Check this machine: versions, card, memory against its prediction, kernels; exit code 1 if one is not good.",
    ),
    "bench": Verb(
        "bench",
        "bench_command",
        "Time and memory of every form of the losses, beside eager PyTorch, others' kernels and the device's limits.",
    ),
}

LONGEST_VERB = 80
"""Characters of an unknown verb that a message repeats."""
COMPLETION_VARIABLE = "_SRSPLAN_COMPLETE"
"""Environment variable that the shell sets while it completes a command line."""
INTERRUPTED = 130
"""Exit code that shells report for Ctrl-C: 128 and SIGINT's number."""
UNREAD = 141
"""Exit code that shells report for a program whose reader has left: 128 and SIGPIPE's number."""
EPILOG = """Exit codes: 0 done, 2 something given is wrong, 3 nothing fits, 4 the GPU ran out of memory, 1 anything
else, 130 stopped by Ctrl-C. Every verb shows examples with `srsplan VERB --help`."""


class LazyVerbs(TyperGroup):
    """The verbs as a group of commands: listed from the table above, imported one at a time."""

    def list_commands(self, ctx: Context) -> list[str]:
        """Return the names, in the order of the table."""
        return list(VERBS)

    def get_command(self, ctx: Context, cmd_name: str) -> Command | None:
        """The command of a verb, made from its function; None for a name that is no verb."""
        return verb_command(cmd_name) if cmd_name in VERBS else None

    def resolve_command(self, ctx: Context, args: list[str]) -> tuple[str | None, Command | None, list[str]]:
        """The command that the first word names, and its arguments; InputError where it names no verb."""
        if args[0] in VERBS or args[0].startswith("-"):
            return super().resolve_command(ctx, args)
        near = get_close_matches(args[0][:LONGEST_VERB], VERBS, n=1)
        raise InputError(
            f"unknown verb {args[0][:LONGEST_VERB]!r}",
            f"did you mean {near[0]}?" if near else f"verbs are {', '.join(VERBS)}",
        )

    def format_commands(self, ctx: Context, formatter: HelpFormatter) -> None:
        """Write the table as a section of the help."""
        with formatter.section("Verbs"):
            formatter.write_dl([(name, verb.summary) for name, verb in VERBS.items()])


def verb_command(name: str) -> Command:
    """The command that parses a verb's options and calls its function."""
    from srsplan.planner.cli.examples import epilog

    verb = VERBS[name]
    if not verb.brief:
        gc.enable()
    function = getattr(import_module(f"srsplan.planner.cli.{verb.module}"), verb.function)
    alone = typer.Typer(add_completion=False, rich_markup_mode=None, context_settings=HELP_OPTIONS)
    alone.command(name, epilog=epilog(name))(function)
    return typer.main.get_command(alone)


HELP_OPTIONS = {"help_option_names": ["-h", "--help"]}
app = typer.Typer(
    name="srsplan",
    cls=LazyVerbs,
    epilog=EPILOG,
    subcommand_metavar="VERB [OPTIONS]",
    options_metavar="",
    rich_markup_mode=None,
    context_settings=HELP_OPTIONS,
)


def _version(show: bool) -> None:
    if show:
        from importlib.metadata import version

        typer.echo(f"srsplan {version('srsplan')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Plan, measure and train sequential recommenders within a GPU memory budget."""


def main() -> None:
    """Run the command line and exit with its code; no exception reaches the terminal as a traceback."""
    _prepare_streams()
    gc.disable()
    try:
        code = _run(sys.argv[1:])
    finally:
        gc.enable()
    sys.exit(code)


def _run(arguments: Sequence[str]) -> int:
    """Run a command line; return its exit code, after its one message where it failed."""
    try:
        code = _invoke(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _told(INTERRUPTED, "stopped")
    except BrokenPipeError:
        return _unread()
    except Exception as error:
        from srsplan.planner.cli.failures import explained

        return _report(explained(error, arguments))
    return code


def _check_text(arguments: Sequence[str]) -> None:
    """Raise InputError for a word that is no text: plans, records, configurations and tables hold text in UTF-8."""
    for word in arguments:
        try:
            word.encode()
        except UnicodeEncodeError:
            shown = ascii(word if len(word) <= LONGEST_VERB else "..." + word[-LONGEST_VERB:])
            raise InputError(f"{shown} is not text in UTF-8", "rename the file, or name it by a link") from None


def _invoke(arguments: Sequence[str]) -> int:
    _check_text(arguments)
    command = typer.main.get_command(app)
    if COMPLETION_VARIABLE in os.environ:
        command.main(list(arguments), prog_name="srsplan")
    try:
        with command.make_context("srsplan", list(arguments) or ["--help"]) as context:
            command.invoke(context)
    except typer.Exit as ended:
        return ended.exit_code
    return 0


def _report(error: SrsplanError) -> int:
    """Report an error and return its exit code; where even the message cannot be written, the code has to do."""
    from srsplan.planner.cli import console

    try:
        sys.stdout.flush()
    except OSError:
        _discard(sys.stdout)
    try:
        console.print_error(error)
    except OSError:
        _discard(sys.stderr)
    return error.exit_code


def _told(code: int, sentence: str) -> int:
    try:
        print(sentence, file=sys.stderr, flush=True)  # noqa: T201
    except OSError:
        _discard(sys.stderr)
    return code


def _unread() -> int:
    """Drop output that has lost its reader (`srsplan gpus | head -1`); return the exit code for that."""
    _discard(sys.stdout)
    _discard(sys.stderr)
    return UNREAD


def _prepare_streams() -> None:
    """Print letters that a terminal cannot show as `?`, and drop output to a closed descriptor."""
    for name in ("stdout", "stderr"):
        stream: Any = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def _discard(stream: Any) -> None:
    """Send what a stream still holds to nowhere, so that the interpreter's own flush at its end is quiet."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    except (OSError, ValueError):
        return
