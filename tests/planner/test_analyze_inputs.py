"""`srsplan analyze` with what a user may give by mistake or on purpose: files, folders, names, full disks, bombs."""

from __future__ import annotations

import gzip
import lzma
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from command import Ended
from pyarrow import parquet

from srsplan.models.errors import InputError
from srsplan.planner.analysis import run_files
from srsplan.planner.analysis.run_tables import MEMORY, QUALITY, RunOptions, load_runs

HEADER = "dataset,batch_size,max_seq_len,loss_sample_count,NDCG_10_test"
Call = Callable[..., Ended]


def table_of(names: list[str], rows: int = 4) -> pd.DataFrame:
    random = np.random.default_rng(0)
    frame: pd.DataFrame = pd.DataFrame({"dataset": np.repeat(names, rows)})
    for column in ("batch_size", "max_seq_len", "loss_sample_count"):
        frame[column] = 2 ** random.integers(3, 9, len(frame))
    frame[QUALITY], frame[MEMORY] = random.random(len(frame)), 1 + random.random(len(frame))
    return frame


def save(path: Path, names: list[str], rows: int = 4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table_of(names, rows).to_csv(path, index=False)
    return path


def test_files_and_folders_of_runs_together(run: Call, tmp_path: Path) -> None:
    save(tmp_path / "runs" / "one" / "runs.csv", ["video"], rows=5)
    save(tmp_path / "runs" / "two" / "seed_1" / "runs.csv", ["video"], rows=3)
    save(tmp_path / "runs" / "two" / "other.csv", ["ignored"])
    public = save(tmp_path / "public.csv", ["beauty"])
    keep = ("--json", "--no-plots", "--keep-duplicates", "--keep-collapsed")
    found = run("analyze", public, tmp_path / "runs", tmp_path / "runs" / "one" / "runs.csv", *keep).json
    assert {name: each["rows"] for name, each in found["datasets"].items()} == {"beauty": 4, "video": 8, "average": 12}
    assert (found["files"], found["rows"]) == (3, 12)
    screen = run("analyze", tmp_path / "runs", "--no-plots", "--keep-duplicates", "--keep-collapsed").out
    assert "8 runs of 1 dataset in 2 files" in " ".join(screen.split())
    one = save(tmp_path / "single.csv", ["solo"], rows=1)
    assert "1 run of 1 dataset, 1 analysed" in " ".join(run("analyze", one, "--no-plots").out.split())


def test_columns_that_only_one_file_has_are_blank_in_the_other(tmp_path: Path) -> None:
    table_of(["a"]).assign(learning_rate=0.1).to_csv(tmp_path / "a.csv", index=False)
    table_of(["b"]).drop(columns=MEMORY).to_csv(tmp_path / "b.csv", index=False)
    options = RunOptions(keep_duplicates=True, keep_collapsed=True)
    frame = load_runs([tmp_path / "a.csv", tmp_path / "b.csv"], options).frame
    assert frame["learning_rate"].tolist()[:4] == [0.1] * 4
    assert frame.loc[frame["dataset"] == "b", [MEMORY, "learning_rate"]].isna().all(axis=None)


def test_what_is_no_run_table_is_refused_by_name(run: Call, tmp_path: Path) -> None:
    good = save(tmp_path / "good.csv", ["a"]).read_bytes()
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(good * 50, mtime=0)[:-40])
    (tmp_path / "runs.csv.xz").write_bytes(lzma.compress(good))
    (tmp_path / "runs.tar").write_bytes(b"x" * 2048)
    (tmp_path / "runs.csv.zst").write_bytes(b"\x28\xb5\x2f\xfd")
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe.csv")
    expected = {
        "cut.csv.gz": "cut short",
        "runs.csv.xz": "packed as .xz",
        "runs.tar": "packed as .tar",
        "runs.csv.zst": "packed as .zst",
        "empty": "holds no runs.csv",
        "pipe.csv": "is a pipe",
        "/dev/zero": "is a device",
        "none.csv": "no run table at",
    }
    for name, message in expected.items():
        ended = run("analyze", tmp_path / name)
        assert (ended.code, ended.out) == (2, ""), name
        assert message in ended.message, name
        assert name in ended.message
    assert not (tmp_path / "srsplan.analysis").exists()


def test_what_unpacks_to_far_more_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = b"a,64,64,64,0.5\n"
    (tmp_path / "bomb.csv.gz").write_bytes(gzip.compress(HEADER.encode() + b"\n" + line * 5_000_000, 1))
    with pytest.raises(InputError, match="more than 64 MiB when unpacked"):
        load_runs(tmp_path / "bomb.csv.gz")
    (tmp_path / "wide.csv").write_text(",".join(f"c{number}" for number in range(20_000)))
    with pytest.raises(InputError, match="20,000 columns") as caught:
        load_runs(tmp_path / "wide.csv")
    assert "1,000 columns" in caught.value.hint
    rows = 900_000
    indices = pa.array(np.zeros(rows, dtype=np.int32))
    text = pa.DictionaryArray.from_arrays(indices, pa.array(["x" * 5_000]))
    table = pa.table({"dataset": text, **dict.fromkeys(HEADER.split(",")[1:], pa.array(np.full(rows, 64)))})
    parquet.write_table(table, tmp_path / "bomb.parquet")
    assert (tmp_path / "bomb.parquet").stat().st_size < 100_000
    with pytest.raises(InputError, match="more than 64 MiB when unpacked"):
        load_runs(tmp_path / "bomb.parquet")
    monkeypatch.setattr(run_files, "MOST_ROWS", 100_000)
    with pytest.raises(InputError, match="900,000 rows"):
        load_runs(tmp_path / "bomb.parquet")


def test_parquet_of_pandas_with_an_index_text_and_categories(tmp_path: Path) -> None:
    frame = table_of(["a", "b"]).assign(dataset=lambda each: each["dataset"].astype("category"), exp_name="x")
    frame[frame["batch_size"] > 0].sample(frac=1, random_state=0).to_parquet(tmp_path / "runs.parquet")
    found = load_runs(tmp_path / "runs.parquet", RunOptions(keep_duplicates=True, keep_collapsed=True))
    assert sorted(found.frame.columns) == sorted(frame.columns)
    assert found.datasets == ["a", "b"]
    parquet.write_table(pa.table({"dataset": pa.array([[1, 2]])}), tmp_path / "nested.parquet")
    with pytest.raises(InputError, match="the column dataset holds lists"):
        load_runs(tmp_path / "nested.parquet")


NAMES = ["$x$", "a$", r"$\frac{$", r"\alpha_{1}^2", "[red]x[/red]", "[/foo]", "esc\x1b[31m", "日本", "x" * 500, "&<>'"]


@pytest.mark.parametrize("image_format", ["png", "svg"])
def test_names_of_datasets_may_be_anything(run: Call, tmp_path: Path, image_format: str) -> None:
    runs = save(tmp_path / "runs.csv", NAMES, rows=4)
    ended = run("analyze", runs, "--keep-collapsed", "--keep-duplicates", "-o", "out", "--format", image_format)
    assert ended.code == 0, ended.err
    assert "[red]x[/red]" in ended.out
    assert "\x1b" not in ended.out + ended.err
    assert "esc\\x1b[31m" in ended.out
    pictures = {path.name for path in (tmp_path / "out").iterdir()}
    assert pictures == {f"spearman.{image_format}", f"memory_quality.{image_format}"}
    if image_format == "svg":
        for path in (tmp_path / "out").iterdir():
            assert ElementTree.parse(path).getroot().tag.endswith("svg")


@pytest.mark.parametrize("image_format", ["png", "svg"])
def test_only_own_pictures_are_replaced_and_before_any_work(run: Call, tmp_path: Path, image_format: str) -> None:
    runs = save(tmp_path / "runs.csv", ["a", "b"], rows=8)
    arguments = ("analyze", runs, "-o", "out", "--format", image_format)
    assert run(*arguments).code == 0
    files = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert run(*arguments).code == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == files
    mine = tmp_path / "out" / f"memory_quality.{image_format}"
    for content in (b"my thesis", files[mine.name].replace(b"srsplan", b"someone")):
        mine.write_bytes(content)
        ended = run(*arguments)
        assert (ended.code, ended.out) == (2, "")
        assert "srsplan did not write it" in ended.message
        assert mine.read_bytes() == content
    assert not [path for path in (tmp_path / "out").iterdir() if path.name not in files]


def test_folders_that_cannot_be_made(run: Call, tmp_path: Path) -> None:
    runs = save(tmp_path / "runs.csv", ["a"])
    for folder in ("x" * 300, f"a/{'y' * 300}", runs, runs / "below", "/dev/full", "/dev/null/x"):
        ended = run("analyze", runs, "-o", folder)
        assert (ended.code, ended.out) == (2, ""), folder
        assert "cannot make the folder" in ended.message
    assert [path.name for path in tmp_path.iterdir()] == ["runs.csv"]


def test_a_full_disk_is_one_message_and_leaves_the_old_pictures(tmp_path: Path) -> None:
    runs = save(tmp_path / "runs.csv", ["a"], rows=8)
    out = tmp_path / "out"
    code = "from srsplan.planner.cli.app import main; main()"
    command = [sys.executable, "-c", code, "analyze", str(runs), "-o", str(out)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def smaller_than_a_picture() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))

    save(runs, ["b"], rows=8)
    done = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=smaller_than_a_picture)
    assert done.returncode == 1
    assert "cannot write" in done.stderr
    assert "Traceback" not in done.stderr
    assert "8 runs of 1 dataset" in " ".join(done.stdout.split())
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_link_to_itself_and_an_endless_name_are_no_run_tables(run: Callable[..., Ended], tmp_path: Path) -> None:
    (tmp_path / "circle.csv").symlink_to(tmp_path / "circle.csv")
    for name in ("circle.csv", "a" * 300 + ".csv"):
        ended = run("analyze", name)
        assert ended.code == 2
        assert "run table" in ended.message
        assert name[:40] in ended.message.replace(" ", "")
