"""The errors that srsplan reports to a user, and the exit code that each kind ends with.

SrsplanError            1   anything else: a full disk, a fault of srsplan's own
├── InputError          2   something the user gave is wrong: repeated in the message, with what to change
│   └── MissingExtra    2   what was asked for needs a package that a plain install leaves out
├── NothingFits         3   an answer, not a fault: no configuration fits the budget
└── DeviceOutOfMemory   4   the device ran out; carries the measured bytes
"""

from __future__ import annotations


class SrsplanError(Exception):
    """Base of every error srsplan reports in one line instead of a traceback."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        """Make an error: `message` repeats what the user gave, `hint` says what to change."""
        super().__init__(message)
        self.message = message
        self.hint = hint


class InputError(SrsplanError):
    """Wrong input: a file, a name, a size, a key."""

    exit_code = 2


class MissingExtra(InputError):
    """A package that only some verbs need is not installed; `extra` names the group of packages it comes with."""

    def __init__(self, package: str, extra: str, asked: str) -> None:
        """Make the error of a package; `asked` is what needs it: a verb, or an option of one."""
        super().__init__(f"{asked} needs {package}, which is not installed here", f"pip install 'srsplan[{extra}]'")
        self.extra = extra


class NothingFits(SrsplanError):
    """No configuration of the search fits the budget."""

    exit_code = 3


class DeviceOutOfMemory(SrsplanError):
    """The device ran out of memory; the message carries the measured bytes."""

    exit_code = 4
