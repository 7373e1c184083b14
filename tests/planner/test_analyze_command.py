"""`srsplan analyze` as a user meets it: screen, JSON, pictures, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import typer
from typer.testing import CliRunner

from srsplan.models.errors import InputError
from srsplan.planner.analysis.run_tables import MEMORY, QUALITY
from srsplan.planner.cli.analyze import analyze_command

app = typer.Typer()
app.command()(analyze_command)
PICTURES = ["importance_ndcg_10", "memory_quality", "spearman"]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """24 runs of one dataset, half of them full softmax, one collapsed, one repeated; no coverage, no surprisal."""
    random = np.random.default_rng(0)
    grid = [(bs, sl, ns) for bs in (32, 64, 128) for sl in (32, 64, 128, 256) for ns in (128, np.inf)]
    frame = pd.DataFrame(grid, columns=["batch_size", "max_seq_len", "loss_sample_count"])
    frame[QUALITY] = 0.01 * np.log2(frame["batch_size"]) + 0.002 * random.random(len(frame))
    frame[MEMORY] = frame["batch_size"] * frame["max_seq_len"] / 4096
    frame.loc[0, QUALITY] = 1e-6
    frame = pd.concat([frame, frame.iloc[[5]]]).assign(dataset="shop[1]")
    frame.to_csv(tmp_path / "runs.csv", index=False)
    return tmp_path / "runs.csv"


def invoke(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "100"}, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_screen_tells_treatment_correlations_scores_and_plots(runs: Path, tmp_path: Path) -> None:
    screen = invoke(runs, "-o", tmp_path / "out")
    assert "25 runs of 1 dataset, 23 analysed" in " ".join(screen.split())
    assert "1 row collapsed" in screen
    assert "--keep-duplicates" in screen
    assert "Spearman's ρ with NDCG@10" in screen
    assert "Coverage@10" not in screen
    assert "Do not trust the in-sample one" in " ".join(screen.split())
    assert "shop[1]" in screen
    assert all(len(line) <= 100 for line in screen.splitlines() if not line.startswith("plot:"))
    assert sorted(path.stem for path in (tmp_path / "out").iterdir()) == PICTURES
    for path in (tmp_path / "out").iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")
        assert str(path) in screen


def test_json_alone_on_stdout_and_pictures_as_svg(runs: Path, tmp_path: Path) -> None:
    document = json.loads(invoke(runs, "--json", "--format", "svg", "-o", tmp_path / "out"))
    assert document["rows"] == 25
    assert list(document["datasets"]) == ["shop[1]", "average"]
    assert document["datasets"]["shop[1]"]["spearman"]["ndcg_10"]["bs"] > 0.8
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"{name}.svg" for name in PICTURES]
    assert all("<svg" in path.read_text(encoding="utf-8") for path in (tmp_path / "out").iterdir())


def test_options_keep_what_is_otherwise_treated(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    keep = ("--keep-duplicates", "--keep-collapsed", "--keep-full")
    document = json.loads(invoke(runs, "--json", "--no-plots", "--seed", "3", *keep))
    assert document["rows_analysed"] == 25
    assert document["datasets"]["shop[1]"]["spearman"]["ndcg_10"]["ns"] is not None
    assert [path.name for path in tmp_path.iterdir()] == ["runs.csv"]


def test_few_runs_without_memory_still_give_a_heat_map(tmp_path: Path) -> None:
    rows = [f"shop,{bs},64,128,{bs / 1000}" for bs in (32, 64, 128, 256)]
    header = "dataset,batch_size,max_seq_len,loss_sample_count,NDCG_10_test"
    (tmp_path / "runs.csv").write_text("\n".join([header, *rows]))
    screen = invoke(tmp_path / "runs.csv", "-o", tmp_path / "out")
    assert "No forest could be fitted" in screen
    assert "shop has 4 runs" in screen
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["spearman.png"]


def test_wrong_input_raises_before_anything_is_written(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run table at"):
        invoke(tmp_path / "none.csv", "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="cannot make the folder"):
        invoke(runs, "-o", runs)
    with pytest.raises(InputError, match="cannot make the folder"):
        invoke(runs, "-o", runs / "below")
