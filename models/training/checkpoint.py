"""Checkpoints: weights, Adam's moments and generator states as safetensors, everything else as JSON. Never a pickle.

    weights-EPOCH.safetensors   model.*, adam.*, generator.*, and average.* where weights are averaged
    best-next.safetensors       weights of an epoch that is the best so far, until state.json knows of it
    state.json                  what is resumed, and the checksums of its tensors; replaced in one step
    best.safetensors            weights of the best epoch, those of the average where there is one: names as in the
                                model, so that `load_state_dict` takes them

They are written in this order. A kill or a full disk at any moment leaves a state.json whose tensors are all there.
Tensors are written from where they are, without a copy of them in memory.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from srsplan.models.errors import InputError
from srsplan.models.files import check_input, write_atomically
from srsplan.models.schema import Document
from srsplan.models.sequence_model import SequenceModel
from srsplan.models.training.folder import BEST, NEXT_BEST, START_ANEW, STATE, WEIGHTS, read_document
from srsplan.models.training.identity import Identity
from srsplan.models.training.progress import Progress
from srsplan.models.training.retries import ADAM_STATE
from srsplan.models.training.step import TrainingStep

BLOCK_BYTES = 4 << 20
"""Files are read so many bytes at a time for their checksum."""

Form = tuple[torch.dtype, tuple[int, ...]]
"""Type and shape of a tensor."""

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64, "U8": torch.uint8}
"""Types by their names in safetensors: those that a checkpoint may hold."""


class SavedTensors(Document):
    """A file of tensors and what it must hash to."""

    name: str
    crc32: Annotated[str, Field(pattern="^[0-9a-f]{8}$")]
    """CRC-32 of all its bytes: finds what a disk or a hand has changed."""


class GradScalerState(Document):
    """The loss scaling of fp16; the names are those of torch.amp.GradScaler."""

    scale: Annotated[float, Field(gt=0)]
    growth_factor: Annotated[float, Field(gt=1)]
    backoff_factor: Annotated[float, Field(gt=0, lt=1)]
    growth_interval: Annotated[int, Field(ge=1)]
    growth_tracker: Annotated[int, Field(ge=0)]

    @classmethod
    def of(cls, scaler: torch.amp.GradScaler) -> GradScalerState:
        """Read the state of torch's scaler."""
        return cls(**{name.lstrip("_"): value for name, value in scaler.state_dict().items()})

    def restore(self, scaler: torch.amp.GradScaler) -> None:
        """Put the state back into torch's scaler."""
        values = self.model_dump(exclude={"growth_tracker"})
        scaler.load_state_dict({**values, "_growth_tracker": self.growth_tracker})


class State(Document):
    """The content of state.json."""

    version: Literal[3] = 3
    weights: SavedTensors
    best: SavedTensors | None
    """Weights of the best epoch; None before the first evaluation."""
    moments: bool
    """True where the optimizer has taken a step, and so has moments to go on with."""
    steps_done: Annotated[int, Field(ge=0, lt=2**63)]
    progress: Progress
    run: Identity
    scaler: GradScalerState | None

    @model_validator(mode="after")
    def _agrees(self) -> State:
        progress = self.progress
        if self.weights.name != weights_name(progress.epoch) or (self.best is not None and self.best.name != BEST):
            raise ValueError("the names of the weights are not those of this epoch")
        if not 1 <= progress.epoch == len(progress.seconds) or progress.best_epoch > progress.epoch:
            raise ValueError("the epochs do not agree with each other")
        if (self.best is None) != (progress.best_epoch == 0):
            raise ValueError("the best epoch does not agree with its weights")
        return self


def weights_name(epoch: int) -> str:
    """Return the name of the file with an epoch's weights, moments and generator states."""
    return f"weights-{epoch}.safetensors"


class Checkpoints:
    """The checkpoint of one run: one at a time, of the last epoch, and the weights of the best."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._best: SavedTensors | None = None

    def save(self, step: TrainingStep, progress: Progress, run: Identity, *, is_best: bool) -> None:
        """Write the state of training after an epoch; SrsplanError where the disk refuses, with the last one whole."""
        name = weights_name(progress.epoch)
        weights = SavedTensors(name=name, crc32=_write(self.folder / name, _tensors(step)))
        best = self._best
        if is_best:
            best = SavedTensors(name=BEST, crc32=_write(self.folder / NEXT_BEST, _weights(step.evaluated)))
        state = State(
            weights=weights,
            best=best,
            moments=bool(step.optimizer.state),
            steps_done=step.steps_done,
            progress=progress,
            run=run,
            scaler=None if step.scaler is None else GradScalerState.of(step.scaler),
        )
        write_atomically(self.folder / STATE, state.model_dump_json(indent=2).encode() + b"\n")
        self._best = best
        self._tidy(name, is_best)

    def load(self, step: TrainingStep, state: State) -> None:
        """Put weights, moments and generator states back. InputError, and nothing changed, where a file is damaged."""
        path = self.folder / state.weights.name
        check_tensors(path, state.weights.crc32)
        best = None if state.best is None else best_path(self.folder, state.best)
        if best is not None and state.best is not None:
            check_tensors(best, state.best.crc32)
            read_tensors(best, forms(step.model.state_dict()))
        tensors = read_tensors(path, _expected(step, state), others=("generator.cuda",))
        _restore(step, tensors, path)
        self._tidy(state.weights.name, best is not None and best.name == NEXT_BEST)
        step.steps_done = state.steps_done
        if step.scaler is not None and state.scaler is not None:
            state.scaler.restore(step.scaler)
        self._best = state.best

    def load_best(self, step: TrainingStep) -> None:
        """Put the best epoch's weights into the model, and into their average where there is one."""
        best = read_tensors(self.folder / BEST, forms(step.model.state_dict()))
        step.model.load_state_dict(best)
        step.evaluated.load_state_dict(best)

    def _tidy(self, weights: str, is_best: bool) -> None:
        """Give the best weights that state.json knows of their name; remove weights that it does not know of."""
        if is_best:
            os.replace(self.folder / NEXT_BEST, self.folder / BEST)
        (self.folder / NEXT_BEST).unlink(missing_ok=True)
        for old in list(self.folder.iterdir()):
            if old.name != weights and WEIGHTS.fullmatch(old.name) and old.is_file():
                old.unlink()


def read_state(folder: Path) -> State | None:
    """Return the state of a run; None before its first checkpoint. InputError where it is damaged."""
    if not (folder / STATE).exists():
        if (folder / BEST).exists():
            raise InputError(f"{folder / STATE} is missing, although epochs were saved", START_ANEW)
        return None
    return read_document(folder / STATE, State, "checkpoint")


def best_path(folder: Path, saved: SavedTensors) -> Path:
    """Find the best weights: a kill may have come before they got their name."""
    following = folder / NEXT_BEST
    return following if following.is_file() and crc32_of(following) == saved.crc32 else folder / BEST


def check_tensors(path: Path, crc32: str) -> None:
    """Raise InputError unless the file is there and has this checksum."""
    check_input(path, "checkpoint", START_ANEW)
    if crc32_of(path) != crc32:
        raise InputError(f"{path} is damaged: its checksum is not that of state.json", START_ANEW)


def read_tensors(path: Path, expected: Mapping[str, Form], others: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, on the CPU, mapped from the file where that is possible.

    InputError unless it holds exactly the `expected` ones, of these types and shapes; `others` may be there as well.
    """
    check_input(path, "weights", START_ANEW)
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: _form(file, name) for name in file.keys()}  # noqa: SIM118 - no mapping
            _compare(path, found, {**{name: found[name] for name in others if name in found}, **expected})
            return {name: file.get_tensor(name) for name in found}
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot read the weights {path}: {error}", START_ANEW) from error


def forms(tensors: Mapping[str, Tensor]) -> dict[str, Form]:
    """List types and shapes by name."""
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}


def crc32_of(path: Path) -> str:
    """Return the CRC-32 of a file as eight hexadecimal digits."""
    found = 0
    try:
        with path.open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                found = zlib.crc32(block, found)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}", START_ANEW) from error
    return f"{found:08x}"


def _write(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write a safetensors file atomically, straight from the tensors; return its checksum."""
    sums = []

    def write(temporary: Path) -> None:
        try:
            save_file(dict(tensors), temporary)
        except SafetensorError as error:  # a full disk, where the file is mapped
            raise OSError(None, str(error)) from error
        sums.append(crc32_of(temporary))

    write_atomically(path, write)
    return sums[0]


def _weights(model: SequenceModel) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in model.state_dict().items()}


def _models(step: TrainingStep) -> dict[str, SequenceModel]:
    """Return the model, and the average of its weights where there is one, by the prefix of their tensors."""
    return {"model": step.model} if step.average is None else {"model": step.model, "average": step.average.model}


def _tensors(step: TrainingStep) -> dict[str, Tensor]:
    """Name every tensor that a resumed run needs, without a copy."""
    tensors = {
        f"{prefix}.{name}": tensor
        for prefix, model in _models(step).items()
        for name, tensor in _weights(model).items()
    }
    for name, parameter in step.model.named_parameters():
        for key, value in step.optimizer.state.get(parameter, {}).items():
            tensors[f"adam.{key}.{name}"] = value.contiguous()
    tensors["generator.cpu"] = torch.get_rng_state()
    if step.device.type == "cuda":
        tensors["generator.cuda"] = torch.cuda.get_rng_state(step.device)
    return tensors


def _expected(step: TrainingStep, state: State) -> dict[str, Form]:
    """List the tensors that a checkpoint of this step must hold."""
    weights = forms(step.model.state_dict())
    found = {f"{prefix}.{name}": form for prefix in _models(step) for name, form in weights.items()}
    for name, parameter in step.model.named_parameters() if state.moments else ():
        for key in ADAM_STATE:
            shape = () if key == "step" else tuple(parameter.shape)
            found[f"adam.{key}.{name}"] = parameter.dtype, shape
    found["generator.cpu"] = torch.uint8, tuple(torch.get_rng_state().shape)
    return found


def _restore(step: TrainingStep, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Put checked tensors where they belong; generator states first, they are all that can still be refused."""
    try:
        torch.set_rng_state(tensors["generator.cpu"])
        if step.device.type == "cuda" and "generator.cuda" in tensors:
            torch.cuda.set_rng_state(tensors["generator.cuda"], step.device)
    except RuntimeError as error:
        raise InputError(f"{path} holds no valid state of a random generator", START_ANEW) from error
    for prefix, model in _models(step).items():
        model.load_state_dict({name: tensors[f"{prefix}.{name}"] for name in model.state_dict()})
    for name, parameter in step.model.named_parameters():
        found = {key: tensors.get(f"adam.{key}.{name}") for key in sorted(ADAM_STATE)}
        state = {key: value.to(parameter.device) for key, value in found.items() if value is not None}
        if state:
            step.optimizer.state[parameter] = state


def _form(file: Any, name: str) -> Form | None:
    """Return type and shape of a tensor by the file's header; None for a type that no checkpoint holds."""
    part = file.get_slice(name)
    dtype = DTYPES.get(part.get_dtype())
    return None if dtype is None else (dtype, tuple(part.get_shape()))


def _compare(path: Path, found: Mapping[str, Form | None], expected: Mapping[str, Form | None]) -> None:
    for name in sorted({*found, *expected}):
        if (name in found) != (name in expected) or found.get(name) != expected.get(name):
            have, want = found.get(name), expected.get(name)
            raise InputError(
                f"the weights {path} are of another model: {name} is {_words(have)}, it should be {_words(want)}",
                "resume with the same options, or start anew with --overwrite",
            )


def _words(form: Form | None) -> str:
    if form is None:
        return "absent or of an unknown type"
    return f"{str(form[0]).removeprefix('torch.')} {list(form[1])}"
