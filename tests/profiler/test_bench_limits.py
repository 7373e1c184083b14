"""`srsplan bench` refuses what cannot fit in memory or has no end, and says the limit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from command import Ended

from srsplan.kernels.losses import CE_NEG
from srsplan.models.errors import InputError
from srsplan.profiler.bench import limits
from srsplan.profiler.bench.ceilings import Ceilings
from srsplan.profiler.bench.contestants import contestants
from srsplan.profiler.bench.shapes import Shape, parse_shape

Run = Callable[..., Ended]
CPU, META = torch.device("cpu"), torch.device("meta")


@pytest.mark.parametrize(
    ("arguments", "phrase"),
    [
        (["--shapes", "1e9x1e9x1e3x8"], "its inputs alone take 7,458.0 GiB"),
        (["--shapes", ",".join(["64x300x16x8"] * 101)], "names 101 shapes, the limit is 100"),
        (["--repeats", "1e12"], "repeats"),
        (["--repeats", 10**12], f"--repeats {10**12} is outside 1..1000"),
    ],
)
def test_what_has_no_end_is_refused_with_the_limit(run: Run, arguments: list[object], phrase: str) -> None:
    done = run("bench", *arguments)
    assert done.code == 2
    assert phrase in done.message


CEILINGS = Ceilings(product_flops_s=1e12, copy_bytes_s=1e12, gather_rows_s=1e9, add_rows_s=5e8, add_rows_small_s=5e8)


def test_hours_are_refused_by_the_devices_own_rates() -> None:
    """Two kinds of logits, 3 calls and a quarter: 8 M V D operations each, by hand."""
    eager = contestants(CPU)[:1]
    shape = Shape(name="", tokens=10**6, catalog=10**6, negatives=8, dim=32)
    by_hand = 3 * 1.25 * 8 * shape.tokens * shape.catalog * shape.dim / CEILINGS.product_flops_s
    assert limits.least_seconds(shape, eager[0], CEILINGS, 1) == pytest.approx(by_hand, rel=1e-3)
    limits.check_time([(shape, eager[0])] * 3, CEILINGS, 1)
    with pytest.raises(InputError, match=r"at least 1\.1 hours at the rates just measured, the limit is 1"):
        limits.check_time([(shape, eager[0])] * 4, CEILINGS, 1)
    with pytest.raises(InputError, match="at least"):
        limits.check_time([(shape, eager[0])], CEILINGS, 1000)
    assert limits.least_seconds(shape, replace(eager[0], run=None), CEILINGS, 1) == 0


def test_many_chunks_are_time_as_well() -> None:
    """The ledger walks over every chunk: ten million sets of one token, one at a time, take hours."""
    shape = Shape(name="", tokens=10**7, catalog=10**8, negatives=10**7, dim=8)
    one_a_set = next(each for each in contestants(CPU) if each.chunked and each.loss is CE_NEG)
    fast = Ceilings(product_flops_s=1e30, copy_bytes_s=1e30, gather_rows_s=1e30, add_rows_s=1e30, add_rows_small_s=1e30)
    assert limits.least_seconds(shape, one_a_set, fast, 1) > 3600


def test_a_hidden_size_the_kernels_do_not_take_is_their_absence(run: Run) -> None:
    done = run("bench", "--shapes", "64x100x24x8", "--logits", "random", "--repeats", 1, "--json")
    assert done.code == 0, done.err
    rows = done.json["results"]
    assert {row["status"] for row in rows if "Triton" not in row["contestant"]} == {"ok"}
    assert all(row["ledger_bytes"] is None for row in rows if "Triton" in row["contestant"])
    on_card = next(each for each in contestants(META) if each.on_triton)
    assert "24 is no multiple of 16" in on_card.absence(parse_shape("64x100x24x8"), torch.float16)
    assert "in fp32" in on_card.absence(parse_shape("64x100x512x8"), torch.float32)
