"""The shipped closed form against the ledger that it was derived from."""

from __future__ import annotations

import pytest

from srsplan.models.config import LOSSES, Configuration
from srsplan.planner.memory import MemoryModel
from srsplan.profiler import derive, expressions
from srsplan.profiler.simulate import EvaluationSizes, simulate_evaluation, simulate_step

MODEL = MemoryModel()


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
@pytest.mark.parametrize("loss", LOSSES)
def test_estimate_equals_the_ledger(loss: str, precision: derive.Precision) -> None:
    """20 random configurations of every loss and precision, 200 in all: within 0.2%, most to the byte."""
    blocks = 2 if precision == "fp16" else 3
    for configuration in map(derive.few_chunks, derive.random_steps(loss, precision, blocks, 20, seed=77)):
        predicted = MODEL.predict(configuration, users=16, seen_pairs=1000)
        ledger = simulate_step(configuration).allocated_bytes
        assert predicted.allocated_bytes == pytest.approx(ledger, rel=0.002), configuration
        assert sum(predicted.breakdown_bytes.values()) == predicted.allocated_bytes


@pytest.mark.parametrize("users", [1, 16, 1024])
@pytest.mark.parametrize("catalog", [900, 300_000, 1_600_000])
def test_evaluation_equals_the_ledger(users: int, catalog: int) -> None:
    configuration = Configuration(loss="cce", catalog=catalog, batch_size=32, seq_len=200)
    ledger = simulate_evaluation(configuration, EvaluationSizes(users=users, seen_pairs=users * 200)).allocated_bytes
    assert MODEL.evaluation(configuration, users, users * 200) == pytest.approx(ledger, rel=0.005)


@pytest.mark.parametrize("key", ["ce/fp16/2", "cce-/bf16/1"])
def test_the_shipped_file_is_what_the_ledger_says_today(key: str) -> None:
    loss, precision, blocks = key.split("/")
    derived = derive.derive_step(loss, precision, int(blocks))  # type: ignore[arg-type]
    form = MODEL.form(loss, precision, int(blocks))
    steps = derive.random_steps(loss, precision, int(blocks), 200, seed=5)  # type: ignore[arg-type]
    values = expressions.step_values(steps)
    assert derive.totals(derived, values).max(0) == pytest.approx(form.peaks(values), rel=2e-4)


def test_a_table_is_four_copies_and_no_more() -> None:
    """The tied table, one gradient, two moments: 4 S, where eager research code holds 5.1."""
    configuration = Configuration(
        loss="cce-", catalog=5_000_000, batch_size=16, seq_len=16, negatives=64, tokens_per_set=32
    )
    allocated = MODEL.predict(configuration, users=1, seen_pairs=16).allocated_bytes
    assert 4 * configuration.table_bytes < allocated < 4.05 * configuration.table_bytes


def test_sizes_that_do_not_factor_are_refused() -> None:
    with pytest.raises(derive.NotFactored, match="leave 4036"):
        derive.factor(4 * 1013 * 1009, {"V": ("V", 1013)})
    assert derive.factor(4 * 1013 * 1013, {"V": ("V", 1013)}) == "4*V*V"
