"""The folders that `srsplan train` writes into, deletes from and goes on with: it destroys nothing of the user's."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command import Ended
from small_runs import contents, walks

from srsplan.models.files import locked

Run = Callable[..., Ended]
TINY = ("--loss", "cce", "--batch-size", 64, "--seq-len", 8, "--dim", 16, "--blocks", 1, "--split", "leave-one-out")
MAIN = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
MAIN += "from srsplan.planner.cli.app import main; main()"


@pytest.fixture
def train(run: Run, tmp_path: Path) -> Run:
    data = walks(tmp_path / "walks.csv")
    return lambda *arguments: run("train", "--data", data, *TINY, "--epochs", 1, "-o", "out", *arguments)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


PROJECT = {"package.json": "{}", "llama.safetensors": "weights", "notes.jsonl": "{}", "config.json": '{"name": "mine"}'}


@pytest.mark.parametrize("flags", [[], ["--overwrite"], ["--resume"]])
def test_a_folder_that_is_no_run_is_never_touched(train: Run, out: Path, flags: list[str]) -> None:
    out.mkdir()
    for name, text in PROJECT.items():
        (out / name).write_text(text)
    before = contents(out)
    done = train(*flags)
    assert done.code == 2
    assert "out is not empty, and not the folder of a run" in done.message
    assert contents(out) == before


def test_overwrite_deletes_only_what_srsplan_wrote(train: Run, out: Path) -> None:
    assert train().code == 0
    mine = {"thesis.txt": "years", "weights-final.safetensors": "mine", "notes.jsonl": "{}", ".hidden.part": "half"}
    for name, text in mine.items():
        (out / name).write_text(text)
    (out / "weights-old.safetensors").mkdir()
    done = train()
    assert done.code == 2
    assert "--resume goes on with it, --overwrite starts anew" in done.message
    done = train("--seed", 7, "--overwrite")
    assert done.code == 0, done.err
    assert {name: (out / name).read_text() for name in mine} == mine
    assert (out / "weights-old.safetensors").is_dir()
    assert json.loads((out / "config.json").read_text())["settings"]["seed"] == 7


@pytest.mark.parametrize("kept", ["state.json", "config.json"])
def test_either_document_proves_a_run(train: Run, out: Path, kept: str) -> None:
    assert train().code == 0
    (out / {"state.json": "config.json", "config.json": "state.json"}[kept]).write_text("damaged")
    assert train("--overwrite").code == 0


@pytest.mark.parametrize(
    "wrong",
    [
        ["--learning-rate", "nan"], ["--seq-len", 4_000_000_000_000], ["--weight-decay", "inf"], ["--data", "none.csv"],
        ["--loss", "cce-", "--negatives", 40], ["--kernel", "triton"], ["--item-column", "sku"], ["--rank", "1-2"],
    ],
    ids=lambda words: " ".join(map(str, words)),
)  # fmt: skip
def test_wrong_arguments_never_cost_the_old_run(train: Run, out: Path, wrong: list[object]) -> None:
    assert train().code == 0
    before = contents(out)
    done = train("--overwrite", *wrong)
    assert done.code == 2, done.err
    assert contents(out) == before


def test_a_model_that_cannot_be_built_never_costs_the_old_run(
    train: Run, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GPU runs out of memory while the tables are made: the old run is deleted after that, not before."""
    assert train().code == 0
    before = contents(out)

    def full(*_: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("srsplan.models.training.run.build", full)
    assert train("--overwrite").code == 4
    assert contents(out) == before


def test_two_runs_into_one_folder(train: Run, out: Path) -> None:
    assert train().code == 0
    before = contents(out)
    with locked(out / ".srsplan.lock", "out"):
        done = train("--overwrite")
    assert done.code == 2
    assert "--output out is in use by another srsplan" in done.message
    assert contents(out) == before


@pytest.mark.parametrize(
    ("name", "phrase"),
    [
        ("/dev/null", "is a file"),
        ("x" * 300, "cannot be a folder"),
        ("/", "not empty"),
        ("", "not empty"),
        ("\udcff", "is not text in UTF-8"),
    ],
)
def test_outputs_that_are_no_folders(train: Run, name: str, phrase: str) -> None:
    done = train("-o", name)
    assert done.code == 2
    assert phrase in done.message


def started(folder: Path, *options: object) -> subprocess.Popen[str]:
    """A training in a process of its own that is in its first epoch, which does not end."""
    data = walks(folder / "walks.csv")
    command = [sys.executable, "-c", MAIN, "train", "--data", data, *TINY, "--epochs", 3, "-o", "out", *options]
    slow = "import time, srsplan.models.training.loop as l; l.Trainer._train_epoch = lambda *_: time.sleep(600); "
    command[2] = slow + MAIN
    running = subprocess.Popen([*map(str, command)], cwd=folder, stderr=subprocess.PIPE, text=True)
    for _ in range(3000):
        if (folder / "out" / "items.parquet").exists() or running.poll() is not None:
            break
        time.sleep(0.02)
    time.sleep(0.3)
    return running


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_run_stopped_in_its_first_epoch_goes_on(train: Run, tmp_path: Path, out: Path, how: signal.Signals) -> None:
    """Without flags it is refused with the way out, and that way works: --resume begins it again."""
    running = started(tmp_path)
    running.send_signal(how)
    _, said = running.communicate(timeout=60)
    if how == signal.SIGINT:
        assert running.returncode == 130
        assert "stopped in the first epoch: nothing is saved in out yet. This starts it again:" in said
        again = shlex.split(said.strip().splitlines()[-1])
        assert again[:2] == ["srsplan", "train"]
        assert "--resume" in again
        assert again[again.index("-o") if "-o" in again else again.index("--output") :][1] == "out"
    done = train()
    assert "--resume goes on with it" in done.message
    done = train("--resume")
    assert done.code == 0, done.err
    assert "it starts from the beginning" in done.message
    assert len((out / "epochs.jsonl").read_text().splitlines()) == 1


def test_other_labels_are_other_data(train: Run, out: Path, tmp_path: Path) -> None:
    """The same walks with other names for the items: their model must not be mixed up."""
    assert train().code == 0
    data = tmp_path / "walks.csv"
    data.write_text(data.read_text().replace(",i", ",j").replace("jtem_id", "item_id"))
    before = contents(out)
    done = train("--resume")
    assert done.code == 2
    assert "holds other item ids than the data" in done.message
    assert contents(out) == before


@pytest.mark.parametrize("flag", ["--overwrite", "--resume"])
def test_a_pipe_in_the_place_of_a_file_never_costs_the_run(train: Run, out: Path, flag: str) -> None:
    assert train().code == 0
    (out / "items.parquet").unlink()
    os.mkfifo(out / "items.parquet")
    before = {path.name for path in out.iterdir()}
    done = train(flag)
    assert done.code == 2
    assert "items.parquet" in done.message
    assert "is no regular file" in done.message
    assert {path.name for path in out.iterdir()} == before


def test_a_link_in_the_place_of_weights_is_refused_before_the_run_goes(train: Run, out: Path) -> None:
    assert train().code == 0
    (out / "weights-1.safetensors").unlink(missing_ok=True)
    (out / "weights-1.safetensors").symlink_to("not-there/at-all")
    before = {path.name for path in out.iterdir()}
    done = train("--overwrite")
    assert done.code == 2
    assert "weights-1.safetensors is no regular file" in done.message
    assert {path.name for path in out.iterdir()} == before
