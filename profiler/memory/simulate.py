"""The training step and the evaluation batch on meta tensors: what a GPU would allocate, found without one."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from srsplan.kernels import chunking
from srsplan.kernels.attention import Packing
from srsplan.models.config import Configuration
from srsplan.models.registry import build_model
from srsplan.models.sequence_model import PackedItems
from srsplan.models.training.averaging import WeightAverage
from srsplan.models.training.ranking import Seen, rank
from srsplan.models.training.step import DTYPES, StepInputs, StepSettings, TrainingStep
from srsplan.profiler.memory.expressions import evaluation_tokens
from srsplan.profiler.memory.ledger import Ledger, Trace
from srsplan.profiler.memory.simulated_cuda import SimulatedCuda, fused_optimizers_on_meta

META = torch.device("meta")
BEST_ITEMS = 100
"""Items that evaluation ranks: the largest k of the metrics."""


@dataclass(frozen=True, kw_only=True)
class EvaluationSizes:
    """An evaluation batch."""

    users: int
    """Users ranked at once."""
    seen_pairs: int
    """(user, item) pairs that they have seen and are not recommended again; 0 where nothing is filtered."""


@dataclass(frozen=True)
class Simulated:
    """A trace and where its steady part begins: the second step, when Adam's moments exist."""

    trace: Trace
    first_event: int

    @property
    def allocated_bytes(self) -> int:
        """The allocated peak of the steady part."""
        return self.trace.peak(self.first_event).allocated_bytes

    @property
    def sizes(self) -> list[int]:
        """The bytes requested by every allocation."""
        return [allocation.requested_bytes for allocation in self.trace.allocations]


def with_evaluation(training: Simulated, evaluation: Simulated, before_pass: int) -> tuple[list[int], list[int]]:
    """Put an evaluation into a training, as `train` does: the sizes and events of both together.

    `before_pass`: before which pass, counted from 0 through all steps.
    """
    trace, offset = evaluation.trace, len(training.trace.allocations)
    events = trace.events[trace.start_of("batch") : trace.start_of("idle")]
    born = [event for event in events if event >= 0]
    ended = {~event for event in events if event < 0}
    body = [event + offset if event >= 0 else ~(~event + offset) for event in events]
    body += [~(event + offset) for event in born if event not in ended]
    at = training.trace.start_of("forward", before_pass)
    return [*training.sizes, *evaluation.sizes], [*training.trace.events[:at], *body, *training.trace.events[at:]]


def simulate_step(
    configuration: Configuration,
    steps: int = 2,
    passes: int | None = None,
    settings: StepSettings | None = None,
) -> Simulated:
    """Trace training steps of the fullest batch; those from the second on count. Takes some 0.1 s.

    A step has so many `passes`, each the fullest there can be; two stand for several where nothing is said. Of the
    `settings` the clipping of gradients takes memory, temporaries of the optimizer's phase.
    """
    ledger, cuda = Ledger(), SimulatedCuda(DTYPES[configuration.precision])
    count = passes or 1 + configuration.several_passes
    with fused_optimizers_on_meta(), ledger:
        step = TrainingStep(configuration, META, settings or StepSettings(), autocast=cuda.autocast)
        if configuration.recompute:
            step.model.recompute = cuda.recompute
        ledger.phase("batch")
        targets = _numbers(configuration.batch_targets) if configuration.draws_from_batch else None
        kept = _pass(configuration)
        with cuda:
            for _ in range(steps):
                each = (kept if count == 1 else _pass(configuration) for _ in range(count))
                step.run_passes(each, count * configuration.targets, targets, ledger.phase)
    return Simulated(ledger.trace, ledger.trace.start_of("forward", count))


def simulate_evaluation(configuration: Configuration, sizes: EvaluationSizes) -> Simulated:
    """Trace one evaluation batch beside the model and Adam's moments, as `train` runs it.

    The model runs in the configuration's precision; scores are fp32 and their keys int64 (models/training/ranking.py).
    """
    ledger, cuda = Ledger(), SimulatedCuda(DTYPES[configuration.precision])
    with fused_optimizers_on_meta(), ledger, torch.no_grad():
        with META:
            model = build_model(configuration).eval()
        average = None if configuration.ema is None else WeightAverage(model, configuration.ema)
        ledger.phase("optimizer")
        moments = [torch.empty_like(weight) for weight in model.parameters() for _ in range(2)]
        ledger.phase("batch")
        seen = _seen(configuration.catalog, sizes)
        histories = _packed(evaluation_tokens(configuration, sizes.users), sizes.users, configuration.seq_len)
        with cuda:
            ledger.phase("evaluation")
            rank(
                model if average is None else average.model,
                histories,
                seen,
                min(BEST_ITEMS, configuration.catalog),
                cuda.autocast,
            )
            ledger.phase("idle")
        del moments
    return Simulated(ledger.trace, ledger.trace.start_of("evaluation"))


def _pass(configuration: Configuration) -> StepInputs:
    """Return the fullest pass: its tensors come in the order of models/training/inputs.py."""
    sequences = _packed(configuration.tokens, configuration.sequences, configuration.seq_len)
    if configuration.kind.masked:
        sequences = replace(sequences, wanted=_numbers(configuration.targets))
    return StepInputs(sequences, _numbers(configuration.targets))


def _packed(tokens: int, sequences: int, seq_len: int) -> PackedItems:
    items, positions = _numbers(tokens), _numbers(tokens)
    bounds = torch.empty(sequences + 1, dtype=torch.int32, device=META)
    return PackedItems(items, positions, Packing(bounds, min(seq_len, tokens)))


def _numbers(count: int) -> torch.Tensor:
    return torch.empty(count, dtype=torch.long, device=META)


def _seen(catalog: int, sizes: EvaluationSizes) -> Seen:
    """Return the worst case, in which everything that the batch has seen falls into the first chunk of items."""
    chunk_items = chunking.ranking_chunk_items(sizes.users, catalog)
    rows, items = (torch.empty(sizes.seen_pairs, dtype=torch.long, device=META) for _ in range(2))
    return Seen(rows, items, (0, *[sizes.seen_pairs] * -(-catalog // chunk_items)), chunk_items)
