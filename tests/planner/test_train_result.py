"""What `srsplan train` says and writes of its test: cohorts of popularity, their balance, intervals, cold targets."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from command import Ended

from srsplan.planner.analysis.run_tables import load_runs
from srsplan.planner.cli import train_screens

Run = Callable[..., Ended]
COHORTS = ("head", "mid", "tail")
COLD = 24
"""Users whose target nobody has in train, of 120."""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """120 users take 7 of 40 items, the first ones most often; the last item of some is one that only they have."""
    draw = np.random.default_rng(3)
    weights = 1 / np.arange(1, 41)
    lines = ["user_id,item_id,timestamp"]
    for user in range(120):
        items = [f"i{item}" for item in draw.choice(40, 7, replace=False, p=weights / weights.sum())]
        items += [f"new{user}"] if user < COLD else []
        lines += [f"u{user},{item},{step}" for step, item in enumerate(items)]
    path = tmp_path / "skewed.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def trained(run: Run, data: Path) -> Run:
    tiny = ("--loss", "cce", "--batch-size", 32, "--seq-len", 8, "--dim", 16, "--blocks", 1, "--epochs", 3)
    options = (*tiny, "--learning-rate", 0.01, "--split", "leave-one-out", "-o", "out")
    return lambda *more: run("train", "--data", data, *options, *more)


@pytest.fixture
def document(trained: Run, tmp_path: Path) -> dict[str, Any]:
    done = trained()
    assert done.code == 0, done.err
    found: dict[str, Any] = json.loads((tmp_path / "out" / "metrics.json").read_text())
    return found | {"screen": done.out}


def test_the_whole_is_the_sum_of_its_cohorts(document: dict[str, Any]) -> None:
    cohorts = document["cohorts"]
    assert list(cohorts) == list(COHORTS)
    assert sum(cohort["test_users"] for cohort in cohorts.values()) == document["test_users"] == 120
    assert sum(cohort["items_percent"] for cohort in cohorts.values()) == pytest.approx(100)
    assert cohorts["tail"]["test_users"] > COLD
    for part in ("test", "popularity"):
        for k in (1, 5, 10, 20, 100):
            for name in (f"NDCG_{k}", f"HitRate_{k}"):
                hits = sum(cohort[part][name] * cohort["test_users"] for cohort in cohorts.values())
                assert hits / 120 == pytest.approx(document[part][name])
    assert document["test"]["HitRate_10"] > 0
    assert cohorts["head"]["median_users_percent"] > cohorts["mid"]["median_users_percent"] > 0


def test_every_figure_of_the_test_lies_within_its_interval(document: dict[str, Any]) -> None:
    made = document["intervals"]
    assert (made["level"], made["resamples"], made["seed"]) == (0.95, 1000, 42)
    assert set(document["test"]) <= set(made["test"])
    for name, (low, high) in made["test"].items():
        value = document["test"].get(name, document["balance"]["test"].get(name))
        assert low <= value <= high


def numbers(screen: str, first: str) -> list[str]:
    return next(line.split()[1:] for line in screen.splitlines() if line.split()[:1] == [first])


def test_the_screen_shows_the_figures_of_the_file(document: dict[str, Any]) -> None:
    screen, test = document["screen"], document["test"]
    for name, cohort in document["cohorts"].items():
        wanted = [cohort["test"][f"{metric}_10"] for metric in ("HitRate", "NDCG", "Coverage")]
        wanted.append(cohort["popularity"]["HitRate_10"])
        assert numbers(screen, name) == [
            f"{cohort['items_percent']:.1f}%", f"{cohort['median_users_percent']:.2g}%", f"{cohort['test_users']}",
            *(f"{value:.4f}" for value in wanted),
        ]  # fmt: skip
    low, high = document["intervals"]["test"]["NDCG_10"]
    said = " ".join(screen.split())
    assert f"NDCG@10 {test['NDCG_10']:.4f}, 95% interval {low:.4f} to {high:.4f} over users" in said
    found, popular = (document["balance"][part]["Balance_10"] for part in ("test", "popularity"))
    assert f"Balance@10 is {found:.2f} for the model and {popular:.2f} for popularity" in said
    assert max(map(len, screen.split("Balance")[0].splitlines()[-5:])) <= 80


def test_many_cold_targets_are_explained(document: dict[str, Any]) -> None:
    said = " ".join(train_screens.remarks(document))
    assert f"{COLD} of 120 test targets never occur in train" in said
    assert "That is 20% of the users, so no HitRate over all of them can be much above 0.80" in said
    few = copy.deepcopy(document)
    few["warm"]["test_users"] = 108
    assert "That is" not in " ".join(train_screens.remarks(few))


def test_what_is_not_defined_is_shown_as_such(document: dict[str, Any]) -> None:
    """Nobody in the test has a target in head."""
    del document["cohorts"]["head"]["test"]["HitRate_10"], document["balance"]["test"]["Balance_10"]
    cells = [list(column.cells) for column in train_screens.cohort_table(document).columns]
    assert [column[0] for column in cells][4] == "-"
    assert "Balance@10 is not defined: a cohort has no user" in train_screens.balance_line(document)
    document["balance"] = {"test": {"Balance_10": 0.456}, "popularity": {}}
    assert "Balance@10 is 0.46: 1 where" in train_screens.balance_line(document)


def test_the_table_of_runs_has_them_as_results(trained: Run, document: dict[str, Any], tmp_path: Path) -> None:
    """A run that is repeated with the same seed stays one configuration, whatever its results are."""
    path = tmp_path / "out" / "runs.csv"
    row = pd.read_csv(path).iloc[0]
    assert row["Balance_10_test"] == pytest.approx(document["balance"]["test"]["Balance_10"])
    for cohort in COHORTS:
        for metric in ("NDCG_10", "HitRate_10", "Coverage_10"):
            assert row[f"{metric}_test_{cohort}"] == pytest.approx(document["cohorts"][cohort]["test"][metric])
    for name in ("NDCG_10", "HitRate_10", "MRR_10", "Surprisal_10", "Coverage_10", "Balance_10"):
        ends = (row[f"{name}_test_low"], row[f"{name}_test_high"])
        assert ends == pytest.approx(tuple(document["intervals"]["test"][name]))
    assert not [name for name in row.index if name.startswith(("NDCG_5_test_", "Balance_5"))]
    other = pd.read_csv(path)
    for name in ("NDCG_10_test_tail", "NDCG_10_test_low", "NDCG_10_test_high", "Balance_10_test", "NDCG_10_test"):
        other[name] += 0.01
    both = pd.concat([pd.read_csv(path), other], ignore_index=True)
    both.to_csv(tmp_path / "both.csv", index=False)
    table = load_runs(tmp_path / "both.csv")
    assert len(table.frame) == 1
    assert table.frame["NDCG_10_test_tail"][0] == pytest.approx(row["NDCG_10_test_tail"] + 0.005)


def test_a_result_of_a_cohort_that_is_no_number_is_refused(run: Run, document: dict[str, Any], tmp_path: Path) -> None:
    frame = pd.read_csv(tmp_path / "out" / "runs.csv").astype({"NDCG_10_test_mid": object})
    frame.loc[0, "NDCG_10_test_mid"] = "much"
    frame.to_csv(tmp_path / "wrong.csv", index=False)
    done = run("analyze", "wrong.csv")
    assert done.code == 2
    assert "line 2: NDCG_10_test_mid is 'much'" in done.message
