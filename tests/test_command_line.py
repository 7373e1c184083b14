"""The shell around the verbs: help, usage errors, exit codes, and what is said where something breaks."""

from __future__ import annotations

import inspect
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
import typer.main
from command import Ended, process

from srsplan.models.errors import DeviceOutOfMemory, InputError, MissingExtra, NothingFits, SrsplanError
from srsplan.planner.cli.app import EPILOG, VERBS, app, verb_command
from srsplan.planner.cli.examples import EXAMPLES

Run = Callable[..., Ended]
START = [sys.executable, "-c", "from srsplan.planner.cli.app import main; main()"]


def started(*arguments: str, **how: object) -> subprocess.CompletedProcess[str]:
    """`srsplan ARGUMENTS` in a process of its own, with streams that a test chooses."""
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.run([*START, *arguments], text=True, timeout=60, check=False, env=buffered, **how)  # type: ignore[call-overload,no-any-return]


@pytest.mark.parametrize("verb", VERBS)
def test_the_summary_of_a_verb_is_its_docstring(verb: str) -> None:
    function = getattr(import_module(f"srsplan.planner.cli.{VERBS[verb].module}"), VERBS[verb].function)
    assert VERBS[verb].summary == (inspect.getdoc(function) or "").partition("\n")[0]


def test_the_help_imports_no_verb_and_nothing_heavy() -> None:
    code = (
        "import sys; from srsplan.planner.cli.app import main\n"
        "try: main()\n"
        "finally: print(*sorted({name.split('.')[0] for name in sys.modules} | set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=True)
    loaded = set(done.stderr.split())
    assert not loaded & {"rich", "pydantic", "numpy", "yaml", "torch", "pandas"}
    assert not {f"srsplan.planner.cli.{verb.module}" for verb in VERBS.values()} & loaded
    assert "srsplan.planner.cli.app" in loaded


@pytest.mark.parametrize(
    "line",
    [
        "recommend --data {} --budget 4GB",
        "recommend --catalog 10K --budget 4GB -o {}",
        "recommend --catalog 10K --budget 4GB --profile={}",
        "profile --gpu a100-40gb --losses cce --catalog 3K --probes 1 -o {}",
        "train --data {} --loss cce --batch-size 16 --seq-len 8 -o new",
        "analyze runs.csv -o {}",
    ],
)
def test_a_name_that_is_no_text_is_refused_before_anything_is_written(line: str, tmp_path: Path) -> None:
    """Every file of srsplan's holds text in UTF-8: such a name could not be written into a plan or a run."""
    (tmp_path / "\udcff").write_text("user,item,timestamp\n1,1,1\n")
    done = process(*line.format("\udcff").split(), folder=tmp_path)
    assert (done.code, done.out) == (2, "")
    assert "is not text in UTF-8" in done.err
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_fits_80_columns_and_cuts_nothing(run: Run, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = run(*([verb] if verb else []), "--help")
    assert (done.code, done.err) == (0, "")
    assert max(map(len, done.out.splitlines())) <= 80
    assert not {"…", "<bool>", "<boolean>"} & set(done.out.split())
    if verb:
        options = {option for parameter in verb_command(verb).params for option in parameter.opts}
        assert options <= set(done.out.replace(",", " ").split()) | {"text"}
        assert all(line in done.out for example in EXAMPLES[verb] for line in example.splitlines())


def test_help_shows_defaults_ranges_and_exit_codes(run: Run) -> None:
    said = " ".join(run("train", "--help").out.split())
    assert "[default: 200; x>=1]" in said
    assert "[required]" in said
    assert " ".join(EPILOG.split()) in " ".join(run("--help").out.split())
    assert run().out == run("--help").out
    assert run("-h").out == run("--help").out


@pytest.mark.parametrize(("verb", "example"), [(verb, example) for verb in EXAMPLES for example in EXAMPLES[verb]])
def test_the_examples_of_the_help_are_commands(verb: str, example: str) -> None:
    program, named, *arguments = shlex.split(example.replace("\\\n", " "))
    assert (program, named) == ("srsplan", verb)
    with verb_command(verb).make_context(verb, arguments) as context:
        assert context.params


def test_every_verb_has_examples() -> None:
    group = typer.main.get_command(app)
    assert set(EXAMPLES) == set(VERBS) == set(group.list_commands(None))  # type: ignore[attr-defined]


USAGE = {
    "recommend --budgett 40GB": ("unknown option --budgett", "did you mean --budget?"),
    "recommend --zebra": ("unknown option --zebra", "`srsplan recommend --help` lists what there is"),
    "estimate --loss ce": ("--catalog is missing", "`srsplan estimate --help`"),
    "recommend --dim abc": ("--dim 'abc' is not a whole number", "`srsplan recommend --help`"),
    "recommend --margin=much": ("--margin 'much' is not a number", "`srsplan recommend --help`"),
    "recomend": ("unknown verb 'recomend'", "did you mean recommend?"),
    "zebra": ("unknown verb 'zebra'", "verbs are recommend, "),
    "gpus a100 h100": ("h100", "`srsplan gpus --help`"),
    "recommend --dim": ("option '--dim' requires an argument", "--help`"),
    "recommend --json=3": ("'--json' does not take a value", "--help`"),
    f"recommend --dim {'9' * 5000}": ("--dim '9999999999", "--help`"),
    "train --data x --epochs 0": ("--epochs '0'", "--help`"),
}


@pytest.mark.parametrize("line", USAGE, ids=lambda line: line[:30])
def test_a_mistake_in_the_form_is_one_error_with_the_input(run: Run, line: str) -> None:
    done = run(*line.split())
    assert (done.code, done.out) == (2, "")
    error, hint = done.err.splitlines()
    assert error.startswith("error: ")
    assert hint.startswith("  try: ")
    assert USAGE[line][0] in error
    assert USAGE[line][1] in hint
    assert len(done.err) < 400


def test_control_characters_and_brackets_of_the_user_are_shown(run: Run) -> None:
    done = run("[red]x[/nonsense]\x1b[2J")
    assert done.code == 2
    assert "[red]x[/nonsense]\\x1b[2J" in done.err
    assert "\x1b" not in done.err


def breaks(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """`srsplan gpus` raises this from now on."""

    def broken() -> None:
        raise error

    monkeypatch.setattr("srsplan.planner.cli.gpus.gpus_command", broken)


def test_a_fault_of_srsplan_is_a_line_and_a_log(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    breaks(monkeypatch, KeyError("exp_avg [/bold]"))
    done = run("gpus")
    assert (done.code, done.out) == (1, "")
    assert "Traceback" not in done.err
    assert "KeyError: 'exp_avg [/bold]'" in done.message
    assert "report it" in done.message
    (log,) = tmp_path.glob("srsplan-*.log")
    assert str(log) in done.message
    kept = log.read_text()
    assert "Traceback (most recent call last)" in kept
    assert "command  srsplan gpus" in kept
    assert log.stat().st_mode & 0o077 == 0


def test_without_a_place_for_the_log_it_is_still_one_message(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
    breaks(monkeypatch, RecursionError("too deep"))
    done = run("gpus")
    assert done.code == 1
    assert "RecursionError: too deep; no log could be written" in done.message


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SrsplanError("m", "h"), 1), (InputError("m", "h"), 2), (NothingFits("m", "h"), 3),
        (DeviceOutOfMemory("m", "h"), 4), (MissingExtra("m", "train", "h"), 2),
    ],
)  # fmt: skip
def test_exit_codes(run: Run, monkeypatch: pytest.MonkeyPatch, error: SrsplanError, code: int) -> None:
    breaks(monkeypatch, error)
    done = run("gpus")
    assert done.code == code
    assert done.err.startswith(f"error: {error.message}\n  try: ")


def test_ctrl_c_is_130_and_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    breaks(monkeypatch, KeyboardInterrupt())
    done = run("gpus")
    assert (done.code, done.err) == (130, "stopped\n")
    breaks(monkeypatch, typer.Exit(130))
    assert (run("gpus").code, run("gpus").err) == (130, "")


def test_nobody_reads_the_output() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = started("gpus", stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("arguments", [["gpus"], ["gpus", "--json"], ["--help"], ["--version"]], ids=str)
def test_output_that_takes_nothing(arguments: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = started(*arguments, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert done.stderr.startswith("error: cannot write the output: No space left on device\n")
    assert len(done.stderr.splitlines()) == 2


def test_errors_that_cannot_be_written_keep_their_code() -> None:
    with open("/dev/full", "w") as full:
        assert started("gpus", "zebra", stdout=full, stderr=full).returncode == 2
        assert started("gpus", stdout=full, stderr=full).returncode == 1


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams(closed: str) -> None:
    line = f"{shlex.join([*START, 'gpus', 'h100'])} {closed}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_that_cannot_show_every_letter(encoding: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": f"{encoding}:strict", "PYTHONUTF8": "0"}
    for arguments, code in ((["gpus", "пусто"], 2), (["recommend", "--catalog", "300K", "--budget", "24GB"], 0)):
        done = subprocess.run(
            [*START, *arguments], capture_output=True, env=environment, cwd=tmp_path, timeout=60, check=False
        )
        assert done.returncode == code, done.stderr
        assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("absent", "arguments", "extra"),
    [
        ("torch", ["train", "--data", "clicks.csv", "--loss", "cce", "-o", "run"], "train"),
        ("torch", ["profile", "--gpu", "a100-40gb", "--probes", "1"], "train"),
        ("torch", ["bench"], "bench"),
        ("pandas", ["analyze", "clicks.csv"], "analyze"),
        ("pyarrow", ["recommend", "--data", "clicks.csv", "--budget", "2GB"], "data"),
    ],
    ids=str,
)
def test_a_missing_package_names_its_extra(absent: str, arguments: list[str], extra: str, tmp_path: Path) -> None:
    rows = (f"{user},{item},{user + item}" for user in range(40) for item in range(9))
    (tmp_path / "clicks.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]))
    code = f"import sys; sys.modules[{absent!r}] = None; from srsplan.planner.cli.app import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 2, done.stderr
    assert f"needs {absent}, which is not installed here" in done.stderr
    assert f"pip install 'srsplan[{extra}]'" in done.stderr


def test_the_version() -> None:
    from importlib.metadata import version

    assert process("--version").out == f"srsplan {version('srsplan')}\n"
