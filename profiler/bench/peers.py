"""Other people's losses, as they are installed: each compared on the inputs of `bench`, none a dependency.

They want the table in the type of the hidden states: their copy is made before the clock starts. All run with the
options they are shipped with; cut-cross-entropy 25.1.1 then skips gradients below a 32nd of the type's epsilon.
The extra `bench` pins the versions whose interfaces are called here, cut-cross-entropy 25.1.1 and liger-kernel 0.8.5:
liger-kernel 0.5.0, for one, does not import without transformers.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

import torch
import torch.nn.functional as F
from torch import Tensor

from srsplan.kernels.losses import CE
from srsplan.profiler.bench.contestants import Contestant, Run
from srsplan.profiler.bench.inputs import Inputs
from srsplan.profiler.bench.shapes import Shape

INSTALL = "pip install 'srsplan[bench]'"


def peers(device: torch.device) -> list[Contestant]:
    """Return other people's losses; all are full softmax, because nobody publishes a maintained sampled one."""
    return [_torch(), _packaged("cut-cross-entropy", _cut, device), _packaged("liger-kernel", _liger, device)]


def _torch() -> Contestant:
    """Take torch's chunked form: without options the function is eager `ce` under another name."""
    name = f"torch {torch.__version__.partition('+')[0]} linear_cross_entropy"
    function, options = getattr(F, "linear_cross_entropy", None), getattr(torch.nn, "LinearCrossEntropyOptions", None)
    if function is None or options is None:
        return Contestant(name=name, loss=CE, absent="this torch has none in chunks: pip install -U torch", ours=False)

    def run(inputs: Inputs, _: Shape) -> Tensor:
        loss: Tensor = function(inputs.hidden, inputs.table_16, inputs.targets, options=options())
        return loss

    return Contestant(name=name, loss=CE, run=run, ours=False)


def _packaged(package: str, make: Callable[[], Run], device: torch.device) -> Contestant:
    """Make a contestant of a package's loss, or of the reason why it is not there."""
    try:
        name = f"{package} {version(package)}"
    except PackageNotFoundError:
        return Contestant(name=package, loss=CE, absent=f"not installed: {INSTALL}", ours=False)
    if device.type != "cuda":
        return Contestant(name=name, loss=CE, absent="runs on CUDA", ours=False)
    try:
        return Contestant(name=name, loss=CE, run=make(), ours=False)
    except Exception as error:  # what an import raises is anybody's guess
        reason = f"does not import, {INSTALL} brings one that does: {error}"[:200]
        return Contestant(name=name, loss=CE, absent=reason, ours=False)


def _cut() -> Run:
    from cut_cross_entropy import linear_cross_entropy

    def run(inputs: Inputs, _: Shape) -> Tensor:
        loss: Tensor = linear_cross_entropy(inputs.hidden, inputs.table_16, inputs.targets)
        return loss

    return run


def _liger() -> Run:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    fused = LigerFusedLinearCrossEntropyLoss()

    def run(inputs: Inputs, _: Shape) -> Tensor:
        loss: Tensor = fused(inputs.table_16, inputs.hidden, inputs.targets)
        return loss

    return run
