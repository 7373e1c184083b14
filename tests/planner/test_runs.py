"""Run tables: what loads, what is treated and said, what is refused and how."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command import Ended
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import SHARED

from srsplan.models.errors import InputError
from srsplan.planner.analysis.run_tables import QUALITY, RunOptions, RunTable, load_runs

HEADER = "dataset,model,batch_size,max_seq_len,loss_sample_count,seed,NDCG_10_test,run_training_batch"
GOOD = "gowalla,sasrec,64,128,256,42,0.02,0.5"


def load(tmp_path: Path, *rows: str, header: str = HEADER, **options: bool) -> RunTable:
    path = tmp_path / "runs.csv"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return load_runs(path, RunOptions(**options))


@pytest.mark.evidence
def test_the_public_table_loads_unchanged_but_for_what_the_notes_say() -> None:
    raw = pd.read_csv(SHARED / "data" / "runs.csv")
    table = load_runs(SHARED / "data" / "runs.csv")
    assert table.rows_read == len(raw) == 747
    assert list(table.frame.columns) == list(raw.columns)
    assert len(table.frame) == 747 - 11 - 23
    assert [note.split(" of ")[0].split(" collapsed")[0] for note in table.notes] == ["11 rows", "23 rows"]
    kept = load_runs(SHARED / "data" / "runs.csv", RunOptions(keep_duplicates=True, keep_collapsed=True))
    assert len(kept.frame) == 747
    assert kept.notes == ()


def test_repeated_configurations_become_their_mean(tmp_path: Path) -> None:
    repeated = "gowalla,sasrec,64,128,256,42,0.04,1.5"
    table = load(tmp_path, GOOD, repeated, "gowalla,sasrec,64,128,512,42,0.03,0.7")
    assert table.frame[QUALITY].tolist() == pytest.approx([0.03, 0.03])
    assert table.frame["run_training_batch"].tolist() == pytest.approx([1.0, 0.7])
    assert "1 row of 3 repeats" in table.notes[0]
    assert len(load(tmp_path, GOOD, repeated, keep_duplicates=True).frame) == 2


def test_another_seed_or_another_unknown_setting_is_no_repetition(tmp_path: Path) -> None:
    seeds = load(tmp_path, GOOD, GOOD.replace(",42,", ",43,"))
    assert (len(seeds.frame), seeds.notes) == (2, ())
    rates = load(tmp_path, GOOD + ",0.1", GOOD + ",0.01", header=HEADER + ",learning_rate")
    assert (len(rates.frame), rates.notes) == (2, ())
    assert "learning_rate" in rates.frame.columns


def test_collapsed_runs_are_left_out_by_rule(tmp_path: Path) -> None:
    collapsed = "gowalla,sasrec,32,128,256,42,0.000199,0.5"
    close = "gowalla,sasrec,16,128,256,42,0.000201,0.5"
    weak_but_best = "beauty,sasrec,32,128,256,42,0.00001,0.5"
    table = load(tmp_path, GOOD, collapsed, close, weak_but_best)
    assert len(table.frame) == 3
    assert "1 row collapsed" in table.notes[0]
    assert "gowalla 1" in table.notes[0]
    assert len(load(tmp_path, GOOD, collapsed, keep_collapsed=True).frame) == 2


def test_full_softmax_ranks_above_every_number_and_is_flagged(tmp_path: Path) -> None:
    table = load(tmp_path, GOOD, GOOD.replace(",256,", ",inf,"))
    knobs = table.knobs()
    assert np.isinf(table.frame["loss_sample_count"].iloc[1])
    assert knobs["ns"].tolist() == [256, 512]
    assert knobs["full"].tolist() == [0, 1]
    only_full = load(tmp_path, GOOD.replace(",256,", ",inf,"))
    assert np.isfinite(only_full.knobs()["ns"]).all()


def test_blank_quality_and_several_models_are_remarked(tmp_path: Path) -> None:
    table = load(tmp_path, GOOD, "gowalla,bert4rec,64,128,256,42,,0.5")
    assert any("1 row without NDCG_10_test" in note for note in table.notes)
    assert any("bert4rec, sasrec" in note for note in table.notes)


@pytest.mark.parametrize("suffix", ["csv.gz", "parquet"])
def test_compressed_and_parquet_tables_equal_the_text(tmp_path: Path, suffix: str) -> None:
    text = load(tmp_path, GOOD, GOOD.replace(",256,", ",inf,"))
    path = tmp_path / f"again.{suffix}"
    if suffix == "parquet":
        text.frame.to_parquet(path)
    else:
        text.frame.to_csv(path, index=False)
    pd.testing.assert_frame_equal(load_runs(path).frame, text.frame, check_dtype=False)


def test_missing_columns_are_named_beside_those_found(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"lacks the columns max_seq_len, NDCG_10_test; found: dataset, batch_size"):
        load(tmp_path, "a,1,2", header="dataset,batch_size,loss_sample_count")


def test_missing_empty_and_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no run table at .*none\.csv"):
        load_runs(tmp_path / "none.csv")
    with pytest.raises(InputError, match=r"holds no runs\.csv"):
        load_runs(tmp_path)
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(InputError, match="is empty"):
        load_runs(tmp_path / "empty.csv")
    with pytest.raises(InputError, match="no runs"):
        load(tmp_path)
    for name, content in {"b.csv": b"\xff\xfe\x00\x81", "b.parquet": b"PAR?", "b.csv.gz": b"no gzip"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match="could not be read"):
            load_runs(tmp_path / name)
    with pytest.raises(InputError, match="could not be read"):
        load(tmp_path, GOOD, GOOD + ",1,2,3")
    with pytest.raises(InputError, match="more cells than its header"):
        load(tmp_path, GOOD + ",1,2,3")


@pytest.mark.parametrize(
    ("column", "value"),
    [
        (1, "0"),
        (1, "-64"),
        (1, "64.5"),
        (1, "inf"),
        (1, "many"),
        (1, ""),
        (2, "nan"),
        (3, "0"),
        (3, "-inf"),
        (3, ""),
        (3, "full"),
        (4, "good"),
        (4, "inf"),
        (0, " "),
        (0, "average"),
    ],
)
def test_impossible_values_are_refused_with_line_column_and_value(tmp_path: Path, column: int, value: str) -> None:
    names = ["dataset", "batch_size", "max_seq_len", "loss_sample_count", QUALITY]
    cells = ["gowalla", "64", "128", "256", "0.02"]
    good = ",".join(cells)
    cells[column] = value
    shown = repr(value) if value.strip() not in ("", "nan") else "blank"
    with pytest.raises(InputError, match=f"line 3: {names[column]} is {shown}") as caught:
        load(tmp_path, good, ",".join(cells), header=",".join(names))
    assert caught.value.hint


def test_a_trained_run_has_its_times_in_seconds(run: Callable[..., Ended], tmp_path: Path) -> None:
    """Against the log of the epochs and the clock on the wall: milliseconds would be a thousand times as long."""
    lines = [f"{user} {(user + step) % 9}" for user in range(40) for step in range(6)]
    (tmp_path / "shop.txt").write_text("\n".join(lines))
    sizes = ("--dim", 8, "--heads", 1, "--blocks", 1, "--seq-len", 4, "--batch-size", 16, "--epochs", 3)
    begun = time.perf_counter()
    ended = run("train", "--data", "shop.txt", "--loss", "ce", *sizes, "--device", "cpu", "-o", "runs/one")
    elapsed = time.perf_counter() - begun
    assert ended.code == 0, ended.err
    log = (tmp_path / "runs" / "one" / "epochs.jsonl").read_text().splitlines()
    seconds = [json.loads(line)["seconds"] for line in log]
    row = load_runs(tmp_path / "runs").frame.iloc[0]
    batches = 3  # of 40 users
    assert len(seconds) == 3
    assert 0 < sum(seconds) < elapsed
    assert row["run_training_epoch"] == pytest.approx(np.mean(seconds), rel=0.01)
    assert row["run_training_batch"] == pytest.approx(sum(seconds) / (3 * batches), rel=0.01)
    assert (row["dataset"], row["batch_size"], row["loss_sample_count"]) == ("shop", 16, np.inf)


cell = st.one_of(st.text(st.characters(codec="utf-8", exclude_characters='\r\n,"'), max_size=6), st.integers().map(str))


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.lists(cell, min_size=5, max_size=5), min_size=1, max_size=4))
def test_any_text_loads_or_is_refused_in_words(tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]]) -> None:
    header = ",".join(["dataset", "batch_size", "max_seq_len", "loss_sample_count", QUALITY])
    # any other exception fails the test
    with contextlib.suppress(InputError):
        table = load(tmp_path_factory.mktemp("any"), *map(",".join, rows), header=header)
        assert (table.frame[["batch_size", "max_seq_len", "loss_sample_count"]] >= 1).all(axis=None)
