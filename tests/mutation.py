"""Mutants of the modules that decide most, drawn at random: how many of them do the tests notice?

    pip install cosmic-ray                          in an environment of its own, or in this one
    python tests/mutation.py                        25 mutants of every module below
    python tests/mutation.py metrics splits --count 60 --seed 1 --jobs 2

cosmic-ray makes the mutants (other operators, numbers, comparisons, conditions, removed decorators), each is put into a
copy of the tree, and the tests named below run on it. Mutants of annotations and of docstrings change nothing and are
left out. Survivors are printed as diffs: each wants a test, or a reason in tests/mutants.md. Started by hand.
"""

from __future__ import annotations

import argparse
import random
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from seeded_defects import ROOT, copy_of_the_tree, tested

MODULES: dict[str, tuple[str, str]] = {}
"""A short name, the module's file, and the tests that guard it."""

SESSION = """
[cosmic-ray]
module-path = "{module}"
timeout = 600.0
excluded-modules = []
test-command = "true"
[cosmic-ray.distributor]
name = "local"
"""
HARMLESS = ("core/ReplaceBinaryOperator_BitOr_", "core/RemoveDecorator", "core/ExceptionReplacer")
"""Unions of types in annotations, `frozen=True` and the like, and other exceptions in `except`."""


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One change that cosmic-ray knows."""

    module: str
    tests: str
    operator: str
    occurrence: int
    line: int


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What became of it."""

    mutant: Mutant
    caught: bool
    diff: str
    by: str


def mutants(name: str, cosmic_ray: str) -> list[Mutant]:
    """All mutants of a module, but for harmless ones."""
    module, tests = MODULES[name]
    with tempfile.TemporaryDirectory() as folder:
        config, session = Path(folder) / "config.toml", Path(folder) / "session.sqlite"
        config.write_text(SESSION.format(module=module))
        subprocess.run([cosmic_ray, "init", config, session], cwd=ROOT, check=True, capture_output=True)
        with sqlite3.connect(session) as database:
            query = "select operator_name, occurrence, start_pos_row from mutation_specs"
            rows = database.execute(query).fetchall()
    return [
        Mutant(module=module, tests=tests, operator=operator, occurrence=occurrence, line=line)
        for operator, occurrence, line in rows
        if not operator.startswith(HARMLESS)
    ]


def judge(mutant: Mutant, cosmic_ray: str) -> Verdict:
    """Apply it to a copy of the tree and run the tests."""
    with tempfile.TemporaryDirectory() as folder:
        tree = copy_of_the_tree(Path(folder))
        command = [cosmic_ray, "apply", mutant.module, mutant.operator, str(mutant.occurrence)]
        subprocess.run(command, cwd=tree, check=True, capture_output=True)
        diff = subprocess.run(
            ["diff", "-U1", str(ROOT / mutant.module), str(tree / mutant.module)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        code, by = tested(tree, mutant.tests.split())
    body = "\n".join(line for line in diff.stdout.splitlines()[2:])
    return Verdict(mutant=mutant, caught=code != 0, diff=body, by=by)


def drawn(names: Sequence[str], count: int, seed: int, cosmic_ray: str) -> list[Mutant]:
    """So many of each module; equal seeds draw the same."""
    found: list[Mutant] = []
    for name in names:
        every = mutants(name, cosmic_ray)
        found += random.Random(f"{seed} {name}").sample(every, min(count, len(every)))
    return found


def main() -> int:
    """Print survivors and the sum."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", default=list(MODULES))
    parser.add_argument("--count", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--cosmic-ray", default="cosmic-ray", help="the command, where it is not on the path")
    options = parser.parse_args()
    chosen = drawn(options.modules, options.count, options.seed, options.cosmic_ray)
    caught = 0
    with ThreadPoolExecutor(options.jobs) as pool:
        for verdict in pool.map(lambda each: judge(each, options.cosmic_ray), chosen):
            caught += verdict.caught
            where = f"{verdict.mutant.module}:{verdict.mutant.line}"
            if verdict.caught:
                print(f"caught    {where} {verdict.mutant.operator}", flush=True)
            else:
                print(f"SURVIVED  {where} {verdict.mutant.operator}\n{verdict.diff}", flush=True)
    print(f"{caught} of {len(chosen)} mutants caught ({caught / max(1, len(chosen)):.0%})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
