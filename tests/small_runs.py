"""Trainings that take a second: users who walk through the items in order, and a model of a few thousand weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from srsplan.models.config import Architecture, Configuration
from srsplan.models.data.interactions import read_interactions
from srsplan.models.data.splits import split
from srsplan.models.training.checkpoint import read_state
from srsplan.models.training.loop import Trainer
from srsplan.models.training.settings import Settings
from srsplan.models.training.step import TrainingStep

CPU = torch.device("cpu")
TINY = Configuration(
    loss="cce", catalog=40, batch_size=16, seq_len=8, precision="fp32", architecture=Architecture(dim=16, blocks=1)
)
ONE = Settings(epochs=1)
SAMPLED = replace(TINY, loss="cce-", negatives=8, tokens_per_set=4)
"""A sampled loss, whose negatives have to be drawn again as they were."""


def walks(path: Path, seed: int = 0) -> Path:
    """60 users walk through 40 items in order, from starts that the seed draws; every item occurs."""
    draw = np.random.default_rng(seed)
    starts = [*range(40), *draw.integers(40, size=20)]
    rows = [f"u{user},i{(start + step) % 40},{step}" for user, start in enumerate(starts) for step in range(8)]
    path.write_text("\n".join(["user_id,item_id,timestamp", *rows]) + "\n")
    return path


def trainer(folder: Path, configuration: Configuration = TINY, settings: Settings = ONE, data: int = 0) -> Trainer:
    """A trainer in a folder, not run yet; `data` is the seed of the walks."""
    folder.mkdir(exist_ok=True)
    parts = split(read_interactions(walks(folder.parent / f"walks{data}.csv", data)), "leave-one-out")
    torch.manual_seed(settings.seed)
    step = TrainingStep(configuration, CPU, settings)
    return Trainer(step, parts, settings, folder)


def resume(trainer: Trainer) -> Trainer:
    """The trainer after its folder's checkpoint."""
    state = read_state(trainer.folder)
    assert state is not None
    trainer.resume(state)
    return trainer


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}
