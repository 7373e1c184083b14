"""`srsplan bench`: real runs on a CPU, the ledger where there is no card, and the floor by hand."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from command import Ended
from hypothesis import given
from hypothesis import strategies as st

from srsplan.models.errors import InputError
from srsplan.planner.commands.bench import parse_shape
from srsplan.profiler import bench
from srsplan.profiler.bench import SHAPES, Contestant, Shape
from srsplan.profiler.bench_ceilings import Ceilings, floor_ms

Run = Callable[..., Ended]
CPU, META = torch.device("cpu"), torch.device("meta")
TINY = Shape(name="tiny", tokens=96, catalog=700, negatives=20, dim=32)
GIB = 1 << 30


def test_it_runs_and_says_on_what(run: Run, tmp_path: Path) -> None:
    done = run("bench", "--shapes", "96x700x32x20", "--logits", "random", "--peers", "--json", "-o", "bench.csv")
    assert done.code == 0, done.err
    document = done.json
    assert document["device"].startswith("CPU")
    assert document["torch"] == torch.__version__
    assert document["ceilings"]["product_flops_s"] > 1e9
    by_name = {(row["contestant"], row["tokens_per_set"]): row for row in document["results"]}
    for name in (("eager ce", 1), ("chunked cce", 1), ("eager ce-", 1), ("chunked cce-", 32)):
        row = by_name[name]
        assert row["status"] == "ok"
        assert row["forward_ms"] > 0
        assert row["times_the_floor"] > 0
        assert row["ledger_bytes"] > 4 * 32 * (96 + 700)
    assert by_name["eager ce", 1]["value"] == pytest.approx(by_name["chunked cce", 1]["value"], rel=1e-5)
    assert by_name["Triton cce", 1]["reason"] == "runs on CUDA"
    assert by_name["liger-kernel", 1]["reason"] == "not installed: pip install 'srsplan[bench]'"
    assert any(name.startswith("torch") and row["status"] == "ok" for (name, _), row in by_name.items())
    with (tmp_path / "bench.csv").open() as lines:
        kept = list(csv.DictReader(lines))
    assert [row["contestant"] for row in kept] == [row["contestant"] for row in document["results"]]
    assert {row["torch"] for row in kept} == {torch.__version__}


def test_the_screen_puts_forms_of_one_function_side_by_side(run: Run) -> None:
    done = run("bench", "--shapes", "64x300x16x8", "--logits", "trained", "--losses", "ce-")
    assert "64x300x16x8, trained logits, sampled softmax" in done.out
    assert "full softmax" not in done.out
    assert "Triton cce-, 32 a set: absent, runs on CUDA" in " ".join(done.out.split())


@pytest.mark.parametrize(
    ("arguments", "phrase"),
    [
        (["--shapes", "beuty"], "unknown shape 'beuty'"),
        (["--shapes", "10x20x30"], "unknown shape '10x20x30'"),
        (["--shapes", "10x20x32x20"], "20 negatives of 20 items"),
        (["--shapes", "10x20x31x5"], "dim 31 is no multiple of 8"),
        (["--shapes", "10x-20x32x5"], "-20"),
        (["--scale", "0"], "--scale 0 is outside"),
        (["--losses", "ce,bpr"], "unknown --losses 'bpr'"),
        (["--logits", "sharp"], "unknown --logits 'sharp'"),
        (["--dtype", "fp8"], "unknown --dtype 'fp8'"),
        (["--device", "tpu"], "unknown --device 'tpu'"),
    ],
)
def test_bad_input_is_one_clear_message(run: Run, arguments: list[str], phrase: str) -> None:
    done = run("bench", *arguments)
    assert done.code == 2
    assert phrase in done.message
    assert "Traceback" not in done.err


def test_a_file_that_exists_is_left_alone(run: Run, tmp_path: Path) -> None:
    (tmp_path / "old.csv").write_text("precious\n")
    done = run("bench", "--shapes", "64x300x16x8", "-o", "old.csv")
    assert (done.code, (tmp_path / "old.csv").read_text()) == (2, "precious\n")


@given(st.integers(1, 10**7), st.integers(2, 10**7), st.integers(1, 128), st.integers(1, 4096))
def test_shapes_read_back(tokens: int, catalog: int, eighths: int, negatives: int) -> None:
    text = f"{tokens}x{catalog}x{8 * eighths}x{negatives}"
    if negatives >= catalog:
        with pytest.raises(InputError):
            parse_shape(text)
    else:
        expected = Shape(name=text, tokens=tokens, catalog=catalog, negatives=negatives, dim=8 * eighths)
        assert parse_shape(text) == expected


def test_what_fails_or_does_not_fit_is_a_result() -> None:
    inputs = bench.make_inputs(TINY, "random", torch.float32, CPU)

    def broken(*_: object) -> torch.Tensor:
        raise RuntimeError("no kernel image is available")

    failed = bench.measure(Contestant(name="broken", loss="ce", run=broken, ours=False), inputs, TINY, "random", GIB)
    assert (failed.status, failed.reason) == ("failed", "RuntimeError: no kernel image is available")
    eager = bench.contestants(CPU)[0]
    large = bench.measure(eager, inputs, TINY, "random", free_bytes=1000)
    assert (large.status, large.total_ms) == ("oom", None)
    assert large.reason.startswith("needs ")


def test_trained_like_logits_are_what_they_say() -> None:
    """The target has a tenth of the softmax on average; targets are Zipf's: the first of 2,000 items has 12%."""
    shape = Shape(name="", tokens=4096, catalog=2000, negatives=8, dim=64)
    inputs = bench.make_inputs(shape, "trained", torch.float32, CPU)
    with torch.no_grad():
        share = torch.softmax(inputs.hidden @ inputs.table.T, 1).gather(1, inputs.targets[:, None])
    assert 0.07 < float(share.mean()) < 0.14
    assert 0.10 < float((inputs.targets == 0).float().mean()) < 0.15
    again = bench.make_inputs(shape, "trained", torch.float32, CPU)
    assert torch.equal(inputs.hidden, again.hidden)


def test_the_floor_by_hand() -> None:
    ceilings = Ceilings(product_flops_s=1e12, copy_bytes_s=1e12, gather_rows_s=1e9, add_rows_s=5e8)
    shape = Shape(name="", tokens=1000, catalog=50_000, negatives=99, dim=256)
    assert floor_ms(shape, "ce", 1, ceilings) == pytest.approx(1e3 * 8 * 1000 * 50_000 * 256 / 1e12)
    rows = 1000 * 99
    assert floor_ms(shape, "ce-", 1, ceilings) == pytest.approx(1e3 * (2 * rows / 1e9 + rows / 5e8))
    products = 8 * 1000 * 100 * 256 / 1e12
    assert floor_ms(shape, "ce-", 500, ceilings) == pytest.approx(1e3 * max(products, 2 * (2 * 99 / 1e9 + 99 / 5e8)))


def test_the_ledger_knows_what_operators_allocate_inside() -> None:
    """Of the table's size V D: gradient 4 bytes, copy 2, and 8 more for repeatable sums; M D: the hidden's gradient."""
    shape = Shape(name="", tokens=4096, catalog=50_000, negatives=512)
    table, hidden = shape.catalog * shape.dim, 2 * shape.tokens * shape.dim
    expected = {"Triton cce-": 6, "Triton cce-, repeatable": 14, "Triton cce-, no copy of the table": 4}
    found = {each.name: each for each in bench.contestants(META) if each.tokens_per_set == 32}
    for name, bytes_each in expected.items():
        size = bench.ledger_bytes(found[name], shape, torch.float16)
        assert size == pytest.approx(bytes_each * table + hidden, rel=0.01), name


def test_megamarket_needs_less_than_two_and_a_half_gib() -> None:
    """The published kernel needs 25."""
    entrant = next(each for each in bench.contestants(META) if each.name.endswith("no copy of the table"))
    size = bench.ledger_bytes(entrant, SHAPES["megamarket"], torch.float16)
    assert size is not None
    assert size <= 2.5 * GIB


def test_scaling_keeps_a_shape_possible() -> None:
    small = SHAPES["30music"].scaled(0.001)
    assert (small.tokens, small.catalog, small.negatives) == (184, 909, 908)
    assert replace(small, name="") == replace(SHAPES["30music"].scaled(0.001), name="")
