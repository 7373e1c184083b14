"""The kernels compile for cards that are not here, within their registers and shared memory."""

from __future__ import annotations

import triton_interpreter  # noqa: F401 - first: the registry imports the kernels, and other tests interpret them

# isort: split
import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT

sys.path.insert(0, str(ROOT / "examples"))
from compiled_kernels import blocks, cases, write
from kernel_registry import KERNELS, SMALL

from srsplan.kernels.launches.table import (
    SAMPLED_BACKWARD,
    SAMPLED_FORWARD,
    SHARED_MEMORY_BYTES,
    SPAN_ITEMS,
    sampled_table,
    softmax_table,
)

TABLES = sorted((ROOT / "examples").glob("compiled_kernels_*.csv"))
SPILLED_BYTES = 40
"""Ten registers of a thread, outside the loop: the assembler's rounding, not a lack."""
EPILOGUE_SPILLED_BYTES = {("softmax_forward", 512): 352}
"""Beside [64, 512] sums the targets' rows are loaded once more, after the loop, which itself spills nothing."""
CRAMPED_SPILLED_BYTES = {("sampled_backward", "repeatable", 1024): 128, ("sampled_backward", "fp32 table", 1024): 192}
"""Sixteen rows of D 1024 beside an int64 sum, or fp32 rows: tiles of 16 are the smallest there are."""
WITHOUT_ROOM = ("sampled_backward", "fp32 table", 1024)
"""128 KiB on cards with 99: docs/kernels.md says so. The table has to be copied there."""
FORM_SPILLED_BYTES = {"sparse": 200, "frozen table": 200}
"""More is allowed where spans are looked at one by one, of which few are worked on, and where no span is kept: forward
of D 256 then holds the places of the targets' rows in other registers, before and after its loop, and with Triton 3.6
twelve instructions of the loop spill."""


def compiled(capability: int, *cases: str) -> list[dict[str, Any]]:
    """Rows of compile_kernels.py, which must not be interpreted."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(ROOT / "tests" / "compile_kernels.py"), str(capability), *cases]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def within(row: dict[str, Any]) -> bool:
    """Whether a launch has room on its card, and spills no more than costs nothing: ten registers, or outside its loop.

    Rows that were compiled here and now do not say where they spill.
    """
    name, room = (row["kernel"], row["form"], int(row["D"])), SHARED_MEMORY_BYTES[int(row["capability"])]
    allowed = EPILOGUE_SPILLED_BYTES.get((row["kernel"], int(row["D"])), SPILLED_BYTES)
    allowed = max(allowed, FORM_SPILLED_BYTES.get(row["form"], 0), CRAMPED_SPILLED_BYTES.get(name, 0))
    room = 131_072 if name == WITHOUT_ROOM and room < 131_072 else room
    spilled = int(row["spill_bytes"]) if row.get("loop_spills") != "0" else 0
    return int(row["shared_bytes"]) <= room and int(row["registers"]) <= 255 and spilled <= allowed


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


COMPILED = {
    80: ("sampled_backward:256", "softmax_forward:128", "softmax_backward_table:1024"),
    86: (
        "sampled_backward:1024", "blocks_forward:1024:fp32 table",
    ),
    90: (
        "sampled_forward:256:mixed", "sampled_backward:256:adaptive", "sampled_backward:256:repeatable",
        "sampled_forward:128:fp32", "softmax_forward:256", "softmax_backward_table:256:sparse", "blocks_forward:256",
        "blocks_backward:256", "blocks_backward:256:single tokens",
    ),
    100: ("sampled_backward:256", "softmax_forward:128"),
}  # fmt: skip
"""Some of the tightest of every family: the committed tables hold every launch and every form."""


@pytest.mark.parametrize("capability", COMPILED)
def test_launches_fit_the_card(capability: int) -> None:
    """The committed tables hold every launch for their capabilities; some are compiled here and now."""
    found = compiled(capability, *COMPILED[capability])
    assert len(found) == len(COMPILED[capability])
    for row in found:
        assert within(row), row
        if row["kernel"].startswith(("sampled", "blocks")) and row["D"] == 256:
            assert row["copies_in_flight"] > 0, row
        assert (row["atomics"] > 0) == (row["kernel"] == "sampled_backward"), row


DOCUMENTED = {
    "blocks, forward": "blocks_forward", "blocks, backward": "blocks_backward",
    "sampled, forward": "sampled_forward", "sampled, backward": "sampled_backward",
    "full, forward": "softmax_forward", "full, backward": "softmax_backward_table",
}  # fmt: skip
COLUMNS = ("registers", "blocks_per_multiprocessor", "instructions_per_row", "copies_in_flight")


def test_the_documentation_shows_the_newest_table() -> None:
    """D 256 on sm_90: the usual form of every kernel, and below it that for single tokens."""
    held = {
        (row["kernel"], row["form"]): row for row in rows(max(TABLES)) if (row["capability"], row["D"]) == ("90", "256")
    }
    kernel, seen = "", 0
    for line in (ROOT / "docs" / "kernels.md").read_text().splitlines():
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        if name not in DOCUMENTED and not (name == "- single tokens" and kernel):
            continue
        kernel = DOCUMENTED.get(name, kernel)
        row = held[kernel, "" if name in DOCUMENTED else "single tokens"]
        launch = ", ".join(row[size] for size in ("tokens", "items", "warps", "stages"))
        assert cells == [launch, *(row[column] for column in COLUMNS)], line
        seen += 1
    assert seen == 10


def test_sizes_of_one_are_constants_of_the_compiler() -> None:
    """The first token, the second step, a single set: a launch then passes no tensor but a constant."""
    names = [each.name for each in (*KERNELS, *SMALL)]
    assert len(compiled(80, *(f"{name}:64:ones" for name in names))) == len(names) >= 9


def test_the_committed_tables_are_of_two_compilers_for_every_family_of_cards() -> None:
    assert len(TABLES) >= 2
    for path in TABLES:
        assert {int(row["capability"]) for row in rows(path)} == {80, 86, 89, 90, 100}, path.name


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_the_committed_tables_hold_every_launch_within_its_card(path: Path) -> None:
    """After a change of a launch or a kernel: python examples/compiled_kernels.py, with every Triton of TABLES.

    For the capabilities that a table holds: it may have been made for some of them.
    """
    names = ("kernel", "form", "capability", "D", "tokens", "items", "warps", "stages")
    held = {tuple(row[name] for name in names) for row in rows(path)}
    for case in cases(sorted({int(row["capability"]) for row in rows(path)}), [], [], []):
        constants = case.entry.constants_of(case.launch, case.dim, case.form)
        values = (case.kernel, case.form.name, case.capability, case.dim, constants["BLOCK_M"], case.launch.block_n)
        assert (*map(str, (*values, case.launch.num_warps, case.launch.num_stages)),) in held, case
    assert not [row for row in rows(path) if not within(row)]


@pytest.mark.parametrize(
    ("capability", "registers", "shared_bytes", "warps", "held"),
    [
        (90, 80, 33_280, 8, 3), (90, 168, 49_152, 8, 1), (90, 255, 65_536, 4, 2), (90, 16, 0, 1, 32),
        (80, 134, 49_408, 4, 3), (86, 134, 49_408, 4, 2), (86, 134, 101_376, 4, 1), (90, 64, 75_000, 4, 3),
        (86, 32, 0, 8, 6), (90, 32, 0, 8, 8), (89, 16, 0, 1, 24),
    ],
)  # fmt: skip
def test_programs_of_a_multiprocessor_by_hand(
    capability: int, registers: int, shared_bytes: int, warps: int, held: int
) -> None:
    """65,536 registers, 100 to 228 KiB less 1 KiB a program, 48 or 64 warps, 16 to 32 programs."""
    assert blocks(capability, registers, shared_bytes, warps) == held


def test_a_part_that_is_compiled_anew_replaces_its_rows_alone(tmp_path: Path) -> None:
    path, names = tmp_path / "table.csv", ("kernel", "form", "capability", "D", "registers")
    write(path, [dict(zip(names, ("a", "", 80, dim, 1), strict=True)) for dim in (64, 128)])
    write(path, [dict(zip(names, ("a", "", 80, 128, 2), strict=True))])
    assert [row["D"] + row["registers"] for row in rows(path)] == ["641", "1282"]


@pytest.mark.parametrize("capability", SHARED_MEMORY_BYTES)
@pytest.mark.parametrize("kernel", ["sampled_forward", "sampled_backward"])
def test_launches_of_the_sampled_softmax_take_a_set_at_once(kernel: str, capability: int) -> None:
    """A single token stands in 16 rows and no more. Items that are looked up take stages of their own."""
    for options in ({}, {"wide": True}, {"deterministic": True}, {"looked_up": True}, {"fp32": True}):
        small, usual = (sampled_table(kernel, capability, tokens, **options) for tokens in (1, 32))
        assert list(small) == list(usual) == [64, 128, 256, 512, 1024][: len(usual)]
        assert all(launch.block_m == 16 for launch in small.values())
        assert all(launch.block_m == 32 for dim, launch in usual.items() if dim < 1024)
    assert sampled_table(kernel, capability, 32)[256].num_stages == 3
    assert sampled_table(kernel, capability, 32, looked_up=True)[256].num_stages == 5


@pytest.mark.parametrize("fp32", [False, True])
@pytest.mark.parametrize("capability", SHARED_MEMORY_BYTES)
def test_launches_of_the_full_softmax_agree_on_spans(capability: int, fp32: bool) -> None:
    """A byte of forward is about a block of rows and a span: backward's blocks and tiles must divide them."""
    forward, loss, table = (
        softmax_table(f"softmax_{name}", capability, fp32) for name in ("forward", "forward_loss", "backward_table")
    )
    assert list(forward) == list(loss) == list(table)
    assert list(SAMPLED_FORWARD) == list(SAMPLED_BACKWARD)
    for dim, launch in table.items():
        assert forward[dim].block_m % launch.block_m == loss[dim].block_m % launch.block_m == 0
        assert all(SPAN_ITEMS % each.block_n == 0 for each in (launch, forward[dim], loss[dim]))
