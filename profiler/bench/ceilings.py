"""The device's own limits, measured in the same run, and the floor that they set for a loss.

Full softmax, forward and backward: four matrix products of 2 M V D operations each (scores, scores again, and one for
each gradient). Sampled with g tokens a set: four of 2 M (ns + 1) D, the rows of ceil(M / g) sets gathered twice and
their gradients added once. Products and memory traffic may overlap, gathers and additions may not: the floor is the
larger of the products' time and the sum of the others.

It is a yardstick, not a law: a form that makes the gradients in forward needs three products, one that may skip every
tile of backward two, and the rates of rows are those of PyTorch's own gather and addition, which also write or read the
rows in order.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch

from srsplan.kernels.chunking import set_count
from srsplan.kernels.losses import Loss
from srsplan.profiler.bench.measuring import Measurement
from srsplan.profiler.bench.shapes import Shape
from srsplan.profiler.bench.timing import times

PRODUCT_SIDE = {"cuda": 8192, "cpu": 1024}
TABLE_ROWS = {"cuda": 1 << 20, "cpu": 1 << 15}
DIM = 256
ADDED_TARGETS = {"cuda": (15_000, 1_661_000), "cpu": (15_000, 32_768)}
"""Rows of the two targets that rows are added to: 15 MB, which a card's cache holds, and 1.7 GB, which none does. They
are the gradients of the smallest and of the largest table of the named shapes; a CPU's second one is 34 MB."""


@dataclass(frozen=True, kw_only=True)
class Ceilings:
    """Rates of a device; 16-bit unless the type is fp32."""

    product_flops_s: float
    """Operations per second of a large square matrix product."""
    copy_bytes_s: float
    """Bytes per second that a copy reads and writes."""
    gather_rows_s: float
    """Random rows of 256 elements per second, read and written behind each other."""
    add_rows_s: float
    """Random rows of 256 fp32 elements per second that are added to a target of 1.7 GB; on a CPU of 34 MB."""
    add_rows_small_s: float
    """The same to a target of 15 MB."""

    def added_rows_s(self, target_bytes: int) -> float:
        """Return the rate of the measured target whose size is nearer, as a ratio: up to 161 MB the smaller one."""
        small, large = (4 * DIM * rows for rows in ADDED_TARGETS["cuda"])
        return self.add_rows_small_s if target_bytes**2 < small * large else self.add_rows_s


def measure_ceilings(dtype: torch.dtype, device: torch.device) -> Ceilings:
    """Measure the rates of a device in a few seconds, on random rows of a table larger than any cache of a GPU."""
    side, rows = PRODUCT_SIDE[device.type], TABLE_ROWS[device.type]
    square = torch.randn(side, side, device=device).to(dtype)
    table, ones = torch.randn(rows, DIM, device=device).to(dtype), torch.ones(rows, DIM, device=device)
    where = torch.randint(rows, (rows,), device=device)
    copied, gathered = torch.empty_like(ones), torch.empty_like(table)

    def rate(amount: float, run: Callable[[], object]) -> float:
        return amount / (1e-3 * statistics.median(times(run, device)))

    def added(target_rows: int) -> float:
        sums = torch.zeros(target_rows, DIM, device=device)
        targets = torch.randint(target_rows, (rows,), device=device)
        return rate(rows, lambda: sums.index_add_(0, targets, ones))

    small, large = (added(target_rows) for target_rows in ADDED_TARGETS[device.type])
    return Ceilings(
        product_flops_s=rate(2 * side**3, lambda: square @ square),
        copy_bytes_s=rate(2 * ones.nbytes, lambda: copied.copy_(ones)),
        gather_rows_s=rate(rows, lambda: torch.index_select(table, 0, where, out=gathered)),
        add_rows_s=large,
        add_rows_small_s=small,
    )


def floor_ms(shape: Shape, loss: Loss, tokens_per_set: int, ceilings: Ceilings) -> float:
    """Return the milliseconds of forward and backward at the device's rates."""
    scored = shape.negatives + 1 if loss.sampled else shape.catalog
    products = 4 * 2 * shape.tokens * scored * shape.dim / ceilings.product_flops_s
    if not loss.sampled:
        return 1e3 * products
    rows = set_count(shape.tokens, tokens_per_set) * shape.negatives * shape.dim / DIM
    added = ceilings.added_rows_s(4 * shape.catalog * shape.dim)
    return 1e3 * max(products, 2 * rows / ceilings.gather_rows_s + rows / added)


def times_the_floor(found: Measurement, ceilings: Ceilings) -> float | None:
    """Return how many floors forward and backward take; None where they did not run."""
    if found.total_ms is None:
        return None
    return found.total_ms / floor_ms(found.shape, found.loss, found.tokens_per_set, ceilings)
