"""A card that is Triton's interpreter on the CPU: its kernels are checked in a child process, as a GPU's are.

Kernels are made wrong on purpose by a line of Python that the child runs first.
"""

from __future__ import annotations

import sys
from dataclasses import replace

from srsplan.kernels.verification.subject import Card
from srsplan.profiler.probes.kernel_check import KernelCheck

CARD = Card(
    name="Interpreter 9000",
    capability="9.0",
    driver="580.1 (CUDA 13000)",
    torch="2.13.0",
    triton="3.7.1",
    srsplan="0.1.0",
)

CHILD = """
import os
os.environ["TRITON_INTERPRET"] = "1"
import torch, triton
from srsplan.kernels.block_softmax import call as block_call, operators as block_operators
from srsplan.kernels.full_softmax import kernel as full, operators as full_operators
from dataclasses import replace
from srsplan.kernels.verification import check
from srsplan.profiler.probes import kernel_child
check.INTERPRETED_SIZES = replace(check.INTERPRETED_SIZES, tokens=18, catalog=301, negatives=9)
{change}
kernel_child.main()
"""

WRONG = {
    "sign": """
right = torch.ops.srsplan.{loss}_backward
def backward(*tensors, **options):
    hidden, table = right(*tensors, **options)
    return hidden, -table
{loss_operators}.{loss}_backward = backward
""",
    "nan": """
right = torch.ops.srsplan.{loss}_backward
def backward(*tensors, **options):
    hidden, table = right(*tensors, **options)
    hidden = hidden.clone()
    hidden[0, 0] = float("nan")
    return hidden, table
{loss_operators}.{loss}_backward = backward
""",
    "stale launch": """
def stale(kernel, hidden, default, *rest):
    return replace(default, block_m=default.block_m // 2), False
block_call.tuned_launch = stale
""",
}
"""Kernels made wrong: a flipped sign, one NaN, and a launch with other tokens of a program than its grid."""

LOSSES = {"cce": "full", "cce-": "block"}


def spoiled(how: str, loss: str) -> str:
    """The line that makes a loss's kernels wrong."""
    name = LOSSES[loss]
    return WRONG[how].format(loss=f"{name}_softmax", loss_operators=f"{name}_operators")


def command(change: str = "") -> tuple[str, ...]:
    """A child that runs `change` before it checks."""
    return (sys.executable, "-c", CHILD.format(change=change))


def kernel_check(change: str = "", **card: str) -> KernelCheck:
    """The check of the simulated card; `card` replaces parts of its key."""
    return KernelCheck(card=replace(CARD, **card), device="cpu", command=command(change), timeout_s=120.0)


FASTER = """
seconds = []
def timer(run):
    run()
    seconds.append(1.0 + len(seconds))
    return seconds[-1]
kernel_child.times = lambda run, device: [timer(run)]
"""
"""The first form that is timed, Triton, takes 1 ms and the second one 2 ms."""
SLOWER = FASTER.replace("1.0 + len(seconds)", "2.0 - len(seconds)")
AT_ONCE = "kernel_child._time = lambda run, device: 1.0"
"""Nothing is run to be timed: the doctor's shape is too large for the interpreter."""
