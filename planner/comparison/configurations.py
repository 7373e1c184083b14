"""Configurations of a comparison: the product over all lists of each run, and names that say what differs."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import product
from math import prod

from srsplan.models.errors import InputError
from srsplan.models.schema import shown
from srsplan.planner.analysis.run_files import COMPARISON
from srsplan.planner.comparison.document import Options
from srsplan.planner.comparison.output import TABLES

Value = bool | int | float | str | None
"""A value of an option; None is `srsplan train` without the option."""

MOST_CONFIGURATIONS = 1_000
LONGEST_NAME = 100
BARE = ("model", "loss")
"""Options whose value says enough without the option's name."""
UNSAFE = re.compile(r"[^A-Za-z0-9._=+-]+")
RESERVED = frozenset({COMPARISON, *TABLES})


@dataclass(frozen=True, kw_only=True)
class Configured:
    """One configuration of a comparison."""

    name: str
    options: dict[str, Value]
    """Options of `srsplan train` by their names with underscores, the defaults of the file included."""

    @property
    def folder(self) -> str:
        """The name as a folder may have it."""
        return folder_name(self.name)


def folder_name(name: str) -> str:
    """Return a name with the letters only that every file system allows."""
    return UNSAFE.sub("_", name).strip("._") or "_"


ELSEWHERE = {
    "data": "name the data once, as data of the file: every configuration is trained on all of them",
    "seed": "say it once, as seeds of the file: every configuration is trained with all of them",
    "output": "say it once, as output of the file, or with -o",
    "resume": "leave it out: a comparison goes on by itself",
    "overwrite": "say it on the command line: srsplan compare FILE --overwrite",
    "json": "leave it out: every run leaves metrics.json in its folder",
}
"""Options of `srsplan train` that a run does not have, and where they are said instead."""


def configurations(defaults: Options, runs: Sequence[Options], known: Collection[str]) -> list[Configured]:
    """Return every configuration of a file; `known` are the options of `srsplan train`, with underscores.

    InputError for an unknown option, for what no option can hold, for too many, and for two of one name.
    """
    base = _checked(defaults, known, "defaults")
    expanded: list[tuple[str | None, dict[str, Value], dict[str, Value]]] = []
    for at, run in enumerate(runs):
        name = _given_name(run, at)
        own = _checked({key: value for key, value in run.items() if key != "name"}, known, f"runs.{at}")
        if prod(len(values) for values in {**base, **own}.values()) > MOST_CONFIGURATIONS:
            raise InputError(f"runs.{at} stands for more than {MOST_CONFIGURATIONS:,} configurations", "shorten a list")
        expanded += [(name, said, options) for said, options in _product(base, own)]
    if len(expanded) > MOST_CONFIGURATIONS:
        raise InputError(f"runs stand for {len(expanded):,} configurations", f"at most {MOST_CONFIGURATIONS:,} are run")
    names = _names(expanded)
    _check_names(names)
    return [Configured(name=name, options=options) for name, (_, _, options) in zip(names, expanded, strict=True)]


def _given_name(run: Options, at: int) -> str | None:
    name = run.get("name")
    if name is None:
        return None
    printable = isinstance(name, str) and name.isprintable() and 0 < len(name.strip()) <= LONGEST_NAME
    if not isinstance(name, str) or not printable:
        raise InputError(f"runs.{at}.name = {shown(name)} is no name", f"give 1 to {LONGEST_NAME} printable letters")
    return name.strip()


def _checked(options: Options, known: Collection[str], where: str) -> dict[str, list[Value]]:
    """Return the values of every option as a list; InputError for an unknown option and for no value."""
    found: dict[str, list[Value]] = {}
    for key, value in options.items():
        name = key.lstrip("-").replace("-", "_")
        if name in ELSEWHERE:
            raise InputError(f"{where}: {name} is no option of a single run", ELSEWHERE[name])
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "`srsplan train --help` lists the options of a run"
            raise InputError(f"{where}: unknown key {shown(key)}", hint)
        if name in found:
            raise InputError(f"{where}: {name} is given twice", "give it once, with - or with _")
        found[name] = _values(value, f"{where}.{key}")
    return found


def _values(value: object, where: str) -> list[Value]:
    given = value if isinstance(value, list) else [value]
    found: list[Value] = []
    for each in given:
        if not isinstance(each, bool | int | float | str | None):
            raise InputError(f"{where} = {shown(each)} is no value of an option", "give a value, or a list of values")
        found.append(each)
    if not found:
        raise InputError(f"{where} is an empty list", "give at least one value")
    return found


def _product(
    base: Mapping[str, list[Value]], own: Mapping[str, list[Value]]
) -> Iterator[tuple[dict[str, Value], dict[str, Value]]]:
    """Yield what a configuration says itself (its own options, and which of several defaults), and all its options."""
    merged = {**base, **own}
    for values in product(*merged.values()):
        options = dict(zip(merged, values, strict=True))
        said = {key: value for key, value in options.items() if key in own or len(base[key]) > 1}
        yield said, options


def _names(expanded: Sequence[tuple[str | None, dict[str, Value], dict[str, Value]]]) -> list[str]:
    """Name each configuration: as it is given, with what differs within its run; or by its model, its loss, and what
    it says that not all say."""
    names = []
    for given, said, _ in expanded:
        others = [other for name, other, _ in expanded if given in (None, name)]
        told = {
            key: value
            for key, value in said.items()
            if (given is None and key in BARE) or any(_other(key, value, one) for one in others)
        }
        names.append(" ".join([*([given] if given else []), *_words(told)]) or "train")
    return names


def _other(key: str, value: Value, options: Mapping[str, Value]) -> bool:
    """Tell whether a configuration says something else about an option, or nothing."""
    return key not in options or (type(options[key]), options[key]) != (type(value), value)


def _words(options: Mapping[str, Value]) -> Iterator[str]:
    for key in sorted(options, key=lambda name: BARE.index(name) if name in BARE else len(BARE)):
        value = options[key]
        text = "default" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
        yield text if key in BARE and value is not None else f"{key.replace('_', '-')}={text}"


def _check_names(names: Sequence[str]) -> None:
    """Raise InputError where two configurations would share a folder, or a name is too long for one."""
    seen: dict[str, str] = {}
    for name in names:
        folder = folder_name(name).lower()
        if folder in seen:
            same = (
                f"two configurations are named {shown(name)}"
                if seen[folder] == name
                else (f"the names {shown(seen[folder])} and {shown(name)} stand for the same folder")
            )
            raise InputError(same, "give each run a name of its own, and no configuration twice")
        if folder in RESERVED:
            raise InputError(f"the name {shown(name)} is that of a file in the output", "give the run another name")
        if len(folder) > 2 * LONGEST_NAME:
            raise InputError(f"the name {shown(name)} is too long for a folder", "give the run a name")
        seen[folder] = name
