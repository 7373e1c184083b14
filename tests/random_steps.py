"""Configurations as users have them, drawn at random over the ranges that the closed form is made for."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from srsplan.kernels.losses import LOSSES
from srsplan.models.config import Architecture, Configuration, Precision
from srsplan.models.kinds import DEFAULT_MODEL, MODEL_KINDS


def random_steps(
    loss: str,
    precision: Precision,
    blocks: int,
    count: int,
    seed: int = 0,
    options: bool = False,
    models: Sequence[str] = (DEFAULT_MODEL,),
) -> list[Configuration]:
    """Sizes are log-uniform; with `options` there are several passes, recomputation and samplers as well.

    Models take turns.
    """
    draw = random.Random(seed)

    def size(low: int, high: int) -> int:
        return round(low * math.exp(draw.random() * math.log(high / low)))

    def one(model: str) -> Configuration:
        catalog = size(1_000, 10_000_000)
        batch, length = size(4, 8192), size(4, 1024)
        tokens, sequences = max(length, batch * length * size(20, 1000) // 1000), min(batch, size(1, 8192))
        whole = not options or draw.random() < 0.3
        recompute = options and draw.random() < 0.5
        limit = LOSSES[loss]
        negatives = min(size(16, 4096), catalog - 1) if limit.sampled else None
        return Configuration(
            loss=loss, catalog=catalog, batch_size=batch, seq_len=length,
            negatives=draw.choice((limit.usual_negatives, negatives)) if limit.usual_negatives else negatives,
            tokens_per_set=draw.choice((1, 16, 32, 64, 128)) if limit.shares_negatives else 1,
            sampler=draw.choice(limit.samplers) if options else "uniform",
            pass_tokens=None if whole else tokens, pass_sequences=None if whole else sequences,
            architecture=Architecture(dim=2 ** draw.randint(5, 9), heads=draw.choice((2, 4)), blocks=blocks),
            precision=precision, recompute=recompute,
            model=model, mask_share=draw.choice((0.1, 0.2, 0.37, 0.6, 1.0)) if MODEL_KINDS[model].masked else None,
        )  # fmt: skip

    return [one(models[number % len(models)]) for number in range(count)]
