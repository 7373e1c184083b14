"""Facts about the card of this machine, from a child process: asking takes a CUDA context of its own. No torch here."""

from __future__ import annotations

import sys

from pydantic import ValidationError

from srsplan.models.schema import Bytes, Document
from srsplan.profiler.probes.child import ask
from srsplan.profiler.probes.records import Name

CHILD = (sys.executable, "-m", "srsplan.profiler.probes.card_child")
TIMEOUT_S = 180.0


class CardFacts(Document):
    """What the card, its driver and its allocator say. None stands for what could not be found out."""

    name: Name
    capability: Name
    driver: Name
    cuda: Name
    """The CUDA version that torch was built for."""
    torch: Name
    triton: Name
    srsplan: Name
    total_bytes: Bytes
    free_bytes: Bytes
    """Bytes that were free when nothing of srsplan's was on the card but the context that asked."""
    context_bytes: Bytes | None
    """Bytes that one more process's CUDA context took."""
    others_bytes: Bytes | None
    """Bytes that are taken by others: total, less what is free and less the context that asked."""
    segments_grow: bool | None
    """Whether the allocator's segments grow, as every plan assumes."""


def ask_card(command: tuple[str, ...] = CHILD, timeout_s: float = TIMEOUT_S) -> CardFacts | str:
    """Return the facts, or why there are none."""
    answer = ask(command, {}, timeout_s)
    if answer.code is None:
        return f"no answer within {timeout_s:g} s"
    try:
        return CardFacts.model_validate_json(answer.line)
    except ValidationError:
        return (answer.tail.splitlines() or [f"it ended with code {answer.code}"])[-1][:200]
