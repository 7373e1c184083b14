"""What does the compiler make of every kernel, on cards that are not here? Needs Triton, and no GPU.

    python examples/compiled_kernels.py
    python examples/compiled_kernels.py --kernel sampled_forward --capability 90 --dim 256 --launch 32,64,4,3

Compiles every launch of every kernel of kernel_registry.py for every capability, and writes a dated table (CSV): what
a program takes of a multiprocessor, what its loop issues, and which of its copies overlap it. Nothing of this is a
speed: it says what to try first on a card. With --launch TOKENS,ITEMS,WARPS,STAGES other launches than the tables' are
compiled. Rows that the file holds already stay, unless they are made anew.

registers             of a thread; 255 is the most there is
spill_bytes           that a thread stores because registers did not suffice
shared_bytes          shared memory of a program
blocks_per_multiprocessor   programs that fit at once by registers, shared memory and warps
instructions          of the whole kernel (SASS)
instructions_per_row  that the warps of a program issue in the loop, per row of the tile that goes by: an item's, or a
                      token's for softmax_backward_table; empty where no loop holds products
loop_spills           instructions among these that store or load what registers did not hold
copies_in_flight      groups of asynchronous copies still under way when the loop's wait ends (the N of PTX's
                      cp.async.wait_group N): 0 means that no copy overlaps an iteration's products
atomics               atomic additions in PTX
"""

from __future__ import annotations

import csv
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from dataclasses import dataclass
from datetime import date
from io import StringIO
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import triton
import triton.backends.nvidia
import typer
from kernel_registry import KERNELS, SMALL, TYPES, Entry, Form, entry
from rich.console import Console
from rich.progress import track
from rich.table import Table
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from srsplan.kernels.launches.table import SHARED_MEMORY_BYTES, Launch, launch_for

TOOLS = Path(triton.backends.nvidia.__file__).parent / "bin"
REGISTERS, RESERVED_SHARED_BYTES = 65_536, 1024
"""Registers of a multiprocessor; and shared memory that the driver takes of it for each program."""


@dataclass(frozen=True)
class Multiprocessor:
    """Room for programs, by the CUDA C++ Programming Guide's table of technical specifications."""

    shared_kib: int
    warps: int
    blocks: int


MULTIPROCESSORS = {
    80: Multiprocessor(164, 64, 32), 86: Multiprocessor(100, 48, 16), 89: Multiprocessor(100, 48, 24),
    90: Multiprocessor(228, 64, 32), 100: Multiprocessor(228, 64, 32),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Case:
    """One kernel to compile."""

    kernel: str
    capability: int
    dim: int
    form: Form
    launch: Launch

    @property
    def entry(self) -> Entry:
        """The registry's entry."""
        return entry(self.kernel)


def compiled(case: Case) -> tuple[Any, str]:
    """What Triton makes of a kernel, an object with `asm` and `metadata`; and what the assembler says of it."""
    values = case.entry.constants_of(case.launch, case.dim, case.form)
    types = {**TYPES, **case.form.types(), **case.entry.types}
    names = case.entry.kernel.arg_names
    signature = {name: "constexpr" if name in values else types[name] for name in names}
    constants = {name: values[name] for name in names if name in values}
    aligned = {(place,): [["tt.divisibility", 16]] for place, name in enumerate(names) if signature[name][:1] == "*"}
    said = StringIO()
    with (
        tempfile.TemporaryDirectory() as cache,  # the assembler speaks only where nothing is cached
        triton.knobs.cache.scope(),
        triton.knobs.nvidia.scope(),
        redirect_stdout(said),
    ):
        triton.knobs.cache.dir, triton.knobs.nvidia.dump_ptxas_log = cache, True
        done = triton.compile(
            ASTSource(case.entry.kernel, signature, constants, aligned),
            target=GPUTarget("cuda", case.capability, 32),
            options={"num_warps": case.launch.num_warps, "num_stages": case.launch.num_stages},
        )
    return done, said.getvalue()


def row_of(case: Case, disassemble: bool = True) -> dict[str, Any]:
    """A row of the table; without instructions where the machine code is not wanted."""
    done, said = compiled(case)
    registers, ptx = _number(r"Used (\d+) registers", said), str(done.asm["ptx"])
    warps = int(done.metadata.num_warps)
    constants = case.entry.constants_of(case.launch, case.dim, case.form)
    return {
        "kernel": case.kernel, "form": case.form.name, "capability": case.capability, "D": case.dim,
        "dtype": case.form.hidden, "tokens": constants["BLOCK_M"], "items": case.launch.block_n,
        "warps": warps, "stages": case.launch.num_stages, "registers": registers,
        "spill_bytes": _number(r"(\d+) bytes spill stores", said), "shared_bytes": done.metadata.shared,
        "blocks_per_multiprocessor": blocks(case.capability, registers, done.metadata.shared, warps),
        **(instructions(done.asm["cubin"], warps / case.entry.rows(case.launch)) if disassemble else {}),
        "copies_in_flight": max(map(int, re.findall(r"cp\.async\.wait_group\s+(\d+)", ptx)), default=0),
        "atomics": len(re.findall(r"^\s*(?:@%p\d+ )?(?:atom|red)\.", ptx, re.MULTILINE)), "triton": triton.__version__,
    }  # fmt: skip


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found is not None, text
    return int(found[1])


def blocks(capability: int, registers: int, shared_bytes: int, warps: int) -> int:
    """Programs that fit on a multiprocessor at once. A warp's registers come in steps of 256, shared memory of 128."""
    room = MULTIPROCESSORS[capability]
    of_warp = -(-registers * 32 // 256) * 256
    shared = -(-(shared_bytes + RESERVED_SHARED_BYTES) // 128) * 128
    return min(room.blocks, room.warps // warps, REGISTERS // of_warp // warps, room.shared_kib * 1024 // shared)


def instructions(cubin: bytes, warps_per_row: float) -> dict[str, Any]:
    """Instructions of a kernel, and those that its warps issue per row in the loop that holds its matrix products."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(TOOLS / "cuobjdump"), "-sass", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = [(int(place, 16), what) for place, what in re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?);", text, re.M)]
    while lines and lines[-1][1].strip() == "NOP":
        lines.pop()
    loops = list(_loops(lines))
    found = max(loops, key=lambda loop: (_products(loop), -len(loop)), default=[])
    if not _products(found):
        return {"instructions": len(lines), "instructions_per_row": "", "loop_spills": ""}
    per_row = round(len(found) * warps_per_row, 1)
    spills = sum(bool(re.search(r"\b(?:LDL|STL)\b", what)) for what in found)
    return {"instructions": len(lines), "instructions_per_row": per_row, "loop_spills": spills}


def _loops(lines: list[tuple[int, str]]) -> Iterator[list[str]]:
    """The instructions between the target of every branch that leads back and the branch."""
    for place, what in lines:
        target = re.search(r"\bBRA\b.*\b0x([0-9a-f]+)", what)
        if target and int(target[1], 16) < place:
            yield [each for other, each in lines if int(target[1], 16) <= other <= place]


def _products(loop: list[str]) -> int:
    """Instructions that multiply matrices; without tensor cores, multiply and add."""
    tensor = sum("MMA" in what for what in loop)
    return tensor or sum("FFMA" in what for what in loop)


def cases(capabilities: list[int], kernels: list[str], dims: list[int], launches: list[Launch]) -> list[Case]:
    """What is asked for; nothing stands for all of it, and for the launches of the tables."""
    found = []
    for capability in capabilities or SHARED_MEMORY_BYTES:
        for each in (*KERNELS, *SMALL):
            for form, dim in each.cases(capability):
                if (not kernels or each.name in kernels) and (not dims or dim in dims):
                    wanted = launches or [launch_for(each.launches(capability, form), dim)]
                    found += [
                        Case(kernel=each.name, capability=capability, dim=dim, form=form, launch=launch)
                        for launch in wanted
                    ]
    return found


def launch_of(text: str) -> Launch:
    """A launch written as TOKENS,ITEMS,WARPS,STAGES."""
    if not re.fullmatch(r"\d+(,\d+){3}", text):
        raise typer.BadParameter(f"{text!r} is no launch: want TOKENS,ITEMS,WARPS,STAGES")
    return Launch(*map(int, text.split(",")))


def summary(rows: list[dict[str, Any]]) -> Table:
    """The usual form of every kernel."""
    table = Table("sm", "kernel", "D", "launch", "registers", "spilled", "blocks", "per row", "in flight", box=None)
    for row in rows:
        launch = " ".join(str(row[name]) for name in ("tokens", "items", "warps", "stages"))
        values = [row["capability"], f"{row['kernel']} {row['form']}".strip(), row["D"], launch]
        values += [row[name] for name in ("registers", "spill_bytes", "blocks_per_multiprocessor")]
        table.add_row(*map(str, [*values, row["instructions_per_row"], row["copies_in_flight"]]))
    return table


def main(
    output: Annotated[Path | None, typer.Option("-o", "--output")] = None,
    capability: Annotated[list[int] | None, typer.Option()] = None,
    kernel: Annotated[list[str] | None, typer.Option()] = None,
    dim: Annotated[list[int] | None, typer.Option()] = None,
    launch: Annotated[list[str] | None, typer.Option(help="TOKENS,ITEMS,WARPS,STAGES instead of the tables'")] = None,
    jobs: Annotated[int, typer.Option(min=1)] = os.cpu_count() or 1,
) -> None:
    """Compile, print the usual form of every kernel, and write the table."""
    wanted = cases(capability or [], kernel or [], dim or [], [launch_of(text) for text in launch or []])
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        rows = list(track(pool.map(row_of, wanted), total=len(wanted), console=Console(stderr=True)))
    Console().print(summary([row for row in rows if launch or not row["form"]]))
    path = output or Path(__file__).parent / f"compiled_kernels_{date.today()}_triton_{triton.__version__}.csv"
    write(path, rows)
    print(f"{len(rows)} rows in {path}")


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write the table; rows of other cases that the file holds already stay."""
    names = ("kernel", "form", "capability", "D")
    new = {tuple(str(row[name]) for name in names) for row in rows}
    held = list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []
    kept = [row for row in held if tuple(row[name] for name in names) not in new]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows([*kept, *rows])


if __name__ == "__main__":
    typer.run(main)
