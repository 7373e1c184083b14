"""Every model goes the same way: trained, resumed to the bit, loaded, ranked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import CPU, TINY, resume, trainer, walks

import srsplan.models
from srsplan.models.data.options import DataOptions, Minimums
from srsplan.models.kinds import MODEL_KINDS
from srsplan.models.training.callbacks import NoCallbacks
from srsplan.models.training.run import Order, finish, fitted, opened, read_data
from srsplan.models.training.settings import Settings


@pytest.mark.parametrize("model", MODEL_KINDS)
def test_a_resumed_run_is_the_uninterrupted_one(model: str, tmp_path: Path) -> None:
    configuration = replace(TINY, model=model, architecture=replace(TINY.architecture, dropout=0.2))
    whole = trainer(tmp_path / "whole", configuration, Settings(epochs=3))
    whole.run(NoCallbacks())
    trainer(tmp_path / "parts", configuration, Settings(epochs=1)).run(NoCallbacks())
    parts = resume(trainer(tmp_path / "parts", configuration, Settings(epochs=3)))
    parts.run(NoCallbacks())
    ours, theirs = whole.step.model.state_dict(), parts.step.model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("model", MODEL_KINDS)
def test_a_loaded_run_recommends_what_it_has_learned(model: str, tmp_path: Path) -> None:
    """Users walk through the items in order: the next one comes next."""
    masked = MODEL_KINDS[model].masked
    order = Order(
        configuration=replace(TINY, model=model, mask_share=0.5 if masked else None),
        settings=Settings(epochs=60 if masked else 25, learning_rate=0.01, patience=60, evaluate_every=5),
        data=DataOptions(path=walks(tmp_path / "walks.csv"), strategy="leave-one-out"), minimums=Minimums(),
        folder=tmp_path / "out", device=CPU,
    )  # fmt: skip
    data = read_data(order)
    with opened(fitted(order, data), data) as prepared:
        document = finish(prepared, NoCallbacks())
    assert document["test"]["HitRate_5"] > 0.6 > 2.5 * document["popularity"]["HitRate_5"]
    run = srsplan.models.load_run(tmp_path / "out")
    assert run.configuration.model == model
    histories = [[f"i{(start + step) % 40}" for step in range(7)] for start in (3, 20, 36)]
    best = run.rank(histories, k=5)
    test = data.split.test
    seen = [run.item_ids[part - 1].tolist() for part in np.split(test.histories.values, test.histories.offsets[1:-1])]
    hits = [target in found for target, found in zip(run.item_ids[test.targets - 1], run.rank(seen, k=5), strict=True)]
    assert document["test"]["HitRate_5"] == pytest.approx(np.mean(hits)), "ranked in training as it is when loaded"
    assert sum(f"i{(start + 7) % 40}" in found for start, found in zip((3, 20, 36), best, strict=True)) >= 2
