"""The screen of `recommend`: one page, most important first; with `--all` everything that the plan says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from srsplan.kernels.losses import LOSSES
from srsplan.models.units import format_duration, format_gb, format_gib, format_ms
from srsplan.planner.cli.console import plain
from srsplan.planner.words import TAG_MEANING, catalog_line, implementation_of, model_line
from srsplan.planner.words import knobs_of as knobs_of

if TYPE_CHECKING:
    from srsplan.planner.plan.document import ChoiceEntry, KnobEntry, LayoutEntry, MissEntry, PassEntry, Plan
    from srsplan.planner.several_gpus import Layout

SHOWN = 3
"""Choices on the first screen."""

SHOWN_NOTES = 2
"""Notes on the data on the first screen: its columns and its split."""

KNOB_SYMBOLS = {"pass_tokens": "pass", "negatives": "ns"}
BAR_LETTERS = 24
LEAST_SHARE = 0.002
"""A holder of less than this share of the peak is not shown."""


def labelled(lines: Mapping[str, str]) -> RenderableType:
    """Return a grid of labels and their sentences, aligned."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for label, sentence in lines.items():
        table.add_row(label, Text(plain(sentence)))
    return table


def recommendation(plan: Plan, everything: bool = False) -> Group:
    """Return the screen of `recommend`."""
    shown = plan.choices if everything else plan.choices[:SHOWN]
    parts: list[RenderableType] = [
        labelled(_assumptions(plan, everything)),
        Text(),
        choices_table(shown),
        *(Text(line, style="dim") for line in _legend(shown)),
        passes_table(plan.passes, plan.choices[0].pass_tokens),
        labelled(_reasons(plan, shown)),
    ]
    if everything:
        parts += _details(plan)
    else:
        parts.append(Text("--all adds the other losses, where memory goes, knob costs and near misses."))
    return Group(*parts, several_table(plan.several_gpus))


def _assumptions(plan: Plan, everything: bool) -> dict[str, str]:
    inputs, copies = plan.inputs, plan.configuration().table_copies
    fixed = f"fixed: {copies} S = {format_gib(plan.budget.fixed_floor_bytes)}"
    card = inputs.gpu_title or inputs.gpu
    lines = {
        "catalog": f"{catalog_line(inputs.catalog, inputs.dim)}; {fixed}",
        **model_line(inputs.model, inputs.mask_share),
        "budget": _budget_line(plan, everything),
        "card": card + ("" if inputs.gpu_is_given else ", the smallest that holds the budget; --gpu names yours"),
        "lengths": inputs.lengths if everything else inputs.lengths.partition("; fullest batch")[0],
    }
    if inputs.time:
        lines["time"] = inputs.time
    samplers = {choice.sampler for choice in plan.choices} - {"uniform"}
    if samplers:
        lines["sampler"] = f"{', '.join(samplers)}, for the losses that have it"
    return lines | {label: sentences if everything else _first(sentences) for label, sentences in inputs.notes.items()}


def _first(sentences: str) -> str:
    """Return the first of several notes, and how many more there are."""
    lines = sentences.split("\n")
    more = len(lines) - SHOWN_NOTES
    return "\n".join(lines[:SHOWN_NOTES]) + (f"; --all shows {more} more notes" if more > 0 else "")


def _budget_line(plan: Plan, everything: bool) -> str:
    budget = plan.budget
    total, usable = f"{format_gb(budget.bytes)} = {format_gib(budget.bytes)}", format_gib(budget.usable_bytes)
    if not everything:
        return f"{total}; {usable} usable after CUDA context and margin"
    context = f"{format_gib(budget.context_bytes)} ({budget.context_basis})"
    return f"{total}, less CUDA context {context} and margin {format_gib(budget.margin_bytes)}: {usable} usable"


def choices_table(choices: Sequence[ChoiceEntry]) -> Table:
    """Return a table with one row per choice: the time of an epoch where it is known, else that of a million tokens."""
    table = Table(
        title="What fits, in the order to try", title_justify="left", title_style="bold", box=None, pad_edge=False
    )
    epochs = any(choice.epoch_seconds is not None for choice in choices)
    last = "epoch" if epochs else "s/M"
    for name in ("#", "loss", "bs", "sl", "ns", "pass", "in", "expected", "at most", "step", last):
        table.add_column(name, justify="left" if name == "loss" else "right", no_wrap=True)
    for choice in choices:
        long = f"{choice.seconds_per_million_tokens:.3g}"
        table.add_row(
            str(choice.rank),
            choice.loss,
            f"{choice.batch_size:,}",
            f"{choice.seq_len:,}",
            "all" if choice.negatives is None else f"{choice.negatives:,}",
            f"{choice.pass_tokens:,}",
            f"{choice.passes:,}",
            format_gib(choice.memory.reserved_bytes),
            format_gib(choice.memory.upper_bytes),
            format_ms(choice.step_ms),
            format_duration(choice.epoch_seconds or 0) if epochs else long,
            style="bold" if choice.rank == 1 else "",
        )
    return table


def _legend(choices: Sequence[ChoiceEntry]) -> Iterator[str]:
    """Yield an explanation of every symbol on the screen."""
    yield "bs batch size, sl sequence length, ns negatives, D hidden size, S table in fp32."
    yield "pass tokens at a time, in so many passes a batch; s/M seconds a million tokens."
    names = {choice.loss: implementation_of(choice.loss, choice.kernel) for choice in choices}
    yield "; ".join(f"{loss} {LOSSES[loss].title} ({name})" for loss, name in names.items()) + "."
    recomputed = ", ".join(f"#{choice.rank}" for choice in choices if choice.recompute)
    yield "Memory is what the process reserves on the GPU; times are calculated."
    if recomputed:
        yield f"{recomputed}: blocks run forward once more in backward (--recompute)."


def passes_table(passes: Sequence[PassEntry], own: int) -> RenderableType:
    """Return a table of what the first choice takes in passes of other sizes beside its `own`; nothing for one row."""
    if len(passes) < 2:
        return Group()
    table = Table.grid(padding=(0, 2))
    for _ in range(4):
        table.add_column(justify="right", no_wrap=True)
    base = next(each.step_ms for each in passes if each.pass_tokens == own)
    for each in passes:
        slower = "#1" if each.pass_tokens == own else f"{each.step_ms / base - 1:+.0%}"
        fits = "" if each.fits else "does not fit"
        size = f"at most {format_gib(each.upper_bytes)}"
        table.add_row(f"{each.pass_tokens:,}", f"in {each.passes:,}", size, format_ms(each.step_ms), slower, fits)
    return Group(Text("What a smaller pass costs #1", style="bold"), table)


def _reasons(plan: Plan, choices: Sequence[ChoiceEntry]) -> dict[str, str]:
    """Return sentences by label: why choices stand where they do, how good the order is, and what limits the first.

    A reason that several choices share stands there once.
    """
    ranks: dict[str, list[str]] = {}
    for choice in choices:
        ranks.setdefault(choice.why, []).append(f"#{choice.rank}")
    why = "; ".join(f"{', '.join(who)}: {reason}" for reason, who in ranks.items())
    return {"why": why, "quality": plan.inputs.quality, "what binds": plan.binds}


def _details(plan: Plan) -> list[RenderableType]:
    first = plan.choices[0]
    evaluation = f"{format_gib(first.memory.evaluation_bytes)} with {first.eval_batch_size:,} users ranked at once"
    parts: list[RenderableType] = [
        Text(),
        breakdown_table(first.breakdown_bytes, f"Where the memory of #{first.rank} goes"),
        labelled({"evaluation": evaluation, "step": first.step_basis, "order": plan.inputs.order}),
        _knob_line(plan.knobs),
    ]
    return [*parts, Text(), _misses_table(plan.near_misses)] if plan.near_misses else parts


def breakdown_table(holders: Mapping[str, int], title: str) -> Table:
    """Return a table of the bytes at the allocated peak by what holds them."""
    allocated = sum(holders.values())
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, show_header=False)
    table.add_column("tag")
    table.add_column("bytes", justify="right")
    table.add_column("share", justify="right")
    table.add_column("bar", no_wrap=True)
    for tag, size in holders.items():
        if size >= allocated * LEAST_SHARE:
            share = size / allocated
            bar = "█" * max(1, round(share * BAR_LETTERS))
            table.add_row(TAG_MEANING.get(tag, Text(plain(tag))), format_gib(size), f"{share:.0%}", bar)
    table.add_row("allocated peak of a step", format_gib(allocated), "100%", "")
    return table


def _knob_line(knobs: Sequence[KnobEntry]) -> Text:
    """Return the line that says what a step of each knob costs."""
    steps = [f"{KNOB_SYMBOLS[knob.name]} {knob.change}: {_signed(knob.bytes)}" for knob in knobs]
    return Text("one step of a knob: " + ", ".join(steps))


def _misses_table(misses: Sequence[MissEntry]) -> RenderableType:
    """Return a table of the configurations that nearly fit."""
    table = Table.grid(padding=(0, 2))
    for miss in misses:
        sizes = f"at most {format_gib(miss.upper_bytes)}", f"over by {format_gib(miss.over_bytes)}"
        table.add_row(knobs_of(miss), *sizes)
    return Group(Text("nearest misses", style="bold"), table)


def several_table(layouts: Sequence[LayoutEntry | Layout]) -> RenderableType:
    """Return a table of what each of several GPUs needs, which says whose batch is meant; nothing for one GPU."""
    if not layouts:
        return Group()
    gpus = layouts[0].global_batch // layouts[0].per_gpu_batch
    table = Table(box=None, header_style="bold", padding=(0, 1))
    for name in (f"On {gpus} GPUs (on paper)", "batch of a GPU", "global batch", "expected", "at most, each"):
        table.add_column(name, justify="left" if name.startswith("On") else "right")
    for each in layouts:
        sizes = format_gib(each.reserved_bytes), format_gib(each.upper_bytes)
        table.add_row(each.name, f"{each.per_gpu_batch:,}", f"{each.global_batch:,}", *sizes)
    return Group(Text(), table)


def _signed(size: int) -> str:
    return f"{'+' if size >= 0 else '-'}{format_gib(abs(size))}"
