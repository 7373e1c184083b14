"""The house: what is packaged, what is public, which way the arrows point, and what a plain install does without."""

from __future__ import annotations

import ast
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import plain_install
import pytest
from packaging.requirements import Requirement
from paths import ROOT

import srsplan
import srsplan.kernels
import srsplan.models
from srsplan.planner.cli.app import VERBS, verb_command

FOLDERS = ("kernels", "models", "profiler", "planner")
"""In the order of the arrows: a folder may import itself and those before it."""

WITH_TORCH = (
    "srsplan.kernels.", "srsplan.models.bert4rec", "srsplan.models.esasrec", "srsplan.models.export.",
    "srsplan.models.loading", "srsplan.models.prediction.predicting", "srsplan.models.prediction.recommending",
    "srsplan.models.registry", "srsplan.models.sasrec", "srsplan.models.self_attention",
    "srsplan.models.sequence_model", "srsplan.models.training.", "srsplan.profiler.bench.",
    "srsplan.profiler.memory.derive", "srsplan.profiler.memory.generic_sizes", "srsplan.profiler.memory.ledger",
    "srsplan.profiler.memory.meta_results",
    "srsplan.profiler.memory.simulate", "srsplan.profiler.memory.symbols", "srsplan.profiler.probes.cuda_child",
    "srsplan.profiler.probes.card_child", "srsplan.profiler.probes.kernel_", "srsplan.planner.automatic_kernel",
    "srsplan.planner.cli.train_", "srsplan.planner.cli.compare_", "srsplan.planner.comparison.matching",
    "srsplan.planner.smaller_run",
)  # fmt: skip
"""Modules that may need torch at once; every other one is imported without."""
WITHOUT_TORCH = ("srsplan.kernels.losses", "srsplan.kernels.chunking", "srsplan.models.training.allocator_settings")
"""Exceptions from these."""

PYTHONS = ("3.10", "3.11", "3.12", "3.13")


PUBLIC = ROOT / "planner" / "public"
"""The package `srsplan` itself. A folder `srsplan` at the top would be found first, without its rooms, from there."""


def sources() -> Iterator[Path]:
    for folder in FOLDERS:
        yield from (path for path in sorted((ROOT / folder).rglob("*.py")) if path.parent != PUBLIC)


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("srsplan", *(parts[:-1] if parts[-1] == "__init__" else parts)))


@cache
def modules() -> dict[str, Path]:
    return {module_of(path): path for path in sources()}


def statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """What runs when a file is imported: not functions, not what only a type checker reads."""
    for node in body:
        yield node
        if isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.unparse(node.test):
            yield from statements(node.body + node.orelse)
        if isinstance(node, ast.Try):
            yield from statements([*node.body, *node.orelse, *(each for part in node.handlers for each in part.body)])


def imported(nodes: Iterator[ast.AST]) -> Iterator[str]:
    """Names of modules; `from a import b` is `a`, and `a.b` where that is a module of ours."""
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (name for part in node.names if (name := f"{node.module}.{part.name}") in modules())
        if isinstance(node, ast.Import):
            yield from (part.name for part in node.names)


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
    for name, path in modules().items():
        rank = FOLDERS.index(name.split(".")[1])
        for other in imported(ast.walk(ast.parse(path.read_text()))):
            assert other.split(".")[0] not in FOLDERS, f"{name} imports a bare folder name"
            if other.startswith("srsplan."):
                assert FOLDERS.index(other.split(".")[1]) <= rank, f"{name} imports {other}"


def test_no_module_needs_itself_to_be_imported() -> None:
    graph = {
        name: {other for other in imported(statements(ast.parse(path.read_text()).body)) if other in modules()}
        for name, path in modules().items()
    }
    order = list(TopologicalSorter(graph).static_order())  # a cycle raises
    assert len(order) == len(modules()) > 50


def test_what_may_not_need_torch_does_not() -> None:
    """Imports every such module in one process in which importing a package of an extra fails."""
    names = [name for name in modules() if not name.startswith(WITH_TORCH) or name in WITHOUT_TORCH]
    assert {"srsplan.planner.cli.train", "srsplan.profiler.memory.reserved", "srsplan.models.config"} <= set(names)
    code = plain_install.HIDDEN.format(names=plain_install.HEAVY) + "; ".join(f"import {name}" for name in names)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("case", plain_install.CASES, ids=lambda case: case[0][:30])
def test_a_plain_install(case: tuple[str, int, str], tmp_path: Path) -> None:
    plain_install.clicks(tmp_path)
    assert plain_install.check(*case, hide=True, folder=tmp_path) == ""


def required(first: str, last: str) -> list[str]:
    """Names of the packages between two lines of pyproject.toml. (tomllib is younger than Python 3.10.)"""
    text = (ROOT / "pyproject.toml").read_text()
    block = text[text.index(f"\n{first}") : text.index(f"\n{last}")]
    return [Requirement(name).name for name in re.findall(r'^    "(.*)",$', block, re.MULTILINE)]


def test_a_plain_install_asks_for_little() -> None:
    found = required("dependencies = [", "[project.optional-dependencies]")
    assert found == ["filelock", "numpy", "pydantic", "pyyaml", "rich", "typer"]


def test_constraints_pin_every_requirement_for_every_python() -> None:
    pins = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if line[:1] != "#"]
    wanted = {name.lower() for name in required("dependencies = [", "[project.scripts]")}
    assert {"numpy", "torch", "scikit-learn", "pytest", "types-pyyaml"} <= wanted
    wanted -= {"srsplan", "cut-cross-entropy", "liger-kernel"}  # CI does not install the peers of bench
    for version in PYTHONS:
        place = {"python_version": version, "python_full_version": f"{version}.9", "sys_platform": "linux"}
        pinned = [pin.name.lower() for pin in pins if pin.marker is None or pin.marker.evaluate(place)]
        assert len(pinned) == len(set(pinned)), version
        assert wanted <= set(pinned), version
    assert {str(pin.specifier) for pin in pins if pin.name in ("torch", "triton")} == {"==2.13.0", "==3.7.1"}


def lengths(path: Path) -> list[int]:
    """Lines of every function of a file, its decorators left out."""
    nodes = ast.walk(ast.parse(path.read_text()))
    functions = (node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return [(node.end_lineno or node.lineno) - node.lineno + 1 for node in functions]


@pytest.mark.parametrize("folder", [*FOLDERS, ""], ids=lambda folder: folder or "all")
def test_functions_and_files_stay_short(folder: str) -> None:
    """Kernels are long: the 25 lines hold for the whole, 30 for each folder."""
    paths = [path for path in sources() if path.relative_to(ROOT).parts[0] == folder or not folder]
    found = sorted(line for path in paths for line in lengths(path))
    assert statistics.median(found) <= 10
    assert found[int(0.9 * len(found))] <= (30 if folder else 25)
    long = {str(path): count for path in paths if (count := len(path.read_text().splitlines())) >= 400}
    assert not long


def test_the_public_surface() -> None:
    assert srsplan.__all__ == ["__version__", "estimate", "plan"]
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", srsplan.__version__)
    assert srsplan.plan(catalog="30K", budget="2GB").choices
    estimated = srsplan.estimate(loss="cce", catalog="30K", batch_size=64, seq_len=50, gpu="a100-40gb")
    assert estimated.fits
    with pytest.raises(AttributeError, match="zebra"):
        _ = srsplan.zebra


def test_importing_the_package_imports_nothing_else() -> None:
    code = "import srsplan, sys; print(*(name for name in sys.modules if name.startswith(('srsplan.', 'numpy'))))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


def test_the_public_surface_of_models() -> None:
    assert srsplan.models.__all__ == ["TrainedRun", "load_run"]
    for name in srsplan.models.__all__:
        assert callable(getattr(srsplan.models, name))


def test_the_public_surface_of_kernels() -> None:
    assert srsplan.kernels.__all__ == ["Sampling", "bce", "cce", "cce_neg", "ce", "ce_neg", "gbce", "sce"]
    for name in srsplan.kernels.__all__:
        assert callable(getattr(srsplan.kernels, name))


def test_the_verbs() -> None:
    assert list(VERBS) == [
        "recommend", "estimate", "profile", "train", "predict", "export", "compare", "gpus", "analyze", "doctor",
        "bench",
    ]  # fmt: skip


OPTIONS = {
    "recommend": (
        "all blocks budget catalog check data dim ema epoch-time epochs gpu gpus heads item-column json kernel loss "
        "margin mask-share max-batch-size mean-length model no-plan output overwrite precision profile recompute "
        "runs sampler split timestamp-column total-time user-column users"
    ),
    "estimate": (
        "batch-size blocks budget catalog dim ema gpu gpus heads json kernel loss mask-share mean-length model "
        "negatives pass-tokens precision recompute sampler seq-len tokens-per-set"
    ),
    "gpus": "json",
    "doctor": "dim json losses precision timeout",
    "profile": "blocks budget catalog dim fresh gpu heads json losses model output precision probes timeout",
    "train": (
        "batch-size blocks calibration candidates clip-norm data device dim dropout ema epochs evaluate-every "
        "final-learning-rate heads in-batch-share item-column json keep-seen kernel learning-rate log loss mask-share "
        " min-item min-user model negatives optimizer osf output overwrite pass-sequences pass-tokens patience "
        "plan popularity-exponent precision rank recompute resume sampler schedule seed seq-len split timestamp-column "
        " tokens-per-set user-column validation-users warmup-percent warmup-steps weight-decay"
    ),
    "bench": "deviation device dtype json kernels logits losses minutes only output peers repeats scale shapes sweep",
    "predict": "data device item-column json keep-seen output overwrite timestamp-column top user user-column users",
    "export": "json keep-seen onnx overwrite to top",
    "compare": "jobs json output overwrite report-only",
    "analyze": "format json keep-collapsed keep-duplicates keep-full no-plots output seed",
}
"""What users may have written into scripts: a change here is a change for the changelog."""


def test_the_options_of_every_verb() -> None:
    for verb, names in OPTIONS.items():
        options = (option for parameter in verb_command(verb).params for option in parameter.opts)
        assert {option[2:] for option in options if option.startswith("--")} == set(names.split()), verb
