"""`srsplan doctor`: every line, good and not, on machines that tests make up; and on this one, at the command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from command import Ended
from simulated_card import AT_ONCE, CARD, kernel_check, spoiled

from srsplan.kernels.losses import SAMPLERS
from srsplan.kernels.verification.race import Times
from srsplan.kernels.verification.verdict import Verdict
from srsplan.models.config import Configuration
from srsplan.planner import doctor, examination
from srsplan.planner.budget import CONTEXT_BYTES
from srsplan.planner.cli.doctor import show
from srsplan.planner.doctor import Line, Report
from srsplan.planner.examination import Bench, Wanted, examine
from srsplan.planner.step_time import step_ms
from srsplan.profiler.memory import reserved as lifetime
from srsplan.profiler.memory.model import MemoryModel
from srsplan.profiler.probes.card import CardFacts
from srsplan.profiler.probes.catalogue import find_gpu
from srsplan.profiler.probes.cuda_probe import CardLost
from srsplan.profiler.probes.kernel_check import KernelCheck
from srsplan.profiler.probes.probe import SimulatedProbe
from srsplan.profiler.probes.records import ProbeRecord

Run = Callable[..., Ended]
FACTS = CardFacts(
    name=CARD.name, capability="9.0", driver="580", cuda="13.0", torch="2.13.0", triton="3.7.1", srsplan="0.1.0",
    total_bytes=80 << 30, free_bytes=79 << 30, context_bytes=500 << 20, others_bytes=0, segments_grow=True,
)  # fmt: skip
H200 = find_gpu("h200")
WANTED = Wanted(losses=("cce", "cce-"), dim=32, precision="fp16", timeout_s=60.0)
SHAPES = ("3000x100000", "3000x100000x256")
RIGHT = Verdict(
    faults=[], cases=6, worst=0.25, seconds=2.0, date="2026-11-21",
    times=dict.fromkeys(SHAPES, Times(triton_ms=3.0, chunked_ms=5.0)),
)  # fmt: skip


class CardProbe:
    """Steps on a made-up card: what is predicted, times a factor for each of allocated, reserved and time."""

    def __init__(self, allocated: float = 1.0, reserved: float = 1.0, time: float = 1.0, **changes: Any) -> None:
        self.factors, self.changes = (allocated, reserved, time), changes

    def blank(self, configuration: Configuration) -> ProbeRecord:
        return ProbeRecord(configuration=configuration, status="failed", basis="measured", gpu="h200", device="a card")

    def run(self, configuration: Configuration) -> ProbeRecord:
        model = MemoryModel()
        found = {
            "status": "ok",
            "allocated_bytes": int(self.factors[0] * int(model.allocated([configuration])[0])),
            "reserved_bytes": int(self.factors[1] * lifetime.steady(configuration, model.program)),
            "step_ms_median": self.factors[2] * step_ms(configuration, H200),
            "context_bytes": 600 << 20,
        }
        return self.blank(configuration).changed(**{**found, **self.changes})


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def bench(verdict: Verdict = RIGHT, probe: Any = None, facts: CardFacts | str = FACTS, **changes: Any) -> Bench:
    """The means of looking at a made-up card; children are real."""
    child = (sys.executable, "-c", f"import sys; sys.stdin.read(); print({json.dumps(asdict(verdict))!r})")
    means = {
        "torch_fault": "", "on_card": True, "seen_by_driver": "", "ask_card": lambda: facts,
        "probe": lambda *_: probe or CardProbe(),
        "kernel_check": lambda *_: KernelCheck(card=CARD, device="cpu", command=child, timeout_s=60.0),
    }  # fmt: skip
    return Bench(**{**means, **changes})


@pytest.fixture
def look(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Report]:
    monkeypatch.setattr(examination, "detect_gpu", lambda: H200)
    return lambda *given, **changes: examine(WANTED, bench(*given, **changes), lambda _: None)


def line(report: Report, name: str) -> Line:
    (found,) = [each for each in report.lines if each.name == name]
    return found


def test_a_good_card(look: Callable[..., Report]) -> None:
    report = look()
    assert report.good
    assert {each.status for each in report.lines} == {"good"}
    assert [each.name for each in report.lines] == [
        "srsplan", "torch", "triton", "GPU", "driver", "memory", "expandable segments", "CUDA context", "step of cce",
        "step of cce-", "kernels of cce", "kernels of cce-",
    ]  # fmt: skip
    assert line(report, "memory").found == "80.00 GiB, 79.00 GiB free"
    assert line(report, "CUDA context").found == "500.0 MiB empty, 600.0 MiB in training; plans assume 640.0 MiB"
    step = line(report, "step of cce")
    assert step.figures["allocated_predicted_bytes"] == pytest.approx(step.figures["allocated_measured_bytes"])
    assert " calculated" in step.found
    kernels = line(report, "kernels of cce-")
    assert "right in 6 cases against float64" in kernels.found
    assert "they take 3 ms on 3,000 tokens and 100,000 items, the chunked form 5 ms: auto takes Triton" in kernels.found
    assert (kernels.figures["triton_ms"], kernels.figures["chunked_ms"]) == (3.0, 5.0)


@pytest.mark.parametrize(
    ("changes", "name", "found", "advice"),
    [
        ({"segments_grow": False}, "expandable segments", "no segment grows", "expandable_segments:False"),
        ({"others_bytes": 20 << 30}, "memory", "79.00 GiB free", "others hold 20.00 GiB: end them"),
        ({"context_bytes": CONTEXT_BYTES + (1 << 20)}, "CUDA context", "641.0 MiB empty", "1.0 MiB smaller"),
    ],
)
def test_a_card_that_is_not_as_plans_assume(
    look: Callable[..., Report], changes: dict[str, Any], name: str, found: str, advice: str
) -> None:
    report = look(facts=FACTS.model_copy(update=changes))
    assert not report.good
    assert [each.name for each in report.lines if each.status == "not good"] == [name]
    assert found in line(report, name).found
    assert advice in line(report, name).advice


@pytest.mark.parametrize(
    ("probe", "advice"),
    [
        (CardProbe(allocated=1.006), "allocated memory is not what is predicted"),
        (CardProbe(reserved=0.97), "reserved memory is not what is predicted"),
        (CardProbe(time=1.6), "srsplan profile --gpu auto"),
        (CardProbe(time=0.6), "srsplan profile --gpu auto"),
        (CardProbe(status="oom_device"), "end other programs"),
        (CardProbe(status="timeout"), "--timeout"),
        (CardProbe(status="illegal_access", error_tail="a\nillegal memory access"), "report it as an issue"),
    ],
)
def test_a_step_that_is_not_as_predicted(look: Callable[..., Report], probe: CardProbe, advice: str) -> None:
    report = look(probe=probe)
    assert line(report, "step of cce").status == line(report, "step of cce-").status == "not good"
    assert advice in line(report, "step of cce").advice
    assert not report.good


def test_a_step_within_what_is_allowed(look: Callable[..., Report]) -> None:
    assert look(probe=CardProbe(allocated=1.004, reserved=1.019, time=1.4)).good


def test_a_context_that_training_fills_is_told_without_what_others_hold(look: Callable[..., Report]) -> None:
    facts = FACTS.model_copy(update={"others_bytes": 100 << 20})
    found = line(look(facts=facts), "CUDA context")
    assert found.figures == {"empty_bytes": 500 << 20, "training_bytes": 500 << 20}
    full = line(look(probe=CardProbe(context_bytes=700 << 20)), "CUDA context")
    assert (full.status, full.figures["training_bytes"]) == ("not good", 700 << 20)


def test_wrong_kernels(look: Callable[..., Report]) -> None:
    wrong = replace(RIGHT, faults=["dense: the loss is off", "sparse: it too"], times={})
    report = look(wrong)
    found = line(report, "kernels of cce")
    assert (found.status, found.found) == ("not good", "dense: the loss is off; sparse: it too")
    assert "--kernel auto takes the chunked form; report it as an issue of srsplan" in found.advice
    assert found.figures["faults"] == ["dense: the loss is off", "sparse: it too"]
    assert not report.good


@pytest.mark.parametrize(
    ("change", "loss", "good"), [(spoiled("sign", "cce"), "cce", False), (AT_ONCE, "cce-", True)], ids=["sign", "right"]
)
def test_the_doctor_on_the_interpreter(monkeypatch: pytest.MonkeyPatch, change: str, loss: str, good: bool) -> None:
    """The kernels really run, in a child, with every sampler: one with a flipped sign is found, right ones pass."""
    monkeypatch.setattr(examination, "detect_gpu", lambda: H200)
    wanted = replace(WANTED, losses=(loss,), dim=16, precision="fp32")
    report = examine(wanted, bench(kernel_check=lambda *_: kernel_check(change)), lambda _: None)
    found = line(report, f"kernels of {loss}")
    assert (report.good, found.status) == (good, "good" if good else "not good")
    if good:
        assert found.figures["cases"] == 2 * (len(SAMPLERS) + 1) + 2
    else:
        assert "the table's gradient is off by 2.0e+00 of itself" in found.found


def test_slow_kernels_are_no_fault(look: Callable[..., Report]) -> None:
    slow = replace(RIGHT, times=dict.fromkeys(SHAPES, Times(triton_ms=9.0, chunked_ms=5.0)))
    assert look(slow).good
    assert "auto takes chunked PyTorch" in line(look(slow), "kernels of cce").found


def test_the_kernels_are_checked_anew_and_with_every_sampler(look: Callable[..., Report], tmp_path: Path) -> None:
    log = tmp_path / "log"
    script = (
        f"import sys; open({str(log)!r}, 'a').write(sys.stdin.read() + chr(10)); print({json.dumps(asdict(RIGHT))!r})"
    )
    check = KernelCheck(card=CARD, device="cpu", command=(sys.executable, "-c", script), timeout_s=60.0)
    for _ in range(2):
        look(kernel_check=lambda *_: check)
    tasks = [json.loads(each) for each in log.read_text().splitlines()]
    assert [task["verdict"] for task in tasks] == [None] * 4
    assert [task["samplers"] for task in tasks[:2]] == [[], [*SAMPLERS]]


def test_a_card_that_does_not_answer(look: Callable[..., Report]) -> None:
    report = look(facts="no answer within 60 s", probe=SimulatedProbe("none", 1 << 50))
    assert line(report, "GPU").found == "the card does not answer: no answer within 60 s"
    assert not report.good
    assert line(report, "kernels of cce").status == "not checked"


def test_a_card_that_is_lost_under_a_probe(look: Callable[..., Report]) -> None:
    class Lost(CardProbe):
        def run(self, configuration: Configuration) -> ProbeRecord:
            raise CardLost("the card does not answer: gpu is lost", "start again then")

    found = line(look(probe=Lost()), "step of cce")
    assert (found.status, found.advice) == ("not good", "start again then")


def test_without_a_gpu_what_can_be_checked_is(look: Callable[..., Report]) -> None:
    report = look(on_card=False, probe=SimulatedProbe("none", 1 << 50))
    assert report.good
    assert {each.name: each.status for each in report.lines if each.status != "good"} == dict.fromkeys(
        ("GPU", "kernels of cce", "kernels of cce-"), "not checked"
    )
    assert line(report, "kernels of cce").found == "no CUDA device: kernels not checked here"
    assert "simulated" in line(report, "step of cce").found


def test_a_gpu_that_torch_does_not_see(look: Callable[..., Report]) -> None:
    report = look(on_card=False, seen_by_driver="NVIDIA H200", probe=SimulatedProbe("none", 1 << 50))
    assert not report.good
    assert "nvidia-smi sees NVIDIA H200, torch does not" in line(report, "GPU").found
    assert "CUDA_VISIBLE_DEVICES" in line(report, "GPU").advice


def test_a_torch_that_does_not_work(look: Callable[..., Report]) -> None:
    report = look(torch_fault="ImportError: libcudart.so.13: cannot open", on_card=False)
    assert not report.good
    assert "libcudart" in line(report, "torch").found
    assert line(report, "torch").advice == "pip install 'srsplan[train]'"
    assert line(report, "kernels of cce").status == "not checked"


@pytest.mark.parametrize(("on_card", "status"), [(True, "not good"), (False, "not checked")])
def test_without_triton(on_card: bool, status: str) -> None:
    versions = {"srsplan": "0.1.0", "torch": "2.13.0", "triton": ""}
    found = [*doctor.package_lines(versions, "", on_card)][-1]
    assert (found.name, found.status) == ("triton", status)
    assert "srsplan[train]" in found.advice


def test_sizes_that_the_kernels_do_not_take(look: Callable[..., Report]) -> None:
    for odd, why in (
        (replace(WANTED, dim=24), "no multiple of 16"),
        (replace(WANTED, dim=512, precision="fp32"), "256"),
    ):
        report = examine(odd, bench(), lambda _: None)
        assert line(report, "kernels of cce").status == "not checked"
        assert why in line(report, "kernels of cce").found
    assert WANTED.configuration("cce").architecture.heads == 2
    assert replace(WANTED, dim=1024).configuration("cce").architecture.heads == 4


def test_the_table_says_what_to_do(look: Callable[..., Report], capsys: pytest.CaptureFixture[str]) -> None:
    show(look(replace(RIGHT, faults=["[bold] is off"]), facts=FACTS.model_copy(update={"segments_grow": False})))
    said = " ".join(capsys.readouterr().out.split())
    assert "not good" in said
    assert "kernels of cce: --kernel auto takes the chunked form; report it as an issue" in said
    assert "expandable segments: memory is predicted for expandable segments" in said
    assert "[bold] is off" in said
    assert said.endswith("not everything is good")


def test_the_verb_on_this_machine(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU in the way: exit code 0, the same lines as a table and as JSON."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    done = run("doctor", "--losses", "cce", "--dim", 64, "--json")
    assert done.code == 0, done.err
    assert done.json["good"] is True
    assert [each["name"] for each in done.json["lines"]] == [
        "srsplan", "torch", "triton", "GPU", "step of cce", "kernels of cce",
    ]  # fmt: skip
    step = done.json["lines"][4]["figures"]
    assert step["allocated_measured_bytes"] == pytest.approx(step["allocated_predicted_bytes"], rel=0.005)
    table = run("doctor", "--losses", "cce", "--dim", 64)
    assert table.code == 0
    assert "no CUDA device: kernels not checked here" in " ".join(table.out.split())
    assert "everything that was checked is good; 2 not checked" in table.out


def test_exit_code_1_where_something_is_not_good(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examination, "bench_here", lambda _: bench(torch_fault="ImportError: no torch", on_card=False))
    done = run("doctor", "--json")
    assert done.code == 1
    assert done.json["good"] is False


@pytest.mark.parametrize(
    ("given", "phrase"),
    [
        (("--losses", "cce,ccee"), "unknown loss 'ccee'"),
        (("--dim", 20), "dim 20 is not a multiple of 8"),
        (("--precision", "fp8"), "unknown precision 'fp8'"),
        (("--timeout", 0), "--timeout 0 is not above zero"),
        (("--timeout", "nan"), "--timeout nan"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_looked_at(
    run: Run, monkeypatch: pytest.MonkeyPatch, given: tuple[object, ...], phrase: str
) -> None:
    monkeypatch.setattr(examination, "bench_here", lambda _: pytest.fail("it began"))
    done = run("doctor", *given)
    assert (done.code, done.out) == (2, "")
    assert phrase in done.message
    assert "try:" in done.err
