"""The check of the kernels in a child process: how it ends, what is remembered, and what is asked of the card."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from simulated_card import CARD, FASTER, command, kernel_check

from srsplan.kernels.verification.race import Times
from srsplan.kernels.verification.remembered import read_verdicts, verdicts_file
from srsplan.kernels.verification.subject import RunShape, Subject
from srsplan.kernels.verification.verdict import Verdict
from srsplan.models.config import Architecture, Configuration
from srsplan.profiler.probes.card import CardFacts, ask_card
from srsplan.profiler.probes.card_child import FIRST_BYTES, SECOND_BYTES, second_context, segments_grow
from srsplan.profiler.probes.kernel_check import KernelCheck, shape_of, subject_of

SUBJECT, SHAPE = Subject(loss="cce", dim=16, dtype="float32"), RunShape(tokens=48, catalog=90)
RIGHT = Verdict(
    faults=[], cases=4, worst=0.5, seconds=1.0, date="2026-11-21", times={"48x90": Times(triton_ms=1.0, chunked_ms=2.0)}
)
WRONG = replace(RIGHT, faults=["dense: the loss is off"], times={})


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return verdicts_file(CARD.name)


def child(script: str, timeout_s: float = 20.0) -> KernelCheck:
    """A check whose child is a real process that runs `script`."""
    return KernelCheck(card=CARD, device="cpu", command=(sys.executable, "-c", script), timeout_s=timeout_s)


def elsewhere(check: KernelCheck, **card: str) -> KernelCheck:
    """The same check with a card, driver or version that differs."""
    return replace(check, card=replace(CARD, **card))


def answers(verdict: Verdict, log: Path | None = None) -> str:
    """A child that answers with a verdict, and notes its task."""
    noted = f"open({str(log)!r}, 'a').write(sys.stdin.read() + '\\n'); " if log is not None else ""
    return f"import sys; {noted}print({json.dumps(asdict(verdict))!r})"


def test_a_check_on_the_simulated_card(cache: Path) -> None:
    """Really in a child, with the interpreter as its card."""
    verdict = kernel_check(FASTER).run(SUBJECT, SHAPE)
    assert (verdict.faults, verdict.cases, verdict.kernel(SHAPE)) == ([], 4, "triton")
    assert verdict.times[str(SHAPE)] == Times(triton_ms=1.0, chunked_ms=2.0)
    assert child("").known(SUBJECT, SHAPE) == verdict
    assert child(answers(WRONG)).run(SUBJECT, SHAPE, anew=True) == WRONG
    assert child("").known(SUBJECT, SHAPE) == WRONG


def test_a_verdict_holds_for_its_key_and_no_other(tmp_path: Path) -> None:
    """Wrong under one driver, and checked again under another."""
    assert not child(answers(WRONG)).run(SUBJECT, SHAPE).right
    assert child("").known(SUBJECT, SHAPE) == WRONG
    for name in ("driver", "torch", "triton", "srsplan", "capability"):
        assert elsewhere(child(""), **{name: "another"}).known(SUBJECT, SHAPE) is None
    other = elsewhere(child(answers(RIGHT)), driver="590.1")
    assert other.run(SUBJECT, SHAPE).kernel(SHAPE) == "triton"
    assert other.known(SUBJECT, SHAPE) == RIGHT
    assert child("").known(SUBJECT, SHAPE) == WRONG


def test_of_kernels_that_are_right_only_the_new_shape_is_timed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    check = child(answers(RIGHT, log))
    check.run(SUBJECT, SHAPE)
    larger = replace(SHAPE, tokens=500)
    assert check.known(SUBJECT, larger) is None
    check.run(SUBJECT, larger)
    check.run(SUBJECT, SHAPE, ("popularity",), anew=True)
    tasks = [json.loads(line) for line in log.read_text().splitlines()]
    assert [task["verdict"] is None for task in tasks] == [True, False, True]
    assert tasks[1]["verdict"] == asdict(RIGHT)
    assert tasks[1]["shape"] == {"tokens": 500, "catalog": 90, "negatives": None}
    assert tasks[2]["samplers"] == ["popularity"]


@pytest.mark.parametrize(
    ("script", "said", "lasting"),
    [
        ("raise RuntimeError('CUDA error: an illegal memory access was encountered')", "illegal_access", True),
        ("import os; os.abort()", "it said nothing", True),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "it said nothing", True),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "oom_host", False),
        ("raise RuntimeError('CUDA error: no CUDA-capable device is detected')", "no CUDA-capable", False),
        ("raise ImportError('no such thing')", "ImportError: no such thing", False),
        ("print('no json')", "code 0", False),
        ("import time; time.sleep(60)", "no answer within 1 s", False),
    ],
)
def test_a_child_that_crashes_is_a_fault_and_is_remembered_where_it_would_again(
    script: str, said: str, lasting: bool
) -> None:
    check = child(script, timeout_s=1.0 if "sleep" in script else 20.0)
    verdict = check.run(SUBJECT, SHAPE)
    assert said in verdict.faults[0]
    assert verdict.kernel(SHAPE) == "chunked"
    assert verdict.lasting == lasting
    assert (check.known(SUBJECT, SHAPE) == verdict) == lasting


@pytest.mark.parametrize(("verdict", "believed"), [(RIGHT, False), (WRONG, True)])
def test_a_child_that_crashes_after_its_answer(verdict: Verdict, believed: bool) -> None:
    """Its context was lost: that its kernels are wrong is believed, that they are right is not."""
    found = child(answers(verdict) + "; sys.exit(3)").run(SUBJECT, SHAPE)
    assert not found.right
    assert (found == verdict) == believed


def test_the_subject_and_the_shape_are_those_of_the_training() -> None:
    configuration = Configuration(
        loss="cce-", catalog=1000, batch_size=64, seq_len=50, negatives=20, tokens_per_set=16, sampler="popularity",
        architecture=Architecture(dim=64), precision="bf16", pass_tokens=700,
    )  # fmt: skip
    expected = Subject(loss="cce-", dim=64, dtype="bfloat16", sampler="popularity", tokens_per_set=16)
    assert subject_of(configuration) == expected
    assert shape_of(configuration) == RunShape(tokens=700, catalog=1000, negatives=20)


def test_a_place_that_cannot_be_written_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert child(answers(RIGHT)).run(SUBJECT, SHAPE) == RIGHT
    assert read_verdicts(CARD.name) == {}


def test_the_simulated_cards_child_is_the_products() -> None:
    assert "kernel_child.main()" in command()[2]


FACTS: dict[str, Any] = {
    "name": "Card 9", "capability": "9.0", "driver": "580", "cuda": "13.0", "torch": "2.13.0", "triton": "3.7.1",
    "srsplan": "0.1.0", "total_bytes": 80 << 30, "free_bytes": 79 << 30, "context_bytes": 500 << 20,
    "others_bytes": 0, "segments_grow": True,
}  # fmt: skip


def test_the_card_is_asked_in_a_child() -> None:
    script = f"print({json.dumps(FACTS)!r})"
    assert ask_card((sys.executable, "-c", script)) == CardFacts(**FACTS)
    lost = ask_card((sys.executable, "-c", "raise RuntimeError('no CUDA GPUs are available')"))
    assert lost == "RuntimeError: no CUDA GPUs are available"
    assert ask_card((sys.executable, "-c", "import time; time.sleep(9)"), timeout_s=0.5) == "no answer within 0.5 s"
    assert ask_card((sys.executable, "-c", "print(5)")) == "it ended with code 0"


def test_a_context_is_what_a_second_process_takes_beside_its_allocator(tmp_path: Path) -> None:
    """Free is read before it and while it holds; it ends by itself when its input does."""
    held = tmp_path / "held"
    script = f"import sys, pathlib; held = pathlib.Path({str(held)!r}); held.touch(); print(2000, flush=True)"
    script += "; sys.stdin.read(); held.unlink()"

    def free() -> int:
        return 10_000 - 6_000 * held.exists()

    assert second_context(free, (sys.executable, "-c", script)) == 4000
    assert not held.exists()
    assert second_context(free, (sys.executable, "-c", "raise SystemExit")) is None


class Allocator:
    """Blocks of a card: a freed one is kept, and grows where segments do."""

    def __init__(self, grows: bool) -> None:
        self.grows, self.segments = grows, list[int]()

    def allocate(self, size: int) -> object:
        if self.grows and self.segments:
            self.segments[-1] = max(self.segments[-1], size)
        else:
            self.segments.append(size)
        return object()

    def reserved(self) -> int:
        return sum(self.segments)


@pytest.mark.parametrize("grows", [True, False])
def test_whether_segments_grow(grows: bool) -> None:
    allocator = Allocator(grows)
    assert segments_grow(allocator.allocate, allocator.reserved) == grows
    assert allocator.reserved() == SECOND_BYTES + FIRST_BYTES * (not grows)


def test_the_timer_and_the_ledger_of_the_child() -> None:
    """On a CPU there is no allocator to ask; a call is timed in milliseconds."""
    import torch

    from srsplan.profiler.probes.kernel_child import instruments_of, predicted

    found = instruments_of(torch.device("cpu"))
    assert found.measured_bytes is None
    slow: Callable[[], object] = lambda: __import__("time").sleep(0.02)  # noqa: E731
    assert 15 < found.timer(slow) < 2000
    assert predicted(lambda: torch.empty(1000, device="meta")) == 4096
