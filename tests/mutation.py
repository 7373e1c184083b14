"""Mutants of the modules that decide most, drawn at random: how many of them do the tests notice?

    pip install cosmic-ray                          in an environment of its own, or in this one
    python tests/mutation.py                        15 mutants of every room below
    python tests/mutation.py metrics splits --count 60 --seed 1 --jobs 2

cosmic-ray makes the mutants (other operators, numbers, comparisons, conditions), each is put into a copy of the tree,
and the tests named below run on it. Survivors are printed as differences: each wants a test, or a reason in
tests/mutants.md. Started by hand.
"""

from __future__ import annotations

import argparse
import random
import sqlite3
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import unified_diff
from pathlib import Path

from changed_tree import ROOT, Case, Ended, baseline_failures, results


@dataclass(frozen=True, kw_only=True)
class Room:
    """Modules that are mutated together, and the tests that guard them."""

    modules: str
    """Paths, separated by blanks."""
    tests: str
    """Paths or node ids, separated by blanks."""


ROOMS = {
    "search": Room(
        modules="planner/search/growth.py planner/search/neighbours.py planner/search/order.py "
        "planner/search/prices.py planner/search/recommending.py planner/search/space.py",
        tests="tests/planner/test_search.py tests/planner/test_recommend.py tests/planner/test_estimate.py "
        "--deselect=tests/planner/test_search.py::test_a_choice_that_does_not_run_is_left_out",
    ),
    "reserved": Room(
        modules="profiler/memory/reserved.py",
        tests="tests/profiler/test_reserved.py "
        "tests/profiler/test_closed_form.py::test_a_cap_may_be_enough_where_only_the_beginning_retries "
        "tests/profiler/test_closed_form.py::test_every_cap_above_the_smallest_is_safe "
        "tests/profiler/test_profile.py::test_measured_probes_replace_the_assumed_ratios",
    ),
    "step": Room(
        modules="models/training/step.py",
        tests="tests/models/test_step.py tests/models/test_sasrec.py tests/planner/test_train_seams.py "
        "tests/planner/test_train_command.py::test_the_defaults_of_the_command_line_are_those_of_settings",
    ),
    "loop": Room(
        modules="models/training/loop.py models/training/retries.py models/training/progress.py",
        tests="tests/models/test_retries.py tests/models/test_training.py tests/planner/test_train_seams.py "
        "tests/models/test_train.py tests/planner/test_runs.py::test_a_trained_run_has_its_times_in_seconds",
    ),
    "splits": Room(modules="models/data/splits.py", tests="tests/models/test_splits.py"),
    "metrics": Room(
        modules="models/training/metrics.py", tests="tests/models/test_metrics.py tests/models/test_cohorts.py"
    ),
    "cohorts": Room(
        modules="models/training/cohorts.py models/training/intervals.py",
        tests="tests/models/test_cohorts.py tests/models/test_intervals.py",
    ),
    "ranking": Room(
        modules="models/training/ranking.py models/training/evaluation.py",
        tests="tests/models/test_ranking.py tests/models/test_evaluation.py",
    ),
    "samplers": Room(
        modules="kernels/samplers/alias_table.py kernels/samplers/draw.py kernels/samplers/in_batch.py "
        "kernels/samplers/log_q.py kernels/samplers/mixed.py kernels/samplers/hardest.py",
        tests="tests/kernels/test_samplers.py tests/kernels/test_triton_sampled.py tests/kernels/test_losses.py",
    ),
}

SESSION = """
[cosmic-ray]
module-path = {modules}
timeout = 600.0
excluded-modules = []
test-command = "true"
[cosmic-ray.distributor]
name = "local"
"""
HARMLESS = ("core/ReplaceBinaryOperator_BitOr_", "core/RemoveDecorator", "core/ExceptionReplacer")
"""Unions of types in annotations, `frozen=True` and the like, and an `except` for an exception that does not exist."""


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One change that cosmic-ray knows."""

    room: str
    module: str
    operator: str
    occurrence: int
    line: int
    cosmic_ray: str
    """The command that makes it."""

    def put_into(self, tree: Path) -> str:
        """Change the module in a copy of the tree; the lines that differ."""
        command = [self.cosmic_ray, "apply", self.module, self.operator, str(self.occurrence)]
        subprocess.run(command, cwd=tree, check=True, capture_output=True)
        before, after = ((root / self.module).read_text().splitlines() for root in (ROOT, tree))
        lines = list(unified_diff(before, after, n=0, lineterm=""))[2:]
        return "\n".join(line for line in lines if not line.startswith("@@"))


def mutants(room: str, cosmic_ray: str) -> list[Mutant]:
    """All mutants of a room, but for harmless ones."""
    with tempfile.TemporaryDirectory() as folder:
        config, session = Path(folder, "config.toml"), Path(folder, "session.sqlite")
        config.write_text(SESSION.format(modules=ROOMS[room].modules.split()))
        subprocess.run([cosmic_ray, "init", config, session], cwd=ROOT, check=True, capture_output=True)
        with sqlite3.connect(session) as database:
            query = "select module_path, operator_name, occurrence, start_pos_row from mutation_specs"
            rows = sorted(database.execute(query).fetchall())
    return [
        Mutant(room=room, module=module, operator=operator, occurrence=occurrence, line=line, cosmic_ray=cosmic_ray)
        for module, operator, occurrence, line in rows
        if not operator.startswith(HARMLESS)
    ]


def drawn(rooms: Sequence[str], count: int, seed: int, cosmic_ray: str) -> list[Mutant]:
    """So many of each room, of lines that are drawn alike; equal seeds draw the same from the same code."""
    return [mutant for room in rooms for mutant in _some(mutants(room, cosmic_ray), count, f"{seed} {room}")]


def _some(every: Sequence[Mutant], count: int, seed: str) -> list[Mutant]:
    """One mutant of each line that is drawn: an expression with many operators would take most places otherwise."""
    random_ = random.Random(seed)
    by_line: dict[tuple[str, int], list[Mutant]] = {}
    for each in every:
        by_line.setdefault((each.module, each.line), []).append(each)
    return [random_.choice(by_line[line]) for line in random_.sample(sorted(by_line), min(count, len(by_line)))]


def tell(mutant: Mutant, ended: Ended, difference: str) -> None:
    """Print what became of a mutant."""
    word = "caught" if ended.caught else "SURVIVED"
    print(f"{word:8}  {ended.seconds:5.1f} s  {mutant.room}: {mutant.module}:{mutant.line}")
    print(difference, flush=True)


def judged(chosen: Sequence[Mutant], jobs: int) -> Counter[str]:
    """Run the tests on every mutant, print what became of it; how many of each room were caught."""
    differences: dict[Mutant, str] = {}

    def case(mutant: Mutant) -> Case[Mutant]:
        def change(tree: Path) -> None:
            differences[mutant] = mutant.put_into(tree)

        return Case(about=mutant, change=change, tests=ROOMS[mutant.room].tests.split())

    caught = Counter[str]()
    for mutant, ended in results(map(case, chosen), jobs):
        tell(mutant, ended, differences[mutant])
        caught[mutant.room] += ended.caught
    return caught


def main() -> int:
    """Print every mutant and the sums."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rooms", nargs="*", default=list(ROOMS), help=", ".join(ROOMS))
    parser.add_argument("--count", type=int, default=15, help="mutants of each room")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--cosmic-ray", default="cosmic-ray", help="the command, where it is not on the path")
    options = parser.parse_args()
    if failing := baseline_failures(test for room in options.rooms for test in ROOMS[room].tests.split()):
        print("these fail without any mutant:", *failing, sep="\n")
        return 1
    chosen = drawn(options.rooms, options.count, options.seed, options.cosmic_ray)
    caught = judged(chosen, options.jobs)
    for room, count in Counter(mutant.room for mutant in chosen).items():
        print(f"{room:10} {caught[room]} of {count} caught")
    print(f"{caught.total()} of {len(chosen)} caught ({caught.total() / max(1, len(chosen)):.0%})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
