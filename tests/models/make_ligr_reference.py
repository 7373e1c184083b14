"""Writes ligr_reference.npz: what RecTools' LiGR blocks make of random hidden states, weights beside it.

    pip download rectools==0.19.0 --no-deps && unzip rectools-*.whl -d FOLDER
    python tests/models/make_ligr_reference.py FOLDER

Only two modules of the library are run, which need torch alone; its package files, which import everything, are not.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

DIM, HEADS, BLOCKS, LENGTHS = 16, 2, 2, (5, 3, 1, 6)
PACKAGES = ("rectools", "rectools.models", "rectools.models.nn", "rectools.models.nn.transformers")


def main() -> None:
    folder = Path(sys.argv[1])
    for name in PACKAGES:
        package = ModuleType(name)
        package.__path__ = [str(folder.joinpath(*name.split(".")))]
        sys.modules[name] = package
    layers = import_module("rectools.models.nn.transformers.ligr").LiGRLayers
    torch.manual_seed(0)
    model = layers(n_blocks=BLOCKS, n_factors=DIM, n_heads=HEADS, dropout_rate=0.0).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(0.4 * torch.randn_like(weight) + (1.0 if "norm" in name and "weight" in name else 0.0))
    longest = max(LENGTHS)
    states = torch.randn(len(LENGTHS), longest, DIM)
    later = torch.ones(longest, longest, dtype=torch.bool).triu(1)
    padding = torch.arange(longest) >= torch.tensor(LENGTHS)[:, None]  # on the right: no token is left without a key
    with torch.no_grad():
        found = model(states, torch.ones(len(LENGTHS), longest, 1), later, padding)
    weights = {f"weight:{name}": weight.numpy() for name, weight in model.state_dict().items()}
    target = Path(__file__).with_name("ligr_reference.npz")
    valid = ~padding
    np.savez_compressed(target, **weights, lengths=LENGTHS, states=states[valid].numpy(), found=found[valid].numpy())


if __name__ == "__main__":
    main()
