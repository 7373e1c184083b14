"""Plan files: what is read is checked, and nothing that somebody made is replaced."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from command import Ended

from srsplan.models.errors import InputError
from srsplan.planner.plan.file import read_plan

Run = Callable[..., Ended]
SMALL = ("recommend", "--catalog", "30K", "--budget", "4GB", "--loss", "cce-")
PLAN = "srsplan.plan.yaml"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The text of a plan."""
    from command import process

    folder = tmp_path_factory.mktemp("written")
    assert process(*SMALL, folder=folder).code == 0
    return (folder / PLAN).read_text()


def test_the_plan_reads_back_as_it_was_printed(run: Run, tmp_path: Path) -> None:
    document = run(*SMALL, "--json", "-o", "my plan.yaml").json
    plan = read_plan(tmp_path / "my plan.yaml")
    assert plan.model_dump() == document
    configuration, second = plan.configuration(2), document["choices"][1]
    assert (configuration.loss, configuration.batch_size) == (second["loss"], second["batch_size"])
    with pytest.raises(InputError, match="--rank 9"):
        plan.choice(9)


def test_a_plan_without_the_parts_that_inform_still_reads(written: str, tmp_path: Path) -> None:
    """It has neither knob costs, nor what other passes take, nor a note on quality."""
    document = yaml.safe_load(written)
    for part, keys in (
        (document, ("knobs", "passes", "binds", "several_gpus")),
        (document["inputs"], ("quality", "notes", "gpu_title", "gpu_is_given", "data_options")),
        (document["budget"], ("fixed_floor_bytes", "context_basis")),
    ):
        for key in keys:
            del part[key]
    (tmp_path / PLAN).write_text(yaml.safe_dump(document))
    assert read_plan(tmp_path / PLAN).configuration().loss == "cce-"


@pytest.mark.parametrize(
    ("change", "phrase"),
    [
        (lambda plan: plan.update(version=1), "is a plan of version 1; this srsplan reads version 2"),
        (lambda plan: plan["choices"][0].update(batchsize=3), "unknown key 'choices.0.batchsize'"),
        (lambda plan: plan["choices"][0].update(batch_size=-3), "choices.0.batch_size = -3"),
        (lambda plan: plan["choices"][0].update(batch_size="64"), "choices.0.batch_size = '64'"),
        (lambda plan: plan["choices"][0].update(step_ms=float("nan")), "choices.0.step_ms"),
        (lambda plan: plan["choices"][0].update(batch_size=10**40), "choices.0.batch_size"),
        (lambda plan: plan["inputs"].update(precision="fp7"), "inputs.precision = 'fp7'"),
        (lambda plan: plan.pop("budget"), "budget is missing"),
        (lambda plan: plan["inputs"].update(catalog=list(range(10**4))), "a list of 10000"),
    ],
)
def test_a_bad_plan_names_the_key(
    written: str, tmp_path: Path, change: Callable[[dict[str, Any]], object], phrase: str
) -> None:
    document = yaml.safe_load(written)
    change(document)
    (tmp_path / PLAN).write_text(yaml.safe_dump(document))
    with pytest.raises(InputError) as caught:
        read_plan(tmp_path / PLAN)
    assert phrase in caught.value.message
    assert len(caught.value.message) < 500
    assert caught.value.hint


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join(['*' + old] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("[1, 2", "is not YAML"),
        ("- 1\n- 2\n", "is not a plan"),
        ("\x00", "is not YAML"),
        ("", "is not a plan"),
        ("version: 2001-99-99", "cannot be read"),
        ("version: !!int abc", "tags"),
        ("version: !!python/object/apply:os.system ['true']", "tags"),
        ("version: " + "1" * 5000, "cannot be read"),
        ("version: " + "1" * 30_000, "30,000 letters"),
        ("version: " + ":".join(["1"] * 100_000), "letters"),
        ("[" * 5000, "nested deeper"),
        ("{a: " * 5000, "nested deeper"),
        (BOMB + "catalog: *i", "anchors"),
        ("x: " + "y" * (2 << 20), "larger than 1 MiB"),
        ("version: 1\n? [a, b]\n: 3", "is not YAML"),
        ("version: =", "is not YAML"),
    ],
    ids=lambda text: text[:24],
)
def test_a_hostile_plan_is_one_clear_error(text: str, phrase: str, tmp_path: Path) -> None:
    path = tmp_path / PLAN
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_plan(path)
    assert phrase in caught.value.message
    assert str(path) in caught.value.message
    assert len(caught.value.message) < 500 + len(str(path))


def test_only_regular_files_are_plans(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path, phrase in ((fifo, "a pipe"), (Path("/dev/zero"), "a device"), (tmp_path, "a folder")):
        with pytest.raises(InputError, match=phrase):
            read_plan(path)
    with pytest.raises(InputError, match="no plan at"):
        read_plan(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"version: \xe9")
    with pytest.raises(InputError, match="UTF-8"):
        read_plan(tmp_path / "latin.yaml")


def test_an_unedited_plan_is_replaced(run: Run, tmp_path: Path) -> None:
    run(*SMALL)
    before = (tmp_path / PLAN).read_text()
    assert run("recommend", "--catalog", "20K", "--budget", "4GB", "--loss", "cce-").code == 0
    assert (tmp_path / PLAN).read_text() != before


@pytest.mark.parametrize("edit", ["batch", "header lost", "older header", "damaged"])
def test_an_edited_plan_is_replaced_only_when_asked(run: Run, tmp_path: Path, written: str, edit: str) -> None:
    head, digest, body = written.split("\n", 2)
    text = {
        "batch": written.replace("batch_size: ", "batch_size: 1", 1),
        "header lost": body,
        "older header": f"{head}\n{body}",
        "damaged": f"{head}\n{digest}\nversion: [",
    }[edit]
    (tmp_path / PLAN).write_text(text)
    done = run(*SMALL)
    assert (done.code, (tmp_path / PLAN).read_text()) == (2, text)
    assert "cce-" in done.out, "the answer is printed all the same"
    assert "was edited" in done.message
    assert "--overwrite" in done.message
    assert run(*SMALL, "--overwrite").code == 0
    assert (tmp_path / PLAN).read_text() != text
    assert read_plan(tmp_path / PLAN).choices


@pytest.mark.parametrize("content", ["my notes\n", "", '{"name": "package"}', "# srsplan is nice\n"])
def test_a_file_of_the_users_is_never_replaced(run: Run, tmp_path: Path, content: str) -> None:
    """Not through a link either, and not with --overwrite."""
    (tmp_path / "thesis.txt").write_text(content)
    (tmp_path / "link.yaml").symlink_to("thesis.txt")
    for name in ("thesis.txt", "link.yaml"):
        for more in ((), ("--overwrite",)):
            done = run(*SMALL, "-o", name, *more)
            assert done.code == 2
            assert "not replaced" in done.message
            assert "--batch-size" in done.out, "the next command does without the plan"
    assert (tmp_path / "thesis.txt").read_text() == content


def test_a_device_a_pipe_and_a_folder_stay_what_they_are(run: Run, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    for name in ("fifo", "folder", "/dev/null", "", ".", "no/such/folder/plan.yaml", "x" * 300):
        done = run(*SMALL, "-o", name, "--overwrite")
        assert done.code == 2, name
        assert done.out.startswith("catalog"), "there is an answer"
        assert "Traceback" not in done.err
    assert stat.S_ISFIFO((tmp_path / "fifo").stat().st_mode)
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fifo", "folder"]


def test_a_read_only_folder_gets_an_answer(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As root every folder is writable: the operating system's answer is what is replaced here."""
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    done = run(*SMALL)
    assert done.code == 2
    assert "What fits" in done.out
    assert "not writable" in done.message
    assert "--no-plan" in done.message
    done = run(*SMALL, "--no-plan")
    assert (done.code, done.err) == (0, "")
    assert not list(tmp_path.iterdir())
