"""Exceptions that no command expected: each becomes one message, with a log where srsplan itself is at fault."""

from __future__ import annotations

import errno
import os
import platform
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path

from srsplan.models.errors import MissingExtra, SrsplanError
from srsplan.planner.cli import console

EXTRAS = {
    "train": ("torch", "triton", "safetensors"),
    "data": ("pandas", "pyarrow"),
    "log": ("tensorboard",),
    "analyze": ("scipy", "sklearn", "matplotlib", "joblib"),
    "export": ("onnx", "onnxscript", "onnxruntime"),
    "compare": ("statsmodels", "scikit_posthocs"),
}
"""Packages that a plain install leaves out, by the extra that brings them."""
EXTRA_OF_VERB = {
    "train": "train",
    "predict": "train",
    "export": "export",
    "profile": "train",
    "bench": "bench",
    "analyze": "analyze",
    "compare": "compare",
}
"""The extra with everything that a verb needs; the other verbs need one for some of their options only."""
DISTRIBUTIONS = {"sklearn": "scikit-learn", "scikit_posthocs": "scikit-posthocs"}
"""Packages whose name on the package index is another than the one that is imported."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""Error numbers of the system for a file, a disk or a terminal that takes no more bytes."""


def explained(error: Exception, arguments: Sequence[str]) -> SrsplanError:
    """Return the error to report for an exception: itself, its translation, or the path of a log with its traceback."""
    from srsplan.planner.cli.usage import is_usage_error, usage_error

    if isinstance(error, SrsplanError):
        return error
    if is_usage_error(error):
        return usage_error(error, arguments)
    if isinstance(error, ModuleNotFoundError) and (missing := missing_extra(error, arguments)):
        return missing
    if isinstance(error, OSError) and error.errno in FULL:
        return SrsplanError(
            f"cannot write {error.filename or 'the output'}: {error.strerror}", "make room, or write elsewhere"
        )
    return unexpected(error, arguments)


def missing_extra(error: ModuleNotFoundError, arguments: Sequence[str]) -> MissingExtra | None:
    """Return the extra that brings the missing package; None where the package belongs to no extra."""
    package = (error.name or "").partition(".")[0]
    home = next((extra for extra, packages in EXTRAS.items() if package in packages), None)
    if home is None:
        return None
    verb = next((word for word in arguments if not word.startswith("-")), "")
    asked = f"`srsplan {console.plain(verb)}`" if verb in EXTRA_OF_VERB else "what was asked for"
    return MissingExtra(DISTRIBUTIONS.get(package, package), EXTRA_OF_VERB.get(verb, home), asked)


def unexpected(error: Exception, arguments: Sequence[str]) -> SrsplanError:
    """Return the error for a fault of srsplan's own: its kind in one line, and where the rest is."""
    said = console.plain(error).strip().partition("\n")[0][:200]
    log = _kept(error, arguments)
    where = "no log could be written" if log is None else f"the details are in {log}"
    return SrsplanError(
        f"srsplan failed, and should not have: {type(error).__name__}{': ' if said else ''}{said}; {where}",
        "report it as an issue of srsplan, with that file (it holds the command and file names, none of the data)"
        if log is not None
        else "report it as an issue of srsplan, with the command",
    )


def _kept(error: Exception, arguments: Sequence[str]) -> Path | None:
    """Keep the error in a new log in the folder for temporary files, readable by the user alone; return its path."""
    text = "\n".join((*_circumstances(arguments), "", "".join(traceback.format_exception(error))))
    try:
        handle, name = tempfile.mkstemp(prefix="srsplan-", suffix=".log", text=True)
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as log:
            log.write(text)
    except OSError:
        return None
    return Path(name)


def _circumstances(arguments: Sequence[str]) -> list[str]:
    """Return the command, versions and the machine, one line each."""
    from importlib.metadata import PackageNotFoundError, version

    lines = [f"command  {console.command(('srsplan', *arguments))}", f"python   {sys.version.split()[0]}"]
    for name in ("srsplan", "torch", "triton", "pandas", "pydantic", "typer"):
        try:
            lines.append(f"{name:8} {version(name)}")
        except PackageNotFoundError:
            lines.append(f"{name:8} not installed")
    return [*lines, f"platform {platform.platform()}"]
