"""`srsplan train` at its edges: names that look like markup, contradictions, plans with another loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from command import Ended

from srsplan.models.config import Architecture, Configuration
from srsplan.models.training import loop as training
from srsplan.models.training.settings import Settings
from srsplan.planner import train_configuration
from srsplan.planner.cli import train_screens
from srsplan.planner.cli.train_options import TrainOptions
from srsplan.planner.search import TOKENS_PER_SET

Run = Callable[..., Ended]
TINY = ("--loss", "cce", "--batch-size", 64, "--seq-len", 8, "--dim", 16, "--blocks", 1, "--split", "leave-one-out")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """60 users walk through 40 items; the user column's name is a closing tag to rich."""
    rows = [f"u{user},i{(user + step) % 40},{step}" for user in range(60) for step in range(8)]
    path = tmp_path / "walks.csv"
    path.write_text("\n".join(["[/user],item_id,timestamp", *rows]) + "\n")
    return path


@pytest.fixture
def train_on(run: Run, data: Path) -> Run:
    return lambda *arguments: run("train", "--data", data, "--user-column", "[/user]", *arguments)


def test_names_are_never_markup(train_on: Run) -> None:
    done = train_on(*TINY, "--epochs", 1, "-o", "out[bold]")
    assert done.code == 0, done.err
    assert "'[/user]'" in done.err
    assert "everything is in out[bold]:" in " ".join(done.out.split())


@pytest.mark.parametrize("seed", [-1, 2**31])
def test_a_seed_that_no_generator_takes_is_refused(train_on: Run, tmp_path: Path, seed: int) -> None:
    done = train_on(*TINY, "--seed", seed, "-o", "out")
    assert done.code == 2
    assert "--seed" in done.message
    assert not (tmp_path / "out").exists()


def test_short_users_and_rare_items_are_left_out(train_on: Run, data: Path) -> None:
    """Two rows of a user who has no others, and one of an item that nobody else took."""
    with data.open("a") as file:
        file.write("short,i0,0\nshort,i1,1\nu0,rare,9\n")
    done = train_on(*TINY, "--epochs", 1, "-o", "out", "--min-user", 3, "--min-item", 2, "--json")
    assert done.code == 0, done.err
    assert "kept 480 of 483 interactions" in done.message
    assert done.json["configuration"]["catalog"] == 40


def test_the_defaults_of_the_command_line_are_those_of_settings() -> None:
    """Whoever trains from Python gets the run that the command line gives."""
    told = {field.name: field.default for field in fields(TrainOptions)}
    same = {field.name: field.default for field in fields(Settings) if field.name in told}
    assert same == {name: told[name] for name in same}
    assert same.keys() >= {"learning_rate", "weight_decay", "optimizer", "seed", "epochs", "patience", "keep_seen"}


def test_resume_and_overwrite_contradict(train_on: Run, tmp_path: Path) -> None:
    done = train_on(*TINY, "--resume", "--overwrite", "-o", "out")
    assert done.code == 2
    assert "contradict each other" in done.message
    assert not (tmp_path / "out").exists()


def test_a_resumed_run_keeps_its_options(train_on: Run) -> None:
    train_on(*TINY, "--epochs", 1, "-o", "out")
    done = train_on(*TINY, "--epochs", 2, "-o", "out", "--resume", "--batch-size", 32)
    assert done.code == 2
    assert "has batch_size 64, not 32" in done.message
    done = train_on(*TINY, "--epochs", 2, "-o", "out", "--resume", "--learning-rate", 0.0005)
    assert done.code == 0, done.err
    assert "learning_rate is 0.0005 from here on, it was 0.001" in done.message


def test_a_plan_keeps_its_sampler(run: Run, train_on: Run, tmp_path: Path) -> None:
    """From the plan through the run to its table; its exponent belongs to the run."""
    run("recommend", "--catalog", "2K", "--budget", "2GB", "--dim", 16, "--loss", "cce-", "--sampler", "popularity")
    small = ("--seq-len", 8, "--batch-size", 16, "--negatives", 20, "--split", "leave-one-out", "-o", "out")
    done = train_on("--plan", "srsplan.plan.yaml", *small, "--epochs", 1)
    assert done.code == 0, done.err
    assert "negatives by popularity" in done.message
    assert "popularity" in (tmp_path / "out" / "runs.csv").read_text()
    again = (*small, "--epochs", 2, "--resume")
    done = train_on("--plan", "srsplan.plan.yaml", *again, "--popularity-exponent", 1)
    assert done.code == 2
    assert "has popularity_exponent 0.75, not 1.0" in done.message
    assert train_on("--plan", "srsplan.plan.yaml", *again).code == 0
    done = train_on(
        "--plan",
        "srsplan.plan.yaml",
        "--loss",
        "cce",
        *small[:4],
        "--split",
        "leave-one-out",
        "--epochs",
        1,
        "-o",
        "full",
    )
    assert done.code == 0, done.err


def test_another_loss_than_the_plans(run: Run, train_on: Run) -> None:
    """A full softmax has no negatives to give back; one with the plan left aside says so."""
    run("recommend", "--catalog", "2K", "--budget", "2GB", "--dim", 16, "--loss", "cce-")
    small = ("--epochs", 1, "--seq-len", 8, "--batch-size", 16, "--split", "leave-one-out")
    done = train_on("--plan", "srsplan.plan.yaml", "--loss", "ce", *small, "-o", "planned")
    assert done.code == 0, done.err
    assert "ce: bs 16, sl 8, D 16" in done.message
    done = train_on(*TINY, "--epochs", 1, "-o", "out")
    assert "--loss without --plan: srsplan.plan.yaml is left aside" in done.message


SAMPLED = Configuration(
    loss="cce-", catalog=100, batch_size=8, seq_len=8, negatives=20, tokens_per_set=4, architecture=Architecture(dim=16)
)


@pytest.mark.parametrize(
    ("loss", "planned", "negatives", "tokens_per_set"),
    [
        ("cce", SAMPLED, None, 1),
        ("ce-", SAMPLED, 20, 1),
        ("bce", SAMPLED, 1, 1),
        ("cce-", SAMPLED, 20, 4),
        ("cce-", replace(SAMPLED, loss="ce-", tokens_per_set=1), 20, TOKENS_PER_SET),
    ],
)
def test_knobs_that_follow_from_the_loss(
    loss: str, planned: Configuration, negatives: int | None, tokens_per_set: int
) -> None:
    found = train_configuration.changed(planned, loss, {})
    assert (found.loss, found.negatives, found.tokens_per_set) == (loss, negatives, tokens_per_set)


def test_validation_on_a_part_and_an_early_end_are_told(train_on: Run) -> None:
    done = train_on(*TINY, "--epochs", 60, "--patience", 1, "--validation-users", 20, "-o", "out")
    assert "validation ranks 20 of its 60 users, drawn once; the test ranks all of them" in done.message
    assert "stopped early: 1 evaluation without a better NDCG@10" in done.message


def test_out_of_memory_in_the_test_is_no_traceback(train_on: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(*_: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(training, "evaluate", out_of_memory)
    done = train_on(*TINY, "--epochs", 1, "-o", "out")
    assert done.code == 4
    assert "the GPU ran out of memory" in done.message


@pytest.mark.parametrize(
    ("blocks", "phrase"), [(2, "predicted for chunked PyTorch, a full pass"), (9, "not predicted: blocks 9")]
)
def test_a_missing_prediction_does_not_end_a_good_run(blocks: int, phrase: str) -> None:
    configuration = replace(SAMPLED, architecture=Architecture(dim=16, blocks=blocks))
    settings = SimpleNamespace(evaluation_batch=8)
    order: Any = SimpleNamespace(settings=settings, configuration=configuration, folder=Path("runs"))
    memory = {"allocated_bytes": 1 << 30, "reserved_bytes": 2 << 30}
    document = {"memory": memory, "pass_tokens": configuration.tokens}
    said = " ".join(train_screens.memory_lines(order, "chunked PyTorch", document))
    assert phrase in said
    assert ("predicted at most; please report it" in said) == (blocks == 2)


@pytest.mark.parametrize(
    ("kernel", "phrase"),
    [
        ("fast", "unknown --kernel 'fast'"),
        ("triton", "--kernel triton: Triton kernels run on CUDA, not on cpu: the chunked form runs everywhere"),
    ],
)
def test_a_kernel_that_cannot_run_is_refused_before_anything_is_written(
    train_on: Run, tmp_path: Path, kernel: str, phrase: str
) -> None:
    done = train_on(*TINY, "--loss", "cce", "--kernel", kernel, "-o", "out")
    assert done.code == 2
    assert phrase in done.message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "option",
    ["epochs", "patience", "seq-len", "batch-size", "tokens-per-set", "validation-users", "min-item", "pass-tokens"],
)
def test_numbers_beyond_any_machine_are_refused(train_on: Run, tmp_path: Path, option: str) -> None:
    done = train_on(*TINY, f"--{option}", "9" * 400, "-o", "out")
    assert done.code == 2
    assert f"--{option}" in done.message
    assert not (tmp_path / "out").exists()
