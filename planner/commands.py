"""The commands that srsplan prints to be copied: each parses back, in a shell, to the words it was made of."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from srsplan.models.config import Configuration
from srsplan.models.kinds import DEFAULT_MODEL

if TYPE_CHECKING:
    from srsplan.planner.plan.document import Plan

PLACEHOLDER = "INTERACTIONS"
"""Word that stands for the user's file where none was given."""


def train_from_plan(plan: Plan, path: Path) -> str:
    """Return the command that trains the first choice of a plan that lies at `path`."""
    return shlex.join(["srsplan", "train", "--plan", str(path), *_data(plan)])


def train_without_plan(plan: Plan) -> str:
    """Return the command that trains the first choice, with everything the plan says as options."""
    configuration = plan.configuration()
    sizes = configuration.architecture
    parts = [
        "srsplan", "train", *_data(plan), *_model(configuration), "--loss", configuration.loss,
        "--batch-size", str(configuration.batch_size), "--seq-len", str(configuration.seq_len),
        "--dim", str(sizes.dim), "--blocks", str(sizes.blocks), "--heads", str(sizes.heads),
        "--precision", configuration.precision,
    ]  # fmt: skip
    if configuration.negatives is not None:
        parts += ["--negatives", str(configuration.negatives)]
    if configuration.tokens_per_set != 1:
        parts += ["--tokens-per-set", str(configuration.tokens_per_set)]
    if configuration.sampler != "uniform":
        parts += ["--sampler", configuration.sampler]
    choice = plan.choice()
    parts += ["--pass-tokens", str(choice.pass_tokens), "--pass-sequences", str(choice.pass_sequences)]
    if configuration.kernel != "chunked":
        parts += ["--kernel", configuration.kernel]
    if configuration.ema is not None:
        parts += ["--ema", str(configuration.ema)]
    return shlex.join([*parts, *["--recompute"] * configuration.recompute])


def _model(configuration: Configuration) -> list[str]:
    if configuration.model == DEFAULT_MODEL:
        return []
    share = configuration.mask_share
    return ["--model", configuration.model, *([] if share is None else ["--mask-share", str(share)])]


def _data(plan: Plan) -> list[str]:
    return plan.inputs.data_options or ["--data", PLACEHOLDER]
