"""Checkpoints: small in memory, checked when they are read, whole after a kill."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file
from small_runs import ONE, TINY, contents, resume, trainer

from srsplan.models.errors import InputError
from srsplan.models.training import checkpoint
from srsplan.models.training.callbacks import NoCallbacks
from srsplan.models.training.settings import Settings

STREAMS = tuple(int(part) for part in safetensors.__version__.split(".")[:2]) >= (0, 8)
SAVING = """
import resource, sys
from pathlib import Path
import torch
from srsplan.models.training import checkpoint
tensors = {"model.table": torch.ones(100, 1_000_000)}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
checkpoint._write(Path(sys.argv[1]), tensors)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs, never changed."""
    folder = tmp_path_factory.mktemp("runs") / "out"
    trainer(folder, settings=replace(ONE, epochs=2)).run(NoCallbacks())
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run."""
    copy = tmp_path / "out"
    copy.mkdir()
    for path in trained.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    return copy


@pytest.mark.skipif(not STREAMS, reason="safetensors before 0.8 copies a tensor to save it")
def test_saving_takes_no_copy_of_the_tensors(tmp_path: Path) -> None:
    """400 MB are written with less than a quarter of that in extra memory."""
    done = subprocess.run(
        [sys.executable, "-c", SAVING, str(tmp_path / "t.safetensors")], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 100_000
    assert (tmp_path / "t.safetensors").stat().st_size > 400_000_000
    (tmp_path / "t.safetensors").unlink()


def test_best_weights_load_without_srsplan(folder: Path) -> None:
    """`load_file` and `load_state_dict` are enough: no prefix."""
    model = trainer(folder).step.model
    model.load_state_dict(load_file(folder / "best.safetensors"))


def edited(folder: Path, **changes: object) -> None:
    """state.json with other values, by dotted name."""
    path = folder / "state.json"
    state = json.loads(path.read_text())
    for name, value in changes.items():
        *way, last = name.split("__")
        place = state
        for step in way:
            place = place[step]
        place[last] = value
    path.write_text(json.dumps(state))


def as_version_2(folder: Path) -> None:
    """With the keys of that version, one of which is unknown by now."""
    edited(folder, version=2, progress__micro_batches=1)


def retensored(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Weights of the last epoch with other tensors, and a checksum that agrees."""
    path = folder / "weights-2.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path)
    edited(folder, weights__crc32=checkpoint.crc32_of(path))


def flipped(path: Path) -> None:
    """One bit of the file's last byte."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def absent_moments(tensors: dict[str, torch.Tensor]) -> None:
    for name in [name for name in tensors if name.startswith("adam.exp_avg.")]:
        del tensors[name]


def no_optimizer(tensors: dict[str, torch.Tensor]) -> None:
    for name in [name for name in tensors if name.startswith("adam.")]:
        del tensors[name]


def other_shape(tensors: dict[str, torch.Tensor]) -> None:
    tensors["adam.exp_avg.norm.weight"] = torch.zeros(3)


def other_type(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.norm.weight"] = tensors["model.norm.weight"].half()


def one_more(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.surplus"] = torch.zeros(3, dtype=torch.int64)


def bad_generator(tensors: dict[str, torch.Tensor]) -> None:
    tensors["generator.cpu"] = torch.full_like(tensors["generator.cpu"], 255)


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


TAMPERED: dict[str, tuple[Callable[[Path], object], str]] = {
    "state is a list": (lambda f: (f / "state.json").write_text("[]"), "checkpoint"),
    "state is empty": (lambda f: (f / "state.json").write_text(""), "is damaged"),
    "state is binary": (lambda f: (f / "state.json").write_bytes(b"\xff\x00\xfe"), "is damaged"),
    "state is deep": (lambda f: (f / "state.json").write_text("[" * 100_000), "is damaged"),
    "state is a pipe": (lambda f: fifo(f / "state.json"), "is a pipe"),
    "state of version 1": (lambda f: edited(f, version=1), "of another version"),
    "state of version 2": (lambda f: as_version_2(f), "of another version of srsplan: its form is 2, this reads 3"),
    "state of version x": (lambda f: edited(f, version="x"), "of another version"),
    "an unknown key": (lambda f: edited(f, surplus=1), "unknown key 'surplus'"),
    "epoch is text": (lambda f: edited(f, progress__epoch="two"), "progress.epoch = 'two'"),
    "epoch is negative": (lambda f: edited(f, progress__epoch=-2), "progress.epoch = -2"),
    "epoch is another": (lambda f: edited(f, progress__epoch=7), "not those of this epoch"),
    "best is not a number": (lambda f: edited(f, progress__best=None), "progress.best = None"),
    "passes without tokens": (lambda f: edited(f, progress__pass_tokens=0), "progress.pass_tokens = 0"),
    "seconds are text": (lambda f: edited(f, progress__seconds=["a", "b"]), "progress.seconds"),
    "seconds are too few": (lambda f: edited(f, progress__seconds=[1.0]), "do not agree"),
    "steps are infinite": (lambda f: edited(f, steps_done=1e400), "steps_done = inf"),
    "run is a list": (lambda f: edited(f, run=[]), "run = "),
    "weights lie elsewhere": (lambda f: edited(f, weights__name="../weights-2.safetensors"), "names of the weights"),
    "weights are absolute": (lambda f: edited(f, weights__name="/etc/passwd"), "names of the weights"),
    "weights are a number": (lambda f: edited(f, weights=3), "weights = 3"),
    "weights are gone": (lambda f: (f / "weights-2.safetensors").unlink(), "no checkpoint at"),
    "weights are a pipe": (lambda f: fifo(f / "weights-2.safetensors"), "is a pipe"),
    "weights are a bit off": (lambda f: flipped(f / "weights-2.safetensors"), "is damaged: its checksum"),
    "weights are cut short": (lambda f: os.truncate(f / "weights-2.safetensors", 1000), "is damaged: its checksum"),
    "best is gone": (lambda f: (f / "best.safetensors").unlink(), "no checkpoint at"),
    "best is a bit off": (lambda f: flipped(f / "best.safetensors"), "is damaged: its checksum"),
    "first moments are absent": (lambda f: retensored(f, absent_moments), "adam.exp_avg.*is absent"),
    "the optimizer is absent": (lambda f: retensored(f, no_optimizer), "adam.exp_avg.*is absent"),
    "a moment of another shape": (lambda f: retensored(f, other_shape), r"adam.exp_avg.norm.weight is float32 \[3\]"),
    "a weight of another type": (lambda f: retensored(f, other_type), r"model.norm.weight is float16 \[16\]"),
    "a tensor too many": (lambda f: retensored(f, one_more), "model.surplus"),
    "a generator of nonsense": (lambda f: retensored(f, bad_generator), "no valid state of a random generator"),
    "the log is gone": (lambda f: (f / "epochs.jsonl").unlink(), "no log of epochs"),
    "the log is cut short": (lambda f: (f / "epochs.jsonl").write_text('{"epoch": 1, "loss": 1'), "line 1 is not"),
    "the log is of others": (lambda f: (f / "epochs.jsonl").write_text('{"a": 1}\n' * 9), "line 1 is not"),
    "the log is binary": (lambda f: (f / "epochs.jsonl").write_bytes(b"\xff\n\xff\n"), "line 1 is not"),
    "the state is gone": (lambda f: (f / "state.json").unlink(), "is missing, although epochs were saved"),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_what_was_tampered_with_is_refused(folder: Path, case: str) -> None:
    """One clear error, and nothing in the folder or in the trainer is changed."""
    tamper, phrase = TAMPERED[case]
    more = trainer(folder, settings=replace(ONE, epochs=4))
    weights = {name: tensor.clone() for name, tensor in more.step.model.state_dict().items()}
    tamper(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    with pytest.raises(InputError, match=phrase) as caught:
        resume(more)
    assert caught.value.hint
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    assert all(torch.equal(tensor, weights[name]) for name, tensor in more.step.model.state_dict().items())


def test_a_checkpoint_of_another_model_is_refused(folder: Path) -> None:
    other = replace(TINY, architecture=replace(TINY.architecture, dim=32))
    state = checkpoint.read_state(folder)
    assert state is not None
    with pytest.raises(InputError, match="of another model"):
        checkpoint.Checkpoints(folder).load(trainer(folder, other).step, state)


def test_a_kill_before_the_best_weights_have_their_name(folder: Path) -> None:
    """The state knows them already: they get their name when the run goes on."""
    expected = contents(folder)
    (folder / "best.safetensors").rename(folder / "best-next.safetensors")
    (folder / "best.safetensors").write_bytes(b"weights of an earlier epoch")
    resume(trainer(folder, settings=replace(ONE, epochs=2))).run(NoCallbacks())
    assert contents(folder) == expected


def test_a_kill_before_the_state_knows_of_the_best_weights(folder: Path) -> None:
    """They are of an epoch that is trained again: the older best weights are those that count."""
    (folder / "best-next.safetensors").write_bytes(b"weights of an epoch that was not finished")
    (folder / "weights-3.safetensors").write_bytes(b"and its checkpoint")
    best = (folder / "best.safetensors").read_bytes()
    more = resume(trainer(folder, settings=replace(ONE, epochs=2)))
    more.run(NoCallbacks())
    assert (folder / "best.safetensors").read_bytes() == best
    assert not (folder / "weights-3.safetensors").exists()
    assert not (folder / "best-next.safetensors").exists()


def test_the_moments_go_on(folder: Path) -> None:
    """Adam's state after the resume is the one that was saved."""
    more = resume(trainer(folder, settings=replace(ONE, epochs=3)))
    saved: dict[str, Any] = load_file(folder / "weights-2.safetensors")
    for name, parameter in more.step.model.named_parameters():
        state = more.step.optimizer.state[parameter]
        assert set(state) == {"step", "exp_avg", "exp_avg_sq"}
        assert all(torch.equal(value, saved[f"adam.{key}.{name}"]) for key, value in state.items())


@pytest.mark.parametrize(
    ("field", "value"),
    [("learning_rate", float("nan")), ("learning_rate", float("inf")), ("weight_decay", float("nan")), ("seed", -1),
     ("epochs", 0), ("optimizer", "sgd"), ("popularity_exponent", float("nan"))],
)  # fmt: skip
def test_impossible_settings_are_refused_at_construction(field: str, value: Any) -> None:
    with pytest.raises(InputError, match=field.replace("_", "[-_]")):
        Settings(**{field: value})
