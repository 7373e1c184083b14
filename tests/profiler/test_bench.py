"""`srsplan bench`: real runs on a CPU, the ledger where there is no card, and the floor by hand."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from command import Ended
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from torch.utils._python_dispatch import TorchDispatchMode

from srsplan.kernels import ce
from srsplan.kernels.losses import CE, CE_NEG
from srsplan.models.errors import InputError
from srsplan.planner.cli.bench_screen import tables, unsteady
from srsplan.profiler.bench import peers as bench_peers
from srsplan.profiler.bench.bout import Bout, chosen_shapes, run_all
from srsplan.profiler.bench.ceilings import Ceilings, floor_ms
from srsplan.profiler.bench.contestants import Contestant, contestants
from srsplan.profiler.bench.contestants import Run as RunLoss
from srsplan.profiler.bench.inputs import make_inputs
from srsplan.profiler.bench.logits import Logits
from srsplan.profiler.bench.measuring import Measurement, measure
from srsplan.profiler.bench.predicted import ledger_bytes
from srsplan.profiler.bench.request import Request
from srsplan.profiler.bench.results import Result, ResultsFile
from srsplan.profiler.bench.shapes import SHAPES, Shape, parse_shape

Run = Callable[..., Ended]
CPU, META = torch.device("cpu"), torch.device("meta")
RANDOM, TRAINED = Logits(), Logits("trained", None)
TINY = Shape(name="tiny", tokens=96, catalog=700, negatives=20, dim=32)
GIB = 1 << 30


def test_it_runs_and_says_on_what(run: Run, tmp_path: Path) -> None:
    options = ("--logits", "random", "--deviation", 1, "--repeats", 2, "--peers", "--json", "-o", "bench.csv")
    done = run("bench", "--shapes", "96x700x32x20", *options)
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
        assert row["repeats"] == 2
        assert row["fastest_ms"] <= row["total_ms"] <= row["slowest_ms"]
    assert by_name["eager ce", 1]["value"] == pytest.approx(by_name["chunked cce", 1]["value"], rel=1e-5)
    assert by_name["eager ce", 1]["loss_error"] == 0
    assert by_name["chunked cce", 1]["loss_error"] < 1e-5
    assert by_name["eager ce-", 1]["loss_error"] is None
    assert by_name["Triton cce", 1]["reason"] == "runs on CUDA"
    assert any(name.startswith("torch") and row["status"] == "ok" for (name, _), row in by_name.items())
    with (tmp_path / "bench.csv").open() as lines:
        kept = list(csv.DictReader(lines))
    assert [row["contestant"] for row in kept] == [row["contestant"] for row in document["results"]]
    assert {row["torch"] for row in kept} == {torch.__version__}


def test_figures_are_whole_on_80_columns_and_tables_in_the_order_asked_for() -> None:
    figures: dict[str, Any] = {"forward_ms": 123_456.7, "total_ms": 654_321.9, "value": 12.3, "loss_error": 0.0213}
    results = [
        Result(
            times_the_floor=1.5,
            measured=Measurement(
                shape=SHAPES[name], logits=TRAINED, contestant="torch 2.13.0 linear_cross_entropy", loss=CE,
                tokens_per_set=1, status="ok", peak_bytes=130 * GIB, **figures
            ),
        )
        for name in ("zvuk", "beauty")
    ]  # fmt: skip
    screen = Console(width=80, record=True, file=io.StringIO())
    for table in tables(results):
        screen.print(table)
    text = screen.export_text()
    assert "…" not in text
    assert "130.00 GiB" in text
    assert text.index("zvuk, trained") < text.index("beauty, trained")


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
        (["--dtype", "fp16,bf16"], "unknown --dtype 'fp16,bf16'"),
        (["--shapes", ""], "unknown shape ''"),
        (["--device", "tpu"], "unknown --device 'tpu'"),
        (["--scale", "-0.5"], "--scale -0.5 is outside"),
        (["--repeats", "0"], "--repeats 0 is outside 1..1000"),
        (["-o", "no/folder/x.csv"], "no/folder/x.csv"),
    ],
)
def test_bad_input_is_one_clear_message(run: Run, arguments: list[str], phrase: str) -> None:
    done = run("bench", *arguments)
    assert done.code == 2
    assert phrase in done.message
    assert "Traceback" not in done.err


@pytest.mark.parametrize("kind", ["file", "empty file", "pipe", "device", "folder", "nothing"])
def test_an_output_that_is_there_is_left_alone_and_refused_before_any_work(run: Run, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "old.csv"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind in ("file", "empty file"):
        path.write_text("precious\n" if kind == "file" else "")
    given = {"device": "/dev/full", "nothing": ""}.get(kind, "old.csv")
    done = run("bench", "--shapes", "64x300x16x8", "-o", given)
    assert (done.code, done.out) == (2, "")
    assert "error:" in done.err
    if kind == "file":
        assert path.read_text() == "precious\n"
    assert [each.name for each in tmp_path.iterdir()] == ([] if kind in ("device", "nothing") else ["old.csv"])


def test_a_result_is_on_disk_before_the_next_begins(tmp_path: Path) -> None:
    path = tmp_path / "bench.csv"
    with ResultsFile(path) as file:
        for count in (1, 2):
            file.add({"contestant": "eager ce", "total_ms": count})
            assert len(path.read_text().splitlines()) == 1 + count
    assert file.failure is None


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))
sys.argv = ["srsplan", *sys.argv[1:]]
from srsplan.planner.cli.app import main
main()
"""


def test_a_full_disk_loses_no_result(tmp_path: Path) -> None:
    """A real limit on the size of files: whole lines stay, everything is on the screen, and the exit code says so."""
    arguments = ["bench", "--shapes", "64x300x16x8", "--logits", "trained", "--repeats", "1", "-o", "x.csv", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 1, done.stderr
    results = json.loads(done.stdout)["results"]
    assert len(results) == len(contestants(CPU))
    with (tmp_path / "x.csv").open(newline="") as lines:
        kept = list(csv.DictReader(lines))
    assert 0 < len(kept) < len(results)
    assert [row["contestant"] for row in kept] == [row["contestant"] for row in results[: len(kept)]]
    assert all(row["dtype"] == "fp32" for row in kept)
    said = " ".join(done.stderr.split())
    assert f"cannot write x.csv: File too large; the first {len(kept)} results are in it" in said
    assert "Traceback" not in said


def test_times_that_say_little_are_called_so() -> None:
    steady = Measurement(
        shape=TINY, logits=RANDOM, contestant="", loss=CE, tokens_per_set=1, status="ok", fastest_ms=1.0,
        slowest_ms=1.5,
    )  # fmt: skip
    wild, absent = replace(steady, slowest_ms=9.0), replace(steady, status="absent", fastest_ms=None, slowest_ms=None)
    assert unsteady([steady, wild, absent]) == unsteady([absent]) == ""
    assert unsteady([wild, wild, steady]).startswith("repeats of 2 of 3 times differ more than 2-fold")


@given(st.integers(1, 10**7), st.integers(2, 10**7), st.integers(1, 128), st.integers(1, 4096))
def test_shapes_read_back(tokens: int, catalog: int, eighths: int, negatives: int) -> None:
    text = f"{tokens}x{catalog}x{8 * eighths}x{negatives}"
    if negatives >= catalog:
        with pytest.raises(InputError):
            parse_shape(text)
    else:
        expected = Shape(name=text, tokens=tokens, catalog=catalog, negatives=negatives, dim=8 * eighths)
        assert parse_shape(text) == expected


def entrant(run: RunLoss, name: str = "other") -> Contestant:
    return Contestant(name=name, loss=CE, run=run, ours=False)


def broken(*_: object) -> torch.Tensor:
    raise RuntimeError("no kernel image is available")


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (broken, ("failed", "RuntimeError: no kernel image is available")),
        (lambda inputs, _: inputs.hidden.sum() * float("nan"), ("failed", "ArithmeticError: the loss is nan")),
        (lambda *_: torch.empty(1 << 60), ("oom", "out of memory")),
    ],
)
def test_what_fails_is_a_result(run: RunLoss, expected: tuple[str, str]) -> None:
    inputs = make_inputs(TINY, RANDOM, torch.float32, CPU)
    found = measure(entrant(run), inputs, TINY, RANDOM, lambda: GIB)
    assert ((found.status, found.reason), found.total_ms) == (expected, None)


def test_what_does_not_fit_is_not_run() -> None:
    inputs = make_inputs(TINY, RANDOM, torch.float32, CPU)
    found = measure(contestants(CPU)[0], inputs, TINY, RANDOM, lambda: 1000)
    assert (found.status, found.total_ms) == ("oom", None)
    assert found.reason.startswith("needs ")


def test_the_others_run_after_a_failure_and_a_wrong_loss_shows() -> None:
    wrong = entrant(lambda inputs, shape: 1.5 * ce(inputs.hidden, inputs.table, inputs.targets), "wrong")
    entrants = [entrant(broken), contestants(CPU)[0], wrong]
    bout = Bout(shapes=[TINY], logits=[RANDOM], entrants=entrants, dtype=torch.float32, device=CPU, repeats=1)
    announced: list[str] = []
    found = [each for each in run_all(bout, lambda: GIB, announced.append) if isinstance(each, Measurement)]
    failed, eager, off = found
    assert [failed.status, eager.status, off.status] == ["failed", "ok", "ok"]
    assert failed.loss_error is None
    assert eager.loss_error == 0
    assert off.loss_error == pytest.approx(0.5)
    assert announced == ["tiny: random logits of deviation 1", "tiny: other", "tiny: eager ce", "tiny: wrong"]


def test_a_triton_kernel_is_no_reference() -> None:
    """Where nothing else has run its error is unknown, not zero."""
    eager = contestants(CPU)[0]
    wrong = replace(entrant(lambda inputs, _: 2 * ce(inputs.hidden, inputs.table, inputs.targets)), on_triton=True)
    entrants = [wrong, eager, wrong]
    bout = Bout(shapes=[TINY], logits=[RANDOM], entrants=entrants, dtype=torch.float32, device=CPU, repeats=1)
    found = [each for each in run_all(bout, lambda: GIB, lambda _: None) if isinstance(each, Measurement)]
    assert [each.loss_error for each in found] == [None, 0, pytest.approx(1)]


def test_inputs_that_cannot_be_made_are_everyones_result() -> None:
    huge = replace(TINY, tokens=1 << 55)
    absent = Contestant(name="absent", loss=CE, absent="not here", ours=False)
    entrants = [entrant(broken), absent]
    bout = Bout(shapes=[huge, TINY], logits=[RANDOM], entrants=entrants, dtype=torch.float32, device=CPU)
    found = list(run_all(bout, lambda: GIB, lambda _: None))
    assert [each.status for each in found] == ["oom", "absent", "failed", "absent"]
    assert found[0].reason == "making the inputs: out of memory"


def test_a_peer_that_is_not_there_says_how_to_get_it() -> None:
    found = bench_peers._packaged("no-such-package-of-losses", lambda: broken, CPU)
    assert (found.run, found.absent) == (None, "not installed: pip install 'srsplan[bench]'")


@pytest.mark.skipif(not hasattr(torch.nn, "LinearCrossEntropyOptions"), reason="this torch has no chunked form")
def test_torchs_peer_is_the_chunked_form_not_eager() -> None:
    """Without options it is eager `ce` under another name; 8,192 x 4,096 logits would be 128 MiB."""
    sized = Shape(name="", tokens=8192, catalog=4096, negatives=8, dim=16)
    inputs = make_inputs(sized, RANDOM, torch.float32, CPU)
    peer = next(each for each in bench_peers.peers(CPU) if each.name.startswith("torch"))
    largest = 0

    class Largest(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.nbytes)
            return out

    assert peer.run is not None
    with Largest():
        value = peer.run(inputs, sized)
    assert largest < 4 * sized.tokens * sized.catalog
    eager = ce(inputs.hidden, inputs.table, inputs.targets)
    assert float(value.detach()) == pytest.approx(float(eager.detach()), rel=1e-4)


def test_trained_like_logits_are_what_they_say() -> None:
    """The target has a tenth of the softmax on average; targets are Zipf's: the first of 2,000 items has 12%."""
    shape = Shape(name="", tokens=4096, catalog=2000, negatives=8, dim=64)
    inputs = make_inputs(shape, TRAINED, torch.float32, CPU)
    with torch.no_grad():
        share = torch.softmax(inputs.hidden @ inputs.table.T, 1).gather(1, inputs.targets[:, None])
    assert 0.07 < float(share.mean()) < 0.14
    assert 0.10 < float((inputs.targets == 0).float().mean()) < 0.15
    again = make_inputs(shape, TRAINED, torch.float32, CPU)
    assert torch.equal(inputs.hidden, again.hidden)


def test_the_floor_by_hand() -> None:
    ceilings = Ceilings(
        product_flops_s=1e12, copy_bytes_s=1e12, gather_rows_s=1e9, add_rows_s=1e6, add_rows_small_s=5e8
    )
    shape = Shape(name="", tokens=1000, catalog=50_000, negatives=99, dim=256)
    assert floor_ms(shape, CE, 1, ceilings) == pytest.approx(1e3 * 8 * 1000 * 50_000 * 256 / 1e12)
    rows = 1000 * 99
    assert floor_ms(shape, CE_NEG, 1, ceilings) == pytest.approx(1e3 * (2 * rows / 1e9 + rows / 5e8))
    large = replace(shape, catalog=1_000_000)
    assert floor_ms(large, CE_NEG, 1, ceilings) == pytest.approx(1e3 * (2 * rows / 1e9 + rows / 1e6))
    products = 8 * 1000 * 100 * 256 / 1e12
    assert floor_ms(shape, CE_NEG, 500, ceilings) == pytest.approx(1e3 * max(products, 2 * (2 * 99 / 1e9 + 99 / 5e8)))


def test_the_ledger_knows_what_operators_allocate_inside() -> None:
    """Of the table's size V D: gradient 4 bytes, copy 2, and 8 more for repeatable sums; M D: the hidden's gradient.

    With blocks the copy is gone when the gradient is made, and hidden's has a direction beside it.
    """
    shape = Shape(name="", tokens=4096, catalog=50_000, negatives=2048)
    table, hidden = shape.catalog * shape.dim, 2 * shape.tokens * shape.dim
    expected = {
        "Triton cce-": (4, 2), "Triton cce- no copy of the table": (4, 2), "Triton cce- independent": (6, 1),
        "Triton cce- independent repeatable": (14, 1),
    }  # fmt: skip
    found = {each.name: each for each in contestants(META) if each.tokens_per_set == 32}
    for name, (bytes_each, hiddens) in expected.items():
        size = ledger_bytes(found[name], shape, torch.float16)
        assert size == pytest.approx(bytes_each * table + hiddens * hidden, rel=0.01), name


def test_megamarket_needs_little_more_than_three_gib() -> None:
    """The published kernel needs 25; 2.4 of these are both gradients."""
    entrant = next(each for each in contestants(META) if each.label == "Triton cce- 32 a set")
    size = ledger_bytes(entrant, SHAPES["megamarket"], torch.float16)
    assert size is not None
    assert size <= 3.2 * GIB


def test_scaling_keeps_a_shape_possible() -> None:
    tiny = parse_shape("10x20x32x5")
    assert tiny.scaled(1) == tiny
    assert (tiny.scaled(0.5).tokens, tiny.scaled(0.5).catalog) == (10, 20)
    small = SHAPES["30music"].scaled(0.001)
    assert (small.tokens, small.catalog, small.negatives) == (184, 909, 908)
    assert replace(small, name="") == replace(SHAPES["30music"].scaled(0.001), name="")


def request(names: str | None = None, scale: float | None = None) -> Request:
    return Request(
        shapes=[parse_shape(name) for name in names.split(",")] if names else [], scale=scale, losses=("ce",),
        logits=(RANDOM,), peers=False, dtype=None, device="cpu", repeats=None,
    )  # fmt: skip


def test_named_shapes_are_a_hundredth_on_a_cpu() -> None:
    (named, custom), scaled = chosen_shapes(request("beauty,96x700x32x20"), on_cpu=True)
    assert (named.name, named.tokens, named.catalog) == ("beauty x 0.01", 328, 1760)
    assert (custom.tokens, scaled) == (96, ["beauty"])
    assert chosen_shapes(request("beauty", 1.0), on_cpu=True) == ([SHAPES["beauty"]], [])
    assert chosen_shapes(request(), on_cpu=False) == (list(SHAPES.values()), [])
    assert len(chosen_shapes(request(), on_cpu=True)[0]) == 2


def test_the_screen_puts_forms_of_one_function_side_by_side_and_says_what_is_scaled(run: Run) -> None:
    done = run("bench", "--shapes", "ml20m", "--losses", "ce-", "--logits", "trained", "--repeats", 1)
    assert "on a CPU ml20m: 0.01 of the tokens and items; --scale 1 takes all" in done.message
    assert "ml20m x 0.01, trained logits, sampled softmax" in done.out
    assert "full softmax" not in done.out
    assert "loss off" not in done.out
    assert "Triton cce- 32 a set: absent, runs on CUDA" in " ".join(done.out.split())


def test_shapes_without_a_name_are_what_they_say() -> None:
    for shape in chosen_shapes(request(), on_cpu=True)[0]:
        assert parse_shape(shape.name) == shape
