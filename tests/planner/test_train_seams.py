"""What a plan and the command line say about training is what happens: seen from outside, by an independent count."""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from command import Ended
from numpy.typing import NDArray
from safetensors.torch import load_file
from small_runs import walks

from srsplan.kernels.attention import Packing
from srsplan.kernels.samplers.alias_table import popularity
from srsplan.models.data.batches import Packed
from srsplan.models.data.interactions import read_interactions
from srsplan.models.data.splits import Holdout, split
from srsplan.models.sasrec import Block, SASRec
from srsplan.models.sequence_model import PackedItems
from srsplan.models.training.epoch_sums import EpochMeans
from srsplan.models.training.inputs import packed_items
from srsplan.models.training.loop import Trainer
from srsplan.models.training.step import StepInputs, TrainingStep

Run = Callable[..., Ended]
SIZES = ("--dim", 16, "--blocks", 1, "--seq-len", 8, "--batch-size", 16, "--split", "leave-one-out", "-o", "out")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return walks(tmp_path / "walks.csv")


@pytest.fixture
def train(run: Run, data: Path) -> Run:
    return lambda *arguments: run("train", "--data", data, *SIZES, *arguments)


def ndcg(weights: dict[str, torch.Tensor], holdout: Holdout, ks: int = 10) -> float:
    """NDCG@10 of a model with these weights, user by user."""
    from srsplan.models.config import Architecture

    model = SASRec(40, 8, Architecture(dim=16, blocks=1))
    model.load_state_dict(weights)
    model.eval()
    gains = []
    for user, target in enumerate(holdout.targets):
        bounds = holdout.histories.offsets[user : user + 2]
        items = holdout.histories.values[bounds[0] : bounds[1]].astype(np.int64)
        last = Packed(items[-8:], np.array([0, len(items[-8:])]))
        with torch.no_grad():
            scores = model.item_table @ model(packed_items(last, torch.device("cpu")))[-1]
        scores[torch.from_numpy(items) - 1] = -torch.inf
        place = int((scores > scores[int(target) - 1]).sum())
        gains.append(1 / np.log2(place + 2) if place < ks else 0.0)
    return float(np.mean(gains))


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "epochs.jsonl").read_text().splitlines()]


def test_early_stopping_judges_validation_users(train: Run, data: Path, tmp_path: Path) -> None:
    """The logged metric is that of the saved weights on validation targets, and not on test targets."""
    assert train("--loss", "cce", "--epochs", 3, "--learning-rate", 0.01).code == 0
    saved = load_file(tmp_path / "out" / "weights-3.safetensors")
    weights = {name.removeprefix("model."): part for name, part in saved.items() if name.startswith("model.")}
    parts = split(read_interactions(data), "leave-one-out")
    logged = lines(tmp_path / "out")[-1]["NDCG_10"]
    assert logged == pytest.approx(ndcg(weights, parts.validation))
    assert logged != pytest.approx(ndcg(weights, parts.test), abs=1e-4)


def test_the_best_weights_are_tested_not_the_last(train: Run, data: Path, tmp_path: Path) -> None:
    """A learning rate that overshoots: the last epochs are worse than the best."""
    done = train("--loss", "cce", "--epochs", 12, "--patience", 3, "--learning-rate", 0.1, "--json")
    assert done.code == 0, done.err
    document = done.json
    assert document["best_epoch"] < document["epochs"]
    assert document["stopped_early"] == (document["epochs"] < 12)
    parts = split(read_interactions(data), "leave-one-out")
    best = load_file(tmp_path / "out" / "best.safetensors")
    (path,) = (tmp_path / "out").glob("weights-*.safetensors")
    last = {name.removeprefix("model."): part for name, part in load_file(path).items() if name.startswith("model.")}
    assert document["test"]["NDCG_10"] == pytest.approx(ndcg(best, parts.test))
    assert document["test"]["NDCG_10"] != pytest.approx(ndcg(last, parts.test), abs=1e-4)


def test_every_epoch_is_shuffled_anew(train: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three epochs hold the same sequences in three orders."""
    seen, passes = list[NDArray[np.int64]](), TrainingStep.run_passes
    inside = Trainer._train_epoch

    def listening(self: TrainingStep, inputs: Any, targets: int, *rest: Any, **options: Any) -> torch.Tensor:
        batches = list(inputs)
        seen.extend(batch.targets.numpy() for batch in batches)
        return passes(self, batches, targets, *rest, **options)

    def epoch(self: Trainer, callbacks: Any) -> EpochMeans:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(TrainingStep, "run_passes", listening)
            return inside(self, callbacks)

    monkeypatch.setattr(Trainer, "_train_epoch", epoch)
    assert train("--loss", "cce", "--epochs", 3).code == 0
    size = len(seen) // 3
    epochs = [np.concatenate(seen[at : at + size]).tolist() for at in range(0, 3 * size, size)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def planned(run: Run, **changes: object) -> None:
    """A plan of recommend with other values in its first choice or its inputs."""
    assert run("recommend", "--catalog", "2K", "--budget", "2GB", "--dim", 16, "--blocks", 1, "--loss", "ce").code == 0
    path = Path("srsplan.plan.yaml")
    plan = yaml.safe_load(path.read_text())
    for name, value in changes.items():
        place = plan["inputs"] if name in plan["inputs"] else plan["choices"][0]
        place[name] = value
    path.write_text(yaml.safe_dump(plan))


def test_a_plans_evaluation_batch_is_used(run: Run, train: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """No forward pass of an evaluation holds more users than the plan says, and the fullest holds as many."""
    planned(run, eval_batch_size=7)
    sizes, forward = set(), SASRec.forward

    def listening(self: SASRec, sequences: PackedItems) -> torch.Tensor:
        if not self.training:
            sizes.add(len(sequences.packing.cu_seqlens) - 1)
        return forward(self, sequences)

    monkeypatch.setattr(SASRec, "forward", listening)
    assert train("--plan", "srsplan.plan.yaml", "--epochs", 1).code == 0
    assert max(sizes) == 7


PRICES = [(True, [], 2), (False, [], 1), (True, ["--no-recompute"], 1)]


@pytest.mark.parametrize(("recompute", "flags", "times"), PRICES)
def test_a_plans_recomputation_is_done(
    run: Run, train: Run, monkeypatch: pytest.MonkeyPatch, recompute: bool, flags: list[str], times: int
) -> None:
    """A block runs forward twice for every training batch where it is recomputed, once where it is not."""
    planned(run, recompute=recompute)
    calls, forward, loss = Counter[str](), Block.forward, TrainingStep._mean_loss

    def block(self: Block, x: torch.Tensor, packing: Packing) -> torch.Tensor:
        calls["block"] += self.training
        return forward(self, x, packing)

    def batch(self: TrainingStep, batch: StepInputs, *rest: Any, **options: Any) -> torch.Tensor:
        calls["batch"] += 1
        return loss(self, batch, *rest, **options)

    monkeypatch.setattr(Block, "forward", block)
    monkeypatch.setattr(TrainingStep, "_mean_loss", batch)
    assert train("--plan", "srsplan.plan.yaml", "--epochs", 1, *flags).code == 0
    assert calls["block"] == times * calls["batch"] > 0


@pytest.mark.parametrize(
    ("before", "words"),
    [
        (None, {"expandable_segments:True"}),
        ("max_split_size_mb:64", {"max_split_size_mb:64", "expandable_segments:True"}),
        ("expandable_segments:False", {"expandable_segments:False"}),
    ],
)
def test_expandable_segments_are_on_before_training(
    train: Run, monkeypatch: pytest.MonkeyPatch, before: str | None, words: set[str]
) -> None:
    """Every plan assumes them; whatever else the user has set stays, and so does a choice against them."""
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", before or "")
    if before is None:
        monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF")
    assert train("--loss", "cce", "--epochs", 1).code == 0
    assert set(os.environ["PYTORCH_CUDA_ALLOC_CONF"].split(",")) == words


@pytest.mark.parametrize("exponent", [None, 0.0, 2.0])
def test_popularity_is_counted_in_train_and_raised_to_the_exponent(
    train: Run, data: Path, monkeypatch: pytest.MonkeyPatch, exponent: float | None
) -> None:
    """The sampler's shares are those of a count of the file itself, without each user's last two items."""
    found = list[torch.Tensor]()

    def listening(counts: NDArray[np.integer], power: float) -> Any:
        found.append(torch.from_numpy(counts.astype(float) ** power))
        return popularity(counts, power)

    monkeypatch.setattr("srsplan.models.training.step.popularity", listening)
    given = () if exponent is None else ("--popularity-exponent", exponent)
    assert train("--loss", "cce-", "--negatives", 8, "--sampler", "popularity", "--epochs", 1, *given).code == 0
    users: dict[str, list[str]] = {}
    for row in csv.DictReader(data.read_text().splitlines()):
        users.setdefault(row["user_id"], []).append(row["item_id"])
    counts = Counter(item for items in users.values() for item in items[:-2])
    labels = sorted({item for items in users.values() for item in items})
    expected = [counts[label] ** (0.75 if exponent is None else exponent) for label in labels]
    assert found
    for shares in found:
        assert shares.tolist() == pytest.approx(expected)


def test_keep_seen_reaches_validation_and_test(train: Run, tmp_path: Path) -> None:
    kept = train("--loss", "cce", "--epochs", 2, "--json", "--keep-seen")
    left = train("--loss", "cce", "--epochs", 2, "--json", "--overwrite")
    assert (kept.json["seen_items_filtered"], left.json["seen_items_filtered"]) == (False, True)
    assert kept.json["validation_ndcg_10"] < left.json["validation_ndcg_10"]
    assert kept.json["test"]["NDCG_20"] < left.json["test"]["NDCG_20"]
    done = train("--loss", "cce", "--epochs", 3, "--resume", "--keep-seen")
    assert done.code == 2
    assert "has keep_seen False, not True" in done.message


def test_a_moving_average_is_priced_planned_and_trained(run: Run, train: Run, tmp_path: Path) -> None:
    """It is one more copy of the weights in an estimate and in a plan, and the training of that plan keeps one."""
    asked = ("estimate", "--loss", "cce", "--catalog", "1M", "--batch-size", 64, "--seq-len", 50, "--dim", 64, "--json")
    plain, averaged = (run(*asked, *more).json for more in ((), ("--ema", 0.999)))
    more = averaged["memory"]["allocated_bytes"] - plain["memory"]["allocated_bytes"]
    assert more == averaged["breakdown_bytes"]["average"]
    assert 4 * 64 * 1_000_000 < more < 4 * 64 * 1_001_000
    assert averaged["fixed_floor_bytes"] == 5 * 4 * 64 * 1_000_000
    options = ("--dim", 16, "--blocks", 1, "--loss", "ce", "--ema", 0.9)
    assert run("recommend", "--catalog", "2K", "--budget", "2GB", *options).code == 0
    assert train("--plan", "srsplan.plan.yaml", "--epochs", 1).code == 0
    assert any(name.startswith("average.") for name in load_file(tmp_path / "out" / "weights-1.safetensors"))
