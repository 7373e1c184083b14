"""`srsplan train` on plans: priced again, several ranks, how long it will take, and what it says of a poor result."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from command import Ended
from small_runs import walks

from srsplan.models.config import Architecture, Configuration
from srsplan.models.errors import InputError, NothingFits
from srsplan.models.training import pace
from srsplan.planner import pricing, smaller_run
from srsplan.planner.cli import train_runs
from srsplan.planner.cli.options import words_of
from srsplan.planner.cli.train_options import TrainOptions
from srsplan.planner.passes import with_pass
from srsplan.planner.train_configuration import parse_ranks
from srsplan.planner.workload import FromData
from srsplan.profiler.memory.model import MemoryModel

Run = Callable[..., Ended]
SMALL = ("--dim", 16, "--seq-len", 8, "--batch-size", 16, "--split", "leave-one-out")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return walks(tmp_path / "walks.csv")


@pytest.fixture
def planned(run: Run, data: Path) -> Path:
    """A plan for 40 items with three choices or more."""
    done = run("recommend", "--catalog", "2K", "--budget", "2GB", "--dim", 16, "--blocks", 1)
    assert done.code == 0, done.err
    return Path("srsplan.plan.yaml")


def edited(plan: Path, **changes: object) -> None:
    document = yaml.safe_load(plan.read_text())
    document["choices"][0].update(changes)
    plan.write_text(yaml.safe_dump(document))


FULL = Configuration(loss="ce", catalog=500_000, batch_size=512, seq_len=128, architecture=Architecture(dim=64))


def workload(users: int = 100_000, length: int = 200) -> FromData:
    lengths = torch.full((users,), length).numpy()
    return FromData(Path("data"), lengths, lengths)


def test_a_configuration_above_its_budget_is_refused_on_a_gpu() -> None:
    """With both figures, that of the memory model, and the largest pass that does fit."""
    needed = MemoryModel().predict(FULL, 64, 64 * 200).upper_bytes
    limits = pricing.Limits(budget_bytes=needed // 3, device_bytes=8 << 40)
    with pytest.raises(NothingFits, match=rf"takes up to {needed / 2**30:.2f} GiB, the plan's budget") as caught:
        pricing.check_memory(FULL, 64, workload(), limits)
    tokens = int(caught.value.hint.split()[1])
    cut = with_pass(FULL, tokens, workload())
    assert MemoryModel().predict(cut, 64, 64 * 200, needed // 3).upper_bytes <= needed // 3
    larger = with_pass(FULL, tokens * 17 // 16, workload())
    assert MemoryModel().predict(larger, 64, 64 * 200, needed // 3).upper_bytes > needed // 3
    assert pricing.check_memory(FULL, 64, workload(), replace(limits, budget_bytes=needed)) == ()


def test_a_smaller_card_and_a_cpu_are_warnings() -> None:
    small = pricing.Limits(budget_bytes=None, device_bytes=1 << 30)
    assert "and the GPU has 1.00 GiB" in pricing.check_memory(FULL, 64, workload(), small)[0]
    cpu = pricing.Limits(budget_bytes=1 << 30, device_bytes=None)
    assert "the plan's budget leaves 1.00 GiB" in pricing.check_memory(FULL, 64, workload(), cpu)[0]


def test_an_edited_plan_is_priced_again(run: Run, planned: Path, data: Path) -> None:
    """Sizes that the plan was not made for: figures before the training, whatever the file says of its memory."""
    document = yaml.safe_load(planned.read_text())
    document["budget"]["usable_bytes"] = 1 << 20
    planned.write_text(yaml.safe_dump(document))
    edited(planned, batch_size=1_000_000, seq_len=8)
    done = run("train", "--data", data, "--split", "leave-one-out", "--epochs", 1, "-o", "out")
    assert done.code == 0, done.err
    assert "batch_size 1,000,000 is more than the 60 training sequences: every epoch is a single step" in done.message
    assert "takes up to" in done.message
    assert "the plan's budget leaves 1.0 MiB" in done.message


def test_a_model_larger_than_the_machine_is_refused() -> None:
    wide = Architecture(dim=4096, heads=16)
    with pytest.raises(
        InputError, match=r"a model of 100,000,000 items, seq_len \d+, dim 4096 and 2 blocks takes 5\.96 TiB"
    ):
        pricing.check_model_fits(replace(FULL, catalog=10**8, architecture=wide), None)
    pricing.check_model_fits(FULL, 80 << 30)


def test_several_ranks_are_trained_and_compared(run: Run, planned: Path, data: Path, tmp_path: Path) -> None:
    done = run("train", "--data", data, *SMALL, "--rank", "1-2", "--epochs", 1, "-o", "all")
    assert done.code == 0, done.err
    assert "Ranks of the plan compared" in done.out
    metrics = [json.loads((tmp_path / "all" / f"rank-{rank}" / "metrics.json").read_text()) for rank in (1, 2)]
    for document in metrics:
        assert f"{document['test']['NDCG_10']:.4f}" in done.out.split("compared")[1]
    plan = yaml.safe_load(planned.read_text())
    assert [document["configuration"]["loss"] for document in metrics] == [
        choice["loss"] for choice in plan["choices"][:2]
    ]
    again = run("train", "--data", data, *SMALL, "--rank", "2-3", "--epochs", 1, "-o", "all", "--resume", "--json")
    assert again.code == 0, again.err
    assert [document["rank"] for document in again.json["runs"]] == [2, 3]


def test_no_rank_is_trained_where_one_is_wrong(run: Run, planned: Path, data: Path, tmp_path: Path) -> None:
    done = run("train", "--data", data, *SMALL, "--rank", "1,900", "--epochs", 1, "-o", "all")
    assert done.code == 2
    assert "--rank 900: the plan has no such choice" in done.message
    assert not (tmp_path / "all").exists()


@pytest.mark.parametrize(("text", "ranks"), [("1", (1,)), ("1-3", (1, 2, 3)), ("3,1", (3, 1)), (" 2 , 1-2", (2, 1))])
def test_ranks(text: str, ranks: tuple[int, ...]) -> None:
    assert parse_ranks(text) == ranks


@pytest.mark.parametrize("text", ["", "0", "-1", "3-1", "1-", "x", "1-10000000000000", "1,,2", "²", "9" * 5000])
def test_texts_that_are_no_ranks(text: str) -> None:
    with pytest.raises(InputError, match="--rank"):
        parse_ranks(text)


def test_a_result_below_popularity_is_said_in_plain_words(run: Run, tmp_path: Path) -> None:
    """Half of the users begin with the item that the other half ends with: a model of no steps does not know that."""
    rows = []
    for user in range(80):
        walk = [f"i{(7 * user + 3 * step) % 40}" for step in range(6)]
        walk = ["hit", *walk] if user % 2 else [*walk, "hit"]
        rows += [f"u{user},{item},{step}" for step, item in enumerate(walk)]
    (tmp_path / "same.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]) + "\n")
    few = ("--loss", "cce", *SMALL, "--learning-rate", 1e-9, "--epochs", 1, "-o", "out")
    done = run("train", "--data", "same.csv", *few)
    assert done.code == 0, done.err
    document = json.loads((tmp_path / "out" / "metrics.json").read_text())
    below = document["test"]["NDCG_10"] <= document["popularity"]["NDCG_10"]
    assert below == ("The model is not better than popularity" in done.out)
    assert below
    assert "--resume --epochs 4" in done.out


def test_the_time_is_said_first_and_a_long_run_comes_with_a_smaller_one(
    run: Run, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The printed command is complete: it runs as it is, and it is smaller."""
    monkeypatch.setattr(train_runs, "LONG_SECONDS", 0.0)
    monkeypatch.setattr(smaller_run, "SMALLER_SECONDS", 0.5)
    arguments = ("--loss", "cce", "--seq-len", 8, "--dim", 64, "--split", "leave-one-out", "--epochs", 3, "-o", "a b")
    done = run("train", "--data", data, *arguments)
    assert done.code == 0, done.err
    said = done.err.splitlines()
    assert said[1].startswith("on this CPU an epoch takes about ")
    assert said[2].startswith("a smaller run takes about ")
    words = shlex.split(said[3])
    assert words[:4] == ["srsplan", "train", "--data", str(data)]
    assert words[words.index("--output") + 1] == "a b-small"
    again = run(*words[1:])
    assert again.code == 0, again.err
    assert "everything is in a b-small" in again.out


def test_measuring_the_pace_changes_nothing(run: Run, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights and metrics are those of a run that was not measured."""
    arguments = ("train", "--data", data, "--loss", "cce", *SMALL, "--epochs", 1)
    assert run(*arguments, "-o", "measured").code == 0
    monkeypatch.setattr(train_runs, "_say_pace", lambda *_: None)
    assert run(*arguments, "-o", "plain").code == 0
    first, second = (Path(name, "best.safetensors").read_bytes() for name in ("measured", "plain"))
    assert first == second
    assert pace.MOST_STEPS > 1


def test_options_as_words() -> None:
    options = TrainOptions(
        data=Path("my data.csv"), output=Path("out"), recompute=False, keep_seen=True, learning_rate=0.5
    )
    assert words_of("train", options) == [
        "srsplan", "train", "--data", "my data.csv", "--output", "out", "--no-recompute", "--learning-rate", "0.5",
        "--keep-seen",
    ]  # fmt: skip


def configuration_of(folder: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(Path(folder, "config.json").read_text())["configuration"]
    return found


def test_a_plans_passes_are_those_that_are_trained(run: Run, planned: Path, data: Path) -> None:
    """Edited ones as well; what the command line says stands above both, and sequences follow from the data."""
    edited(planned, batch_size=16, seq_len=8, pass_tokens=24, pass_sequences=5)
    arguments = ("train", "--data", data, "--split", "leave-one-out", "--epochs", 1)
    done = run(*arguments, "-o", "out")
    assert done.code == 0, done.err
    assert "in passes of 24 tokens" in done.message
    found = configuration_of("out")
    assert (found["pass_tokens"], found["pass_sequences"]) == (24, 5)
    assert run(*arguments, "--pass-tokens", 16, "-o", "given").code == 0
    given = configuration_of("given")
    assert (given["pass_tokens"], given["pass_sequences"]) == (16, 12)  # 1.25 times those of 5 tokens, and 8


def test_without_a_plan_a_batch_is_one_pass_or_the_usual_one(run: Run, data: Path) -> None:
    few = ("train", "--data", data, "--loss", "cce", *SMALL, "--epochs", 1)
    assert run(*few, "-o", "whole").code == 0
    assert configuration_of("whole")["pass_tokens"] == 16 * 8
    assert run(*few, "--pass-tokens", 9, "--pass-sequences", 2, "-o", "cut").code == 0
    cut = configuration_of("cut")
    assert (cut["pass_tokens"], cut["pass_sequences"]) == (9, 2)


def test_the_step_is_the_same_however_it_is_cut(run: Run, data: Path) -> None:
    """Without dropout: the losses of epochs in one pass and in many agree to rounding."""
    few = ("train", "--data", data, "--loss", "cce", *SMALL, "--dropout", 0, "--epochs", 2)
    losses = []
    for name, passes in (("one", ()), ("many", ("--pass-tokens", 8))):
        assert run(*few, *passes, "-o", name).code == 0
        losses.append([json.loads(line)["loss"] for line in Path(name, "epochs.jsonl").read_text().splitlines()])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_another_kernel_than_the_plans_is_planned_again_and_said(run: Run, data: Path) -> None:
    """A plan for Triton, on a machine that has no GPU: the chunked form runs, in passes of its own."""
    asked = ("--catalog", "2K", "--budget", "2GB", "--dim", 16, "--blocks", 1, "--kernel", "triton", "--loss", "cce")
    assert run("recommend", *asked).code == 0
    edited(Path("srsplan.plan.yaml"), seq_len=8, pass_tokens=24, pass_sequences=5)
    done = run("train", "--data", data, "--split", "leave-one-out", "--epochs", 1, "-o", "out")
    assert done.code == 0, done.err
    assert "the plan's kernel does not run here: Triton kernels run on CUDA, not on cpu" in done.message
    assert "the plan is for another kernel: planned again for chunked PyTorch, a pass has" in done.message
    assert "instead of 24" in done.message
    found = configuration_of("out")
    assert (found["kernel"], found["pass_tokens"] != 24) == ("chunked", True)
    refused = run("train", "--data", data, "--split", "leave-one-out", "--kernel", "triton", "-o", "refused")
    assert refused.code == 2
    assert "Triton kernels run on CUDA" in refused.message


def test_a_kernel_of_another_loss_is_refused(run: Run, data: Path) -> None:
    done = run("train", "--data", data, "--loss", "ce", *SMALL, "--kernel", "chunked", "--epochs", 1, "-o", "out")
    assert done.code == 2
    assert "ce has no chunked form" in done.message
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("given", "phrase"),
    [
        (("--micro-batches", 2), "--micro-batches is no option any more"),
        (("--pass-tokens", 7), "pass_tokens 7 is smaller than one sequence of seq_len 8"),
        (("--pass-tokens", 0), "pass_tokens 0"),
        (("--pass-sequences", -1), "pass_sequences -1"),
    ],
)
def test_impossible_passes_are_one_clear_message(run: Run, data: Path, given: tuple[object, ...], phrase: str) -> None:
    done = run("train", "--data", data, "--loss", "cce", *SMALL, *given, "--epochs", 1, "-o", "out")
    assert done.code == 2
    assert phrase in done.message
    assert "try:" in done.err
    assert not Path("out").exists()
