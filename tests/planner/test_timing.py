"""The step-time model: its terms, and its constants from measured steps."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import SHARED
from random_steps import random_steps
from torch.utils.flop_counter import FlopCounterMode

from srsplan.kernels.losses import LOSSES
from srsplan.models.config import Architecture, Configuration, Precision
from srsplan.models.training.step import TrainingStep
from srsplan.planner.calibration import model_of
from srsplan.planner.step_time import MeanPass, Rates, cost_ms, mean_pass, step_cost, step_ms
from srsplan.planner.step_time_fit import FEWEST, Timed, fit_rates
from srsplan.profiler.probes.catalogue import find_gpu
from srsplan.profiler.probes.cuda_child import random_pass
from srsplan.profiler.probes.records import ProbeRecord

H200, A100 = find_gpu("h200"), find_gpu("a100-40gb")
STEPS = [step for loss in ("ce", "ce-", "cce-") for step in random_steps(loss, "fp16", 2, 6, seed=8)]


def timed(configuration: Configuration, rates: Rates, factor: float = 1.0) -> Timed:
    cost = step_cost(configuration)
    return Timed(cost=cost, gpu=H200, precision="fp16", step_ms=factor * cost_ms(cost, H200, "fp16", rates))


@settings(deadline=None, max_examples=30)
@given(st.floats(0.2, 0.9), st.floats(0.2, 0.9), st.floats(5, 60))
def test_constants_are_found_again(products: float, bandwidth: float, launch: float) -> None:
    rates = Rates(product_efficiency=products, bandwidth_efficiency=bandwidth, launch_us=launch)
    fit = fit_rates([timed(configuration, rates) for configuration in STEPS])
    assert fit.rates.bandwidth_efficiency == pytest.approx(bandwidth, rel=1e-3)
    assert fit.rates.launch_us == pytest.approx(launch, rel=1e-2, abs=0.1)
    assert max(map(abs, fit.held_out)) < 1e-2


def test_a_step_that_is_unlike_the_others_shows_in_the_held_out_error() -> None:
    steps = [timed(configuration, Rates()) for configuration in STEPS]
    fit = fit_rates([*steps[:-1], replace(steps[-1], step_ms=3 * steps[-1].step_ms)])
    assert max(map(abs, fit.held_out)) > 0.4


def test_few_steps_are_not_fitted() -> None:
    with pytest.raises(ValueError, match=f"7 measured steps are fewer than {FEWEST}"):
        fit_rates([timed(configuration, Rates()) for configuration in STEPS[:7]])


def test_probes_give_constants_and_say_what_they_are_worth(tmp_path: Path) -> None:
    records = [
        ProbeRecord(
            configuration=each, status="ok", basis="measured", gpu="h200", device="NVIDIA H200",
            allocated_bytes=1 << 30, reserved_bytes=2 << 30, step_ms_median=2 * step_ms(each, H200),
        )
        for each in STEPS[:9]
    ]  # fmt: skip
    path = tmp_path / "probes.jsonl"
    path.write_text("".join(record.to_line() for record in records))
    fit = model_of(path)
    assert fit.rates.launch_us == pytest.approx(2 * Rates().launch_us, rel=0.02)
    assert "fitted to probes on h200, other cards transferred; each of 9 measured steps held out" in fit.step_basis


def test_recomputing_and_passes_take_time() -> None:
    base = Configuration(loss="cce-", catalog=1_000_000, batch_size=512, seq_len=128, negatives=512, tokens_per_set=32)
    plain = step_ms(base, A100)
    assert 1.05 * plain < step_ms(replace(base, recompute=True), A100) < 1.4 * plain
    halves, quarters = (step_ms(replace(base, pass_tokens=base.batch_tokens // count), A100) for count in (2, 4))
    assert plain < halves < quarters < 2 * plain


def test_passes_hold_whole_sequences_of_the_mean_batch() -> None:
    """Counted by hand: 5 full sequences of 24 in 128 tokens, 32 of 4 tokens; a whole batch that may be cut is one."""
    base = Configuration(loss="cce", catalog=900, batch_size=64, seq_len=24, pass_tokens=128)
    assert mean_pass(base) == MeanPass(count=13, tokens=118, length=24.0)
    assert mean_pass(base, 4.0) == MeanPass(count=2, tokens=128, length=4.0)
    assert mean_pass(replace(base, pass_sequences=8), 4.0).count == 8
    assert mean_pass(replace(base, pass_tokens=300), 4.6).count == 1


def test_the_mean_batch_takes_the_time_and_not_the_fullest() -> None:
    """A tenth of the tokens: a tenth of the work beside the optimizer's."""
    base = Configuration(loss="cce-", catalog=1000, batch_size=512, seq_len=100, negatives=512, tokens_per_set=32)
    full, tenth = step_cost(base), step_cost(base, 10.0)
    optimizer = 9 * base.table_bytes
    assert tenth.moved_bytes - optimizer == pytest.approx(0.1 * (full.moved_bytes - optimizer), rel=0.01)
    assert tenth.product_flops < 0.1 * full.product_flops
    assert tenth.launches <= full.launches


@pytest.mark.parametrize(("loss", "tables"), [("cce", 0), ("ce", 5)])
def test_every_later_pass_adds_its_gradient_to_the_table(loss: str, tables: int) -> None:
    """Of eager losses: filled, written, read, and added to the first. Chunks add where it lies, in any pass."""
    base = Configuration(loss=loss, catalog=500_000, batch_size=64, seq_len=64)
    cut = replace(base, pass_tokens=base.batch_tokens // 4)
    alone = replace(base, batch_size=16)
    optimizer = 9 * base.table_bytes
    added = step_cost(cut).moved_bytes - optimizer - 4 * (step_cost(alone).moved_bytes - optimizer)
    assert added == pytest.approx(3 * tables * base.table_bytes, abs=1)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("changes", [{}, {"recompute": True}, {"pass_tokens": 96, "pass_sequences": 4}], ids=str)
@pytest.mark.parametrize("loss", LOSSES)
def test_flops_are_those_that_torch_counts(loss: str, changes: dict[str, Any], precision: Precision) -> None:
    """Every matrix product of a real step on a CPU, forward and backward, of model and loss: equal to the last flop."""
    sampled, architecture = LOSSES[loss].sampled, Architecture(dim=32, heads=2, blocks=2)
    configuration = Configuration(
        loss=loss, catalog=900, batch_size=8, seq_len=24, architecture=architecture, precision=precision,
        negatives=(LOSSES[loss].usual_negatives or 16) if sampled else None,
        tokens_per_set=4 if LOSSES[loss].shares_negatives else 1, **changes,
    )  # fmt: skip
    step = TrainingStep(configuration, torch.device("cpu"))
    passes = [random_pass(configuration, step.device)] * mean_pass(configuration).count
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: addmm_flops}) as counter:
        step.run_passes(passes, sum(len(each.targets) for each in passes))
    # scores of negatives of one's own: counted by the bytes of their rows, which take longer
    rows = (configuration.negatives or 0) + 1
    own = sampled and not LOSSES[loss].chunked and not LOSSES[loss].bucketed
    by_bytes = 6 * configuration.batch_tokens * rows * architecture.dim if own else 0
    assert step_cost(configuration).product_flops == counter.get_total_flops() - by_bytes


def addmm_flops(out: object, left: tuple[int, int], right: tuple[int, int], *_: object, **__: object) -> int:
    """A product that is added in place: torch counts the others only."""
    return 2 * left[0] * left[1] * right[1]


@pytest.mark.evidence
def test_the_constants_are_those_of_the_measured_steps() -> None:
    """24 steps of another implementation on an H200, as examples/calibrate_step_time.py fits them."""
    names = {"ce": "ce", "ce_neg": "ce-", "bce": "bce"}
    steps = []
    with (SHARED / "measured" / "h200_step_memory.csv").open() as lines:
        for row in csv.DictReader(lines):
            negatives = {"ce": None, "ce_neg": int(row["negatives"]), "bce": 1}[row["loss"]]
            configuration = Configuration(
                loss=names[row["loss"]], catalog=int(row["catalog"]), batch_size=int(row["batch_size"]),
                seq_len=int(row["seq_len"]), negatives=negatives,
            )  # fmt: skip
            cost = step_cost(configuration, feed_forward=4, foreach=row["adam"] == "foreach")
            steps.append(Timed(cost=cost, gpu=H200, precision="fp16", step_ms=1e3 * float(row["step_s"])))
    fit = fit_rates(steps)
    assert fit.rates.product_efficiency == pytest.approx(Rates().product_efficiency, rel=0.01)
    assert fit.rates.bandwidth_efficiency == pytest.approx(Rates().bandwidth_efficiency, rel=0.01)
    assert fit.describe() == "each of 24 measured steps held out: median error 8%, worst 34%"
