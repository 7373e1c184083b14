"""Puts the defects of seeded_defects.yaml into a copy of the tree, one at a time: which of them do the tests notice?

    python tests/seeded_defects.py                  all of them, each with the tests that it names
    python tests/seeded_defects.py scale popular    those with one of these words in their names
    python tests/seeded_defects.py --suite          the whole suite for each: minutes a defect
    python tests/seeded_defects.py --jobs 2         so many copies at once

First the named tests run on the tree as it is: a test that fails anyway notices nothing. The exit code is 0 only if
every defect is caught. Started by hand: tests/test_seeded_defects.py checks that the list still fits the code.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from changed_tree import ROOT, Case, Ended, baseline_failures, results

LIST = Path(__file__).with_suffix(".yaml")


@dataclass(frozen=True, kw_only=True)
class Defect:
    """A wrong text in the place of a right one, and the tests that have to notice it."""

    name: str
    """What is wrong with the code, in plain English."""
    file: str
    old: str
    """Text that stands in the file exactly once."""
    new: str
    tests: str
    """Paths or node ids, separated by blanks."""

    def fits(self, root: Path = ROOT) -> bool:
        """Whether the file still holds the right text exactly once."""
        path = root / self.file
        return path.exists() and path.read_text().count(self.old) == 1

    def put_into(self, root: Path) -> None:
        """Replace the right text by the wrong one."""
        path = root / self.file
        path.write_text(path.read_text().replace(self.old, self.new))


def load(path: Path = LIST) -> list[Defect]:
    """The kept list: a mapping of headings to defects."""
    return [Defect(**entry) for part in yaml.safe_load(path.read_text()).values() for entry in part]


def chosen(defects: Sequence[Defect], words: Sequence[str]) -> list[Defect]:
    """The defects whose name holds one of the words; all of them where there are no words."""
    return [each for each in defects if not words or any(word.lower() in each.name.lower() for word in words)]


def fitting(defects: Sequence[Defect]) -> list[Defect]:
    """The defects that can still be put in; the others are told."""
    for each in defects:
        if not each.fits():
            print(f"NOT CAUGHT  {each.name}: the list does not fit {each.file} any more")
    return [each for each in defects if each.fits()]


def tell(defect: Defect, ended: Ended) -> bool:
    """Print what became of a defect; whether it was caught."""
    word = "caught" if ended.caught else "NOT CAUGHT"
    print(f"{word:10}  {ended.seconds:5.1f} s  {defect.name}: {', '.join(ended.failures)[:200]}", flush=True)
    return ended.caught


def main() -> int:
    """Print a line a defect and the sum."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="of the names of defects")
    parser.add_argument("--suite", action="store_true", help="run the whole suite for each")
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    defects = chosen(load(), options.words)
    ready = fitting(defects)
    tests = {each.name: [] if options.suite else each.tests.split() for each in ready}
    if failing := baseline_failures(test for each in tests.values() for test in each):
        print("these fail without any defect:", *failing, sep="\n")
        return 1
    cases = [Case(about=each, change=each.put_into, tests=tests[each.name]) for each in ready]
    caught = sum(tell(defect, ended) for defect, ended in results(cases, options.jobs))
    print(f"{caught} of {len(defects)} caught")
    return 0 if caught == len(defects) else 1


if __name__ == "__main__":
    sys.exit(main())
