"""The screens of `estimate`: one configuration in full, or a table of several."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from srsplan.models.units import format_gib, format_ms
from srsplan.planner.cli.screens import breakdown_table, labelled, several_table
from srsplan.planner.estimates import Estimate
from srsplan.planner.words import catalog_line, implementation_of, knobs_of, largest_holder, model_line


def one(estimate: Estimate) -> Group:
    """Return the screen of a single configuration."""
    configuration, memory = estimate.configuration, estimate.memory
    expected = f"{format_gib(memory.reserved_bytes)} expected, {format_gib(memory.upper_bytes)} at most"
    lines = {
        "configuration": f"{knobs_of(configuration)}, {configuration.precision}",
        "loss runs in": implementation_of(configuration.loss, configuration.kernel),
        "passes": _passes(estimate),
        **_circumstances(estimate),
        "tensors": f"{format_gib(memory.allocated_bytes)} at the peak of a step, of that fixed: "
        f"{configuration.table_copies} S = {format_gib(configuration.table_copies * configuration.table_bytes)} (table "
        f"S, its gradient, Adam's moments{'' if configuration.ema is None else ', its average'})",
        "evaluation": f"{format_gib(memory.evaluation_bytes)} with {estimate.choice.evaluation_users:,} users at once",
        "reserved": f"{expected}: the tensors and the gaps between them",
        **_verdict(estimate),
        "step": f"{format_ms(estimate.step_ms)} ({estimate.step_basis})",
    }
    return Group(
        labelled(lines),
        Text(),
        breakdown_table(memory.breakdown_bytes, f"Where the memory of {knobs_of(configuration)} goes"),
        Text(f"what binds: {largest_holder(estimate.choice)}"),
        several_table(estimate.several_gpus),
    )


def several(estimates: Sequence[Estimate], assumed: Sequence[str] = ()) -> Group:
    """Return a table of several configurations of one catalog; `assumed` are values that nobody gave."""
    columns = ["loss", "precision", "bs", "sl", "ns", "tensors", "expected", "at most", "step"]
    with_verdict = estimates[0].fits is not None
    table = Table(box=None, pad_edge=False)
    for name in [*columns, *["fits"] * with_verdict]:
        table.add_column(name, justify="left" if name in ("loss", "precision", "fits") else "right", no_wrap=True)
    for each in estimates:
        table.add_row(*_row(each), *["yes" if each.fits else "no"] * with_verdict)
    legend = [
        "bs batch size, sl sequence length, ns negatives. tensors: the peak of a step; expected,",
        "at most: what the process reserves on the GPU, evaluation included. Step times are calculated.",
    ]
    notes: list[RenderableType] = [Text(" ".join([*legend, *assumed]), style="dim")]
    return Group(labelled(_circumstances(estimates[0])), Text(), table, *notes)


def _circumstances(estimate: Estimate) -> dict[str, str]:
    configuration = estimate.configuration
    lines = {
        "catalog": catalog_line(configuration.catalog, configuration.architecture.dim),
        **model_line(configuration.model, configuration.mask_share),
        "lengths": estimate.prices.workload.basis,
        "card": estimate.prices.gpu.title,
    }
    if estimate.budget is not None:
        lines["budget"] = estimate.budget.describe()
    return lines | ({} if configuration.sampler == "uniform" else {"sampler": configuration.sampler})


def _passes(estimate: Estimate) -> str:
    """Say in how many passes the mean batch runs: memory is that of one."""
    choice, configuration = estimate.choice, estimate.configuration
    count = "one pass" if choice.passes == 1 else f"{choice.passes:,} passes"
    return (
        f"the mean batch, {choice.step_tokens:,.0f} tokens, in {count} of at most {configuration.tokens:,} tokens and "
        f"{configuration.sequences:,} sequences; a smaller --pass-tokens takes less memory"
    )


def _verdict(estimate: Estimate) -> dict[str, str]:
    """Return the lines that say whether the budget suffices, and from which size on every budget does.

    A smaller one may suffice as well: below, the allocator gives memory back until blocks find their places, and
    whether they do depends on the exact size.
    """
    safe = format_gib(estimate.smallest_cap_bytes)
    always = f"every cap of {safe} or more is enough; a smaller one may be: --budget checks it"
    if estimate.budget is None or estimate.headroom_bytes is None:
        return {"safe from": always}
    usable = format_gib(estimate.budget.usable_bytes)
    if estimate.headroom_bytes < 0:
        return {
            "verdict": f"does not fit {usable}, over by {format_gib(-estimate.headroom_bytes)}",
            "safe from": always,
        }
    verdict = {"verdict": f"fits {usable}, {format_gib(estimate.headroom_bytes)} to spare"}
    if estimate.smallest_cap_bytes <= estimate.budget.usable_bytes:
        return {**verdict, "safe from": always}
    tight = f"this budget was checked and is enough; others below {safe} need not be (blocks must fall into place)"
    return {**verdict, "other caps": tight}


def _row(estimate: Estimate) -> list[str]:
    configuration, memory = estimate.configuration, estimate.memory
    return [
        configuration.loss,
        configuration.precision,
        f"{configuration.batch_size:,}",
        f"{configuration.seq_len:,}",
        "all" if configuration.negatives is None else f"{configuration.negatives:,}",
        format_gib(memory.allocated_bytes),
        format_gib(memory.reserved_bytes),
        format_gib(memory.upper_bytes),
        format_ms(estimate.step_ms),
    ]
