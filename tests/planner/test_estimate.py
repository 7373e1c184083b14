"""`srsplan estimate` as users meet it: one configuration in full, a table of many, and a verdict scripts can read."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
from command import Ended

import srsplan.planner.api as api
from srsplan.kernels.losses import PLANNED

Run = Callable[..., Ended]
SIZES = ("--catalog", "300K", "--batch-size", 64, "--seq-len", 50)


def test_the_figures_are_those_of_the_plan(run: Run) -> None:
    choice = run("recommend", "--catalog", "300K", "--gpu", "a100-40gb", "--loss", "ce-", "--json").json["choices"][0]
    sizes = ["--batch-size", choice["batch_size"], "--seq-len", choice["seq_len"], "--negatives", choice["negatives"]]
    sizes += ["--pass-tokens", choice["pass_tokens"], *["--recompute"] * choice["recompute"]]
    estimate = run("estimate", "--loss", "ce-", "--catalog", "300K", "--gpu", "a100-40gb", *sizes, "--json").json
    for key in ("memory", "breakdown_bytes", "step_ms", "headroom_bytes", "pass_sequences", "passes"):
        assert estimate[key] == choice[key]
    assert estimate["fits"]


def test_memory_is_that_of_a_pass(run: Run) -> None:
    """Batches of any size and length in the same passes differ by the position table alone; time does not stay."""
    arguments = ("estimate", "--loss", "cce", "--catalog", "300K", "--pass-tokens", 8192, "--json")
    small, large = (
        run(*arguments, "--batch-size", size, "--seq-len", length).json for size, length in ((512, 64), (4096, 512))
    )
    assert (small["pass_tokens"], large["passes"]) == (8192, 256)
    assert large["memory"]["allocated_bytes"] == pytest.approx(small["memory"]["allocated_bytes"], rel=0.01)
    assert large["step_ms"] > 30 * small["step_ms"]
    screen = " ".join(run(*arguments[:-1], "--batch-size", 512, "--seq-len", 64).out.split())
    assert "loss runs in chunked PyTorch" in screen
    assert "in 4 passes of at most 8,192 tokens" in screen
    whole = run(*arguments, "--batch-size", 64, "--seq-len", 64).json
    assert (whole["pass_tokens"], whole["passes"]) == (64 * 64, 1)


def test_a_kernel_has_its_own_memory(run: Run) -> None:
    chunked, triton = (
        run("estimate", "--loss", "cce", *SIZES, "--kernel", kernel, "--json").json for kernel in ("chunked", "triton")
    )
    assert chunked["memory"]["allocated_bytes"] != triton["memory"]["allocated_bytes"]
    assert (chunked["kernel"], triton["kernel"]) == ("chunked", "triton")
    documents = run("estimate", *SIZES, "--kernel", "triton", "--precision", "fp16", "--json").json["estimates"]
    assert [each["kernel"] for each in documents] == ["chunked", "chunked", "triton", "triton", "chunked"]


def test_the_function_gives_what_the_command_prints(run: Run) -> None:
    done = run("estimate", "--loss", "cce", *SIZES, "--gpu", "a100-40gb", "--json")
    estimate = api.estimate(loss="cce", catalog=300_000, batch_size=64, seq_len=50, gpu="a100-40gb")
    assert estimate.to_dict() == done.json
    assert estimate.fits
    assert estimate.memory.upper_bytes == done.json["memory"]["upper_bytes"]
    without = api.estimate(loss="cce", catalog="300K", batch_size=64, seq_len=50)
    assert (without.fits, without.headroom_bytes) == (None, None)


@pytest.mark.parametrize(("gigabytes", "code"), [(1, 3), (24, 0)])
def test_scripts_read_the_verdict_from_the_exit_code(run: Run, gigabytes: int, code: int) -> None:
    """The answer is printed either way."""
    done = run("estimate", "--loss", "cce", *SIZES, "--budget", f"{gigabytes}GB")
    assert done.code == code
    assert ("does not fit" in done.out) == (code == 3)
    assert "Where the memory" in done.out
    assert ("are missing" in done.message) == (code == 3)
    assert run("estimate", "--loss", "cce", *SIZES, "--budget", f"{gigabytes}GB", "--json").json["fits"] == (code == 0)


def test_without_a_loss_all_losses_and_precisions_are_compared(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = run("estimate", *SIZES)
    assert done.code == 0
    rows = [line.split() for line in done.out.splitlines() if line[:3] in {"ce ", "ce-", "cce", "bce"}]
    assert [row[:2] for row in rows] == [[loss, kind] for loss in PLANNED for kind in ("fp32", "fp16", "bf16")]
    assert "ns 512 is assumed" in " ".join(done.out.split())
    assert max(map(len, done.out.splitlines())) <= 80
    documents = run("estimate", *SIZES, "--json").json["estimates"]
    single = run("estimate", "--loss", "cce-", "--negatives", 512, *SIZES, "--precision", "bf16", "--json").json
    assert single in documents


def test_a_sweep_has_a_row_for_every_combination(run: Run) -> None:
    sizes = ("--catalog", "300K", "--batch-size", "32,64", "--seq-len", "50, 100", "--negatives", "16,256")
    documents = run("estimate", "--loss", "cce-", *sizes, "--json").json["estimates"]
    rows = [(each["batch_size"], each["seq_len"], each["negatives"]) for each in documents]
    assert rows == list(product((32, 64), (50, 100), (16, 256)))
    one = run("estimate", "--loss", "cce-", "--catalog", "300K", "--batch-size", 64, "--seq-len", 100,
              "--negatives", 16, "--json").json  # fmt: skip
    assert one in documents
    assert "fits" in run("estimate", "--loss", "cce-", *sizes, "--budget", "2GB").out


def test_a_sweep_fails_only_where_nothing_fits(run: Run) -> None:
    sizes = ("--loss", "ce", "--catalog", "300K", "--seq-len", 50)
    done = run("estimate", *sizes, "--batch-size", "16,64,4096", "--budget", "24GB")
    assert done.code == 0
    assert [line.split()[-1] for line in done.out.splitlines() if line.startswith("ce ")] == ["yes", "yes", "no"]
    assert run("estimate", *sizes, "--batch-size", "2048,4096", "--budget", "24GB").code == 3


def test_a_tight_budget_and_a_safe_cap_are_no_contradiction(run: Run) -> None:
    """Where a budget below the safe cap is enough, it says that this one was checked."""
    tight = None
    for gigabytes in [step / 10 for step in range(20, 80)]:
        estimate = api.estimate(
            loss="cce-", catalog=300_000, batch_size=1024, seq_len=50, negatives=512, budget=f"{gigabytes}GB"
        )
        if estimate.fits:
            tight = tight or (gigabytes, estimate)
            assert estimate.memory.reserved_bytes <= estimate.memory.upper_bytes
    assert tight is not None
    gigabytes, estimate = tight
    sizes = ("--catalog", "300K", "--batch-size", 1024, "--seq-len", 50, "--negatives", 512)
    text = " ".join(run("estimate", "--loss", "cce-", *sizes, "--budget", f"{gigabytes}GB").out.split())
    assert estimate.budget is not None
    if estimate.smallest_cap_bytes > estimate.budget.usable_bytes:
        assert "this budget was checked and is enough" in text
    else:
        assert "every cap of" in text


@pytest.mark.parametrize(
    ("arguments", "phrase"),
    [
        (["--loss", "ce-", "--catalog", 300, "--batch-size", 8, "--seq-len", 8, "--negatives", 512], "512"),
        (["--loss", "ce-", "--catalog", 300, "--batch-size", 8, "--seq-len", 0, "--negatives", 8], "seq_len 0"),
        (["--loss", "ce-", "--catalog", 300, "--batch-size", 8, "--seq-len", 8], "--negatives 512"),
        (
            ["--loss", "ce", "--catalog", 300, "--batch-size", 8, "--seq-len", 64, "--pass-tokens", 63],
            "pass_tokens 63 is smaller than one sequence of seq_len 64",
        ),
        (["--loss", "ce", "--catalog", 300, "--batch-size", 8, "--seq-len", 8, "--pass-tokens", 0], "pass_tokens 0"),
        (["--loss", "ce", "--catalog", 300, "--batch-size", 8, "--seq-len", 8, "--kernel", "triton"], "no Triton"),
        (
            ["--loss", "ce", "--catalog", 300, "--batch-size", 8, "--seq-len", 8, "--micro-batches", 2],
            "--micro-batches is no option any more",
        ),
        (["--loss", "ce", "--catalog", 300, "--batch-size", 8, "--seq-len", 8, "--negatives", 8], "negatives 8"),
        (["--loss", "ce", "--catalog", 300, "--batch-size", "many", "--seq-len", 8], "--batch-size"),
        (["--loss", "ce", "--catalog", 300, "--batch-size", "1,024", "--seq-len", 8], "'024'"),
        (["--loss", "ce", "--catalog", 300, "--batch-size", "8,", "--seq-len", 8], "--batch-size"),
        (["--loss", "ce", "--catalog", 300, "--batch-size", "-8", "--seq-len", 8], "--batch-size"),
        (["--loss", "ce", "--catalog", 300, "--batch-size", "9" * 5000, "--seq-len", 8], "--batch-size"),
        (["--loss", "ce", "--catalog", 300, "--batch-size", 8, "--seq-len", ",".join(map(str, range(1, 200)))], "199"),
        (["--loss", "cce", "--catalog", "100M", "--batch-size", 10**8, "--seq-len", 2 * 10**9], "batch_size 100000000"),
        (["--loss", "cce-", "--catalog", "1M", "--batch-size", 8, "--seq-len", 8, "--negatives", 8,
          "--tokens-per-set", 10**18], "tokens_per_set"),
        (["--loss", "ce", "--catalog", "1M", "--batch-size", 8, "--seq-len", 8, "--mean-length", "1e308"], "1e+308"),
        (["--loss", "ce", "--catalog", "1M", "--batch-size", 8, "--seq-len", 8, "--blocks", 3000], "blocks 3000"),
        (["--loss", "ce", "--catalog", "1M", "--batch-size", 8, "--seq-len", 8, "--budget", "x"], "--budget 'x'"),
    ],
    ids=lambda value: " ".join(map(str, value))[:70],
)  # fmt: skip
def test_bad_input_is_one_clear_message(run: Run, arguments: list[object], phrase: str) -> None:
    done = run("estimate", *arguments)
    assert (done.code, done.out) == (2, "")
    assert phrase in done.message
    assert "Traceback" not in done.err


@pytest.mark.parametrize("loss", ["cce-", "bce", "cce", "ce-", "ce"])
@pytest.mark.parametrize(("batch_size", "seq_len"), [(10**5, 10**4), (1, 2**16), (2**20, 1)])
def test_large_sizes_are_estimated(loss: str, batch_size: int, seq_len: int) -> None:
    """Never an assertion, an overflow or a negative size: at least the table, its gradient and moments."""
    estimate = api.estimate(
        loss=loss, catalog="10M", batch_size=batch_size, seq_len=seq_len,
        negatives=512 if loss in ("ce-", "cce-") else None, gpu="h200",
    )  # fmt: skip
    assert estimate.memory.allocated_bytes >= 16 * 10**7 * 256
    assert estimate.memory.upper_bytes >= estimate.memory.allocated_bytes
