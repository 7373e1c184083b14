"""A run as a checkpoint of RecTools' SASRecModel, with srsplan's layers and positions in the place of its own.

RecTools lets a model name classes for its layers and its positional encoding; a checkpoint holds these names, weights,
the item ids, and nothing that only RecTools could write. `rectools_parts` holds the classes. The
library is https://github.com/MobileTeleSystems/RecTools; read in version 0.19.0.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from srsplan.models.errors import InputError
from srsplan.models.files import write_atomically
from srsplan.models.loading import TrainedRun
from srsplan.models.sasrec import SASRec

PARTS = "srsplan.models.export.rectools_parts"
PADDING = "PAD"
"""RecTools' id of the item that stands before a history; its vector is zero."""

BLOCK = {
    "attention.project_in.weight": "attention.in_proj_weight",
    "attention.project_in.bias": "attention.in_proj_bias",
    "attention.project_out.weight": "attention.out_proj.weight",
    "attention.project_out.bias": "attention.out_proj.bias",
    "feed_forward.inner.weight": "feed_forward.ff_linear_1.weight",
    "feed_forward.inner.bias": "feed_forward.ff_linear_1.bias",
    "feed_forward.outer.weight": "feed_forward.ff_linear_2.weight",
    "feed_forward.outer.bias": "feed_forward.ff_linear_2.bias",
}
"""Names of a block's tensors in srsplan and in RecTools, where they differ."""


def write_checkpoint(run: TrainedRun, output: Path) -> None:
    """Write the checkpoint; InputError for a model that is no SASRec."""
    if not isinstance(run.model, SASRec):
        raise InputError(
            f"--to rectools: a {type(run.model).__name__} has no counterpart there", "--onnx FILE exports any model"
        )
    if not run.model.item_table.any(dim=1).all():
        raise InputError("--to rectools: an item has the vector zero, which is that of padding there", "train longer")
    document = {
        "state_dict": weights(run.model),
        "hyper_parameters": _hyper_parameters(run),
        "pytorch-lightning_version": "2.0.0",
        "epoch": 0,
        "global_step": 0,
        "callbacks": {},
        "optimizer_states": [],
        "lr_schedulers": [],
    }
    write_atomically(output, lambda temporary: torch.save(document, temporary))


def weights(model: SASRec) -> dict[str, Tensor]:
    """Return the tensors of a RecTools model: that of row 0 of its item table is padding's."""
    state = model.state_dict()
    table = state.pop("item_embedding.weight")
    found = {
        "item_model.item_net_blocks.0.ids_emb.weight": torch.cat([torch.zeros_like(table[:1]), table]),
        "pos_encoding_layer.pos_emb.weight": state.pop("position_embedding.weight"),
    }
    found |= {f"transformer_layers.{_renamed(name)}": tensor for name, tensor in state.items()}
    return {f"torch_model.{name}": tensor for name, tensor in found.items()}


def _renamed(name: str) -> str:
    if not name.startswith("blocks."):
        return name
    _, number, part = name.split(".", 2)
    return f"blocks.{number}.{BLOCK.get(part, part)}"


def _hyper_parameters(run: TrainedRun) -> dict[str, Any]:
    ids = np.empty(len(run.item_ids) + 1, dtype=object)
    ids[0], ids[1:] = PADDING, run.item_ids.tolist()
    sizes = run.configuration.architecture
    return {
        "model_config": {
            "cls": "SASRecModel",
            "n_blocks": sizes.blocks,
            "n_heads": sizes.heads,
            "n_factors": sizes.dim,
            "dropout_rate": sizes.dropout,
            "session_max_len": run.configuration.seq_len,
            "use_causal_attn": True,
            "use_key_padding_mask": True,
            "item_net_block_types": ["rectools.models.nn.item_net.IdEmbeddingsItemNet"],
            "transformer_layers_type": f"{PARTS}.PreNormLayers",
            "pos_encoding_type": f"{PARTS}.PositionsFromTheOldest",
            "epochs": 1,
        },
        "dataset_schema": {
            "n_interactions": len(run.item_ids),
            "users": {"n_hot": 1, "id_map": {"size": 1, "dtype": "|O"}, "features": None},
            "items": {"n_hot": len(ids), "id_map": {"size": len(ids), "dtype": "|O"}, "features": None},
        },
        "item_external_ids": ids,
    }
