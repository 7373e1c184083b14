"""Every Triton kernel of srsplan, and what it is compiled with: examples/compiled_kernels.py and the tests read it.

To add a kernel, add one `Entry` to KERNELS. It names

- the kernel, and its launches by padded hidden size (`launches`: of a capability and a form),
- the `forms` it is compiled in beside the usual one: at VARIANTS_DIM, or at every size where a form has launches of its
  own (`sized`),
- `rows`: the rows that an iteration of its loop works on; instructions are told per row,
- `types` of arguments and `constants` of the compiler that TYPES and `Entry.constants_of` do not know by their names.

An argument's name means the same in every kernel: TYPES has its type once, and NUMBERS which integers may be 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import triton.language as tl

from srsplan.kernels.block_softmax import kernel as blocks
from srsplan.kernels.block_softmax.call import PLACES
from srsplan.kernels.full_softmax import kernel as softmax
from srsplan.kernels.launches.table import SPAN_ITEMS, Launch, Table, blocks_table, sampled_table, softmax_table
from srsplan.kernels.sampled_softmax import kernel as sampled
from srsplan.kernels.sampled_softmax.thresholds import for_scores
from srsplan.kernels.samplers.kind import SamplerKind

TYPES = {
    "targets": "*i64", "losses": "*fp32", "shifts": "*fp32", "log_prob": "*fp32", "weights": "*fp32", "scale": "*fp32",
    "seed": "i64", "step": "i64", "catalog": "i32", "negatives": "i32", "prob": "*fp32", "alias": "*i32",
    "indices": "*i64", "count": "i32", "stride": "i32", "group": "i32", "first_set": "i32", "first_token": "i32",
    "ignore_index": "i64", "positives": "*fp32", "partials": "*fp32", "spans": "*i8", "lse": "*fp32",
    "split_items": "i32", "threshold": "fp32", "state": "*fp32", "live_spans": "*i64",
    "sparse_limit": "i32", "padded": "i32", "parts": "*fp32", "splits": "i32", "broken": "*fp32", "sums": "*i64",
    "size": "i64", "order": "*i32", "places": "*i32", "upper": "i32", "bits": "i32", "blocks": "i32", "width": "i32",
    "rounds": "i32", "sets": "i32", "sorted_tokens": "*i64", "starts": "*i32",
    "thresholds": "*fp32", "scores": "*fp32", "batch_slots": "i32", "from_batch": "i32",
}  # fmt: skip
"""Types of arguments by name; `Form.types` has those of hidden states and the table."""
NUMBERS = {
    "seed", "step", "catalog", "negatives", "count", "stride", "group", "first_set", "first_token", "ignore_index",
    "split_items", "sparse_limit", "padded", "splits", "size", "upper", "bits", "blocks", "width", "rounds", "sets",
    "batch_slots", "from_batch",
}  # fmt: skip
"""Arguments of a launch that are int32 where they are small, and constants of the compiler where they are 1."""
COMPUTE = {"fp16": tl.float16, "bf16": tl.bfloat16, "fp32": tl.float32}
DIMS = (64, 128, 256, 512, 1024)
VARIANTS_DIM, FORM_CAPABILITIES = 256, (80, 90)
"""The hidden size, and the capabilities, that every form is compiled for."""
STATE_ROWS, SMALL_LAUNCH = 128, Launch(8, 64, 4, 3)
"""Tokens of a program of `softmax_state`; and the launch of kernels for which it is no choice."""


@dataclass(frozen=True)
class Form:
    """The options a kernel is compiled with beside its launch. `ones`: all of its NUMBERS are 1."""

    name: str = ""
    hidden: str = "fp16"
    table: str = "fp16"
    set_tokens: int = 32
    sampler: SamplerKind = SamplerKind.UNIFORM
    log_q: bool = True
    deterministic: bool = False
    hardest: bool = False
    """Every token leaves out what is below its threshold."""
    sparse: bool = False
    split: bool = False
    in_memory: bool = False
    """Seed and step are loaded."""
    hidden_grad: bool = True
    table_grad: bool = True
    ones: bool = False

    @property
    def fp32(self) -> bool:
        """Whether hidden states are fp32."""
        return self.hidden == "fp32"

    def types(self) -> dict[str, str]:
        """The types of arguments that depend on the form."""
        hidden = f"*{self.hidden}"
        return {
            "hidden": hidden, "table": f"*{self.table}", "grad_hidden": hidden, "out": hidden,
            "grad_table": "*i64" if self.deterministic else "*fp32", "directions": "*fp32" if self.split else hidden,
            **(dict.fromkeys(("seed", "step"), "*i64") if self.in_memory else {}),
        }  # fmt: skip


USUAL = Form()
SINGLE = Form("single tokens", set_tokens=1)
FP32 = Form("fp32", hidden="fp32", table="fp32")
FP32_TABLE = Form("fp32 table", table="fp32")
FROZEN = Form("frozen table", table_grad=False)
WEIGHTED = Form("weighted", sampler=SamplerKind.WEIGHTED)
REPEATABLE = Form("repeatable", deterministic=True)
SAMPLED_FORMS = (
    Form("given", sampler=SamplerKind.GIVEN), Form("in-batch", sampler=SamplerKind.IN_BATCH),
    Form("mixed", sampler=SamplerKind.MIXED), Form("adaptive", log_q=False, hardest=True),
    Form("no log-Q", log_q=False), Form("bf16", hidden="bf16", table="bf16"),
    Form("bf16, fp32 table", hidden="bf16", table="fp32"),
    Form("seed in memory", in_memory=True),
    Form("single tokens, weighted", set_tokens=1, sampler=SamplerKind.WEIGHTED),
    Form("single tokens, fp32 table", set_tokens=1, table="fp32"),
)  # fmt: skip
BACKWARD_FORMS = (Form("frozen hidden", hidden_grad=False), FROZEN)
SOFTMAX_FORMS = (Form("bf16", hidden="bf16", table="bf16"),)
BLOCK_FORMS = (
    Form("no log-Q", log_q=False), Form("bf16", hidden="bf16", table="bf16"),
    Form("bf16, fp32 table", hidden="bf16", table="fp32"), Form("seed in memory", in_memory=True),
    Form("sets of 128", set_tokens=128),
)  # fmt: skip


def by_items(launch: Launch) -> int:
    """Rows of an iteration that takes a tile of items."""
    return launch.block_n


def by_tokens(launch: Launch) -> int:
    """Rows of an iteration that takes a tile of tokens."""
    return launch.block_m


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A kernel, its launches and its forms."""

    name: str
    kernel: Any
    launches: Callable[[int, Form], Table]
    forms: tuple[Form, ...] = ()
    sized: tuple[Form, ...] = ()
    rows: Callable[[Launch], int] = by_items
    dims: tuple[int, ...] = DIMS
    types: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, Any] = field(default_factory=dict)

    def constants_of(self, launch: Launch, dim: int, form: Form) -> dict[str, Any]:
        """The compile-time arguments by name; those that the kernel does not have are left out by the caller."""
        known = {
            "DIM": dim, "BLOCK_D": dim, "BLOCK_M": launch.block_m, "BLOCK_N": launch.block_n,
            "SPAN_TILES": SPAN_ITEMS // launch.block_n, "SPAN_ROWS": max(128, launch.block_m), "SPARSE": form.sparse,
            "SPLIT": form.split, "GRAD": form.hidden_grad, "SPANS": form.table_grad, "HIDDEN_GRAD": form.hidden_grad,
            "TABLE_GRAD": form.table_grad, "LOAD_SEED": form.in_memory, "LOAD_STEP": form.in_memory, "BLOCK": PLACES,
            "SETS": max(1, launch.block_m // form.set_tokens), "GROUP": min(form.set_tokens, launch.block_m),
            "PARTS": max(1, form.set_tokens // launch.block_m), "FP32": form.fp32, "SAMPLER": int(form.sampler),
            "LOG_Q": form.log_q, "COMPUTE": COMPUTE[form.hidden], "PRECISION": "ieee",
            "FIXED": sampled.FIXED_POINT if form.deterministic else 0.0, "HARDEST": form.hardest,
        }  # fmt: skip
        return {**known, **self.constants, **(dict.fromkeys(NUMBERS, 1) if form.ones else {})}

    def cases(self, capability: int) -> list[tuple[Form, int]]:
        """Every form with every hidden size that it is compiled for on a capability."""
        sized = [(form, dim) for form in (USUAL, *self.sized) for dim in self.dims if not (form.fp32 and dim > 256)]
        return [*sized, *((form, VARIANTS_DIM) for form in self.forms if capability in FORM_CAPABILITIES)]


def _sampled(name: str) -> Callable[[int, Form], Table]:
    return lambda capability, form: sampled_table(
        name, capability, form.set_tokens, fp32=form.fp32, wide=form.table != form.hidden,
        looked_up=form.sampler != SamplerKind.UNIFORM, deterministic=form.deterministic,
    )  # fmt: skip


def _scores(capability: int, form: Form) -> Table:
    return {dim: for_scores(each) for dim, each in _sampled("sampled_forward")(capability, form).items()}


def _softmax(name: str) -> Callable[[int, Form], Table]:
    return lambda capability, form: softmax_table(name, capability, form.fp32)


def _blocks(name: str) -> Callable[[int, Form], Table]:
    def launches(_: int, form: Form) -> Table:
        found = blocks_table(name, form.fp32, wide=form.table != form.hidden)
        if name == "blocks_backward":
            return found
        return {dim: replace(each, block_m=min(each.block_m, max(16, form.set_tokens))) for dim, each in found.items()}

    return launches


def _small(capability: int, form: Form) -> Table:
    return dict.fromkeys(DIMS, SMALL_LAUNCH)


KERNELS = (
    Entry(
        name="sampled_forward", kernel=sampled.sampled_forward, launches=_sampled("sampled_forward"),
        forms=(*SAMPLED_FORMS, WEIGHTED), sized=(SINGLE, FP32, FP32_TABLE),
    ),
    Entry(
        name="sampled_backward", kernel=sampled.sampled_backward, launches=_sampled("sampled_backward"),
        forms=(*SAMPLED_FORMS, *BACKWARD_FORMS), sized=(SINGLE, FP32, FP32_TABLE, WEIGHTED, REPEATABLE),
    ),
    Entry(
        name="sampled_scores", kernel=sampled.sampled_scores, launches=_scores,
        forms=(Form("mixed", sampler=SamplerKind.MIXED),), sized=(FP32, FP32_TABLE),
    ),
    Entry(
        name="blocks_forward", kernel=blocks.blocks_forward, launches=_blocks("blocks_forward"),
        forms=(*BLOCK_FORMS, Form("frozen hidden", hidden_grad=False)), sized=(SINGLE, FP32, FP32_TABLE),
    ),
    Entry(
        name="blocks_backward", kernel=blocks.blocks_backward, launches=_blocks("blocks_backward"),
        forms=BLOCK_FORMS, sized=(SINGLE, FP32, FP32_TABLE), rows=by_tokens,
    ),
    Entry(
        name="softmax_forward", kernel=softmax.softmax_forward, launches=_softmax("softmax_forward"),
        forms=(*SOFTMAX_FORMS, Form("split", split=True), FROZEN), sized=(FP32,),
    ),
    Entry(
        name="softmax_forward_loss", kernel=softmax.softmax_forward, launches=_softmax("softmax_forward_loss"),
        forms=SOFTMAX_FORMS, sized=(FP32,), constants={"GRAD": False},
    ),
    Entry(
        name="softmax_backward_table", kernel=softmax.softmax_backward_table,
        launches=_softmax("softmax_backward_table"), forms=(*SOFTMAX_FORMS, Form("sparse", sparse=True)),
        sized=(FP32,), rows=by_tokens,
    ),
)  # fmt: skip
"""The kernels whose launches are chosen."""
SMALL = (
    Entry(name="sample", kernel=sampled.sample, launches=_small, dims=(VARIANTS_DIM,), types={"out": "*i64"}),
    Entry(
        name="from_fixed_point", kernel=sampled.from_fixed_point, launches=_small, dims=(VARIANTS_DIM,),
        constants={"FIXED": sampled.FIXED_POINT},
    ),
    Entry(name="permute", kernel=blocks.permute, launches=_small, dims=(VARIANTS_DIM,)),
    Entry(name="target_places", kernel=blocks.target_places, launches=_small, dims=(VARIANTS_DIM,)),
    Entry(name="softmax_join", kernel=softmax.softmax_join, launches=_small, dims=(VARIANTS_DIM,), rows=by_tokens),
    Entry(
        name="softmax_state", kernel=softmax.softmax_state, launches=_small, dims=(VARIANTS_DIM,), rows=by_tokens,
        constants={"BLOCK_M": STATE_ROWS},
    ),
    Entry(name="scale_rows", kernel=softmax.scale_rows, launches=_small, dims=(VARIANTS_DIM,), rows=by_tokens),
)  # fmt: skip
"""Kernels beside them, whose launch is no choice."""


def entry(name: str) -> Entry:
    """The entry of a kernel; KeyError where there is none."""
    return {each.name: each for each in (*KERNELS, *SMALL)}[name]
