"""The house: what is packaged, what is public, which way the arrows point."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import typer.main
from paths import ROOT

import srsplan.kernels
from srsplan.planner.cli.app import app

FOLDERS = ("kernels", "models", "profiler", "planner")
"""In the order of the arrows: a folder may import itself and those before it."""

VERBS = {"recommend", "estimate", "gpus", "profile", "train", "analyze", "bench"}
TORCH_FREE = (
    "kernels/__init__.py", "kernels/chunking.py", "kernels/losses.py", "models/__init__.py", "models/config.py",
    "models/errors.py",
    "models/files.py", "models/schema.py",
    "profiler/memory/allocator.py", "profiler/memory/expressions.py", "profiler/memory/model.py",
    "profiler/memory/program.py", "profiler/memory/reserved.py", "profiler/memory/workspaces.py",
    "profiler/probes/catalogue.py", "profiler/probes/cuda_probe.py", "profiler/probes/detect.py",
    "profiler/probes/grid.py", "profiler/probes/probe.py", "profiler/probes/records.py", "profiler/probes/run.py",
    "profiler/probes/store.py",
)  # fmt: skip


def sources() -> Iterator[Path]:
    for folder in FOLDERS:
        yield from sorted((ROOT / folder).rglob("*.py"))


def imported(path: Path) -> Iterator[tuple[str, bool]]:
    """Modules a file imports, and whether at module level."""
    tree = ast.parse(path.read_text())
    top = set(map(id, tree.body))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, id(node) in top
        if isinstance(node, ast.Import):
            for name in node.names:
                yield name.name, id(node) in top


def listed_packages() -> set[str]:
    text = (ROOT / "pyproject.toml").read_text()
    block = re.search(r"^packages = \[(.*?)\]", text, re.DOTALL | re.MULTILINE)
    assert block is not None
    return set(re.findall(r'"([^"]+)"', block[1]))


def test_the_package_list_is_the_folders() -> None:
    folders = {path.parent.relative_to(ROOT) for path in sources()}
    assert listed_packages() == {"srsplan", *("srsplan." + ".".join(folder.parts) for folder in folders)}
    assert all((ROOT / folder / "__init__.py").exists() for folder in folders)


def test_imports_point_one_way() -> None:
    for path in sources():
        rank = FOLDERS.index(path.relative_to(ROOT).parts[0])
        for module, _ in imported(path):
            assert module.split(".")[0] not in FOLDERS, f"{path} imports a bare folder name"
            if module.startswith("srsplan."):
                assert FOLDERS.index(module.split(".")[1]) <= rank, f"{path} imports {module}"


def test_the_planner_imports_torch_only_when_a_verb_needs_it() -> None:
    for path in sources():
        name = path.relative_to(ROOT).as_posix()
        if name.startswith("planner/") or name in TORCH_FREE:
            assert not [module for module, top in imported(path) if top and module.split(".")[0] == "torch"], name


def test_the_public_surface_of_kernels() -> None:
    assert srsplan.kernels.__all__ == ["Sampling", "bce", "cce", "cce_neg", "ce", "ce_neg"]
    for name in srsplan.kernels.__all__:
        assert callable(getattr(srsplan.kernels, name))


def test_the_verbs() -> None:
    command = typer.main.get_command(app)
    assert set(command.commands) == VERBS  # type: ignore[attr-defined]


def test_constraints_pin_what_torch_pins() -> None:
    pins = dict(re.findall(r"^(torch|triton)==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    assert pins == {"torch": "2.13.0", "triton": "3.7.1"}


OPTIONS = {
    "recommend": "blocks budget catalog check data dim gpu gpus heads item-column json loss margin mean-length output "
    "precision profile recompute runs sampler split timestamp-column user-column",
    "estimate": "batch-size blocks budget catalog dim gpu gpus heads json loss mean-length micro-batches negatives "
    "precision recompute sampler seq-len tokens-per-set",
    "gpus": "json",
    "profile": "blocks budget catalog dim fresh gpu heads json losses output precision probes timeout",
    "train": "batch-size blocks data device dim dropout epochs evaluate-every heads item-column json keep-seen "
    "kernel learning-rate loss micro-batches min-item min-user negatives optimizer output overwrite patience plan "
    "popularity-exponent precision rank recompute resume sampler seed seq-len split timestamp-column tokens-per-set "
    "user-column validation-users weight-decay",
    "bench": "device dtype json logits losses output peers repeats scale shapes",
    "analyze": "format json keep-collapsed keep-duplicates keep-full no-plots output seed",
}
"""What users may have written into scripts: a change here is a change for the changelog."""


def test_the_options_of_every_verb() -> None:
    command = typer.main.get_command(app)
    for verb, names in OPTIONS.items():
        parameters = command.commands[verb].params  # type: ignore[attr-defined]
        found = {option[2:] for parameter in parameters for option in parameter.opts if option.startswith("--")}
        assert found == set(names.split()), verb
