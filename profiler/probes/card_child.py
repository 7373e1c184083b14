"""The child process that looks at the card: prints one line of JSON and ends.

python -m srsplan.profiler.probes.card_child
python -m srsplan.profiler.probes.card_child hold      holds a context until its input ends
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import torch

from srsplan.profiler.probes.card import CardFacts
from srsplan.profiler.probes.kernel_check import card_here

HOLDER = (sys.executable, "-m", "srsplan.profiler.probes.card_child", "hold")
FIRST_BYTES, SECOND_BYTES = 64 << 20, 128 << 20
"""One after the other: a segment that grows holds the second where the first one was."""


def second_context(free: Callable[[], int], command: tuple[str, ...] = HOLDER) -> int | None:
    """Return the bytes of a second process's context: what is free before it and while it holds one, compared."""
    before = free()
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdin is not None
    assert holder.stdout is not None
    with holder:
        line = holder.stdout.readline().strip()
        after = free()
        holder.stdin.close()
    return max(0, before - after - int(line)) if line.isdigit() else None


def segments_grow(allocate: Callable[[int], object], reserved: Callable[[], int]) -> bool:
    """Tell whether a freed block's segment grows for a larger one, instead of a second segment beside it."""
    before = reserved()
    first = allocate(FIRST_BYTES)
    del first
    second = allocate(SECOND_BYTES)
    grown = reserved() - before < FIRST_BYTES + SECOND_BYTES
    del second
    return grown


def hold() -> None:
    """Make a context, print the bytes that the allocator took beside it, and wait for the end of the input."""
    kept = torch.zeros(1, device="cuda")
    torch.cuda.synchronize()
    sys.stdout.write(f"{torch.cuda.memory_reserved()}\n")
    sys.stdout.flush()
    sys.stdin.read()
    del kept


def main() -> None:
    """Print the facts about the card."""
    kept = torch.zeros(1, device="cuda")
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    context = second_context(lambda: int(torch.cuda.mem_get_info()[0]))
    others = None if context is None else max(0, total - free - context - torch.cuda.memory_reserved())
    grow = segments_grow(lambda size: torch.empty(size, dtype=torch.int8, device="cuda"), torch.cuda.memory_reserved)
    card = card_here()
    facts = CardFacts(
        name=card.name, capability=card.capability, driver=card.driver, torch=card.torch, triton=card.triton,
        srsplan=card.srsplan, cuda=str(torch.version.cuda), total_bytes=total, free_bytes=free,
        context_bytes=context, others_bytes=others, segments_grow=grow,
    )  # fmt: skip
    del kept
    sys.stdout.write(facts.model_dump_json() + "\n")


if __name__ == "__main__":
    hold() if sys.argv[1:] == ["hold"] else main()
