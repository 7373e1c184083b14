"""Compiles every kernel of the tuning tables and prints what it takes, one JSON line each; not under the interpreter.

python tests/compile_kernels.py 80 90
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
import triton.backends.nvidia
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from srsplan.kernels import triton_sampled as kernels
from srsplan.kernels.tuning import SAMPLED_BACKWARD, SAMPLED_FORWARD, Launch

PTXAS = Path(triton.backends.nvidia.__file__).parent / "bin" / "ptxas"
DRAW = {
    "seed": "i64", "step": "i64", "catalog": "i32", "negatives": "i32", "prob": "*fp32", "alias": "*i32",
    "indices": "*i64", "count": "i32", "sets": "i32", "ignore_index": "i64",
}  # fmt: skip
INPUTS = {
    "hidden": "*fp16", "table": "*fp16", "targets": "*i64", "losses": "*fp32", "shifts": "*fp32", "log_prob": "*fp32",
}  # fmt: skip
OUTPUTS = {"weights": "*fp32", "scale": "*fp32", "grad_hidden": "*fp16", "grad_table": "*fp32"}


def compiled(capability: int, dim: int, launch: Launch, backward: bool) -> dict[str, Any]:
    """Shared memory, registers and spilled bytes of a thread."""
    constants: dict[str, Any] = {
        "DIM": dim, "WIDTH": dim, "SET": launch.tokens, "TILE": launch.tile, "SAMPLER": kernels.UNIFORM,
        "LOG_Q": True, "COMPUTE": tl.float16, "PRECISION": "ieee",
    }  # fmt: skip
    if backward:
        constants["FIXED"] = 0.0
    signature = {**INPUTS, **(OUTPUTS if backward else {}), **DRAW, **dict.fromkeys(constants, "constexpr")}
    kernel = kernels.sampled_backward if backward else kernels.sampled_forward
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(kernel.arg_names)
        if signature[name].startswith("*")
    }
    done = triton.compile(
        ASTSource(kernel, signature, constants, aligned),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": launch.warps, "num_stages": launch.stages},
    )
    return {"shared_bytes": done.metadata.shared, **resources(done.asm["ptx"], capability)}


def resources(ptx: str, capability: int) -> dict[str, int]:
    """What the assembler says of a kernel."""
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        name = f"sm_{capability}" + "a" * (capability >= 90)
        command = [PTXAS, "-v", "--gpu-name", name, file.name, "-o", "/dev/null"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    find = {"registers": r"Used (\d+) registers", "spilled_bytes": r"(\d+) bytes spill stores"}
    return {key: int(re.search(pattern, said)[1]) for key, pattern in find.items()}  # type: ignore[index]


def main() -> None:
    """Every entry of both tables, for the capabilities given."""
    for capability in map(int, sys.argv[1:]):
        for backward, table in ((False, SAMPLED_FORWARD), (True, SAMPLED_BACKWARD)):
            for dim, launch in table.items():
                found = compiled(capability, dim, launch, backward)
                print(json.dumps({"capability": capability, "dim": dim, "backward": backward, **found}), flush=True)


if __name__ == "__main__":
    main()
