"""Thousands of hostile command lines, each in a process of its own, none of which may break anything.

    python tests/fuzz.py --cases 2000 --seed 0 --jobs 2 [--verb train] [--only CASE]

Every case starts from a command that works and spoils some of it: options, files, the run that is resumed, the names
and kinds of outputs. It fails where a traceback or an escape sequence reaches the terminal, where the exit code is 1
or none of the documented ones, where it takes longer than 20 seconds or more than 2 GB, or where a file that was there
before is gone or changed. Failures are printed and written to fuzz_failures.jsonl; `--only` repeats one and keeps its
folder. Heavy packages are imported once, then each case is a fork: about five a second on two cores.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shlex
import shutil
import signal
import stat
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from random import Random
from select import select

import fuzz_inputs as hostile

SECONDS, WAITING = 20.0, 60.0
"""CPU seconds that a case may take, and seconds altogether (others may use this machine)."""
MOST_BYTES = 2 << 30
HARD_BYTES = 6 << 30
CODES = (0, 2, 3, 4)
PRELOADED = (
    "pandas", "pyarrow.csv", "pyarrow.parquet", "pyarrow.compute", "sklearn.ensemble", "sklearn.model_selection",
    "scipy.stats", "scipy.optimize", "matplotlib.figure", "torch", "safetensors.torch", "rich.progress",
)  # fmt: skip
WEIGHTS = {
    "recommend": 25,
    "estimate": 15,
    "train": 25,
    "predict": 8,
    "export": 4,
    "profile": 12,
    "analyze": 10,
    "gpus": 5,
    "bench": 4,
    "doctor": 3,
    "": 4,
}

TRAIN = "--data clicks.csv --dim 8 --heads 1 --seq-len 8 --batch-size 16 --epochs 2 --device cpu"
COMMANDS = {
    "recommend": (
        "--catalog 30K --budget 2GB", "--data clicks.csv --budget 1GB", "--catalog 30K --gpu rtx-4090",
        "--catalog 30K --gpu a100-40gb --profile profile.jsonl", "--catalog 30K --budget 2GB --runs runs.csv",
        "--catalog 3K --budget 2GB --mean-length 20 -o srsplan.plan.yaml", "--catalog 1K --budget 2GB --check",
    ),
    "estimate": (
        "--loss ce- --catalog 300K --batch-size 32 --seq-len 512 --negatives 512 --gpu a100-40gb",
        "--loss cce --catalog 1.6M --batch-size 64 --seq-len 50 --budget 4GB",
        "--loss bce --catalog 10K --batch-size 64 --seq-len 50 --json",
    ),
    "train": (
        f"{TRAIN} --loss cce -o new", f"{TRAIN} --loss ce- --negatives 8 -o new",
        f"{TRAIN} --loss cce -o run --resume", f"{TRAIN} --loss cce -o run --overwrite",
        "--data clicks.csv --plan plan.yaml --epochs 1 --dim 8 -o new", "--data clicks.csv -o run --resume --epochs 3",
    ),
    "predict": ("run --data clicks.csv -o new.csv", "run --data clicks.csv -o new.parquet -k 3 --keep-seen",
                "run --data clicks.csv --user 3 --user 7 --json"),
    "export": ("run --to rectools new.ckpt", "run new.ckpt --to rectools --overwrite --json"),
    "profile": ("--gpu a100-40gb --losses cce --catalog 3K --probes 1 -o new.jsonl",
                "--gpu a100-40gb --losses cce --catalog 3K --probes 1 -o profile.jsonl",
                "--gpu a100-40gb --losses cce --catalog 3K --probes 1 -o profile.jsonl --fresh"),
    "analyze": ("runs.csv -o analysis --no-plots", "runs.csv -o analysis --format svg", "runs.csv --no-plots --json"),
    "gpus": ("", "a100", "--json"),
    "doctor": ("--losses cce --dim 16", "--losses cce- --precision bf16 --timeout 20 --json"),
    "bench": ("--shapes 64x100x16x8 --repeats 1 --logits random -o new.csv",),
    "": ("--help", "--version", "nothing"),
}  # fmt: skip
"""Commands that work, in a folder of specimens."""
LONG = ("--epochs", "--patience")
"""Options that may ask for hours of honest work."""
MINE = {"thesis.txt": b"mine", "package.json": b"{}", "notes.jsonl": b'{"a": 1}\n', "llama.safetensors": b"\0" * 99,
        "mine/state.json": b"{}", "mine/best.safetensors": b"mine", "mine/config.json": b"{}"}  # fmt: skip
"""Files of the user's that no command may touch, though many are asked to."""


@dataclass(frozen=True)
class Outcome:
    """How a case ended."""

    case: int
    line: str
    failure: str
    code: int
    cpu_s: float
    peak_bytes: int
    said: str


def specimens(folder: Path) -> None:
    """Good files of every kind, written by the commands themselves."""
    rng = Random(0)
    rows = [f"{user},{rng.randrange(30)},{1000 * turn + user}" for user in range(80) for turn in range(12)]
    (folder / "clicks.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]) + "\n")
    names = "dataset,batch_size,max_seq_len,loss_sample_count,max_allocated_memory,run_training_batch,NDCG_10_test"
    knobs = [(bs, sl, ns) for bs in (32, 64, 128) for sl in (32, 64) for ns in (64, 128, 256)]
    lines = [f"{name},{bs},{sl},{ns},{bs * sl / 9e3},{bs / 99},{(bs * ns) ** 0.1 / 99 + rng.random() / 99}"
             for name in ("one", "two") for bs, sl, ns in knobs]  # fmt: skip
    (folder / "runs.csv").write_text("\n".join([names, *lines]) + "\n")
    for line in (
        "recommend --data clicks.csv --budget 1GB -o plan.yaml",
        "recommend --data clicks.csv --budget 1GB",
        "profile --gpu a100-40gb --losses cce --catalog 3K --probes 1 -o profile.jsonl",
        f"train {TRAIN} --epochs 1 --loss cce -o run",
    ):
        ended = run(shlex.split(line), folder)
        if ended.code:
            raise SystemExit(f"srsplan {line} should work and ends with {ended.code}:\n{ended.said}")
    for name, content in MINE.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)


def drawn(rng: Random, verb: str | None, folder: Path) -> list[str]:
    """A command line, and the files that it needs spoiled to its taste."""
    names = [verb] if verb is not None else list(WEIGHTS)
    name = rng.choices(names, [WEIGHTS[each] for each in names])[0]
    words = shlex.split(rng.choice(COMMANDS[name]))
    for _ in range(rng.choice((1, 1, 2, 3))):
        words = rng.choice(SPOILERS)(rng, name, words, folder)
    return [*([name] if name else []), *words]


def _option(rng: Random, verb: str, words: list[str], folder: Path) -> list[str]:
    """An option of the verb, with a hostile value or a file that is there."""
    from srsplan.planner.cli.app import verb_command

    if not verb:
        return [*words, hostile.value(rng)]
    parameter = rng.choice(verb_command(verb).params)
    option = rng.choice([*parameter.opts, *parameter.secondary_opts])
    if option in LONG:
        return words
    if getattr(parameter, "is_flag", False) or not option.startswith("-"):
        return [*words, option if option.startswith("-") else hostile.value(rng)]
    found = rng.choice(sorted(path.name for path in folder.iterdir()))
    given = found if rng.random() < 0.2 else hostile.value(rng)
    if option in words and rng.random() < 0.7:
        at = words.index(option)
        return [*words[: at + 1], given, *words[at + 2 :]]
    return [*words, option, given]


def _file(rng: Random, _: str, words: list[str], folder: Path) -> list[str]:
    """One of the files of the command, spoiled in place or under another name."""
    named = [at for at, word in enumerate(words) if word in os.listdir(folder)]  # never a path that leads out of it
    if not named:
        return words
    at = rng.choice(named)
    path = folder / words[at]
    if path.is_dir():
        path = rng.choice([each for each in path.rglob("*") if each.is_file()] or [path / "state.json"])
        hostile.spoil(path, rng)
    elif rng.random() < 0.25:
        return [*words[:at], hostile.renamed(path, rng), *words[at + 1 :]]
    else:
        hostile.spoil(path, rng)
    return words


def _output(rng: Random, verb: str, words: list[str], folder: Path) -> list[str]:
    """Another place for the output: something of the user's, something special, an impossible name."""
    if verb in ("", "gpus", "estimate", "doctor"):
        return words
    place = rng.choice(
        (*MINE, *hostile.NAMES, "mine", ".", "", "special", "special", "run", "plan.yaml", "srsplan.plan.yaml")
    )
    if place == "special":
        special = folder / "special"
        if not os.path.lexists(special):
            rng.choice(hostile.SPECIALS)(special, rng)
    return [*words, "-o", place]


Spoiler = Callable[[Random, str, list[str], Path], list[str]]
SPOILERS: tuple[Spoiler, ...] = (_option, _option, _option, _file, _file, _output)


def run(words: list[str], folder: Path, case: int = -1) -> Outcome:
    """`srsplan WORDS` in a fork, within limits."""
    output = folder.parent / f"{folder.name}.said"
    started = time.monotonic()
    child = os.fork()
    if not child:
        _become(words, folder, output)
    status, usage = _waited(child, started + WAITING)
    code = os.waitstatus_to_exitcode(status)
    said = output.read_text(errors="replace") if output.exists() else ""
    output.unlink(missing_ok=True)
    cpu, peak = usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024
    failure = judged(code, said, cpu, peak, time.monotonic() - started >= WAITING)
    return Outcome(case, shlex.join(["srsplan", *words]), failure, code, round(cpu, 2), peak, said[-2000:])


def _become(words: list[str], folder: Path, output: Path) -> None:
    """Turn this fork into the command line, as a shell starts it."""
    code = 1
    try:
        os.setsid()
        said = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream, source in ((0, os.open(os.devnull, os.O_RDONLY)), (1, said), (2, said)):
            os.dup2(source, stream)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        os.chdir(folder)
        os.environ.update(COLUMNS="80", TMPDIR=str(folder), XDG_CACHE_HOME=str(folder / ".cache"))
        tempfile.tempdir = None
        resource.setrlimit(resource.RLIMIT_DATA, (HARD_BYTES, HARD_BYTES))
        resource.setrlimit(resource.RLIMIT_CPU, (int(SECONDS) + 5, int(SECONDS) + 5))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        from srsplan.planner.cli.app import main

        sys.argv = ["srsplan", *words]
        main()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _waited(child: int, deadline: float) -> tuple[int, resource.struct_rusage]:
    """The end of a process, by force after its time."""
    while time.monotonic() < deadline:
        found, status, usage = os.wait4(child, os.WNOHANG)
        if found:
            return status, usage
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    _, status, usage = os.wait4(child, 0)
    return status, usage


def judged(code: int, said: str, cpu_s: float, peak_bytes: int, late: bool) -> str:
    """What is wrong with the end of a command; empty where nothing is."""
    if late or cpu_s > SECONDS:
        return "timeout"
    if peak_bytes > MOST_BYTES:
        return "memory"
    if "Traceback (most recent call last)" in said:
        return "traceback"
    if "\x1b" in said:
        return "escape sequence"
    if code not in CODES:
        return f"exit {code}"
    if code and "error: " not in said:
        return "no message"
    return ""


def contents(folder: Path) -> dict[str, str]:
    """What the user's files hold, or are."""
    found = {}
    for name in MINE:
        path = folder / name
        found[name] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "gone"
    for path in folder.iterdir():
        mode = path.lstat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            found[path.name] = str(stat.S_IFMT(mode))
    return found


def attempt(case: int, seed: int, verb: str | None, good: Path, place: Path) -> Outcome:
    """One case in a folder of its own."""
    folder = place / f"case-{case}"
    shutil.copytree(good, folder)
    words = drawn(Random(f"{seed}/{case}"), verb, folder)
    before = contents(folder)
    ended = run(words, folder, case)
    after = contents(folder)
    lost = [name for name, content in before.items() if after.get(name) != content]
    if lost and not ended.failure:
        ended = Outcome(**{**asdict(ended), "failure": f"destroyed {', '.join(lost)}"})
    return ended


def preload() -> None:
    """Import what commands import later, once. Nothing may compute here: threads do not survive a fork."""
    os.environ["OMP_NUM_THREADS"] = "1"
    from srsplan.planner.cli.app import VERBS

    for name in (*PRELOADED, *(f"srsplan.planner.cli.{verb.module}" for verb in VERBS.values())):
        with suppress(ImportError):
            import_module(name)


def shares(options: argparse.Namespace, good: Path, place: Path) -> Iterator[Outcome]:
    """The cases of every job, as they end. A job is a fork of this process; its lines come through a pipe."""
    readers = []
    for job in range(options.jobs):
        reading, writing = os.pipe()
        if not os.fork():
            os.close(reading)
            with os.fdopen(writing, "w") as lines:
                for case in range(job, options.cases, options.jobs):
                    ended = attempt(case, options.seed, options.verb, good, place)
                    lines.write(json.dumps(asdict(ended)) + "\n")
                    lines.flush()
                    shutil.rmtree(place / f"case-{case}", ignore_errors=True)
            os._exit(0)
        os.close(writing)
        readers.append(os.fdopen(reading, "rb", buffering=0))
    while readers:
        for reader in select(readers, [], [])[0]:
            if line := reader.readline():
                yield Outcome(**json.loads(line))
            else:
                readers.remove(reader)


def show(failed: Outcome) -> None:
    """A failed command and what it said, in two lines."""
    lines = failed.said.strip().splitlines() or [""]
    message = next((line for line in lines if line.startswith("error: ")), lines[-1])
    print(f"{failed.case}: {failed.failure}: {failed.line[:300]!r}\n    {message[:200]!r}", flush=True)


def main() -> None:
    """Run the cases; exit code 1 where one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--verb", choices=list(WEIGHTS))
    parser.add_argument("--only", type=int)
    parser.add_argument("--specimens", type=Path, help="folder of good files, made where it is not there")
    parser.add_argument("--failures", type=Path, default=Path("fuzz_failures.jsonl"))
    options = parser.parse_args()
    preload()
    place = Path(tempfile.mkdtemp(prefix="srsplan-fuzz-"))
    good = options.specimens or place / "good"
    if not good.exists():
        good.mkdir()
        specimens(good)
    if options.only is not None:
        print(json.dumps(asdict(attempt(options.only, options.seed, options.verb, good, place)), indent=2), "\n", place)
        return
    started = time.monotonic()
    found = []
    with options.failures.open("w") as lines:
        for ended in shares(options, good.resolve(), place):
            found.append(ended)
            if ended.failure:
                lines.write(json.dumps(asdict(ended)) + "\n")
                lines.flush()
                show(ended)
    shutil.rmtree(place)
    failed = [each for each in found if each.failure]
    slowest = max(found, key=lambda each: each.cpu_s)
    codes = ", ".join(f"{count} x {code}" for code, count in sorted(Counter(each.code for each in found).items()))
    kinds = ", ".join(f"{count} x {kind}" for kind, count in Counter(each.failure for each in failed).most_common())
    print(f"{len(found)} of {options.cases} cases ran in {time.monotonic() - started:.0f} s; exit codes: {codes}")
    print(f"CPU seconds: {sum(each.cpu_s for each in found):.0f}, at most {slowest.cpu_s:.1f} (case {slowest.case})")
    print(f"memory: at most {max(each.peak_bytes for each in found) / 2**30:.2f} GiB")
    print(f"{len(failed)} failed{': ' if failed else ''}{kinds}")
    sys.exit(bool(failed) or len(found) != options.cases)


if __name__ == "__main__":
    main()
