"""`srsplan train --kernel auto` on a simulated card: what is checked, which kernel trains, and what is said."""

from __future__ import annotations

import triton_interpreter  # noqa: F401 - first, so that triton interprets

# isort: split
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from command import Ended
from simulated_card import CARD, kernel_check, spoiled
from small_runs import walks

from srsplan.kernels.verification.race import Times
from srsplan.kernels.verification.verdict import Verdict
from srsplan.models.config import Architecture, Configuration
from srsplan.models.errors import NothingFits
from srsplan.planner import automatic_kernel as automatic
from srsplan.planner.cli import train_orders
from srsplan.planner.cli.train_options import TrainOptions
from srsplan.planner.cli.train_runs import train_all
from srsplan.planner.pricing import check_memory
from srsplan.profiler.probes.kernel_check import KernelCheck

Run = Callable[..., Ended]
SHAPE = "128x40"
LEFT = ("--split", "leave-one-out", "-o", "out")
RIGHT = Verdict(
    faults=[], cases=4, worst=0.25, seconds=2.0, date="2026-11-21",
    times={SHAPE: Times(triton_ms=3.0, chunked_ms=5.0)},
)  # fmt: skip
SLOW = replace(RIGHT, times={SHAPE: Times(triton_ms=5.0, chunked_ms=3.0)})
WRONG = replace(RIGHT, faults=["dense: the loss is off by 2.0e+00 of itself", "sparse: so is this"], times={})


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def answering(verdict: Verdict | None) -> KernelCheck:
    """A simulated card whose child answers with a verdict, or crashes."""
    script = "import os; os.abort()" if verdict is None else f"print({json.dumps(asdict(verdict))!r})"
    return KernelCheck(card=CARD, device="cpu", command=(sys.executable, "-c", script), timeout_s=60.0)


def options(**given: Any) -> TrainOptions:
    small = {
        "loss": "cce",
        "dim": 16,
        "blocks": 1,
        "seq_len": 8,
        "batch_size": 16,
        "epochs": 1,
        "split": "leave-one-out",
    }
    return TrainOptions(**{"data": walks(Path("walks.csv")), "output": Path("out"), **small, **given})


@pytest.fixture
def on_the_card(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The interpreter counts as CUDA in this process as well; returns the calls of the Triton kernels."""
    from srsplan.kernels import dispatch
    from srsplan.kernels.full_softmax import operators

    monkeypatch.setattr(dispatch, "refuse_triton", lambda *_: None)
    calls: list[object] = []
    kernel = operators.full_softmax

    def counted(*given: Any) -> Any:
        calls.append(given)
        return kernel(*given)

    monkeypatch.setattr(operators, "full_softmax", counted)
    return calls


def kernel_of(folder: str = "out") -> tuple[str, str]:
    found = json.loads(Path(folder, "metrics.json").read_text())["kernel"]
    return found["implementation"], found["reason"]


def test_right_and_faster_kernels_train_and_the_line_has_the_figures(
    on_the_card: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    (document,) = train_all(options(), answering(RIGHT))
    said = " ".join(capsys.readouterr().err.split())
    assert "checking the Triton kernels on this card, once" in said
    figures = (
        "the Triton kernels are right in 4 cases against float64 (errors up to 25% of what is allowed); they take 3 ms "
        "on 128 tokens and 40 items, the chunked form 5 ms; checked in 2.0 s"
    )
    assert f"loss implementation: Triton ({figures})" in said
    assert kernel_of() == ("Triton", figures)
    assert document["configuration"]["kernel"] == "triton"
    assert on_the_card


def test_what_is_remembered_is_not_checked_again(capsys: pytest.CaptureFixture[str]) -> None:
    train_all(options(), answering(SLOW))
    assert "checked in 2.0 s" in kernel_of()[1]
    capsys.readouterr()
    train_all(options(overwrite=True), answering(None))  # whose child would crash
    assert kernel_of()[0] == "chunked PyTorch"
    assert kernel_of()[1].endswith("checked on 2026-11-21 with this card, driver and versions")
    assert "checking the Triton kernels" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("how", "loss", "found"),
    [
        ("sign", "cce", "the table's gradient is off by 2.0e+00 of itself, 1.0e-05 is allowed"),
        ("nan", "cce-", "values of hidden's gradient are not finite"),
        ("stale launch", "cce-", "negatives uniform, 32 tokens a set: "),
    ],
)
def test_wrong_kernels_are_caught_and_the_chunked_form_trains(
    capsys: pytest.CaptureFixture[str], how: str, loss: str, found: str
) -> None:
    """By a real check in a child. It is remembered: at the next start a child that would crash is not asked."""
    sampled = {"negatives": 9, "tokens_per_set": 32} if loss == "cce-" else {}
    train_all(options(loss=loss, **sampled), kernel_check(spoiled(how, loss)))
    said = " ".join(capsys.readouterr().err.split())
    assert "warning: the Triton kernels did not pass their check on this card: " in said
    assert found in said
    assert "chunked PyTorch is used; report it as an issue of srsplan, with what `srsplan doctor --json` prints" in said
    assert kernel_of() == ("chunked PyTorch", "the Triton kernels did not pass their check on this card")
    known = train_all(options(loss=loss, overwrite=True, **sampled), answering(None))
    assert known[0]["kernel"]["reason"] == "the Triton kernels did not pass their check on this card"


def test_once_the_driver_is_another_they_are_checked_again(on_the_card: list[object]) -> None:
    train_all(options(), answering(WRONG))
    assert kernel_of()[0] == "chunked PyTorch"
    newer = replace(answering(RIGHT), card=replace(CARD, driver="590.2"))
    train_all(options(overwrite=True), newer)
    assert kernel_of()[0] == "Triton"


@pytest.mark.parametrize("verdict", [WRONG, None])
def test_a_check_that_fails_or_crashes_never_ends_a_training(
    verdict: Verdict | None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_all(options(), answering(verdict))[0]["epochs"] == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "warning: the Triton kernels did not pass their check" in said
    assert ("dense: the loss is off by 2.0e+00 of itself (and 1 more)" in said) == (verdict is WRONG)
    assert kernel_of()[0] == "chunked PyTorch"


def test_a_check_that_cannot_be_started_never_ends_a_training(capsys: pytest.CaptureFixture[str]) -> None:
    check = replace(answering(RIGHT), command=("/nonexistent/python",))
    assert train_all(options(), check)[0]["epochs"] == 1
    assert "the check of the Triton kernels failed (FileNotFoundError" in capsys.readouterr().err


@pytest.mark.parametrize("kernel", ["chunked", "triton"])
def test_a_kernel_that_is_asked_for_is_not_checked(kernel: str, on_the_card: list[object]) -> None:
    train_all(options(kernel=kernel), answering(None))
    assert kernel_of()[0] == {"chunked": "chunked PyTorch", "triton": "Triton"}[kernel]
    assert kernel_of()[1].startswith("asked for")
    assert bool(on_the_card) == (kernel == "triton")


def test_losses_and_sizes_without_a_kernel_are_not_checked() -> None:
    train_all(options(loss="ce"), answering(None))
    assert kernel_of()[0] == "eager PyTorch"
    train_all(options(dim=24, heads=1, overwrite=True), answering(None))
    assert kernel_of() == (
        "chunked PyTorch",
        "hidden size 24 is no multiple of 16 up to 1024: the chunked form takes any",
    )


def test_a_cpu_is_not_checked(run: Run) -> None:
    assert automatic.check_here(torch.device("cpu")) is None
    done = run("train", "--data", walks(Path("walks.csv")), "--loss", "cce", "--dim", 16, "--epochs", 1, *LEFT)
    assert done.code == 0, done.err
    assert "the Triton kernels run on CUDA; same loss and gradients on cpu" in done.message


def planned(run: Run, kernel: str) -> None:
    asked = ("--catalog", "2K", "--budget", "2GB", "--dim", 16, "--blocks", 1, "--kernel", kernel, "--loss", "cce")
    assert run("recommend", *asked).code == 0


@pytest.mark.parametrize(("plan", "verdict", "kernel"), [("chunked", RIGHT, "triton"), ("triton", WRONG, "chunked")])
def test_a_plan_for_the_other_kernel_is_planned_again(
    run: Run, on_the_card: list[object], monkeypatch: pytest.MonkeyPatch, plan: str, verdict: Verdict, kernel: str
) -> None:
    """Memory that is told belongs to the kernel that runs, and the pass is planned for it."""
    planned(run, plan)
    monkeypatch.setattr(train_orders, "refuse_triton", lambda *_: None)
    given = TrainOptions(data=walks(Path("walks.csv")), output=Path("out"), seq_len=8, batch_size=16, epochs=1)
    (each,) = train_orders.orders_of(given)
    data = data_of(each)
    ready, notes = train_orders.checked(each, data, answering(verdict))
    name = {"triton": "Triton", "chunked": "chunked PyTorch"}[kernel]
    assert ready.order.configuration.kernel == kernel
    assert any(f"the plan is for another kernel: planned again for {name}" in note for note in notes)


def data_of(each: train_orders.RankedOrder) -> Any:
    from srsplan.models.training.run import read_data

    return read_data(replace(each.order, data=replace(each.order.data, strategy="leave-one-out")))


def test_where_only_the_chunked_form_fits_it_is_taken(
    monkeypatch: pytest.MonkeyPatch, on_the_card: list[object]
) -> None:
    (each,) = train_orders.orders_of(options())
    data = data_of(each)

    def no_room_for_triton(configuration: Configuration, *rest: Any) -> tuple[str, ...]:
        if configuration.kernel == "triton":
            raise NothingFits("too much")
        return check_memory(configuration, *rest)

    monkeypatch.setattr(train_orders, "check_memory", no_room_for_triton)
    ready, _ = train_orders.checked(each, data, answering(RIGHT))
    assert ready.order.configuration.kernel == "chunked"
    assert ready.order.kernel_reason == "the faster Triton kernels have no pass that fits"


def test_passes_that_were_given_stay(on_the_card: list[object]) -> None:
    """Without a plan there is none to plan again, whichever kernel runs."""
    right = replace(RIGHT, times={"24x40": RIGHT.times[SHAPE]})
    (each,) = train_orders.orders_of(options(pass_tokens=24, pass_sequences=3))
    ready, notes = train_orders.checked(each, data_of(each), answering(right))
    found = ready.order.configuration
    assert (found.kernel, found.pass_tokens, found.pass_sequences, notes) == ("triton", 24, 3, ())


def test_a_failure_inside_the_check_is_the_chunked_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(automatic, "_checked", lambda *_: (_ for _ in ()).throw(KeyError("oops")))
    configuration = Configuration(
        loss="cce", catalog=100, batch_size=8, seq_len=8, architecture=Architecture(dim=16), precision="fp32"
    )
    found = automatic.automatic_kernel(configuration, answering(RIGHT), lambda _: None)
    assert found.kernel == "chunked"
    assert "KeyError: 'oops'" in found.warning
