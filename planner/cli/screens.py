"""What recommend and estimate print for people: one screen, most important first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from srsplan.models.config import Configuration
from srsplan.planner.budget import Budget
from srsplan.planner.search import Choice, Knob, Miss, Outcome
from srsplan.planner.several_gpus import Layout
from srsplan.planner.units import format_count, format_duration, format_gib, format_ms

TAG_MEANING = {
    "table": "item table, fp32",
    "table copy": "16-bit copy of the table",
    "gradient": "gradients",
    "optimizer": "Adam's two moments",
    "logits": "scores over the catalog",
    "negatives": "gathered negatives and their scores",
    "activation": "activations kept for backward",
    "workspace": "cuBLAS, attention, sorting",
    "model": "other weights",
    "batch": "the batch",
}
FIXED = ("table", "gradient", "optimizer", "model")


def knobs_of(configuration: Configuration) -> str:
    """loss, bs, sl, ns in one phrase."""
    parts = [f"{configuration.loss:4} bs {configuration.batch_size:,} x sl {configuration.seq_len:,}"]
    if configuration.micro_batches > 1:
        parts.append(f"in {configuration.micro_batches} parts of {configuration.micro_batch_size:,}")
    if configuration.negatives is not None:
        parts.append(f"ns {configuration.negatives:,}")
    return " ".join(parts)


def assumptions(lines: Mapping[str, str]) -> RenderableType:
    """Label and sentence, aligned."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for label, sentence in lines.items():
        table.add_row(label, sentence)
    return table


def floor_line(configuration: Configuration) -> str:
    """What no knob changes."""
    table = configuration.table_bytes
    return (
        f"4 S = {format_gib(4 * table)}: the table S {format_gib(table)}, its gradient S and Adam's moments 2 S, "
        "whatever the knobs are"
    )


def choices_table(choices: Sequence[Choice], budget: Budget) -> Table:
    """One row per choice."""
    table = Table(
        title="What fits, in the order to try", title_justify="left", title_style="bold", box=None, pad_edge=False
    )
    names = ("#", "loss", "bs", "sl", "ns", "expected", "at most", "headroom", "step", "epoch")
    for name in names:
        table.add_column(name, justify="left" if name == "loss" else "right", no_wrap=True)
    for rank, choice in enumerate(choices, start=1):
        configuration, memory = choice.configuration, choice.memory
        epoch = choice.epoch_seconds
        table.add_row(
            str(rank),
            configuration.loss,
            f"{configuration.batch_size:,}",
            f"{configuration.seq_len:,}",
            "all" if configuration.negatives is None else f"{configuration.negatives:,}",
            format_gib(memory.reserved_bytes),
            format_gib(memory.upper_bytes),
            format_gib(budget.usable_bytes - memory.upper_bytes),
            format_ms(choice.step_ms),
            "-" if epoch is None else format_duration(epoch),
            style="bold" if rank == 1 else "",
        )
    return table


def breakdown_table(choice: Choice, title: str) -> Table:
    """Who holds the allocated peak."""
    allocated = choice.memory.allocated_bytes
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, show_header=False)
    table.add_column("tag")
    table.add_column("bytes", justify="right")
    table.add_column("share", justify="right")
    table.add_column("bar", no_wrap=True)
    for tag, size in choice.memory.breakdown_bytes.items():
        if size < allocated * 0.002:
            continue
        share = size / allocated
        table.add_row(TAG_MEANING.get(tag, tag), format_gib(size), f"{share:.0%}", "█" * max(1, round(share * 30)))
    table.add_row("allocated peak of a step", format_gib(allocated), "100%", "")
    return table


def binding_term(choice: Choice, budget: Budget | None = None) -> str:
    """What a user would have to give up for more."""
    if budget is not None and choice.memory.upper_bytes < budget.usable_bytes / 2:
        return (
            "not the budget: the batch size ends where an epoch would have fewer than 20 steps (or at 8,192), "
            "negatives end at 4,096, sequences at the length that holds 95% of them whole (without data, 512)"
        )
    if choice.memory.evaluation_bytes > choice.memory.allocated_bytes:
        return f"evaluation ({format_gib(choice.memory.evaluation_bytes)})"
    for tag, size in choice.memory.breakdown_bytes.items():
        if tag not in FIXED and tag != "workspace" and size > 0.1 * choice.memory.allocated_bytes:
            way_out = "; --recompute lowers them" if tag == "activation" and not choice.configuration.recompute else ""
            return f"{TAG_MEANING.get(tag, tag)} ({format_gib(size)} at the peak){way_out}"
    return "the table, its gradient and Adam's moments: no knob changes them, only a smaller --dim or catalog"


def knob_lines(knobs: Sequence[Knob]) -> Text:
    """What a step of each knob costs."""
    names = {"batch_size": "bs", "seq_len": "sl", "negatives": "ns"}
    lines = [f"{names[knob.name]} {knob.change}: {_signed(knob.bytes)}" for knob in knobs]
    return Text("one step of a knob: " + ", ".join(lines))


def misses_table(misses: Sequence[Miss]) -> RenderableType:
    """What nearly fits."""
    table = Table.grid(padding=(0, 2))
    for miss in misses:
        table.add_row(
            knobs_of(miss.configuration),
            f"at most {format_gib(miss.memory.upper_bytes)}",
            f"over by {format_gib(miss.over_bytes)}",
        )
    return Group(Text("nearest misses", style="bold"), table)


def several_table(layouts: Sequence[Layout]) -> RenderableType:
    """What each of several GPUs needs, with whose batch is meant."""
    if not layouts:
        return Text()
    gpus = layouts[0].global_batch // layouts[0].per_gpu_batch
    table = Table(box=None, header_style="bold", padding=(0, 1))
    for name in (f"On {gpus} GPUs (on paper)", "batch of a GPU", "global batch", "expected", "at most, each"):
        table.add_column(name, justify="left" if name.startswith("On") else "right")
    for each in layouts:
        sizes = format_gib(each.reserved_bytes), format_gib(each.upper_bytes)
        table.add_row(each.name, f"{each.per_gpu_batch:,}", f"{each.global_batch:,}", *sizes)
    return Group(Text(), table)


def recommendation(
    outcome: Outcome, budget: Budget, notes: Mapping[str, str], step_basis: str, several: Sequence[Layout] = ()
) -> Group:
    """The screen of recommend."""
    first = outcome.choices[0]
    parts: list[RenderableType] = [
        assumptions({**notes, "fixed floor": floor_line(first.configuration)}),
        Text(),
        choices_table(outcome.choices, budget),
        Text(f"expected and at most: reserved bytes. Step: {step_basis}.", style="dim"),
        *(Text(f"{rank}. {choice.why}", style="dim") for rank, choice in enumerate(outcome.choices, start=1)),
        Text(),
        breakdown_table(first, "Where the memory of #1 goes"),
        Text(f"evaluation, {first.evaluation_users:,} users at once: {format_gib(first.memory.evaluation_bytes)}"),
        Text(f"what binds: {binding_term(first, budget)}"),
        knob_lines(outcome.knobs),
    ]
    if outcome.near_misses:
        parts += [Text(), misses_table(outcome.near_misses)]
    return Group(*parts, several_table(several))


def estimate_screen(
    choice: Choice, notes: Mapping[str, str], budget: Budget | None, smallest_cap: int, several: Sequence[Layout] = ()
) -> Group:
    """The screen of estimate."""
    memory = choice.memory
    figures = {
        **notes,
        "fixed floor": floor_line(choice.configuration),
        "allocated": format_gib(memory.allocated_bytes),
        "reserved": f"{format_gib(memory.reserved_bytes)} expected, {format_gib(memory.upper_bytes)} at most",
        "smallest cap": f"{format_gib(smallest_cap)} reserved: runs at full speed from there on",
        "evaluation": f"{format_gib(memory.evaluation_bytes)} with {choice.evaluation_users:,} users at once",
        "step": format_ms(choice.step_ms),
    }
    if budget is not None:
        left = budget.usable_bytes - memory.upper_bytes
        verdict = f"fits, {format_gib(left)} to spare" if left >= 0 else f"does not fit, over by {format_gib(-left)}"
        figures["verdict"] = f"{verdict} (of {format_gib(budget.usable_bytes)} usable on {budget.gpu})"
    title = f"Where the memory of {knobs_of(choice.configuration)} goes"
    return Group(
        assumptions(figures), Text(), breakdown_table(choice, title), Text(f"what binds: {binding_term(choice)}"),
        several_table(several),
    )  # fmt: skip


def catalog_line(catalog: int, dim: int) -> str:
    """Catalog and hidden size."""
    return f"{format_count(catalog)} items ({catalog:,}), D {dim}"


def _signed(size: int) -> str:
    return f"{'+' if size >= 0 else '-'}{format_gib(abs(size))}"
