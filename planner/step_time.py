"""The time of a training step: arithmetic and traffic counted, against what the card can do.

    step = matrix products / (efficiency x tensor throughput) + bytes moved / (efficiency x bandwidth) + launches

The counts follow the training step of the mean batch in its passes (shape letters: V items, D hidden size, M tokens
of a pass, n negatives of a set). Several passes cost launches and smaller chunks, those of eager losses the table's
gradient once more each; the optimizer steps once. The three constants are fitted, non-negative least squares of
relative error, to the 24 eager steps measured on one H200 (torch 2.11) by examples/calibrate_step_time.py; other cards
are transferred by their bandwidth and throughput. It orders configurations and gives the magnitude; it is no
measurement, and `BASIS` says so.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from srsplan.kernels import chunking
from srsplan.kernels.losses import LOSSES
from srsplan.models.config import Configuration
from srsplan.profiler.probes.catalogue import Gpu

BASIS = "calculated; on 24 steps measured on an H200, each held out in turn, the median error is 8%, the worst 34%"
"""Sentence on how far a calculated step time is to be trusted, for people."""


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """Counts of what the GPU does in a training step."""

    product_flops: float
    """Floating-point operations of matrix products."""
    moved_bytes: float
    """Bytes read and written by everything else."""
    launches: float
    """Kernels started."""


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Constants of a step's time: the shares of the card's peaks that are reached, and the cost of a launch.

    The defaults are fitted to the 24 measured steps.
    """

    product_efficiency: float = 0.578
    bandwidth_efficiency: float = 0.651
    launch_us: float = 29.4

    def slower(self, factor: float) -> Rates:
        """Return rates with which every term takes `factor` times as long."""
        return Rates(
            product_efficiency=self.product_efficiency / factor,
            bandwidth_efficiency=self.bandwidth_efficiency / factor,
            launch_us=self.launch_us * factor,
        )


ASSUMED = Rates()
"""The rates where no profile was measured."""


@dataclass(frozen=True, kw_only=True)
class MeanPass:
    """A pass of the mean batch: what a step's time is counted for."""

    count: int
    """Passes of the batch."""
    tokens: int
    """Tokens M of each."""
    length: float
    """Tokens of a sequence."""


def mean_pass(configuration: Configuration, mean_tokens: float | None = None) -> MeanPass:
    """Return the passes of a batch whose sequences have `mean_tokens` tokens on average; all are full without it.

    A batch is cut between sequences: a pass has as many whole ones as its tokens hold on average.
    """
    length = float(configuration.seq_len) if mean_tokens is None else mean_tokens
    held = max(1, int(configuration.tokens / length * (1 + 1e-9)))
    count = -(-configuration.batch_size // min(held, configuration.sequences))
    return MeanPass(count=count, tokens=max(1, round(configuration.batch_size * length / count)), length=length)


def step_cost(
    configuration: Configuration,
    mean_tokens: float | None = None,
    *,
    feed_forward: int | None = None,
    foreach: bool = False,
) -> StepCost:
    """Count what a step of the mean batch does, of sequences of `mean_tokens` tokens on average.

    `feed_forward` is that of a block in units of 2 D^2, the model's own without it; `foreach` says that Adam runs
    without its fused kernel. Both are for calibrating on other models.
    """
    each = mean_pass(configuration, mean_tokens)
    network = configuration.kind.feed_forward if feed_forward is None else feed_forward
    body, loss = _body_cost(configuration, each, network), _loss_cost(configuration, _predicted(configuration, each))
    table = configuration.table_bytes
    # gradient written, zeroed or added to once more; Adam reads 4 tables and writes 3, foreach with temporaries
    updates = table * (2 + (14 if foreach else 7))
    # every later pass of an eager loss fills a table of its own, writes it, and adds it to what there is; chunked
    # losses add where it lies, which their chunks are counted for
    added = 0 if LOSSES[configuration.loss].chunked else (each.count - 1) * table * 5
    return StepCost(
        product_flops=each.count * (body.product_flops + loss.product_flops),
        moved_bytes=each.count * (body.moved_bytes + loss.moved_bytes) + updates + added,
        launches=each.count * (body.launches + loss.launches),
    )


def _predicted(configuration: Configuration, each: MeanPass) -> MeanPass:
    """Return a pass of which the targets alone are counted: what the loss sees."""
    share = configuration.mask_share
    return each if share is None else replace(each, tokens=max(1, round(share * each.tokens)))


def _body_cost(configuration: Configuration, each: MeanPass, feed_forward: int) -> StepCost:
    """Count the model up to its last hidden states, forward and backward."""
    sizes, element = configuration.architecture, _element_bytes(configuration)
    # per block and token: joined projections 3 D^2, output D^2, feed-forward 2 f D^2; forward and twice that backward
    weights = (4 + 2 * feed_forward) * sizes.dim**2
    attention = 2 * each.length * sizes.dim
    runs = 4 if configuration.recompute else 3
    # fp32 residual stream, norms and dropouts, 16-bit projections: read or written about so often per token and block
    per_block = 14 * 4 + (16 + 6 * feed_forward) * element
    return StepCost(
        product_flops=runs * each.tokens * sizes.blocks * (2 * weights + 2 * attention),
        moved_bytes=runs / 3 * each.tokens * sizes.dim * (sizes.blocks * per_block + 12 * 4),
        launches=60 + 20 * runs * sizes.blocks,
    )


def _loss_cost(configuration: Configuration, each: MeanPass) -> StepCost:
    """Count the loss of a pass and its gradients."""
    loss, tokens = LOSSES[configuration.loss], each.tokens
    if not loss.sampled:
        return _full_softmax_cost(configuration, tokens, loss.chunked)
    if loss.chunked:
        return _shared_negatives_cost(configuration, each)
    if loss.bucketed:
        return _bucketed_cost(configuration, tokens)
    return _own_negatives_cost(configuration, tokens)


def _full_softmax_cost(configuration: Configuration, tokens: int, chunked: bool) -> StepCost:
    """Count three products [M, D] x [D, V]: the scores and both gradients."""
    dim, catalog = configuration.architecture.dim, configuration.catalog
    element = _element_bytes(configuration)
    flops, copies = 6.0 * tokens * catalog * dim, catalog * dim * (4 + element)
    if not chunked:
        # logits, log-softmax, its fp32 copy, and the gradient of each: written and read
        traffic = tokens * catalog * (8 * element + 4 * 4)
        return StepCost(product_flops=flops, moved_bytes=traffic + copies, launches=20)
    chunks = -(-tokens // chunking.softmax_chunk_tokens(tokens, catalog))
    blocks = -(-catalog // chunking.ITEM_ROWS)
    traffic = tokens * catalog * 6 * element + chunks * catalog * dim * (2 * 4 + 4 * element)
    return StepCost(product_flops=flops, moved_bytes=traffic + copies, launches=20 + chunks * (20 + 4 * blocks))


def _shared_negatives_cost(configuration: Configuration, each: MeanPass) -> StepCost:
    """Count three products [g, D] x [D, n] of every set: the scores and both gradients.

    Sets are those of the batch: one that two passes share is computed in both.
    """
    dim, group = configuration.architecture.dim, configuration.tokens_per_set
    negatives, element = configuration.drawn_negatives or 0, _element_bytes(configuration)
    windows = chunking.Windows.of(each.count * each.tokens, group)
    sets = len(windows.sets(each.tokens if each.count > 1 else 0, each.tokens))
    chunks = -(-sets // chunking.sampled_chunk_sets(each.tokens, negatives, dim, group))
    # gather and its copy, its gradient in 16 bit, in fp32, scaled, added; logits and shares
    rows = sets * negatives * dim * (4 + 4 + 4 + 3 * element + element + 5 * 4)
    scores = sets * group * negatives * (3 * element + 10 * 4)
    flops = 6.0 * sets * group * negatives * dim
    return StepCost(product_flops=flops, moved_bytes=rows + scores, launches=chunks * 45)


def _own_negatives_cost(configuration: Configuration, tokens: int) -> StepCost:
    """Count the gathered rows alone: a row is used once, so that its products take no longer than reading it."""
    dim, element = configuration.architecture.dim, _element_bytes(configuration)
    # gather, its copy, both read by the products, the gradient in 16 bit and fp32, sorted and added
    rows = tokens * ((configuration.drawn_negatives or 0) + 1) * dim * (4 + 4 + 4 + 5 * element + 4 + 3 * 4)
    return StepCost(product_flops=0.0, moved_bytes=float(rows), launches=60)


def _bucketed_cost(configuration: Configuration, tokens: int) -> StepCost:
    """Count the scores of centres, forward only, and three products [b, D] x [D, n] of every bucket of b tokens."""
    dim, element = configuration.architecture.dim, _element_bytes(configuration)
    buckets, negatives = chunking.buckets(tokens), configuration.negatives or 0
    scored, held = buckets * (configuration.catalog + tokens), buckets * buckets
    # scores written, and read by every pass of the choice of the largest
    chosen = scored * 4 * 5
    rows = (held + buckets * negatives) * dim * (3 * 4 + 5 * element)
    logits = held * (negatives + 1) * (3 * element + 12 * 4)
    flops = 2.0 * scored * dim + 6.0 * held * negatives * dim + 6.0 * tokens * dim
    return StepCost(product_flops=flops, moved_bytes=float(chosen + rows + logits), launches=120)


def _element_bytes(configuration: Configuration) -> int:
    """Return the bytes of a number in matrix products."""
    return 4 if configuration.precision == "fp32" else 2


def step_ms(configuration: Configuration, gpu: Gpu, rates: Rates = ASSUMED, mean_tokens: float | None = None) -> float:
    """Return the milliseconds of a step on a card: that of the mean batch, or of full sequences without a mean."""
    return cost_ms(step_cost(configuration, mean_tokens), gpu, configuration.precision, rates)


def cost_ms(cost: StepCost, gpu: Gpu, precision: str, rates: Rates) -> float:
    """Return the milliseconds of counted work on a card: the sum of the three terms."""
    products = cost.product_flops / (gpu.tflops(precision) * 1e12 * rates.product_efficiency)
    traffic = cost.moved_bytes / (gpu.bandwidth_bytes_s * rates.bandwidth_efficiency)
    return 1e3 * (products + traffic + cost.launches * rates.launch_us * 1e-6)
