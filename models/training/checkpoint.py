"""Checkpoints: weights, Adam's moments and generator states as safetensors, everything else as JSON. Never a pickle.

    state.json                  what is resumed, and which weights belong to it; replaced last, in one step
    weights-EPOCH.safetensors   model.*, adam.*, generator.*
    best.safetensors            model.* of the best epoch

A kill or a full disk at any moment leaves the previous state.json and its weights whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from srsplan.models.errors import InputError, SrsplanError
from srsplan.models.training.step import TrainingStep

STATE, BEST = "state.json", "best.safetensors"
VERSION = 1


def save_checkpoint(folder: Path, step: TrainingStep, state: Mapping[str, Any]) -> None:
    """Write weights, then the state that names them, then remove older weights."""
    name = f"weights-{state['epoch']}.safetensors"
    write_whole(folder / name, save(_tensors(step)))
    document = {"version": VERSION, "weights": name, "steps_done": step.steps_done, **state}
    if step.scaler is not None:
        document["scaler"] = step.scaler.state_dict()
    write_whole(folder / STATE, json.dumps(document, indent=2).encode())
    for old in folder.glob("weights-*.safetensors"):
        if old.name != name:
            old.unlink()


def load_checkpoint(folder: Path, step: TrainingStep) -> dict[str, Any]:
    """Put weights, moments and generator states back; the state. InputError where they are of another run."""
    state = read_state(folder)
    tensors = read_tensors(folder / str(state["weights"]))
    _load_model(step, tensors, folder)
    _load_adam(step, tensors)
    torch.set_rng_state(tensors["generator.cpu"])
    if step.device.type == "cuda" and "generator.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["generator.cuda"], step.device)
    if step.scaler is not None and "scaler" in state:
        step.scaler.load_state_dict(state["scaler"])
    step.steps_done = int(state["steps_done"])
    return state


def read_state(folder: Path) -> dict[str, Any]:
    """state.json of a run; InputError where there is none or it is of another version."""
    path = folder / STATE
    try:
        state: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"no checkpoint in {folder}", "start the run without --resume") from None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}", "start anew with --overwrite") from error
    if not isinstance(state, dict) or state.get("version") != VERSION:
        raise InputError(f"{path} is not a checkpoint of version {VERSION}", "start anew with --overwrite")
    return state


def save_best(folder: Path, step: TrainingStep) -> None:
    """The weights of the best epoch so far."""
    write_whole(
        folder / BEST, save({name: tensor for name, tensor in _tensors(step).items() if name.startswith("model.")})
    )


def load_best(folder: Path, step: TrainingStep) -> None:
    """Put the best epoch's weights into the model."""
    _load_model(step, read_tensors(folder / BEST), folder)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot read the weights {path}: {error}", "start anew with --overwrite") from error


def write_whole(path: Path, content: bytes) -> None:
    """All or nothing: through a temporary file that is synced, then renamed. SrsplanError where the disk refuses."""
    temporary = path.with_name(path.name + ".part")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise SrsplanError(
            f"cannot write {path}: {error.strerror}; what was saved before is whole", "make room, then --resume"
        ) from error


def _tensors(step: TrainingStep) -> dict[str, Tensor]:
    tensors = {f"model.{name}": tensor.contiguous() for name, tensor in step.model.state_dict().items()}
    for name, parameter in step.model.named_parameters():
        for key, value in step.optimizer.state.get(parameter, {}).items():
            tensors[f"adam.{key}.{name}"] = value.contiguous()
    tensors["generator.cpu"] = torch.get_rng_state()
    if step.device.type == "cuda":
        tensors["generator.cuda"] = torch.cuda.get_rng_state(step.device)
    return tensors


def _load_model(step: TrainingStep, tensors: Mapping[str, Tensor], folder: Path) -> None:
    weights = {name.removeprefix("model."): tensor for name, tensor in tensors.items() if name.startswith("model.")}
    try:
        step.model.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"the checkpoint in {folder} is of another model: {reason}", "resume with the same options"
        ) from error


def _load_adam(step: TrainingStep, tensors: Mapping[str, Tensor]) -> None:
    for name, parameter in step.model.named_parameters():
        keys = [key for key in tensors if key.startswith("adam.") and key.split(".", 2)[2] == name]
        step.optimizer.state[parameter] = {key.split(".", 2)[1]: tensors[key].to(parameter.device) for key in keys}
