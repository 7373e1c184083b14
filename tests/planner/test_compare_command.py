"""`srsplan compare` as its users see it: what it runs, what it keeps, what it writes, and what it refuses.

Runs train in this process, where a comparison starts one of its own for each: test_comparison_processes.py has those.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import pandas as pd
import pytest
from command import Ended
from scipy import stats
from small_runs import walks

from srsplan.models.errors import SrsplanError
from srsplan.planner.analysis.run_tables import load_runs
from srsplan.planner.cli import compare_runs, train_runs
from srsplan.planner.comparison.output import PlannedRun
from srsplan.planner.comparison.processes import how_to_start
from srsplan.planner.comparison.running import run_all
from srsplan.planner.comparison.scheduling import Room

Run = Callable[..., Ended]
DEFAULTS = "{dim: 16, blocks: 1, seq-len: 8, batch-size: 16, epochs: 1, split: leave-one-out, device: cpu}"
FILE = (
    "data: {data}\noutput: out\nseeds: {seeds}\ndefaults: "
    + DEFAULTS.replace("{", "{{").replace("}", "}}")
    + "\nruns: {runs}\n"
)


class Here:
    """A run in this process; the interface of processes.Process, as far as `run_all` uses it."""

    trained: list[PlannedRun] = []  # noqa: RUF012 - emptied by the fixture
    refused = ""
    """Runs whose folder has this in its name fail."""
    seconds = 1.0

    def __init__(self, run: PlannedRun, threads: int) -> None:
        from srsplan.planner.cli.compare_orders import parsed

        self.run, self.child, self.error = run, None, None
        self.code: int | None = None
        if Here.refused and Here.refused in str(run.folder):
            self.error = "the disk is full"
        else:
            train_runs.train_all(parsed([*run.words, *how_to_start(run)]))
            Here.trained.append(run)
        self.code = 1 if self.error else 0

    def failure(self) -> str | None:
        return self.error


@pytest.fixture
def compare(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`srsplan compare` on a file with these runs, its trainings in this process."""
    walks(tmp_path / "walks.csv")
    monkeypatch.setattr(compare_runs, "run_all", partial(run_all, starter=cast(Any, Here)))
    monkeypatch.setattr(train_runs, "_say_pace", lambda *arguments: None)  # it measures for as long as a run takes
    monkeypatch.setattr(Here, "trained", [])
    monkeypatch.setattr(Here, "refused", "")

    def call(runs: str, *arguments: object, seeds: object = 2, data: str = "walks.csv") -> Ended:
        Path("c.yaml").write_text(FILE.format(data=data, seeds=seeds, runs=runs))
        return run("compare", "c.yaml", *arguments)

    return call


def trained() -> list[str]:
    """Folders of the runs since the last call, and forget them."""
    found = [str(run.folder) for run in Here.trained]
    Here.trained.clear()
    return found


def test_a_comparison_and_what_it_leaves(compare: Run) -> None:
    done = compare("[{loss: [cce, bce]}, {loss: ce-, negatives: 8}]", "--json", seeds=3)
    assert done.code == 0, done.err
    assert len(trained()) == 9
    found = done.json
    assert json.loads(Path("out/comparison.json").read_text()) == found
    summary = pd.read_csv("out/summary.csv").set_index("configuration")
    values = pd.DataFrame({
        name: [json.loads(Path(f"out/{name}/walks/seed-{seed}/metrics.json").read_text())["test"]["NDCG_10"]
               for seed in (42, 43, 44)]
        for name in ("cce", "bce", "ce- negatives=8".replace(" ", "_"))
    }).rename(columns={"ce-_negatives=8": "ce- negatives=8"})  # fmt: skip
    assert summary["NDCG_10_mean"].to_dict() == pytest.approx(values.mean().to_dict())
    assert summary["NDCG_10_sd"].to_dict() == pytest.approx(values.std().to_dict())
    assert found["best"] == values.mean().idxmax()
    tests = pd.read_csv("out/tests.csv")
    friedman = tests[tests["test"] == "Friedman"].iloc[0]
    assert friedman["p"] == pytest.approx(stats.friedmanchisquare(*values.to_numpy().T).pvalue)
    paired = tests[tests["test"] == "paired t, Holm"].set_index("configuration")["p"]
    for name in paired.index:
        assert paired[name] == pytest.approx(stats.ttest_rel(values[name], values[found["best"]]).pvalue)
    assert (tests["test"] == "Nemenyi, mean ranks").sum() == 3
    picture = Path("out/critical_difference.svg").read_text()
    assert "ce- negatives=8" in picture
    assert "…" not in picture
    assert "| ce- negatives=8 |" in Path("out/summary.md").read_text()


def test_what_it_writes_is_read_by_analyze(compare: Run, run: Run) -> None:
    """The folder and its table stand for the same runs, each once; the names of the configurations are in them."""
    assert compare("[{loss: [cce, bce]}]").code == 0
    folder, table = load_runs(Path("out")), load_runs(Path("out/runs.csv"))
    assert (folder.rows_read, table.rows_read) == (4, 4)
    assert set(table.frame["exp_name"]) == {"cce", "bce"}
    assert run("analyze", "out", "--no-plots").code == 0
    many = pd.concat([pd.read_csv("out/runs.csv").assign(batch_size=size) for size in range(8, 20)])
    many.assign(loss_sample_count=64).to_csv("out/runs.csv", index=False)
    done = run("recommend", "--catalog", "3K", "--budget", "2GB", "--runs", "out/runs.csv", "--no-plan")
    assert done.code == 0, done.err


def test_a_second_call_runs_only_what_is_missing(compare: Run) -> None:
    Here.refused = "bce/walks/seed-43"
    done = compare("[{loss: [cce, bce]}]")
    assert done.code == 1
    assert "1 of 4 runs failed" in done.message
    assert "the disk is full; see out/bce/walks/seed-43.log" in done.message
    assert "bce has a result in 1 of 2 blocks." in " ".join(done.out.split())
    assert len(trained()) == 3
    Here.refused = ""
    before = Path("out/cce/walks/seed-42/metrics.json").stat().st_mtime_ns
    assert compare("[{loss: [cce, bce]}]").code == 0
    assert trained() == ["out/bce/walks/seed-43"]
    assert Path("out/cce/walks/seed-42/metrics.json").stat().st_mtime_ns == before
    more = compare("[{loss: [cce, bce]}]", seeds=3)
    assert more.code == 0
    assert sorted(trained()) == ["out/bce/walks/seed-44", "out/cce/walks/seed-44"]


def test_a_run_of_other_options_is_kept_unless_asked(compare: Run) -> None:
    assert compare("[{name: a, loss: cce}, {name: b, loss: bce}]", seeds=1).code == 0
    trained()
    changed = "[{name: a, loss: cce, epochs: 2}, {name: b, loss: bce}]"
    for arguments in ((), ("--report-only",)):
        done = compare(changed, *arguments, seeds=1)
        assert done.code == 2
        assert "out/a/walks/seed-42 holds a run of other options: epochs is 1 there, and 2 here" in done.message
        assert "--overwrite" in done.message
    assert not trained()
    assert compare(changed, "--overwrite", seeds=1).code == 0
    assert trained() == ["out/a/walks/seed-42"]
    assert json.loads(Path("out/a/walks/seed-42/metrics.json").read_text())["epochs"] == 2


def test_a_run_that_cannot_be_read_is_replaced_when_asked(compare: Run) -> None:
    assert compare("[{loss: cce}]", seeds=1).code == 0
    config = Path("out/cce/walks/seed-42/config.json")
    config.write_text(config.read_text().replace('"version": 3', '"version": 2'))
    trained()
    refused = compare("[{loss: cce}]", seeds=1)
    assert refused.code == 2
    assert "of another version of srsplan" in refused.message
    assert compare("[{loss: cce}]", "--overwrite", seeds=1).code == 0
    assert trained() == ["out/cce/walks/seed-42"]


def test_choices_of_a_plan(compare: Run, run: Run) -> None:
    """A list of ranks is a configuration each; the plan lies beside the file, `null` leaves to it what it says."""
    planned = run("recommend", "--catalog", "40", "--budget", "2GB", "--dim", "16", "--all", "-o", "plan.yaml")
    assert planned.code == 0, planned.err
    plan = "plan: plan.yaml, batch-size: null, seq-len: null"
    done = compare(f"[{{{plan}, rank: [1, 2]}}]", "--json", seeds=1)
    assert done.code == 0, done.err
    assert {each["name"] for each in done.json["configurations"]} == {"rank=1", "rank=2"}
    several = compare(f"[{{{plan}, rank: 1-2}}]", seeds=1)
    assert several.code == 2
    assert "rank 1-2 is several" in several.message


def test_what_was_to_be_replaced_and_failed_does_not_count(compare: Run) -> None:
    """Its old result is another configuration's."""
    assert compare("[{name: a, loss: cce}, {name: b, loss: bce}]", seeds=1).code == 0
    Here.refused = "out/a/"
    done = compare("[{name: a, loss: cce, epochs: 2}, {name: b, loss: bce}]", "--overwrite", "--json", seeds=1)
    assert done.code == 1
    assert done.json["runs"] == 1
    assert {each["name"]: each["metrics"]["NDCG_10"]["n"] for each in done.json["configurations"]} == {"a": 0, "b": 1}


def test_the_report_alone(compare: Run, run: Run) -> None:
    none = compare("[{loss: cce}]", "--report-only")
    assert none.code == 2
    assert "no run of c.yaml has ended in out" in none.message
    assert compare("[{loss: cce}]").code == 0
    trained()
    before = Path("out/comparison.json").read_bytes()
    Path("out/summary.md").unlink()
    done = run("compare", "c.yaml", "--report-only")
    assert done.code == 0
    assert not trained()
    assert Path("out/summary.md").exists()
    assert Path("out/comparison.json").read_bytes() == before


def test_several_data_files(compare: Run, tmp_path: Path) -> None:
    walks(tmp_path / "more.csv", 1)
    done = compare("[{loss: [cce, bce]}]", "--json", data="[walks.csv, more.csv]", seeds=1)
    assert done.code == 0, done.err
    assert (done.json["runs"], done.json["blocks"]) == (4, 2)
    assert trained() == [f"out/{loss}/{data}/seed-42" for data in ("walks", "more") for loss in ("cce", "bce")]
    summary = pd.read_csv("out/summary.csv")
    assert set(summary["data"]) == {"all", "walks", "more"}
    assert any("Blocks of one data file" in note for note in done.json["notes"])


def test_runs_that_the_file_does_not_name_any_more(compare: Run) -> None:
    assert compare("[{name: a, loss: cce}]", seeds=1).code == 0
    done = compare("[{name: b, loss: cce}]", seeds=1)
    assert "1 run in out that the file does not name: left aside (out/a/walks/seed-42)" in done.message
    assert trained() == ["out/a/walks/seed-42", "out/b/walks/seed-42"]


def test_configurations_that_are_tested_otherwise(compare: Run) -> None:
    """It is said before the runs start, and beside the result."""
    done = compare("[{loss: cce, min-item: [0, 1], keep-seen: [false, true]}]", seeds=1)
    told = "Configurations differ in min-user or min-item, keep-seen"
    assert told in done.message
    assert told in " ".join(done.out.split())


def test_ctrl_c_ends_the_runs_and_says_how_to_go_on(compare: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(compare_runs, "run_all", interrupted)
    done = compare("[{loss: cce}]")
    assert done.code == 130
    assert "0 of 2 runs have ended" in done.message
    assert "srsplan compare c.yaml" in done.message


@pytest.mark.parametrize(
    ("runs", "arguments", "message"),
    [
        ("[{loss: cce, epochs: 0}]", (), "cce: --epochs '0' is not possible"),
        ("[{loss: [cce, xx]}]", (), "xx: unknown loss 'xx'"),
        ("[{loss: cce}, {loss: cce, optimizer: adam}]", (), "'cce' and 'cce optimizer=adam' are the same"),
        ("[{loss: cce, keep-seen: 3}]", (), "--keep-seen takes true or false"),
        ("[{loss: cce, dim: true}]", (), "--dim takes a value"),
        ("[{loss: cce, user-column: zebra}]", (), "no column 'zebra'"),
        ("[{loss: cce, dim: 100000}]", (), "cce: "),
        ("[{loss: cce}]", ("--jobs", "0"), "--jobs '0' is no number of runs"),
        ("[{loss: cce}]", ("-o", "."), "not the folder of a comparison"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(compare: Run, runs: str, arguments: Any, message: str) -> None:
    done = compare(runs, *arguments)
    assert done.code == 2
    assert message in done.message
    assert not trained()
    assert not Path("out").exists()


def test_data_that_are_not_there(compare: Run) -> None:
    done = compare("[{loss: cce}]", data="[walks.csv, nowhere.csv]")
    assert (done.code, trained()) == (2, [])
    assert "no interactions at nowhere.csv" in done.message


def test_runs_share_a_card_by_what_they_are_predicted_to_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare_runs, "_card_bytes", lambda: 70)
    monkeypatch.setattr(compare_runs, "_cores", lambda: 8)
    run = PlannedRun(configuration="a", data="d", seed=1, folder=Path(), words=(), need_bytes=30, on_card=True)
    assert compare_runs._room([run] * 2, 4, None) == (Room(jobs=4, memory_bytes=70), 2)
    assert compare_runs._room([run] * 9, 9, 3) == (Room(jobs=3, memory_bytes=70), 2)
    assert compare_runs._room([run], 20, None) == (Room(jobs=8, memory_bytes=70), 1)  # the last one, as the first
    on_cpu = [replace(run, on_card=False)] * 9
    assert compare_runs._room(on_cpu, 9, 4) == (Room(jobs=4, memory_bytes=None), 2)


def test_options_of_false_and_default() -> None:
    from srsplan.planner.cli.compare_orders import words_of_run

    found = words_of_run(
        {"recompute": False, "keep_seen": False, "loss": None, "learning_rate": "1e-3", "plan": "p.yaml"}, Path("/f")
    )
    assert found == ["--no-recompute", "--learning-rate=1e-3", "--plan=/f/p.yaml"]


def test_errors_keep_their_kind() -> None:
    from srsplan.planner.cli.compare_orders import parsed

    with pytest.raises(SrsplanError, match="unknown option"):
        parsed(["--data=a", "--zebra=3"])
