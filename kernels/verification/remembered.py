"""Verdicts in a file beside autotuning's launches: one a card, an entry for every key.

A file that holds anything but verdicts is left aside with a warning.
"""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from srsplan.kernels.launches.cache import card_file, content_of, replace_file
from srsplan.kernels.verification.verdict import Verdict

MOST = 100
"""Verdicts that a file holds: the oldest make room."""

LOG = logging.getLogger(__name__)


def verdicts_file(card: str) -> Path:
    """Return the file that a card's verdicts are kept in."""
    return card_file("kernels", card)


def read_verdicts(card: str) -> dict[str, Verdict]:
    """Return the verdicts kept of a card; none where the file is missing, or, with a warning, holds anything else."""
    path = verdicts_file(card)
    try:
        return TypeAdapter(dict[str, Verdict]).validate_json(content_of(path))
    except FileNotFoundError:
        return {}
    except ValidationError as error:
        said = error.errors(include_url=False, include_context=False, include_input=False)[0]["msg"]
        LOG.warning("%s is left aside: it holds no verdicts (%s)", path, said)
    except (OSError, ValueError, RecursionError) as error:
        LOG.warning("%s is left aside: %s", path, error)
    return {}


def remember(card: str, key: str, verdict: Verdict) -> None:
    """Add a verdict to the card's file, the last of it."""
    known = {name: each for name, each in read_verdicts(card).items() if name != key}
    kept = dict([*known.items(), (key, verdict)][-MOST:])
    replace_file(verdicts_file(card), {name: asdict(each) for name, each in kept.items()})
