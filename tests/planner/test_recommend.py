"""`srsplan recommend` and `srsplan estimate` as users meet them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from command import Ended, process
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from paths import SHARED

from srsplan.kernels.losses import LOSSES
from srsplan.models.config import Architecture
from srsplan.models.errors import InputError
from srsplan.planner.budget import make_budget
from srsplan.planner.confirm import confirm_first
from srsplan.planner.plan import read_plan
from srsplan.planner.search import Prices, Space, recommend
from srsplan.planner.workload import MeanLength, WorstCase
from srsplan.profiler.memory.model import MemoryModel
from srsplan.profiler.probes.gpus import find_gpu, load_gpus

Run = Callable[..., Ended]
ML_100K = SHARED / "data" / "ml-100k.inter"
CHOICE_KEYS = {"rank", "loss", "batch_size", "seq_len", "negatives", "tokens_per_set", "memory", "step_ms", "why"}
CHOICE_KEYS |= {"breakdown_bytes"}
MEMORY_KEYS = {"allocated_bytes", "reserved_bytes", "evaluation_bytes", "upper_bytes", "basis"}


def test_the_json_has_what_is_promised(run: Run) -> None:
    done = run("recommend", "--catalog", "1.6M", "--budget", "40GB", "--json")
    assert done.code == 0
    document = done.json
    assert document["inputs"]["catalog"] == 1_600_000
    assert document["budget"]["bytes"] == 40 * 10**9
    assert document["budget"]["usable_bytes"] + document["budget"]["margin_bytes"] < 40 * 10**9
    assert 5 <= len(document["choices"]) <= 8
    assert [choice["rank"] for choice in document["choices"]] == list(range(1, len(document["choices"]) + 1))
    for choice in document["choices"]:
        assert choice.keys() >= CHOICE_KEYS
        assert set(choice["memory"]) == MEMORY_KEYS
        assert sum(choice["breakdown_bytes"].values()) == choice["memory"]["allocated_bytes"]
        assert choice["memory"]["upper_bytes"] <= document["budget"]["usable_bytes"]
        assert (
            choice["memory"]["allocated_bytes"] < choice["memory"]["reserved_bytes"] <= choice["memory"]["upper_bytes"]
        )
    for miss in document["near_misses"]:
        assert miss["upper_bytes"] == document["budget"]["usable_bytes"] + miss["over_bytes"]


def test_every_loss_gets_its_best_row(run: Run) -> None:
    document = run("recommend", "--catalog", "300K", "--budget", "24GB", "--json").json
    assert {choice["loss"] for choice in document["choices"]} == set(LOSSES)


def test_the_screen_says_what_a_user_looks_for(run: Run) -> None:
    done = run("recommend", "--catalog", "1.6M", "--gpu", "a100-40gb", "--dim", 128)
    text = " ".join(done.out.split())
    for phrase in (
        "1.6M items (1,600,000), D 128", "no padding (worst case)", "4 S =", "At most".lower(), "what binds",
        "one step of a knob", "nearest misses", "srsplan train --plan srsplan.plan.yaml",
    ):  # fmt: skip
        assert phrase in text


def test_the_plan_reads_back_as_it_was_written(run: Run, tmp_path: Path) -> None:
    document = run("recommend", "--catalog", "50K", "--budget", "8GB", "--json", "-o", "my plan.yaml").json
    plan = read_plan(tmp_path / "my plan.yaml")
    assert plan.model_dump() == document
    configuration = plan.configuration(2)
    second = document["choices"][1]
    assert (configuration.loss, configuration.batch_size) == (second["loss"], second["batch_size"])
    assert "--plan 'my plan.yaml'" in plan.next_command


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["recommend", "--catalog", "1.6M", "--budget", "40GB"],
        ["estimate", "--loss", "cce", "--catalog", "1M", "--batch-size", 8, "--seq-len", 8],
        ["gpus"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_torch_is_not_imported(arguments: list[object], tmp_path: Path) -> None:
    code = (
        "import sys, atexit; from srsplan.planner.cli.app import main\n"
        "heavy = {'torch', 'pandas', 'sklearn'}\n"
        "atexit.register(lambda: print('loaded:', sorted(heavy & set(sys.modules)), file=sys.stderr))\n"
        f"sys.argv = ['srsplan', *{[str(argument) for argument in arguments]!r}]\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "loaded: []" in done.stderr


@pytest.mark.evidence
def test_data_gives_catalog_users_and_real_lengths(run: Run) -> None:
    document = run("recommend", "--data", ML_100K, "--budget", "2GB", "--json").json
    assert document["inputs"]["catalog"] == 1682
    assert document["inputs"]["users"] == 823
    assert "823 training sequences" in document["inputs"]["padding"]
    for choice in document["choices"]:
        assert choice["valid_tokens"] < choice["batch_size"] * choice["seq_len"]
        assert choice["epoch_seconds"] is not None


@pytest.mark.evidence
def test_runs_re_rank_and_say_how_far_to_trust_them(run: Run) -> None:
    done = run("recommend", "--catalog", "300K", "--budget", "24GB", "--runs", SHARED / "data" / "runs.csv", "--json")
    assert "out-of-bag R2" in done.json["inputs"]["order"]


def test_nothing_fits_is_an_answer(run: Run, tmp_path: Path) -> None:
    done = run("recommend", "--catalog", "1.6M", "--budget", "7.6GB", "--loss", "ce")
    assert done.code == 3
    assert "nothing fits: of" in done.message
    assert "are missing" in done.message
    assert "raise the budget by" in done.message
    assert not (tmp_path / "srsplan.plan.yaml").exists()


def test_evaluation_that_does_not_fit_is_refused() -> None:
    """A table whose training fits may still be too much for a single user's scores beside it: never for ours."""
    gpu = find_gpu("a100-40gb")
    space = Space(
        catalog=1_600_000, losses=("cce-",), architecture=Architecture(), precision="fp16", workload=WorstCase()
    )
    search = Search(space, make_budget(9_300_000_000, gpu), gpu, MemoryModel())
    for choice in search.run().choices:
        assert choice.memory.evaluation_bytes <= choice.memory.upper_bytes <= search.budget.usable_bytes


@pytest.mark.parametrize("tries", [1, 3])
@pytest.mark.parametrize("gigabytes", [3, 12])
def test_a_search_that_gives_up_early_still_finds_what_fits(
    monkeypatch: pytest.MonkeyPatch, gigabytes: int, tries: int
) -> None:
    """However few replays it may spend on the largest configurations, smaller ones are found."""
    monkeypatch.setattr("srsplan.planner.search.TRIES", tries)
    gpu = find_gpu("a100-40gb")
    space = Space(
        catalog=30_000, losses=tuple(LOSSES), architecture=Architecture(), precision="fp16", workload=WorstCase()
    )
    search = Search(space, make_budget(gigabytes * 10**9, gpu), gpu, MemoryModel())
    outcome = search.run()
    assert {choice.configuration.loss for choice in outcome.choices} == set(LOSSES)
    assert all(choice.memory.upper_bytes <= search.budget.usable_bytes for choice in outcome.choices)


BAD = [
    (["recommend", "--catalog", "1.6X", "--budget", "40GB"], "'1.6X'"),
    (["recommend", "--catalog", "-5", "--budget", "40GB"], "-5"),
    (["recommend", "--catalog", "0", "--budget", "40GB"], "'0'"),
    (["recommend", "--catalog", "1.6M", "--budget", "40QB"], "'40QB'"),
    (["recommend", "--catalog", "1.6M", "--budget", "40"], "did you mean 40GB?"),
    (["recommend", "--catalog", "1.6M", "--budget", "4GB"], "below the fixed floor"),
    (["recommend", "--catalog", "1.6M", "--budget", "900GB"], "more than any card"),
    (["recommend", "--catalog", "1.6M", "--budget", "41GB", "--gpu", "rtx-4090"], "more than rtx-4090 has"),
    (["recommend", "--catalog", "1.6M", "--gpu", "a1000000"], "a1000000"),
    (["recommend", "--catalog", "1.6M"], "neither --budget nor --gpu"),
    (["recommend", "--budget", "40GB"], "neither --catalog nor --data"),
    (["recommend", "--catalog", "1.6M", "--budget", "40GB", "--loss", "cce_"], "did you mean 'cce'?"),
    (["recommend", "--catalog", "1.6M", "--budget", "40GB", "--dim", "100"], "dim 100"),
    (["recommend", "--catalog", "1.6M", "--budget", "40GB", "--blocks", "9"], "blocks 9"),
    (["recommend", "--catalog", "1.6M", "--budget", "40GB", "--precision", "fp8"], "fp8"),
    (["recommend", "--catalog", "1.6M", "--budget", "40GB", "--margin", "0.9"], "--margin 0.9"),
    (["recommend", "--catalog", "1.6M", "--budget", "40GB", "--mean-length", "-3"], "--mean-length -3"),
    (["recommend", "--data", "missing.csv", "--budget", "40GB"], "missing.csv"),
    (["recommend", "--catalog", "1.6M", "--budget", "40GB", "--runs", "missing.csv"], "missing.csv"),
    (["recommend", "--catalog", "1.6M", "--budget", "40GB", "-o", "no/such/folder/plan.yaml"], "no/such/folder"),
    (["estimate", "--loss", "ce-", "--catalog", "300", "--batch-size", 8, "--seq-len", 8, "--negatives", 512], "512"),
    (
        ["estimate", "--loss", "ce-", "--catalog", "300", "--batch-size", 8, "--seq-len", 0, "--negatives", 8],
        "seq_len 0",
    ),
    (["estimate", "--loss", "ce-", "--catalog", "300", "--batch-size", 8, "--seq-len", 8], "--negatives 512"),
    (
        ["estimate", "--loss", "ce", "--catalog", "300", "--batch-size", 8, "--seq-len", 8, "--negatives", 8],
        "negatives 8",
    ),
    (["estimate", "--loss", "ce", "--catalog", "300", "--batch-size", "many", "--seq-len", 8], "--batch-size"),
]


@pytest.mark.parametrize(("arguments", "phrase"), BAD, ids=lambda value: " ".join(map(str, value))[:60])
def test_bad_input_is_one_clear_message(run: Run, arguments: list[object], phrase: str, tmp_path: Path) -> None:
    done = run(*arguments)
    assert done.code == 2
    assert phrase in done.message
    assert "Traceback" not in done.err
    assert not done.out
    assert not list(tmp_path.iterdir())


def test_a_failed_run_leaves_the_old_plan(run: Run, tmp_path: Path) -> None:
    run("recommend", "--catalog", "50K", "--budget", "8GB")
    before = (tmp_path / "srsplan.plan.yaml").read_text()
    assert run("recommend", "--catalog", "1.6M", "--budget", "4GB").code == 2
    assert (tmp_path / "srsplan.plan.yaml").read_text() == before


def test_estimate_gives_the_same_figures_as_the_plan(run: Run) -> None:
    choice = run("recommend", "--catalog", "300K", "--gpu", "a100-40gb", "--loss", "ce-", "--json").json["choices"][0]
    arguments = [
        "--batch-size",
        choice["batch_size"],
        "--seq-len",
        choice["seq_len"],
        "--negatives",
        choice["negatives"],
    ]
    estimate = run("estimate", "--loss", "ce-", "--catalog", "300K", "--gpu", "a100-40gb", *arguments, "--json").json
    for key in ("memory", "breakdown_bytes", "step_ms", "headroom_bytes"):
        assert estimate[key] == choice[key]


def test_exit_code_and_message_of_a_real_process(tmp_path: Path) -> None:
    done = process("recommend", "--catalog", "1.6X", "--budget", "40GB", folder=tmp_path)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: --catalog '1.6X'")


def _plan(tmp_path: Path, run: Run, change: Callable[[dict[str, object]], object]) -> Path:
    run("recommend", "--catalog", "50K", "--budget", "8GB")
    path = tmp_path / "srsplan.plan.yaml"
    document = yaml.safe_load(path.read_text())
    change(document)
    path.write_text(yaml.safe_dump(document))
    return path


@pytest.mark.parametrize(
    ("change", "phrase"),
    [
        (lambda plan: plan.update(version=2), "version 2"),
        (lambda plan: plan["choices"][0].update(batchsize=3), "unknown key 'choices.0.batchsize'"),
        (lambda plan: plan["choices"][0].update(batch_size=-3), "choices.0.batch_size = -3"),
        (lambda plan: plan["inputs"].update(precision="fp7"), "inputs.precision = 'fp7'"),
        (lambda plan: plan.pop("budget"), "budget"),
    ],
)
def test_a_bad_plan_names_the_key(
    run: Run, tmp_path: Path, change: Callable[[dict[str, object]], object], phrase: str
) -> None:
    path = _plan(tmp_path, run, change)
    with pytest.raises(InputError, match=phrase.replace(".", r"\.")):
        read_plan(path)


def test_files_that_are_no_plan(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no plan at"):
        read_plan(tmp_path / "none.yaml")
    for text, phrase in (("[1, 2", "is not YAML"), ("- 1\n- 2\n", "is not a plan"), ("\x00", "is not YAML")):
        path = tmp_path / "odd.yaml"
        path.write_text(text)
        with pytest.raises(InputError, match=phrase):
            read_plan(path)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    catalog=st.integers(2, 10_000_000),
    gigabytes=st.floats(1, 150),
    dim=st.sampled_from([32, 64, 256]),
    mean=st.one_of(st.none(), st.floats(1, 2000)),
)
def test_whatever_is_recommended_fits(catalog: int, gigabytes: float, dim: int, mean: float | None) -> None:
    """For any catalog, budget and padding: every choice is under the budget, ranks are distinct, misses are over it."""
    gpu = max(load_gpus(), key=lambda each: each.capacity_bytes)
    workload = WorstCase() if mean is None else MeanLength(mean)
    space = Space(
        catalog=catalog, losses=tuple(LOSSES), architecture=Architecture(dim=dim), precision="fp16", workload=workload
    )
    budget = make_budget(int(gigabytes * 1e9), gpu)
    outcome = Search(space, budget, gpu, MemoryModel()).run()
    assert len({choice.configuration for choice in outcome.choices}) == len(outcome.choices)
    for choice in outcome.choices:
        assert choice.memory.upper_bytes <= budget.usable_bytes
        assert choice.configuration.fullest_tokens <= choice.configuration.tokens
    for miss in outcome.near_misses:
        assert miss.over_bytes > 0
    assert outcome.choices or outcome.near_misses


def test_check_tries_the_first_choice_and_writes_what_it_found(run: Run, tmp_path: Path) -> None:
    document = run("recommend", "--catalog", "300K", "--budget", "16GB", "--check", "--json").json
    first, second = document["choices"][:2]
    assert first["confirmed"]["fits"]
    assert "simulated" in first["confirmed"]["basis"]
    assert first["confirmed"]["retries"] == 0
    assert first["confirmed"]["allocated_bytes"] == pytest.approx(first["memory"]["allocated_bytes"], rel=0.01)
    assert first["confirmed"]["reserved_bytes"] <= first["memory"]["upper_bytes"]
    assert second["confirmed"] is None
    assert read_plan(tmp_path / "srsplan.plan.yaml").choice(1).confirmed is not None


def test_a_choice_that_does_not_run_is_left_out() -> None:
    gpu = find_gpu("a100-40gb")
    space = Space(
        catalog=300_000, losses=("cce-", "bce"), architecture=Architecture(), precision="fp16", workload=WorstCase()
    )
    outcome = Search(space, make_budget(16 * 10**9, gpu), gpu, MemoryModel()).run()
    # a budget that the prediction was not made for: as if it had been wrong by this much
    for gigabytes, kept in ((8, True), (2, False)):
        checked, dropped = confirm_first(outcome, make_budget(gigabytes * 10**9, gpu), gpu)
        assert dropped
        assert len(checked.choices) + len(dropped) == len(outcome.choices)
        assert bool(checked.choices) == kept
        if kept:
            assert checked.choices[0].confirmed is not None
            assert checked.choices[0].confirmed.fits
