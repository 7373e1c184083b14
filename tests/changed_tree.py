"""Runs tests on changed copies of the tree: the tool that seeded_defects.py and mutation.py share.

Every copy is tested in a process of its own that is forked from one which has imported torch and the like already, so
that a test of a second takes about a second. POSIX only, as the suite is.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Generic, NoReturn, TypeVar

T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT_S = 600.0
POLL_S = 0.05
HEAVY = ("torch", "pandas", "scipy.stats", "sklearn.ensemble", "pyarrow.parquet", "pydantic", "rich.table", "typer")
"""Imported once, before any fork; nothing of srsplan's, and nothing that pytest rewrites."""

LEFT_OUT = (".git", ".venv", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis", "build", "dist", "runs")
PYTEST = ("-q", "-n", "0", "--no-header", "-p", "no:cacheprovider")
FAILED, NOT_STARTED = 1, 70
"""Exit codes: pytest's where tests ran and some of them failed; the child's own where pytest never began."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How the tests ended on one tree."""

    code: int
    """pytest's exit code; FAILED also where the tests did not end in time."""
    failures: tuple[str, ...]
    """The tests that failed, as pytest names them; where none did, its last line."""
    seconds: float

    @property
    def caught(self) -> bool:
        """Whether the tests noticed: one failed, or could not even be collected. They all pass without a change."""
        return self.code != 0


@dataclass(frozen=True, kw_only=True)
class Case(Generic[T]):
    """One copy of the tree to test."""

    about: T
    """Handed back beside the result."""
    change: Callable[[Path], object]
    """Changes the copy in the folder that it is given."""
    tests: Sequence[str]
    """Paths or node ids; none stands for the whole suite."""
    stop_at_first: bool = True


@dataclass(kw_only=True)
class _Running(Generic[T]):
    case: Case[T]
    folder: str
    pid: int
    began: float


def results(cases: Iterable[Case[T]], jobs: int) -> Iterator[tuple[T, Ended]]:
    """Test every case, so many at once; results come in the order in which they end."""
    for name in HEAVY:
        import_module(name)
    waiting, running = iter(cases), list[_Running[T]]()
    try:
        while True:
            while len(running) < jobs and (case := next(waiting, None)) is not None:
                running.append(_start(case))
            if not running:
                return
            time.sleep(POLL_S)
            for each in list(running):
                ended = _ended(each)
                if ended is not None:
                    running.remove(each)
                    yield each.case.about, ended
    finally:
        for each in running:
            _stop(each)


def baseline_failures(tests: Iterable[str]) -> tuple[str, ...]:
    """The tests that fail without any change: on them nothing can be caught."""
    whole = Case(about="baseline", change=lambda _: None, tests=sorted(set(tests)), stop_at_first=False)
    ((_, ended),) = results([whole], jobs=1)
    return () if ended.code == 0 else ended.failures


def copy_of_the_tree(folder: Path) -> Path:
    """The working tree in a folder, with the evidence beside it where there is any."""
    tree = folder / "srsplan"
    shutil.copytree(ROOT, tree, symlinks=True, ignore=shutil.ignore_patterns(*LEFT_OUT))
    shared = ROOT.parent / "shared"
    if shared.exists():
        (folder / "shared").symlink_to(shared)
    return tree


def _start(case: Case[T]) -> _Running[T]:
    folder = tempfile.mkdtemp(prefix="changed-tree-")
    tree = copy_of_the_tree(Path(folder))
    case.change(tree)
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        _run_tests(tree, case)
    return _Running(case=case, folder=folder, pid=pid, began=time.perf_counter())


def _is_this_tree(path: Path) -> bool:
    """Whether a path belongs to the tree that is copied; a virtual environment inside it does not."""
    return ROOT in (path, *path.parents) and Path(sys.prefix) not in path.parents


def _run_tests(tree: Path, case: Case[T]) -> NoReturn:
    """In the child: pytest on the tree, and nothing of this one's modules or paths."""
    code = NOT_STARTED
    try:
        os.setsid()
        log = os.open(tree.parent / "log", os.O_WRONLY | os.O_CREAT)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.chdir(tree)
        typing = str(tree / ".typing")
        os.environ |= {"PYTHONPATH": typing, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
        sys.dont_write_bytecode = True
        sys.path[:] = [typing, *(path for path in sys.path if not _is_this_tree(Path(path)))]
        for name in ("seeded_defects", "mutation", "changed_tree"):
            sys.modules.pop(name, None)
        import pytest
        import torch

        torch.set_num_threads(1)  # tests are small: threads would only wait for each other
        code = FAILED  # from here on what ends pytest early has been noticed
        code = int(pytest.main([*PYTEST, *(["-x"] if case.stop_at_first else []), *case.tests]))
        sys.stdout.flush()
    except Exception:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _ended(running: _Running[T]) -> Ended | None:
    """The result of a child that has ended or has had its time; None while it runs."""
    seconds = time.perf_counter() - running.began
    pid, status = os.waitpid(running.pid, os.WNOHANG)
    if not pid and seconds < TIMEOUT_S:
        return None
    log = (Path(running.folder) / "log").read_text(errors="replace")
    _stop(running, reaped=bool(pid))
    if not pid:
        return Ended(code=FAILED, failures=(f"no end within {TIMEOUT_S:g} s",), seconds=seconds)
    lines = log.strip().splitlines()
    failures = [line for line in lines if line.startswith(("FAILED ", "ERROR "))] or lines[-1:]
    code = os.waitstatus_to_exitcode(status)
    if code == NOT_STARTED:
        raise RuntimeError(f"the tests of a copy could not be started: {log}")
    return Ended(code=FAILED if code < 0 else code, failures=tuple(failures), seconds=seconds)


def _stop(running: _Running[T], *, reaped: bool = False) -> None:
    """End a child with everything it started, and remove its tree."""
    with suppress(ProcessLookupError):
        os.killpg(running.pid, signal.SIGKILL)
    with suppress(ChildProcessError):  # reaped before
        if not reaped:
            os.waitpid(running.pid, 0)
    shutil.rmtree(running.folder, ignore_errors=True)
