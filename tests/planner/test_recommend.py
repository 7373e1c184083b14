"""`srsplan recommend` as users meet it: one screen, one document, a command to go on with, or one clear refusal."""

from __future__ import annotations

import csv
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from command import Ended, process
from paths import SHARED

import srsplan.planner.api as api
from srsplan.kernels.losses import LOSSES, PLANNED
from srsplan.models.config import Configuration
from srsplan.planner.cli.train import train_command
from srsplan.planner.plan import read_plan
from srsplan.profiler.memory import reserved as lifetime
from srsplan.profiler.memory.model import MemoryModel
from srsplan.profiler.probes.records import ProbeRecord

Run = Callable[..., Ended]
ML_100K = SHARED / "data" / "ml-100k.inter"
PLAN = "srsplan.plan.yaml"
CHOICE_KEYS = {"rank", "loss", "batch_size", "seq_len", "negatives", "tokens_per_set", "memory", "step_ms", "why"}
CHOICE_KEYS |= {"breakdown_bytes", "pass_tokens", "pass_sequences", "passes", "kernel", "recompute", "step_tokens"}
CHOICE_KEYS |= {"seconds_per_million_tokens"}
MEMORY_KEYS = {"allocated_bytes", "reserved_bytes", "evaluation_bytes", "upper_bytes", "basis"}


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")


def interactions(path: Path, columns: tuple[str, str, str] = ("user_id", "item_id", "timestamp")) -> Path:
    """A csv of 80 users with 12 interactions each."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows((user, (7 * user + 3 * at) % 50, 1000 * at + user) for user in range(80) for at in range(12))
    return path


def train_options(command: str) -> dict[str, object]:
    """What `srsplan train` understands of a printed command, taken apart as a shell does it; its defaults left out."""
    program, verb, *words = shlex.split(command)
    assert (program, verb) == ("srsplan", "train")
    application = typer.Typer()
    application.command()(train_command)
    context = typer.main.get_command(application).make_context("train", words)
    return {
        name: value
        for name, value in context.params.items()
        if str(context.get_parameter_source(name)).endswith("COMMANDLINE")
    }


def next_command(done: Ended) -> str:
    return done.out.rstrip().splitlines()[-1].strip()


def test_the_json_has_what_is_promised(run: Run) -> None:
    done = run("recommend", "--catalog", "1.6M", "--budget", "40GB", "--json")
    assert done.code == 0
    document = done.json
    assert document["inputs"]["catalog"] == 1_600_000
    assert document["budget"]["bytes"] == 40 * 10**9
    assert document["budget"]["usable_bytes"] + document["budget"]["margin_bytes"] < 40 * 10**9
    assert document["budget"]["fixed_floor_bytes"] == 16 * 1_600_000 * 256
    assert {choice["loss"] for choice in document["choices"]} == set(PLANNED)
    assert [choice["rank"] for choice in document["choices"]] == list(range(1, len(document["choices"]) + 1))
    for choice in document["choices"]:
        assert choice.keys() >= CHOICE_KEYS
        assert set(choice["memory"]) == MEMORY_KEYS
        assert sum(choice["breakdown_bytes"].values()) == choice["memory"]["allocated_bytes"]
    for miss in document["near_misses"]:
        assert miss["upper_bytes"] == document["budget"]["usable_bytes"] + miss["over_bytes"]
    assert document["version"] == 2
    steps = {(knob["name"], knob["change"]) for knob in document["knobs"]}
    assert steps >= {("pass_tokens", "/ 2"), ("negatives", "x 2")}
    first, passes = document["choices"][0], document["passes"]
    assert first["pass_tokens"] == first["batch_size"] * first["seq_len"] == passes[0]["pass_tokens"]
    assert [each["passes"] for each in passes] == [1, 2, 8]
    assert [each["upper_bytes"] for each in passes] == sorted((each["upper_bytes"] for each in passes), reverse=True)
    assert [each["step_ms"] for each in passes] == sorted(each["step_ms"] for each in passes)
    assert "not the budget: a whole batch runs in one pass. Batches end at 1,024 sequences" in document["binds"]


def test_the_screen_is_one_screen(run: Run, narrow: None) -> None:
    """Three rows, every symbol explained, no reason twice, 80 columns; what a smaller pass costs, and what limits."""
    done = run("recommend", "--catalog", "1.6M", "--budget", "40GB")
    lines = done.out.rstrip().splitlines()
    assert len(lines) <= 31
    assert max(map(len, lines)) <= 80
    rows = [line for line in lines if re.match(r"[1-9]  \w", line)]
    assert [row.split()[:2] for row in rows] == [["1", "cce-"], ["2", "cce-"], ["3", "cce-"]]
    text = " ".join(done.out.split())
    for phrase in (
        "1.6M items (1,600,000), D 256", "every sequence full (worst case)", "4 S =", "what binds", "bs batch size",
        "sl sequence length", "ns negatives", "D hidden size", "S table in fp32",
        "cce- sampled softmax in chunks (chunked PyTorch)",
        "What a smaller pass costs #1", "262,144 in 2 at most", "Batches end at 1,024 sequences", "--max-batch-size",
        "pass tokens at a time", "s/M seconds a million tokens", "--all adds", f"plan written to {PLAN}",
    ):  # fmt: skip
        assert phrase in text
    assert text.count("shorter sequences") == 1
    assert "epoch" not in text


def test_all_adds_the_rest(run: Run, narrow: None) -> None:
    done = run("recommend", "--catalog", "1.6M", "--budget", "40GB", "--all")
    assert max(map(len, done.out.splitlines())) <= 80
    text = " ".join(done.out.split())
    for phrase in (
        "one step of a knob: pass / 2: -",
        "cce full softmax in chunks (chunked PyTorch)", "Where the memory of #1 goes",
        "less CUDA context 640.0 MiB (assumed)", "1,024 users ranked at once",
        "best of binary, SASRec's with one negative",
    ):  # fmt: skip
        assert phrase in text


def test_the_evidence_is_not_exceeded_by_small_choices(run: Run) -> None:
    done = run("recommend", "--catalog", "1M", "--budget", "12GB", "--users", "1K", "--json")
    assert max(choice["batch_size"] for choice in done.json["choices"]) <= 1024
    assert "beyond all evidence" not in done.json["inputs"]["quality"]
    more = ("--max-batch-size", 3000, "--no-plan")
    larger = run("recommend", "--catalog", "1M", "--budget", "12GB", *more, "--json").json
    assert larger["choices"][0]["batch_size"] == 3000
    assert "larger ones are beyond all evidence" in larger["inputs"]["quality"]


def test_a_small_card_trains_the_same_batch_in_smaller_passes(run: Run, narrow: None) -> None:
    """What used to be impossible on 12 GB: the choice of 40 GB, in passes, and what they cost in time."""
    large, small = (
        run("recommend", "--catalog", "1.6M", "--budget", size, "--no-plan", "--json").json for size in ("40GB", "12GB")
    )
    first, cut = large["choices"][0], small["choices"][0]
    for key in ("loss", "batch_size", "seq_len", "negatives"):
        assert cut[key] == first[key]
    assert cut["pass_tokens"] < first["pass_tokens"]
    usable = small["budget"]["usable_bytes"]
    assert 0.95 * usable <= cut["memory"]["reserved_bytes"] <= cut["memory"]["upper_bytes"] <= usable
    assert "memory limits a pass, not the batch" in small["binds"]
    whole, own, *_ = small["passes"]
    assert (whole["fits"], own["fits"], own["pass_tokens"]) == (False, True, cut["pass_tokens"])
    assert whole["upper_bytes"] > usable
    screen = " ".join(run("recommend", "--catalog", "1.6M", "--budget", "12GB").out.split())
    assert "in 1 at most 14" in screen
    assert "does not fit" in screen


def test_a_budget_of_time_shortens_what_is_chosen(run: Run) -> None:
    """An epoch of the first choice takes too long: the next is within it, and time is what binds."""
    arguments = ("recommend", "--catalog", "1M", "--budget", "24GB", "--users", "1M", "--no-plan")
    free = run(*arguments, "--json").json
    limit = free["choices"][0]["epoch_seconds"] * 0.6
    for option in ((f"--epoch-time={limit:.0f}s",), (f"--total-time={10 * limit:.0f}s", "--epochs", 10)):
        timed = run(*arguments, *option, "--json").json
        assert all(choice["epoch_seconds"] <= limit + 1 for choice in timed["choices"])
        assert timed["choices"][0]["batch_size"] <= free["choices"][0]["batch_size"]
        assert timed["choices"][0] != free["choices"][0]
        assert "rank higher take longer" in timed["binds"]
    assert "where there are 10 epochs (--epochs)" in timed["inputs"]["time"]
    screen = " ".join(run(*arguments, *option).out.split())
    assert "in all (--total-time): an epoch within" in screen


def test_nothing_is_fast_enough_and_the_ways_out_work(run: Run) -> None:
    """The fastest that fits is named with how much is missing; each hint leads to a plan."""
    arguments = ("recommend", "--catalog", "1M", "--budget", "24GB", "--gpu", "rtx-4090", "--users", "2M", "--no-plan")
    for option in (("--epoch-time", "5s"), ("--total-time", "4min", "--epochs", 50)):
        done = run(*arguments, *option)
        assert (done.code, done.out) == (3, "")
        assert "nothing fits the time" in done.message
        assert "the fastest that fits memory" in done.message
        assert "too long" in done.message
        hint = re.search(r"--(epoch|total)-time (\S+?),?\s", done.err.split("try:")[1] + " ")
        assert hint is not None
        followed = run(*arguments, *option[2:], f"--{hint[1]}-time", hint[2], "--json")
        assert followed.code == 0, followed.err


def test_a_kernel_is_named_wherever_memory_is(run: Run) -> None:
    """Another kernel, another memory: the plan says which, and the losses with one form only have that."""
    asked = ("recommend", "--catalog", "300K", "--budget", "8GB", "--kernel", "triton")
    choices = {choice["loss"]: choice for choice in run(*asked, "--json").json["choices"]}
    assert {loss: choice["kernel"] for loss, choice in choices.items()} == {
        loss: "triton" if kind.chunked else "chunked" for loss, kind in LOSSES.items() if loss in PLANNED
    }
    assert "cce- sampled softmax in chunks (Triton)" in " ".join(run(*asked, "--overwrite").out.split())
    assert next_command(run(*asked, "--no-plan")).endswith("--kernel triton")
    assert read_plan(Path(PLAN)).configuration().kernel == "triton"


def test_recomputation_is_chosen_where_it_makes_a_step_faster(run: Run) -> None:
    """Of the three answers the one that was left to the search is never slower than the others."""
    arguments = ("recommend", "--catalog", "1.6M", "--budget", "12GB", "--loss", "bce", "--no-plan", "--json")
    auto, plain, lighter = (run(*arguments, *more).json for more in ((), ("--no-recompute",), ("--recompute",)))
    times = [document["choices"][0]["step_ms"] for document in (auto, plain, lighter)]
    assert times[0] == pytest.approx(min(times), rel=0.06)
    assert [document["choices"][0]["recompute"] for document in (plain, lighter)] == [False, True]


def test_users_give_epochs_and_bound_the_batch(run: Run) -> None:
    """5,000 users: an epoch of the largest batch still has 20 steps, and that is what binds."""
    few = run("recommend", "--catalog", "100K", "--budget", "12GB", "--users", "5K", "--no-plan", "--json").json
    assert few["choices"][0]["batch_size"] == 248
    assert "Batches end at 248 sequences: an epoch keeps 20 steps" in few["binds"]
    document = run("recommend", "--catalog", "1M", "--budget", "12GB", "--users", "50K", "--json").json
    assert document["inputs"]["users"] == 50_000
    for choice in document["choices"]:
        assert choice["batch_size"] <= 1024
        steps = -(-50_000 // choice["batch_size"])
        assert choice["epoch_seconds"] == pytest.approx(steps * choice["step_ms"] / 1e3, abs=0.06)
    assert "epoch" in run("recommend", "--catalog", "1M", "--budget", "12GB", "--users", "50K").out


@pytest.mark.parametrize(
    "arguments",
    [
        ["recommend", "--catalog", "1.6M", "--budget", "40GB"],
        ["estimate", "--loss", "cce", "--catalog", "1M", "--batch-size", 8, "--seq-len", 8],
    ],
    ids=lambda arguments: arguments[0],
)
def test_nothing_heavy_is_imported(arguments: list[object], tmp_path: Path) -> None:
    code = (
        "import sys, atexit; from srsplan.planner.cli.app import main\n"
        "heavy = {'torch', 'pandas', 'sklearn', 'scipy', 'matplotlib', 'pyarrow'}\n"
        "atexit.register(lambda: print('loaded:', sorted(heavy & set(sys.modules)), file=sys.stderr))\n"
        f"sys.argv = ['srsplan', *{[str(argument) for argument in arguments]!r}]\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "loaded: []" in done.stderr


@pytest.mark.evidence
def test_data_gives_catalog_users_and_real_lengths(run: Run, narrow: None) -> None:
    document = run("recommend", "--data", ML_100K, "--budget", "2GB", "--json").json
    assert document["inputs"]["catalog"] == 1682
    assert document["inputs"]["users"] == 823
    assert "823 training sequences" in document["inputs"]["lengths"]
    assert document["inputs"]["notes"]["data"]
    screen = run("recommend", "--data", ML_100K, "--budget", "2GB").out
    assert len(screen.splitlines()) <= 34
    assert "user column 'user_id:token'" in " ".join(screen.split())
    for choice in document["choices"]:
        assert choice["step_tokens"] <= choice["pass_tokens"] <= choice["batch_size"] * choice["seq_len"]
        assert choice["passes"] == 1
        assert choice["epoch_seconds"] is not None
        assert choice["memory"]["reserved_bytes"] <= choice["memory"]["upper_bytes"]


@pytest.mark.evidence
def test_runs_re_rank_and_every_reason_is_that_of_the_runs(run: Run) -> None:
    arguments = ("recommend", "--catalog", "300K", "--budget", "24GB", "--loss", "cce-")
    done = run(*arguments, "--runs", SHARED / "data" / "runs.csv", "--json")
    assert "out-of-bag R2" in done.json["inputs"]["order"]
    assert "two ranks" in done.json["choices"][0]["why"]
    assert all("balance" not in choice["why"] for choice in done.json["choices"])
    assert "loses 10" not in done.json["inputs"]["quality"]
    rule = run(*arguments, "--json").json
    assert "largest min(batch size, negatives)" in rule["choices"][0]["why"]


def test_a_profile_changes_the_printed_plan(run: Run, tmp_path: Path) -> None:
    """Probes that reserved 1.3 times the prediction, beside a context of 1 GiB: the plan expects as much."""
    model = MemoryModel()
    steps = [
        Configuration(loss="cce-", catalog=300_000, batch_size=size, seq_len=64, negatives=128, tokens_per_set=32)
        for size in (64, 128, 256)
    ]
    records = [
        ProbeRecord(
            configuration=each, status="ok", basis="measured", gpu="a100-40gb", device="NVIDIA A100",
            allocated_bytes=int(model.allocated([each])[0]), context_bytes=1 << 30,
            reserved_bytes=int(1.3 * lifetime.steady(each, model.program)),
        )
        for each in steps
    ]  # fmt: skip
    (tmp_path / "probes.jsonl").write_text("".join(record.to_line() for record in records))
    arguments = ("recommend", "--catalog", "300K", "--gpu", "a100-40gb", "--loss", "cce-")
    assumed = run(*arguments, "--json").json
    measured = run(*arguments, "--profile", "probes.jsonl", "--json").json
    assert measured["budget"]["context_bytes"] == 1 << 30
    plan = read_plan(tmp_path / PLAN)
    memory, users = plan.choice().memory, plan.choice().eval_batch_size
    usable = plan.budget.usable_bytes
    alone = model.predict(plan.configuration(), users, users * plan.choice().seq_len, usable / 1.3)
    assert memory.reserved_bytes == pytest.approx(1.3 * alone.reserved_bytes, rel=1e-3)
    assert memory.upper_bytes == pytest.approx(1.3 * alone.upper_bytes, rel=1e-3)
    assert measured["choices"][0] != assumed["choices"][0]
    screen = run(*arguments, "--profile", "probes.jsonl").out
    assert "reserved 1.300 times the prediction" in " ".join(screen.split())


@pytest.mark.parametrize(
    "name", ["[red]x[red].csv", "it's mine; touch gone.csv", "$(touch gone) `x`.csv", "[/foo].csv"]
)
def test_every_printed_command_leads_to_the_same_file(run: Run, tmp_path: Path, name: str) -> None:
    """Brackets are no markup and a shell takes the command apart as it was meant, with the options of the data."""
    (tmp_path / "[").mkdir()
    interactions(tmp_path / name, ("[bold]u", "i", "t"))
    reading = ["--user-column", "[bold]u", "--item-column", "i", "--timestamp-column", "t", "--split", "leave-one-out"]
    place = "[/it's] my plan.yaml"
    done = run("recommend", "--data", name, "--budget", "2GB", *reading, "-o", place)
    assert done.code == 0, done.err
    expected = {
        "data": Path(name), "plan": Path(place), "split": "leave-one-out", "user_column": "[bold]u",
        "item_column": "i", "timestamp_column": "t",
    }  # fmt: skip
    assert train_options(next_command(done)) == expected
    assert read_plan(tmp_path / place).next_command == next_command(done)
    assert "".join(f"{Path(name).name}: 80 training sequences".split()) in "".join(done.out.split())


@pytest.mark.parametrize("loss", PLANNED)
def test_without_a_plan_the_command_says_everything(run: Run, loss: str) -> None:
    """The options of the printed command are those of the first choice."""
    more = ("--loss", loss, "--recompute", "--precision", "bf16", "--sampler", "popularity")
    done = run("recommend", "--catalog", "30K", "--budget", "4GB", "--no-plan", *more)
    document = run("recommend", "--catalog", "30K", "--budget", "4GB", "--no-plan", *more, "--json").json
    first, given = document["choices"][0], train_options(next_command(done))
    assert document["next_command"] == next_command(done)
    assert (given["loss"], given["precision"], given["recompute"]) == (loss, "bf16", True)
    for key in ("batch_size", "seq_len"):
        assert given[key] == first[key]
    assert given.get("negatives") == first["negatives"]
    assert given.get("tokens_per_set", 1) == first["tokens_per_set"]
    assert given.get("sampler", "uniform") == first["sampler"]
    assert (given["pass_tokens"], given["pass_sequences"]) == (first["pass_tokens"], first["pass_sequences"])


def test_control_characters_do_not_reach_the_terminal(run: Run, tmp_path: Path) -> None:
    interactions(tmp_path / "a\x1b]0;title\x07b.csv")
    done = run("recommend", "--data", "a\x1b]0;title\x07b.csv", "--budget", "2GB")
    assert done.code == 0
    assert "\x1b" not in done.out + done.err
    assert "\x07" not in done.out + done.err


FITS_NOT = [
    ["--catalog", "100M", "--budget", "40GB"],
    ["--catalog", "1.6M", "--budget", "4GB"],
    ["--catalog", "1.6M", "--budget", "7.6GB", "--loss", "ce"],
    ["--catalog", "1.6M", "--gpu", "rtx-3050-6gb", "--dim", "512"],
    ["--catalog", "5K", "--budget", "700MB"],
    ["--catalog", "1.6M", "--gpu", "a100-40gb", "--budget", "5GB"],
]


@pytest.mark.parametrize("arguments", FITS_NOT, ids=" ".join)
def test_nothing_fits_is_an_answer_and_every_way_out_works(run: Run, arguments: list[str], tmp_path: Path) -> None:
    """Each hint is followed, one at a time."""
    done = run("recommend", *arguments)
    assert (done.code, done.out) == (3, "")
    assert "nothing fits" in done.message
    assert not list(tmp_path.iterdir())
    hints = re.findall(r"--(budget|dim|loss|gpu) (\S+?)(?:,|$)", done.err.split("try:")[1], re.MULTILINE)
    assert hints
    for option, value in hints:
        kept = [(name, was) for name, was in zip(arguments[::2], arguments[1::2], strict=True) if name != f"--{option}"]
        if option == "gpu":
            kept = [pair for pair in kept if pair[0] != "--budget"]
        followed = run("recommend", *(part for pair in kept for part in pair), f"--{option}", value)
        assert followed.code == 0, (option, value, followed.err)


def test_a_loss_that_does_not_fit_names_those_that_do(run: Run) -> None:
    done = run("recommend", "--catalog", "1.6M", "--budget", "8GB", "--loss", "ce")
    assert done.code == 3
    assert "--loss cce-" in done.message


BAD = [
    (["--catalog", "1.6X", "--budget", "40GB"], "'1.6X'"),
    (["--catalog", "-5", "--budget", "40GB"], "-5"),
    (["--catalog", "0", "--budget", "40GB"], "'0'"),
    (["--catalog", "1.6M", "--budget", "40QB"], "'40QB'"),
    (["--catalog", "1.6M", "--budget", "40"], "did you mean 40GB?"),
    (["--catalog", "1.6M", "--budget", "900GB"], "more than any card"),
    (["--catalog", "1.6M", "--budget", "41GB", "--gpu", "rtx-4090"], "more than rtx-4090 has"),
    (["--catalog", "1.6M", "--gpu", "a1000000"], "a1000000"),
    (["--catalog", "1.6M"], "neither --budget nor --gpu"),
    (["--budget", "40GB"], "neither --catalog nor --data"),
    (["--catalog", "1.6M", "--budget", "40GB", "--loss", "cce_"], "did you mean 'cce'?"),
    (["--catalog", "1.6M", "--budget", "40GB", "--dim", "100"], "dim 100"),
    (["--catalog", "1.6M", "--budget", "40GB", "--blocks", "9"], "blocks 9"),
    (["--catalog", "1.6M", "--budget", "40GB", "--blocks", "3000"], "blocks 3000"),
    (["--catalog", "1.6M", "--budget", "40GB", "--precision", "fp8"], "fp8"),
    (["--catalog", "1.6M", "--budget", "40GB", "--margin", "0.9"], "--margin 0.9"),
    (["--catalog", "1.6M", "--budget", "40GB", "--mean-length", "-3"], "--mean-length -3"),
    (["--catalog", "1.6M", "--budget", "40GB", "--mean-length", "1e308"], "--mean-length 1e+308"),
    (["--catalog", "1.6M", "--budget", "40GB", "--mean-length", "nan"], "--mean-length nan"),
    (["--catalog", "1.6M", "--budget", "40GB", "--users", "none"], "--users 'none'"),
    (["--catalog", "1.6M", "--budget", "40GB", "--epoch-time", "1h"], "--epoch-time needs the number of users"),
    (["--catalog", "1.6M", "--budget", "40GB", "--users", "5K", "--epoch-time", "5m"], "--epoch-time '5m'"),
    (["--catalog", "1.6M", "--budget", "40GB", "--users", "5K", "--total-time", "-1h"], "--total-time '-1h'"),
    (["--catalog", "1.6M", "--budget", "40GB", "--users", "5K", "--total-time", "1h", "--epochs", "0"], "epochs 0"),
    (["--catalog", "1.6M", "--budget", "40GB", "--max-batch-size", "0"], "max_batch_size 0"),
    (["--catalog", "1.6M", "--budget", "40GB", "--kernel", "fast"], "unknown kernel 'fast'"),
    (["--catalog", "1.6M", "--budget", "40GB", "--gpus", "0"], "--gpus 0"),
    (["--data", "missing.csv", "--budget", "40GB"], "missing.csv"),
    (["--data", "missing.csv", "--budget", "40GB", "--users", "5K"], "--users"),
    (["--catalog", "1.6M", "--budget", "40GB", "--runs", "missing.csv"], "missing.csv"),
    (["--catalog", "1.6M", "--budget", "40GB", "--profile", "[/foo]"], "[/foo]"),
]


@pytest.mark.parametrize(("arguments", "phrase"), BAD, ids=lambda value: " ".join(map(str, value))[:60])
def test_bad_input_is_one_clear_message(run: Run, arguments: list[object], phrase: str, tmp_path: Path) -> None:
    done = run("recommend", *arguments)
    assert done.code == 2
    assert phrase in done.message
    assert "Traceback" not in done.err
    assert not done.out
    assert not list(tmp_path.iterdir())


def test_a_failed_run_leaves_the_old_plan(run: Run, tmp_path: Path) -> None:
    run("recommend", "--catalog", "50K", "--budget", "8GB")
    before = (tmp_path / PLAN).read_text()
    assert run("recommend", "--catalog", "1.6M", "--budget", "4GB").code == 3
    assert (tmp_path / PLAN).read_text() == before


def test_exit_code_and_message_of_a_real_process(tmp_path: Path) -> None:
    done = process("recommend", "--catalog", "1.6X", "--budget", "40GB", folder=tmp_path)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: --catalog '1.6X'")


def test_the_function_gives_what_the_command_prints(run: Run) -> None:
    """Sizes may be numbers."""
    document = run("recommend", "--catalog", "30K", "--budget", "4GB", "--loss", "cce-", "--json").json
    assert api.plan(catalog=30_000, budget=4 * 10**9, losses=["cce-"]).model_dump() == document


def test_check_tries_the_first_choice_and_writes_what_it_found(run: Run, tmp_path: Path) -> None:
    document = run("recommend", "--catalog", "300K", "--budget", "16GB", "--check", "--json").json
    first, second = document["choices"][:2]
    assert first["confirmed"]["fits"]
    assert "simulated" in first["confirmed"]["basis"]
    assert first["confirmed"]["retries"] == 0
    assert first["confirmed"]["allocated_bytes"] == pytest.approx(first["memory"]["allocated_bytes"], rel=0.01)
    assert first["confirmed"]["reserved_bytes"] <= first["memory"]["upper_bytes"]
    assert second["confirmed"] is None
    assert "#1 runs within" in document["inputs"]["notes"]["checked"]
    assert read_plan(tmp_path / PLAN).choice(1).confirmed is not None
