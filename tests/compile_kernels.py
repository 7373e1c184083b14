"""Compiles every kernel of the tuning tables and prints what it takes, one JSON line each; not under the interpreter.

python tests/compile_kernels.py 80 [variants | ones | DIM ...]
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
import triton.backends.nvidia
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from srsplan.kernels.full_softmax import kernel as softmax
from srsplan.kernels.launches.table import (
    SAMPLED_BACKWARD,
    SAMPLED_FORWARD,
    SPAN_ITEMS,
    Launch,
    Table,
    launch_for,
    softmax_table,
)
from srsplan.kernels.sampled_softmax import kernel as sampled
from srsplan.kernels.samplers.kind import SamplerKind

TOOLS = Path(triton.backends.nvidia.__file__).parent / "bin"
TYPES = {
    "hidden": "*fp16", "table": "*fp16", "targets": "*i64", "losses": "*fp32", "shifts": "*fp32", "log_prob": "*fp32",
    "weights": "*fp32", "scale": "*fp32", "grad_hidden": "*fp16", "grad_table": "*fp32", "seed": "i64", "step": "i64",
    "catalog": "i32", "negatives": "i32", "prob": "*fp32", "alias": "*i32", "indices": "*i64", "count": "i32",
    "stride": "i32", "group": "i32", "first_set": "i32", "first_token": "i32", "ignore_index": "i64",
    "positives": "*fp32", "partials": "*fp32", "spans": "*i8", "lse": "*fp32",
    "split_items": "i32", "threshold": "fp32", "state": "*fp32", "live_spans": "*i64",
    "sparse_limit": "i32", "padded": "i32", "parts": "*fp32", "splits": "i32", "out": "*fp16",
    "broken": "*fp32", "sums": "*i64", "size": "i64",
}  # fmt: skip
NUMBERS = {
    "seed", "step", "catalog", "negatives", "count", "stride", "group", "first_set", "first_token", "ignore_index",
    "split_items", "sparse_limit", "padded", "splits", "size",
}  # fmt: skip
"""Arguments of a launch that are int32 where they are small, and constants of the compiler where they are 1."""
DIMS = tuple(SAMPLED_FORWARD)
VARIANTS_DIM = 256
"""The hidden size that every variant is compiled for."""

SAMPLED = {"sampled_forward": sampled.sampled_forward, "sampled_backward": sampled.sampled_backward}
SOFTMAX = {
    "softmax_forward": softmax.softmax_forward,
    "softmax_forward_loss": softmax.softmax_forward,
    "softmax_backward_table": softmax.softmax_backward_table,
}
SMALL = {
    "sample": sampled.sample,
    "from_fixed_point": sampled.from_fixed_point,
    "softmax_join": softmax.softmax_join,
    "softmax_state": softmax.softmax_state,
    "scale_rows": softmax.scale_rows,
}
"""Kernels beside the others, with a launch that is no choice."""
SMALL_LAUNCH = Launch(8, 64, 4, 3)


@dataclass(frozen=True)
class Variant:
    """The options a kernel is compiled with beside its launch.

    `in_memory`: it loads seed and step; `ones`: all of its NUMBERS are 1.
    """

    name: str = ""
    hidden: str = "fp16"
    table: str = "fp16"
    sampler: SamplerKind = SamplerKind.UNIFORM
    log_q: bool = True
    deterministic: bool = False
    sparse: bool = False
    split: bool = False
    in_memory: bool = False
    hidden_grad: bool = True
    table_grad: bool = True
    ones: bool = False


DEFAULT = Variant()
VARIANTS = (
    Variant("weighted", sampler=SamplerKind.WEIGHTED), Variant("given", sampler=SamplerKind.GIVEN),
    Variant("in-batch", sampler=SamplerKind.IN_BATCH), Variant("no log-Q", log_q=False),
    Variant("repeatable", deterministic=True), Variant("fp32 table", table="fp32"),
    Variant("bf16", hidden="bf16", table="bf16"), Variant("bf16, fp32 table", hidden="bf16", table="fp32"),
    Variant("fp32", hidden="fp32", table="fp32"), Variant("sparse", sparse=True),
    Variant("split", split=True), Variant("seed in memory", in_memory=True),
    Variant("frozen hidden", hidden_grad=False), Variant("frozen table", table_grad=False),
)  # fmt: skip
COMPUTE = {"fp16": tl.float16, "bf16": tl.bfloat16, "fp32": tl.float32}


def compiled(capability: int, dim: int, name: str, variant: Variant = DEFAULT) -> dict[str, Any]:
    """Shared memory, registers and spilled bytes of a thread."""
    kernel = (SAMPLED | SOFTMAX | SMALL)[name]
    launch = SMALL_LAUNCH if name in SMALL else launch_for(tables(name, capability, variant), dim)
    values: dict[str, Any] = {
        "DIM": dim, "BLOCK_D": dim, "BLOCK_M": launch.block_m, "BLOCK_N": launch.block_n,
        "SPAN_TILES": SPAN_ITEMS // launch.block_n, "SPAN_ROWS": max(128, launch.block_m), "SPARSE": variant.sparse,
        "SPLIT": variant.split, "GRAD": name != "softmax_forward_loss", "FP32": variant.hidden == "fp32",
        "SPANS": variant.table_grad, "HIDDEN_GRAD": variant.hidden_grad, "TABLE_GRAD": variant.table_grad,
        "LOAD_SEED": variant.in_memory, "LOAD_STEP": variant.in_memory,
        "SAMPLER": int(variant.sampler), "LOG_Q": variant.log_q,
        "COMPUTE": COMPUTE[variant.hidden], "PRECISION": "ieee",
        "FIXED": sampled.FIXED_POINT if variant.deterministic or name == "from_fixed_point" else 0.0,
    }  # fmt: skip
    types = {
        **TYPES, "hidden": f"*{variant.hidden}", "grad_hidden": f"*{variant.hidden}", "table": f"*{variant.table}",
        "grad_table": "*i64" if variant.deterministic else "*fp32",
        "directions": "*fp32" if variant.split else f"*{variant.hidden}",
        **(dict.fromkeys(("seed", "step"), "*i64") if variant.in_memory else {}),
    }  # fmt: skip
    values |= dict.fromkeys(NUMBERS, 1) if variant.ones else {}
    types = {name: "constexpr" if name in values else kind for name, kind in types.items()}
    constants = {name: values[name] for name in kernel.arg_names if name in values}
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(kernel.arg_names)
        if signature[name].startswith("*")
    }
    done = triton.compile(
        ASTSource(kernel, signature, constants, aligned),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": launch.num_warps, "num_stages": launch.num_stages},
    )
    return {"shared_bytes": done.metadata.shared, **resources(done.asm["ptx"], capability)}


def resources(ptx: str, capability: int) -> dict[str, int]:
    """The registers and spilled bytes of a kernel, as the assembler reports them."""
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        name = f"sm_{capability}" + "a" * (capability >= 90)
        assembler = TOOLS / ("ptxas-blackwell" if capability >= 100 else "ptxas")
        command = [str(assembler), "-v", "--gpu-name", name, file.name, "-o", "/dev/null"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    find = {"registers": r"Used (\d+) registers", "spilled_bytes": r"(\d+) bytes spill stores"}
    return {key: int(re.search(pattern, said)[1]) for key, pattern in find.items()}  # type: ignore[index]


def tables(kernel: str, capability: int, variant: Variant) -> Table:
    """The launches of a kernel."""
    if kernel in SAMPLED:
        return SAMPLED_FORWARD if kernel == "sampled_forward" else SAMPLED_BACKWARD
    return softmax_table(kernel, capability, variant.hidden == "fp32")


def applies(kernel: str, variant: Variant) -> bool:
    """Samplers and tables that are not copied are the sampled softmax's, spans and splits the full one's."""
    if kernel in SAMPLED:
        frozen = not (variant.hidden_grad and variant.table_grad)
        return not (variant.sparse or variant.split or (frozen and kernel == "sampled_forward"))
    if variant.in_memory or not variant.hidden_grad:
        return False
    if not variant.table_grad:
        return kernel != "softmax_backward_table"
    if variant.sparse or variant.split:
        return kernel == ("softmax_backward_table" if variant.sparse else "softmax_forward")
    return variant.hidden == variant.table and not (variant.sampler or not variant.log_q or variant.deterministic)


def main() -> None:
    """Every kernel with every launch of its table, for one capability; with "variants" every variant of one launch.

    With "ones" every kernel as it is compiled where all sizes are 1.
    """
    capability, variants = int(sys.argv[1]), sys.argv[2:] == ["variants"]
    if sys.argv[2:] == ["ones"]:
        for name in SAMPLED | SOFTMAX | SMALL:
            print(json.dumps({"kernel": name, **compiled(capability, min(DIMS), name, Variant(ones=True))}), flush=True)
        return
    chosen = [int(dim) for dim in sys.argv[2:] if dim.isdigit()]
    for name in SAMPLED | SOFTMAX:
        for dim in DIMS:
            wanted = [DEFAULT] if not chosen or dim in chosen else []
            if variants:
                wanted = [each for each in VARIANTS if applies(name, each)] if dim == VARIANTS_DIM else []
            for variant in wanted:
                row = {"capability": capability, "kernel": name, "variant": variant.name, "dim": dim}
                row |= compiled(capability, dim, name, variant)
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
