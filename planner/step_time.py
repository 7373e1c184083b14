"""How long a training step takes: arithmetic and traffic counted, against what the card can do.

    step = matrix products / (efficiency x tensor throughput) + bytes moved / (efficiency x bandwidth) + launches

The counts follow the training step (shape letters: V items, D hidden size, N tokens, M valid ones, L positions, n
negatives of a set). The three constants are fitted, non-negative least squares of relative error, to the 24 eager steps
measured on one H200 (torch 2.11) by examples/calibrate_step_time.py; other cards are transferred by their bandwidth and
throughput. It orders configurations and gives the magnitude; it is not a measurement, and says so.
"""

from __future__ import annotations

from dataclasses import dataclass

from srsplan.kernels import chunking
from srsplan.kernels.losses import LOSSES
from srsplan.models.config import Configuration
from srsplan.profiler.probes.catalogue import Gpu

BASIS = "calculated; on 24 steps measured on an H200, each held out in turn, the median error is 8%, the worst 34%"
"""What a step time is worth."""


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """What a step does."""

    product_flops: float
    """Floating-point operations of matrix products."""
    moved_bytes: float
    """Bytes read and written by everything else."""
    launches: float
    """Kernels started."""


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What the fit found: the share of the peak that is reached, and the cost of a launch."""

    product_efficiency: float = 0.578
    bandwidth_efficiency: float = 0.651
    launch_us: float = 29.4

    def slower(self, factor: float) -> Rates:
        """Every term takes so many times as long."""
        return Rates(
            product_efficiency=self.product_efficiency / factor,
            bandwidth_efficiency=self.bandwidth_efficiency / factor,
            launch_us=self.launch_us * factor,
        )


ASSUMED = Rates()
"""What holds without probes of one's own."""


def step_cost(configuration: Configuration, feed_forward: int = 1, foreach: bool = False) -> StepCost:
    """Counts of a step; `feed_forward` widths and the foreach optimizer are for calibrating on other models."""
    sizes, element = configuration.architecture, 4 if configuration.precision == "fp32" else 2
    tokens, table = configuration.tokens, configuration.catalog * sizes.dim
    # per block and token: joined projections 3 D^2, output D^2, feed-forward 2 f D^2; forward and twice that backward
    weights = (4 + 2 * feed_forward) * sizes.dim**2
    attention = 2 * configuration.seq_len * sizes.dim
    passes = 4 if configuration.recompute else 3
    body_flops = passes * tokens * sizes.blocks * (2 * weights + 2 * attention)
    # fp32 residual stream, norms and dropouts, 16-bit projections: read or written about so often per token and block
    body_bytes = (
        passes / 3 * tokens * sizes.dim * (sizes.blocks * (14 * 4 + (16 + 6 * feed_forward) * element) + 12 * 4)
    )
    # gradient written, zeroed or added to once more; Adam reads 4 tables and writes 3, foreach with temporaries
    table_bytes = table * 4 * (2 + (14 if foreach else 7))
    loss, parts = _loss_cost(configuration, element), configuration.micro_batches
    # every part after the first adds its table's gradient to what there is
    added = (parts - 1) * table * 4 * 5
    return StepCost(
        product_flops=parts * (body_flops + loss.product_flops),
        moved_bytes=parts * (body_bytes + loss.moved_bytes) + table_bytes + added,
        launches=parts * (60 + 20 * passes * sizes.blocks + loss.launches),
    )


def _loss_cost(configuration: Configuration, element: int) -> StepCost:
    tokens, dim, catalog = configuration.fullest_tokens, configuration.architecture.dim, configuration.catalog
    negatives, group = configuration.negatives or 0, configuration.tokens_per_set
    loss = LOSSES[configuration.loss]
    if not loss.sampled:
        flops = 6.0 * tokens * catalog * dim
        copies = catalog * dim * (4 + element)
        if not loss.chunked:
            # logits, log-softmax, its fp32 copy, and the gradient of each: written and read
            return StepCost(
                product_flops=flops, moved_bytes=tokens * catalog * (8 * element + 4 * 4) + copies, launches=20
            )
        chunks = -(-tokens // chunking.softmax_chunk_tokens(tokens, catalog))
        blocks = -(-catalog // chunking.ITEM_ROWS)
        traffic = tokens * catalog * 6 * element + chunks * catalog * dim * (2 * 4 + 4 * element)
        return StepCost(product_flops=flops, moved_bytes=traffic + copies, launches=20 + chunks * (20 + 4 * blocks))
    if loss.chunked:
        sets = chunking.set_count(tokens, group)
        chunks = -(-sets // chunking.sampled_chunk_sets(tokens, negatives, dim, group))
        # gather and its copy, its gradient in 16 bit, in fp32, scaled, added; logits and shares
        rows = sets * negatives * dim * (4 + 4 + 4 + 3 * element + element + 5 * 4)
        scores = sets * group * negatives * (3 * element + 10 * 4)
        return StepCost(
            product_flops=6.0 * sets * group * negatives * dim, moved_bytes=rows + scores, launches=chunks * 45
        )
    # gather, its copy, both read by the products, the gradient in 16 bit and fp32, sorted and added
    rows = tokens * (negatives + 1) * dim * (4 + 4 + 4 + 5 * element + 4 + 3 * 4)
    return StepCost(product_flops=0.0, moved_bytes=float(rows), launches=60)


def step_ms(configuration: Configuration, gpu: Gpu, rates: Rates = ASSUMED) -> float:
    """Milliseconds of a training step of the fullest batch on a card."""
    return cost_ms(step_cost(configuration), gpu, configuration.precision, rates)


def cost_ms(cost: StepCost, gpu: Gpu, precision: str, rates: Rates) -> float:
    """The sum of the three terms."""
    products = cost.product_flops / (gpu.tflops(precision) * 1e12 * rates.product_efficiency)
    traffic = cost.moved_bytes / (gpu.bandwidth_bytes_s * rates.bandwidth_efficiency)
    return 1e3 * (products + traffic + cost.launches * rates.launch_us * 1e-6)
