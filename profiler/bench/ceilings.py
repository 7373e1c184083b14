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
from srsplan.profiler.bench.measuring import Measurement, times
from srsplan.profiler.bench.shapes import Shape

PRODUCT_SIDE = {"cuda": 8192, "cpu": 1024}
TABLE_ROWS = {"cuda": 1 << 20, "cpu": 1 << 15}
DIM = 256


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
    """Random rows of 256 fp32 elements per second that are added to."""


def measure_ceilings(dtype: torch.dtype, device: torch.device) -> Ceilings:
    """Measure the rates of a device in a few seconds, on random rows of a table larger than any cache of a GPU."""
    side, rows = PRODUCT_SIDE[device.type], TABLE_ROWS[device.type]
    square = torch.randn(side, side, device=device).to(dtype)
    table, sums = torch.randn(rows, DIM, device=device).to(dtype), torch.zeros(rows, DIM, device=device)
    where = torch.randint(rows, (rows,), device=device)
    copied, gathered = torch.empty_like(sums), torch.empty_like(table)
    ones = torch.ones(rows, DIM, device=device)

    def rate(amount: float, run: Callable[[], object]) -> float:
        return amount / (1e-3 * statistics.median(times(run, device)))

    return Ceilings(
        product_flops_s=rate(2 * side**3, lambda: square @ square),
        copy_bytes_s=rate(2 * sums.nbytes, lambda: copied.copy_(sums)),
        gather_rows_s=rate(rows, lambda: torch.index_select(table, 0, where, out=gathered)),
        add_rows_s=rate(rows, lambda: sums.index_add_(0, where, ones)),
    )


def floor_ms(shape: Shape, loss: Loss, tokens_per_set: int, ceilings: Ceilings) -> float:
    """Return the milliseconds of forward and backward at the device's rates."""
    scored = shape.negatives + 1 if loss.sampled else shape.catalog
    products = 4 * 2 * shape.tokens * scored * shape.dim / ceilings.product_flops_s
    if not loss.sampled:
        return 1e3 * products
    rows = set_count(shape.tokens, tokens_per_set) * shape.negatives * shape.dim / DIM
    return 1e3 * max(products, 2 * rows / ceilings.gather_rows_s + rows / ceilings.add_rows_s)


def times_the_floor(found: Measurement, ceilings: Ceilings) -> float | None:
    """Return how many floors forward and backward take; None where they did not run."""
    if found.total_ms is None:
        return None
    return found.total_ms / floor_ms(found.shape, found.loss, found.tokens_per_set, ceilings)
