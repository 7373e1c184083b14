"""What `srsplan bench` compares: contestants by name, logits, parts of a shape, minutes; and what it refuses."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import fields, replace

import pytest
import torch
from command import Ended
from paths import ROOT

from srsplan.kernels.losses import CE, CE_NEG
from srsplan.models.errors import InputError
from srsplan.planner.cli.app import verb_command
from srsplan.profiler.bench import peers
from srsplan.profiler.bench.__main__ import parser
from srsplan.profiler.bench.bout import Bout, make_bout, run_all
from srsplan.profiler.bench.contestants import chosen, contestants
from srsplan.profiler.bench.inputs import make_inputs
from srsplan.profiler.bench.logits import Logits, logits_of
from srsplan.profiler.bench.measuring import Measurement
from srsplan.profiler.bench.request import HELP, Asked, Request, request_of
from srsplan.profiler.bench.shapes import SHAPES, Shape

Run = Callable[..., Ended]
CPU = torch.device("cpu")
TINY = Shape(name="tiny", tokens=96, catalog=700, negatives=20, dim=32)
QUICK = ("--shapes", "64x300x16x8", "--repeats", 1)
"""Where a mistake is not noticed, the test fails soon."""
RANDOM, SHARP, TRAINED = Logits("random", 0.8), Logits("random", 1.0), Logits("trained", None)


def labels(names: Sequence[str]) -> list[str]:
    return [each.label for each in chosen(contestants(CPU), names)]


def test_contestants_are_chosen_by_a_whole_name_or_by_words() -> None:
    assert labels(["triton cce- 32 a set"]) == ["Triton cce- 32 a set"]
    assert labels(["TRITON cce"]) == ["Triton cce"]
    assert labels(["cce"]) == ["chunked cce", "Triton cce", "Triton cce at 3e-5"]
    assert labels(["cce- 32", "eager ce"]) == [
        "eager ce", "chunked cce- 32 a set", "Triton cce- 32 a set",
        "Triton cce- no copy of the table 32 a set", "Triton cce- independent 32 a set",
        "Triton cce- independent repeatable 32 a set",
    ]  # fmt: skip
    assert labels([]) == [each.label for each in contestants(CPU)]


@pytest.mark.parametrize("name", ["tritn", "", "triton eager", "cce -"])
def test_a_name_of_nobody_is_repeated_and_those_that_there_are_listed(run: Run, name: str) -> None:
    done = run("bench", *QUICK, "--only", f"eager ce,{name}")
    assert done.code == 2
    assert f"--only {name!r} names no contestant" in done.message
    assert "Triton cce at 3e-5" in done.message
    assert "others' take part with --peers" in done.message


def test_every_contestant_can_be_named() -> None:
    every = contestants(CPU)
    assert len({each.label for each in every}) == len(every)
    for each in every:
        assert labels([each.label]) == [each.label]
        assert "," not in each.label


def test_only_what_is_named_runs(run: Run) -> None:
    options = ("--shapes", "96x700x32x20", "--only", "chunked cce", "--repeats", 1, "--json")
    rows = run("bench", *options).json["results"]
    assert [(row["contestant"], row["logits"], row["deviation"]) for row in rows] == [
        ("chunked cce", "random", 0.8), ("chunked cce", "random", 1.0), ("chunked cce", "trained", None),
    ]  # fmt: skip


def test_the_peers_threshold_is_what_a_contestant_of_its_own_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    passed: list[object] = []

    def cce_triton(*_: object, filter_eps: float | None) -> torch.Tensor:
        passed.append(filter_eps)
        return torch.ones(())

    monkeypatch.setattr("srsplan.kernels.full_softmax.api.cce_triton", cce_triton)
    inputs = make_inputs(TINY, SHARP, torch.float32, CPU)
    for each in chosen(contestants(torch.device("meta")), ["triton cce", "triton cce at 3e-5"]):
        assert each.run is not None
        each.run(inputs, TINY)
    assert passed == [None, 3e-5]


@pytest.mark.parametrize("deviation", [0.8, 1.0, 2.5])
def test_random_logits_have_the_deviation_that_is_asked_for(deviation: float) -> None:
    shape = Shape(name="", tokens=800, catalog=1500, negatives=8, dim=64)
    inputs = make_inputs(shape, Logits("random", deviation), torch.float32, CPU)
    logits = (inputs.hidden @ inputs.table.T).detach()
    assert float(logits.std()) == pytest.approx(deviation, rel=0.02)


def bout(**changes: object) -> Bout:
    settings: dict[str, object] = {"shapes": [TINY], "logits": [RANDOM, SHARP, TRAINED], "entrants": contestants(CPU)}
    return Bout(**{**settings, "dtype": torch.float32, "device": CPU, "repeats": 1, **changes})  # type: ignore[arg-type]


def test_full_softmax_is_given_every_deviation_and_sampled_forms_the_largest() -> None:
    given = {each.logits.title: {entrant.loss.name for entrant in each.entrants} for each in bout().rounds(TINY)}
    assert given == {
        "random logits of deviation 0.8": {"ce"},
        "random logits of deviation 1": {"ce", "ce-"},
        "trained logits": {"ce", "ce-"},
    }
    assert logits_of(["trained", "random"], [0.8, 1.0]) == [TRAINED, RANDOM, SHARP]


def test_full_softmax_is_given_an_eighth_of_megamarkets_tokens() -> None:
    whole = SHAPES["megamarket"]
    eighth = whole.given_to(CE)
    assert (eighth.tokens, eighth.catalog, eighth.name) == (204_800, 1_661_000, "megamarket, 1/8 of the tokens")
    assert whole.given_to(CE_NEG).tokens == whole.tokens == 1_638_400
    assert {name for name, shape in SHAPES.items() if shape.given_to(CE).tokens != shape.tokens} == {"megamarket"}
    rounds = list(bout().rounds(whole.scaled(0.01)))
    assert {(each.shape.tokens, entrant.loss.sampled) for each in rounds for entrant in each.entrants} == {
        (2048, False), (16_384, True),
    }  # fmt: skip


def test_a_part_has_results_of_its_own(run: Run) -> None:
    options = ("--scale", 0.0001, "--logits", "trained", "--only", "eager ce,eager ce- 1 a set", "--repeats", 1)
    rows = run("bench", "--shapes", "megamarket", *options, "--json").json["results"]
    assert {(row["contestant"], row["tokens"]) for row in rows} == {("eager ce", 20), ("eager ce-", 164)}


def test_nothing_begins_after_the_minutes_of_a_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that every call moves on by ten seconds: a contestant has six, so that the sixth is late."""
    now = [0.0]
    monkeypatch.setattr("srsplan.profiler.bench.bout.time.monotonic", lambda: now[0])

    def minute(inputs: object, shape: Shape) -> torch.Tensor:
        now[0] += 10.0
        return inputs.hidden.sum()  # type: ignore[attr-defined, no-any-return]

    slow = [replace(contestants(CPU)[0], name=name, run=minute, ours=False) for name in ("first", "second", "third")]
    every = bout(shapes=[TINY, TINY], logits=[SHARP, TRAINED], entrants=slow, minutes=4.5)
    found = [each for each in run_all(every, lambda: 1 << 40, lambda _: None) if isinstance(each, Measurement)]
    assert [each.status for each in found] == 2 * ["ok", "ok", "ok", "ok", "ok", "late"]
    assert found[5].reason == "the 4.5 minutes of a shape were over: give more --minutes, or --only some"


def test_inputs_are_not_even_made_after_the_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    announced: list[str] = []
    found = list(run_all(bout(minutes=-1.0), lambda: 1 << 40, announced.append))
    assert {each.status for each in found if isinstance(each, Measurement)} == {"late", "absent"}
    assert announced == []


@pytest.mark.parametrize(
    ("arguments", "phrase"),
    [
        (["--deviation", "0"], "--deviation 0 is outside (0, 10]"),
        (["--deviation", "11"], "--deviation 11 is outside (0, 10]"),
        (["--deviation", "nan"], "--deviation nan is outside (0, 10]"),
        (["--deviation", "0.8,wide"], "--deviation 'wide' is not a number"),
        (["--minutes", "0"], "--minutes 0 is outside (0, 60]"),
        (["--minutes", "61"], "--minutes 61 is outside (0, 60]"),
        (["--minutes", "nan"], "--minutes nan is outside (0, 60]"),
        (["--sweep", "--device", "cpu"], "--sweep: none of the contestants is a Triton kernel that runs on cpu"),
        (["--losses", "ce-", "--only", "eager ce"], "--only 'eager ce' names no contestant"),
    ],
)
def test_what_means_nothing_is_one_clear_message(run: Run, arguments: list[str], phrase: str) -> None:
    done = run("bench", *QUICK, *arguments)
    assert (done.code, done.out) == (2, "")
    assert phrase in done.message
    assert "try:" in done.message


def test_a_sweep_wants_a_triton_kernel_among_those_that_are_named() -> None:
    asked = Asked(device="cpu", sweep=True, only="eager ce")
    with pytest.raises(InputError, match="--sweep"):
        make_bout(request_of(asked))


def test_both_commands_have_the_same_options_defaults_and_help() -> None:
    verb = {option.opts[-1][2:]: option for option in verb_command("bench").params}
    bare = {action.option_strings[-1][2:]: action for action in parser()._actions if action.dest != "help"}
    names = [field.name for field in fields(Asked)]
    assert sorted(names) == sorted(HELP) == sorted(verb) == sorted(bare)
    for name in names:
        assert verb[name].default == bare[name].default == getattr(Asked(), name)
        assert getattr(verb[name], "help", None) == HELP[name]
        assert str(bare[name].help).startswith(HELP[name])


def test_what_is_asked_for_is_what_is_meant() -> None:
    asked = Asked(shapes="zvuk,96x700x32x20", scale=0.5, losses="ce-", only=" a , b", logits="trained", peers=True)
    asked = replace(asked, dtype="bf16", device="cpu", repeats=7, kernels=True, sweep=True, minutes=3.0)
    assert request_of(asked) == Request(
        shapes=[SHAPES["zvuk"], Shape(name="96x700x32x20", tokens=96, catalog=700, dim=32, negatives=20)], scale=0.5,
        losses=("ce-",), only=("a", "b"), logits=[TRAINED], peers=True, dtype="bf16", device="cpu", repeats=7,
        kernels=True, sweep=True, minutes=3.0,
    )  # fmt: skip


def test_peers_are_pinned_to_the_versions_that_are_called() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    pins = re.findall(r'^    "(cut-cross-entropy|liger-kernel)(.*?);', text, re.MULTILINE)
    assert len(pins) == 2
    for name, version in pins:
        assert version.startswith("==")
        assert f"{name} {version[2:]}" in " ".join(str(peers.__doc__).split())
