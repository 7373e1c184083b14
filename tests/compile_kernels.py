"""Compiles some of the cases of examples/kernel_registry.py and prints what they take, one JSON line each.

    python tests/compile_kernels.py 90 sampled_backward:256 "softmax_forward:256:split" ...

A case is a kernel, a hidden size and a form (the usual one where none is named). Not under the interpreter; without the
machine code, which examples/compiled_kernels.py reads as well.
"""

from __future__ import annotations

import json
import sys

from paths import ROOT

sys.path.insert(0, str(ROOT / "examples"))
from compiled_kernels import Case, row_of
from kernel_registry import FORM_CAPABILITIES, Form, entry

from srsplan.kernels.launches.table import launch_for


def case(capability: int, text: str) -> Case:
    """The case that is written KERNEL:D or KERNEL:D:FORM; "ones" is the form whose sizes are all 1."""
    kernel, dim, name = (*text.split(":"), "")[:3]
    found = entry(kernel)
    forms = {form.name: form for form, _ in found.cases(FORM_CAPABILITIES[0])} | {"ones": Form("ones", ones=True)}
    launch = launch_for(found.launches(capability, forms[name]), int(dim))
    return Case(kernel=kernel, capability=capability, dim=int(dim), form=forms[name], launch=launch)


if __name__ == "__main__":
    for argument in sys.argv[2:]:
        print(json.dumps(row_of(case(int(sys.argv[1]), argument), disassemble=False)), flush=True)
