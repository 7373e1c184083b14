"""The check of the Triton kernels, in the interpreter: right ones pass, and ones made wrong on purpose do not."""

from __future__ import annotations

import triton_interpreter  # noqa: F401 - first, so that triton interprets

# isort: split
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from srsplan.kernels import ce_neg
from srsplan.kernels.full_softmax import operators as full
from srsplan.kernels.full_softmax.kernel import SPARSE_SHARE
from srsplan.kernels.losses import SAMPLERS
from srsplan.kernels.sampled_softmax import operators as sampled
from srsplan.kernels.sampled_softmax.api import cce_neg_triton
from srsplan.kernels.sampled_softmax.call_sets import CallSets
from srsplan.kernels.sampled_softmax.negatives import set_of_token, triton_negatives
from srsplan.kernels.samplers.sampling import Sampling
from srsplan.kernels.verification import check as checking
from srsplan.kernels.verification.cases import (
    CARD_SIZES,
    INTERPRETED_SIZES,
    Case,
    cases_of,
    grid_of,
    inputs_of,
    negatives_of,
)
from srsplan.kernels.verification.check import check, timed
from srsplan.kernels.verification.compare import Instruments, compare, empty_memory_is_nan
from srsplan.kernels.verification.race import Times
from srsplan.kernels.verification.reference import sampled_softmax
from srsplan.kernels.verification.remembered import read_verdicts, remember, verdicts_file
from srsplan.kernels.verification.subject import Card, RunShape, Subject
from srsplan.kernels.verification.verdict import Verdict
from srsplan.profiler.probes.kernel_child import predicted

CPU, META = torch.device("cpu"), torch.device("meta")
FULL = Subject(loss="cce", dim=16, dtype="float32")
SAMPLED = Subject(loss="cce-", dim=16, dtype="float32", tokens_per_set=8)
SHAPE = RunShape(tokens=48, catalog=90, negatives=9)
ONE_MS = Instruments(timer=lambda run: (run(), 1.0)[1])
CARD = Card(name="Card 9", capability="9.0", driver="580.1", torch="2.13.0", triton="3.7.1", srsplan="0.1.0")
SMALL = {"cce": Case(name="small", tokens=40, catalog=300)}
SMALL["cce-"] = replace(SMALL["cce"], source="given", negatives=9, tokens_per_set=8)
SUBJECTS = {"cce": FULL, "cce-": SAMPLED}


def quick(case: Case, subject: Subject, instruments: Instruments = ONE_MS) -> list[str]:
    return [str(fault) for fault in compare(case, subject, CPU, instruments).faults]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_right_kernels_of_the_full_softmax_pass(dtype: str) -> None:
    verdict = check(replace(FULL, dtype=dtype), CPU, ONE_MS, shape=replace(SHAPE, negatives=None))
    assert verdict.faults == []
    assert verdict.cases == 4
    assert 0 < verdict.worst < 1
    assert verdict.times["48x90"].triton_ms == 1.0


def test_right_kernels_of_the_sampled_softmax_pass() -> None:
    """With every source of negatives, and several tokens a set."""
    shared = [each for each in cases_of(SAMPLED, SAMPLERS, INTERPRETED_SIZES, CPU) if each.tokens_per_set > 1]
    assert {each.source for each in shared} == {*SAMPLERS, "given"}
    for dtype in ("float32", "float16"):
        assert [fault for each in shared for fault in quick(each, replace(SAMPLED, dtype=dtype))] == []


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_sets_of_one_token_pass(sampler: str) -> None:
    case = next(each for each in cases_of(SAMPLED, SAMPLERS, INTERPRETED_SIZES, CPU) if each.source == sampler)
    assert case.tokens_per_set == 1
    assert quick(replace(case, tokens=20), SAMPLED) == []


@pytest.mark.parametrize("sizes", [INTERPRETED_SIZES, CARD_SIZES], ids=["interpreted", "card"])
@pytest.mark.parametrize("subject", [FULL, replace(FULL, dim=256, dtype="float16")], ids=str)
def test_the_cases_reach_what_they_are_named_after(subject: Subject, sizes: Any) -> None:
    """One split of the catalog and several, a span and many; on a card as many blocks as run at once."""
    cases = cases_of(subject, (), sizes, META)
    grids = {each.name: grid_of(subject, each.tokens, each.catalog, META) for each in cases}
    assert grids["dense, the catalog in splits"].splits > 1
    assert grids["dense, one span of items"].spans == 1
    whole = [grid for name, grid in grids.items() if name.endswith("in one split")]
    assert [(grid.splits, grid.spans > 1) for grid in whole] == [(1, True)] * sizes.waves
    peaked = next(each for each in cases if each.logits == "peaked")
    if sizes is INTERPRETED_SIZES:
        inputs = inputs_of(peaked, subject, CPU)
        spans = full.full_softmax(inputs.hidden, inputs.table, inputs.targets, -100, -24.0, True, True)[2]
        assert spans.sum() < SPARSE_SHARE * spans.numel()


def test_the_negatives_are_those_that_the_kernel_uses() -> None:
    """The loss of every token is eager's against them."""
    torch.manual_seed(0)
    hidden, table, targets = torch.randn(60, 16), torch.randn(50, 16), torch.randint(50, (60,))
    sampling = Sampling(tokens_per_set=7, seed=5, step=7)
    items = triton_negatives(5, 60, 50, sampling, None, CPU)
    found = cce_neg_triton(hidden, table, targets, 5, sampling=sampling, reduction="none")
    torch.testing.assert_close(found, ce_neg(hidden, table, targets, items, reduction="none"))


def test_the_set_of_every_token_of_several_windows() -> None:
    """Token n of window w = n // (R g) is in set w R + n mod R (kernels.chunking)."""
    sets = CallSets.of(3, Sampling(tokens_per_set=2), 1200)
    window, stride = sets.windows.tokens, sets.windows.stride
    assert window < 1200
    assert set_of_token(sets, CPU).tolist() == [n // window * stride + n % stride for n in range(1200)]


def test_the_reference_is_eagers_for_uniform_negatives() -> None:
    case = replace(SMALL["cce-"], source="uniform")
    inputs = inputs_of(case, SAMPLED, CPU)
    items = negatives_of(case, inputs)
    ours = sampled_softmax(inputs.hidden, inputs.table, inputs.targets, items, None)
    torch.testing.assert_close(ours, ce_neg(inputs.hidden, inputs.table, inputs.targets, items))


def wrong_gradient(
    monkeypatch: pytest.MonkeyPatch, loss: str, change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
) -> None:
    module, name = {"cce": (full, "full_softmax_backward"), "cce-": (sampled, "sampled_softmax_backward")}[loss]
    right = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *tensors: change(*right(*tensors)))


def nan_at(place: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    def change(hidden: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        spoiled = table.clone()
        spoiled.view(-1)[place] = float("nan")
        return hidden, spoiled

    return change


@pytest.mark.parametrize("loss", ["cce", "cce-"])
def test_a_flipped_sign_is_caught(monkeypatch: pytest.MonkeyPatch, loss: str) -> None:
    wrong_gradient(monkeypatch, loss, lambda hidden, table: (-hidden, table))
    (fault,) = quick(SMALL[loss], SUBJECTS[loss])
    assert fault.startswith("small: hidden's gradient is off by 2.0e+00 of itself, 1.0e-05 is allowed")


@pytest.mark.parametrize("loss", ["cce", "cce-"])
def test_one_nan_is_caught(monkeypatch: pytest.MonkeyPatch, loss: str) -> None:
    wrong_gradient(monkeypatch, loss, nan_at(77))
    assert quick(SMALL[loss], SUBJECTS[loss]) == ["small: 1 of 4,800 values of the table's gradient are not finite"]


@pytest.mark.parametrize("loss", ["cce", "cce-"])
def test_a_stale_launch_is_caught(monkeypatch: pytest.MonkeyPatch, loss: str) -> None:
    """A launch with half the tokens of a program that the grid was made for: the others are never written."""
    call: Any = {"cce": full, "cce-": sampled}[loss]._Call
    options = call.options

    def stale(self: Any, launch: Any, *rest: Any) -> dict[str, Any]:
        found: dict[str, Any] = options(self, launch, *rest)
        return {**found, "BLOCK_M": found["BLOCK_M"] // 2}

    monkeypatch.setattr(call, "options", stale)
    case = replace(SMALL[loss], tokens_per_set=32) if loss == "cce-" else SMALL[loss]
    assert len(quick(case, SUBJECTS[loss])) >= 2


def test_an_error_in_16_bit_is_held_against_eagers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within 1e-3 of float64, but more than twice as far as eager PyTorch."""
    half = replace(FULL, dtype="float16")
    assert quick(SMALL["cce"], half) == []
    wrong_gradient(monkeypatch, "cce", lambda hidden, table: (hidden, table * (1 + 9e-4)))
    (fault,) = quick(SMALL["cce"], half)
    allowed = float(fault.split(", ")[1].split()[0])
    assert allowed < 9e-4 < 1e-3


def test_sums_that_are_not_repeatable_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Right within what is allowed, and another number every time."""
    count = iter(range(100))
    wrong_gradient(monkeypatch, "cce", lambda hidden, table: (hidden, table * (1 + 1e-6 * next(count))))
    assert quick(SMALL["cce"], FULL) == ["small: two runs differ, and should be equal in every bit"]
    wrong_gradient(monkeypatch, "cce-", lambda hidden, table: (hidden, table * (1 + 1e-6 * next(count))))
    assert quick(SMALL["cce-"], SAMPLED) == []  # atomic additions promise nothing
    assert len(quick(replace(SMALL["cce-"], deterministic=True), SAMPLED)) == 1


@pytest.mark.parametrize("loss", ["cce", "cce-"])
def test_more_memory_than_the_fake_implementations_say_is_caught(loss: str) -> None:
    sizes: list[int] = []

    def measured(run: Callable[[], object]) -> int:
        run()
        return sizes[0]

    wide = replace(SMALL[loss], catalog=400)
    instruments = replace(ONE_MS, measured_bytes=measured, predicted_bytes=predicted)
    inputs = 4 * 16 * (wide.tokens + wide.catalog)
    told_bytes = predicted_of(wide, loss)
    assert told_bytes > 2 * inputs
    for extra, told in ((0, 0), (told_bytes // 100 + (17 << 10), 1)):
        sizes[:] = [told_bytes + extra]
        faults = quick(wide, SUBJECTS[loss], instruments)
        assert len(faults) == told
        assert all("bytes, " in fault and "are predicted" in fault for fault in faults)


def predicted_of(case: Case, loss: str) -> int:
    from srsplan.kernels.verification.cases import kernel_loss
    from srsplan.kernels.verification.compare import gradients

    shapes = inputs_of(case, SUBJECTS[loss], META)
    return predicted(lambda: gradients(lambda each: kernel_loss(case, each), shapes))


def test_what_is_not_written_is_no_earlier_result() -> None:
    with empty_memory_is_nan():
        assert torch.empty(1000).isnan().all()
        assert torch.ones(3).new_empty(50).isnan().all()
    assert not torch.are_deterministic_algorithms_enabled()


def test_an_exception_is_a_fault_and_ends_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """After an illegal memory access nothing else can run: later cases would say the same."""
    calls: list[str] = []

    def broken(case: Case, *_: object) -> None:
        calls.append(case.name)
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nand more")

    monkeypatch.setattr(checking, "compare", broken)
    verdict = check(FULL, CPU, ONE_MS, shape=SHAPE)
    assert verdict.faults == [f"{calls[0]}: RuntimeError: CUDA error: an illegal memory access was encountered"]
    assert len(calls) == 1
    assert verdict.lasting
    assert verdict.times == {}
    assert verdict.kernel(SHAPE) == "chunked"


def test_a_card_without_room_says_nothing_about_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    def full_card(*_: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(checking, "compare", full_card)
    verdict = check(FULL, CPU, ONE_MS)
    assert (verdict.right, verdict.lasting) == (False, False)


RIGHT = Verdict(faults=[], cases=4, worst=0.5, seconds=1.0, date="2026-11-21")


@pytest.mark.parametrize(
    ("milliseconds", "kernel", "said"),
    [
        ([1.0, 2.0], "triton", "they take 1 ms on 48 tokens and 90 items, the chunked form 2 ms"),
        ([2.0, 1.0], "chunked", "the chunked form 1 ms"),
        ([None, 1.0], "chunked", "they do not fit this card"),
        ([1.0, None], "triton", "the chunked form does not fit"),
    ],
)
def test_the_faster_form_is_chosen(milliseconds: list[float | None], kernel: str, said: str) -> None:
    """The first call of the timer is Triton's, the second the chunked form's; both really run."""
    left = list(milliseconds)

    def timer(run: Callable[[], object]) -> float:
        run()
        found = left.pop(0)
        if found is None:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return found

    verdict = timed(RIGHT, SAMPLED, SHAPE, CPU, Instruments(timer=timer))
    assert verdict.kernel(SHAPE) == kernel
    assert said in verdict.sentence(SHAPE)
    assert "right in 4 cases against float64 (errors up to 50% of what is allowed)" in verdict.sentence(SHAPE)
    assert verdict.kernel(replace(SHAPE, tokens=49)) == "chunked"  # of another shape nothing is known


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_race_draws_as_the_training_does(sampler: str) -> None:
    verdict = timed(RIGHT, replace(SAMPLED, sampler=sampler), SHAPE, CPU, ONE_MS)  # type: ignore[arg-type]
    assert verdict.faults == []
    assert verdict.times["48x90x9"].chunked_ms == 1.0


def test_a_kernel_that_fails_on_the_runs_shape_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def timer(run: Callable[[], object]) -> float:
        raise RuntimeError("out of resource: shared memory")

    verdict = timed(RIGHT, FULL, SHAPE, CPU, Instruments(timer=timer))
    assert verdict.faults == ["48 tokens and 90 items: RuntimeError: out of resource: shared memory"]
    assert verdict.kernel(SHAPE) == "chunked"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return verdicts_file(CARD.name)


def test_verdicts_are_remembered_by_every_part_of_the_key(cache: Path) -> None:
    verdict = timed(RIGHT, SAMPLED, SHAPE, CPU, ONE_MS)
    remember(CARD.name, CARD.key(SAMPLED), verdict)
    assert cache.name == "kernels-Card-9.json"
    assert read_verdicts(CARD.name) == {CARD.key(SAMPLED): verdict}
    cards = [replace(CARD, **{name: "other"}) for name in asdict(CARD)]
    others = {"loss": "cce", "dim": 32, "dtype": "float16", "sampler": "popularity", "tokens_per_set": 9}
    subjects = [replace(SAMPLED, **{name: value}) for name, value in others.items()]  # type: ignore[arg-type]
    assert set(others) == set(asdict(SAMPLED))
    keys = {CARD.key(SAMPLED), *(card.key(SAMPLED) for card in cards), *(CARD.key(each) for each in subjects)}
    assert len(keys) == 1 + len(cards) + len(subjects)


def test_new_launches_are_another_key(cache: Path) -> None:
    before = CARD.key(FULL)
    cache.parent.mkdir(parents=True)
    cache.with_name("launches-Card-9.json").write_text("{}")
    assert CARD.key(FULL) != before


def test_the_oldest_shapes_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "MOST_SHAPES", 2)
    monkeypatch.setattr(checking, "race", lambda *_: Times(triton_ms=1.0, chunked_ms=2.0))
    verdict = RIGHT
    for tokens in (1, 2, 3, 2):
        verdict = timed(verdict, FULL, replace(SHAPE, tokens=tokens), CPU, ONE_MS)
    assert list(verdict.times) == ["3x90x9", "2x90x9"]


def test_the_oldest_verdicts_make_room(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("srsplan.kernels.verification.remembered.MOST", 3)
    for name in "abcda":
        remember(CARD.name, name, RIGHT)
    assert list(read_verdicts(CARD.name)) == ["c", "d", "a"]


GOOD = asdict(RIGHT)


@pytest.mark.parametrize(
    "content",
    [
        "", "{", "[1]", "null", "[" * 100_000, '{"a": 3}', json.dumps({"a": {**GOOD, "cases": "4"}}),
        json.dumps({"a": {**GOOD, "extra": 1}}), json.dumps({"a": {**GOOD, "faults": None}}),
        json.dumps({"a": {**GOOD, "times": {"x": 3}}}), '{"a": {"faults": []}}',
        json.dumps({"a": GOOD}) + " " * (2 << 20),
    ],
    ids=lambda content: content[:20] or "empty",
)  # fmt: skip
def test_a_file_with_anything_but_verdicts_is_left_aside(
    cache: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that says that wrong kernels are right would be believed: only what was written is read."""
    cache.parent.mkdir(parents=True)
    cache.write_text(content)
    assert read_verdicts(CARD.name) == {}
    assert f"{cache} is left aside" in caplog.text
    remember(CARD.name, "a", RIGHT)
    assert read_verdicts(CARD.name) == {"a": RIGHT}
