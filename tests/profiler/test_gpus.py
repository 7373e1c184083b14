"""The GPU catalogue: its figures, how cards are named, and asking the driver through a real process."""

from __future__ import annotations

import json
import re
import stat
import subprocess
import sys
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from srsplan.models.errors import InputError
from srsplan.planner.cli import console
from srsplan.planner.cli.gpus import gpus_command
from srsplan.profiler.probes import detect
from srsplan.profiler.probes.catalogue import Gpu, driver_reserve_bytes, find_gpu, load_gpus
from srsplan.profiler.probes.detect import detect_gpu, resolve_gpu

GPUS = {gpu.name: gpu for gpu in load_gpus()}
MIB = 2**20

# nvidia-smi's total and what CUDA reports on the same card, MiB, both as users published them.
SMI_AND_CUDA_MIB = {
    "rtx-3050-6gb": (6144, 5803),
    "rtx-3070": (8192, 7753),
    "rtx-3070-ti": (8192, 7840),
    "rtx-4060-ti-8gb": (8188, 7806),
    "rtx-2060-12gb": (12288, 11833),
    "rtx-3060-12gb": (12288, 11906),
    "rtx-4070": (12282, 11866),
    "t4": (15360, 14912),
    "rtx-5070-ti": (16303, 15808),
    "rtx-4060-ti-16gb": (16380, 15944),
    "rtx-4080-super": (16376, 15937),
    "a10": (23028, 22731),
    "l4": (23034, 22491),
    "rtx-4090": (24564, 24210),
    "rtx-3090": (24576, 24123),
    "a30": (24576, 24164),
    "rtx-5090": (32607, 32109),
    "a100-40gb": (40960, 40339),
    "l40s": (46068, 45467),
    "a100-80gb": (81920, 81038),
    "h100-sxm": (81559, 81081),
    "rtx-pro-6000": (97887, 97247),
    "h200": (143771, 143156),
}

FakeDriver = Callable[[str], Path]


@pytest.fixture
def fake_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    """Put a shell script of the given body on PATH as the only nvidia-smi; its arguments go to `arguments`."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))

    def install(body: str) -> Path:
        script = tmp_path / "nvidia-smi"
        script.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/arguments\n{body}\n', encoding="utf-8")
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        return tmp_path / "arguments"

    return install


# --- the figures


def test_catalogue_is_large_and_unambiguous() -> None:
    assert len(load_gpus()) >= 36
    assert len(GPUS) == len(load_gpus())
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name) for name in GPUS)
    assert len({gpu.title for gpu in load_gpus()}) == len(GPUS)
    assert all(gpu.source and all(gpu.device_names) for gpu in load_gpus())


@pytest.mark.parametrize("gpu", load_gpus(), ids=lambda gpu: gpu.name)
def test_figures_are_sane(gpu: Gpu) -> None:
    nominal_gb = re.search(r"([0-9]+) GB", gpu.title)
    assert nominal_gb is not None
    assert gpu.capacity_bytes == pytest.approx(int(nominal_gb[1]) * 1e9, rel=0.12)
    sized_name = re.search(r"-([0-9]+)gb", gpu.name)
    assert sized_name is None or sized_name[1] == nominal_gb[1]
    assert gpu.capability[0] in {6, 7, 8, 9, 10, 12}
    assert 100e9 < gpu.bandwidth_bytes_s < 10_000e9
    assert 4 < gpu.fp32_tflops < 130
    assert gpu.throughput_basis == "datasheet"


@pytest.mark.parametrize("gpu", load_gpus(), ids=lambda gpu: gpu.name)
def test_peaks_are_consistent_with_the_architecture(gpu: Gpu) -> None:
    """Sparse figures, or fp16 accumulation, would double one of these ratios."""
    ampere_or_later = gpu.capability >= (8, 0)
    assert (gpu.tf32_tflops is not None) == (gpu.bf16_tflops is not None) == ampere_or_later
    assert (gpu.fp16_tflops is not None) == (gpu.capability >= (7, 0))
    if gpu.tf32_tflops and gpu.fp16_tflops:
        assert gpu.fp16_tflops == pytest.approx(2 * gpu.tf32_tflops, rel=0.05)
        assert gpu.bf16_tflops == gpu.fp16_tflops
    if gpu.title.startswith("GeForce") and gpu.fp16_tflops:
        half_rate = 2 if ampere_or_later else 4
        assert gpu.fp16_tflops == pytest.approx(half_rate * gpu.fp32_tflops, rel=0.02)


def test_successors_are_not_slower() -> None:
    for older, newer in [
        *(("v100-32gb", "a100-40gb"), ("a100-40gb", "a100-80gb"), ("a100-80gb", "h100-sxm"), ("h100-sxm", "h200")),
        *(("h200", "b200"), ("t4", "l4"), ("a10", "l40s"), ("rtx-3090", "rtx-4090"), ("rtx-4090", "rtx-5090")),
    ]:
        assert GPUS[older].tflops("fp16") <= GPUS[newer].tflops("fp16")
        assert older == "t4" or GPUS[older].bandwidth_bytes_s <= GPUS[newer].bandwidth_bytes_s


def test_published_anchors() -> None:
    """Figures of NVIDIA's datasheets that everybody knows, and capacities torch prints."""
    assert GPUS["a100-40gb"].tflops("bf16") == 312
    assert GPUS["rtx-4090"].tflops("fp16") == 165.2
    assert GPUS["t4"].tflops("bf16") == GPUS["t4"].tflops("fp32") == 8.1
    assert GPUS["h200"].capacity_bytes == pytest.approx(150.1e9, rel=1e-3)
    assert GPUS["a100-40gb"].capacity_bytes == 42_298_834_944
    with pytest.raises(InputError, match="'fp8'"):
        GPUS["h200"].tflops("fp8")


@pytest.mark.parametrize("name", SMI_AND_CUDA_MIB)
def test_driver_reserve_bounds_what_was_observed(name: str) -> None:
    total_mib, usable_mib = SMI_AND_CUDA_MIB[name]
    estimated_bytes = total_mib * MIB - driver_reserve_bytes(total_mib * MIB)
    assert estimated_bytes <= usable_mib * MIB <= estimated_bytes + 0.018 * total_mib * MIB
    assert GPUS[name].capacity_basis == "driver"
    assert GPUS[name].capacity_bytes // MIB == usable_mib


def test_nvidia_smi_totals_are_not_passed_off_as_usable() -> None:
    assert GPUS["rtx-2070"].capacity_basis == "nvidia-smi"
    assert GPUS["rtx-2070"].capacity_bytes < 7.75 * 2**30


# --- names


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *(("a100-40gb", "a100-40gb"), ("A100 40GB", "a100-40gb"), ("a100_40gb", "a100-40gb"), ("h200", "h200")),
        *(("NVIDIA A100-SXM4-40GB", "a100-40gb"), ("NVIDIA A100 80GB PCIe", "a100-80gb-pcie"), ("a10", "a10")),
        *(("NVIDIA GeForce RTX 4090", "rtx-4090"), ("rtx4090", "rtx-4090"), ("4090", "rtx-4090"), ("l40", "l40")),
        *(
            ("NVIDIA H100 80GB HBM3", "h100-sxm"),
            ("h100 nvl", "h100-nvl"),
            ("Tesla T4", "t4"),
            ("3060ti", "rtx-3060-ti"),
        ),
        *(("rtx 4070", "rtx-4070"), ("a6000", "rtx-a6000"), ("NVIDIA RTX 6000 Ada Generation", "rtx-6000-ada")),
    ],
)
def test_cards_are_found_as_people_write_them(name: str, expected: str) -> None:
    assert find_gpu(name).name == resolve_gpu(name).name == expected


def meant_by(name: str) -> str:
    """The name of the card found, else the hint of the refusal."""
    try:
        return find_gpu(name).name
    except InputError as error:
        return error.hint


def test_every_label_finds_its_card_or_its_variants() -> None:
    for gpu in load_gpus():
        assert find_gpu(gpu.name) is gpu
        assert find_gpu(gpu.title) is gpu
        for device_name in gpu.device_names:
            assert gpu.name in meant_by(device_name)


@pytest.mark.parametrize(
    ("family", "candidates"),
    [
        ("a100", ["a100-40gb", "a100-80gb", "a100-80gb-pcie"]),
        ("H100", ["h100-pcie", "h100-nvl", "h100-sxm"]),
        ("NVIDIA GeForce RTX 4060 Ti", ["rtx-4060-ti-8gb", "rtx-4060-ti-16gb"]),
        ("rtx3080", ["rtx-3080-10gb", "rtx-3080-12gb"]),
        ("rtx 6000", ["quadro-rtx-6000", "rtx-6000-ada", "rtx-pro-6000"]),
    ],
)
def test_a_family_lists_its_members(family: str, candidates: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        find_gpu(family)
    assert repr(family) in caught.value.message
    assert caught.value.hint == f"name one of {', '.join(candidates)}"


@pytest.mark.parametrize(("typo", "meant"), [("a100-48gb", "a100-40gb"), ("rtx-4900", "rtx-4090"), ("h200s", "h200")])
def test_unknown_cards_are_answered_with_the_nearest(typo: str, meant: str) -> None:
    with pytest.raises(InputError, match=re.escape(repr(typo))) as caught:
        find_gpu(typo)
    assert meant in caught.value.hint
    assert "srsplan gpus" in caught.value.hint


@pytest.mark.parametrize(
    "name", ["'; ls", "ls", "$(reboot)", "-", "", "nvidia", "geforce rtx'", "one of four", "edition", "ti", "a100;",
             "a" * 10_000, "\x1b[31ma100-40gb", "a100-40gb\n", "[bold]a100-40gb", "ａ１００"]
)  # fmt: skip
def test_text_that_is_no_cards_name_selects_none(name: str) -> None:
    for select in (find_gpu, lambda text: run(text)):
        if name not in ("ls", "one of four", "edition", "ti", "nvidia") or select is find_gpu:  # parts for the filter
            with pytest.raises(InputError, match="not in the catalogue") as caught:
                select(name)
            assert len(caught.value.message) < 300


@settings(deadline=None)
@given(st.text(max_size=40))
def test_any_text_is_a_card_or_an_input_error(text: str) -> None:
    assert meant_by(text)


# --- asking the driver


def test_detected_card_is_the_catalogue_entry(fake_driver: FakeDriver) -> None:
    arguments = fake_driver('echo "NVIDIA A100-SXM4-40GB, 40960"; echo "NVIDIA H200, 143771"')
    assert resolve_gpu(" AUTO ") == GPUS["a100-40gb"]
    assert arguments.read_text().split() == ["--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]


@pytest.mark.parametrize(("total_mib", "expected"), [(12288, "rtx-3060-12gb"), (8192, "rtx-3060-8gb")])
def test_memory_tells_variants_apart(fake_driver: FakeDriver, total_mib: int, expected: str) -> None:
    fake_driver(f'echo "NVIDIA GeForce RTX 3060, {total_mib}"')
    assert detect_gpu() == GPUS[expected]


@pytest.mark.parametrize("total_mib", [20000, 49140])
def test_other_memory_than_catalogued_is_believed(fake_driver: FakeDriver, total_mib: int) -> None:
    """A slice of a card has less; a modified RTX 4090 has twice as much."""
    fake_driver(f'echo "NVIDIA GeForce RTX 4090, {total_mib}"')
    gpu = detect_gpu()
    assert gpu.name == "rtx-4090"
    assert gpu.capacity_basis == "nvidia-smi"
    assert 0.95 * total_mib * MIB < gpu.capacity_bytes < total_mib * MIB


@pytest.mark.parametrize("visible", ["1", "1,0", " 1 ", "GPU-9f3a"])
def test_cuda_visible_devices_chooses(fake_driver: FakeDriver, monkeypatch: pytest.MonkeyPatch, visible: str) -> None:
    fake_driver('case "$*" in *--id=1|*--id=GPU-9f3a) echo "NVIDIA H200, 143771";; *) echo "Tesla T4, 15360";; esac')
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert detect_gpu().name == "h200"


@pytest.mark.parametrize("visible", ["", "-1", "MIG-4f1c"])
def test_hidden_gpus_are_not_asked(fake_driver: FakeDriver, monkeypatch: pytest.MonkeyPatch, visible: str) -> None:
    arguments = fake_driver('echo "Tesla T4, 15360"')
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(InputError, match="CUDA_VISIBLE_DEVICES") as caught:
        detect_gpu()
    assert "name a card" in caught.value.hint or "name the card" in caught.value.hint
    assert not arguments.exists()


def test_uncatalogued_card_takes_its_speed_from_a_marked_stand_in(fake_driver: FakeDriver) -> None:
    fake_driver('case "$*" in *compute_cap*) echo 8.9;; *) echo "NVIDIA L20, 49140";; esac')
    gpu = detect_gpu()
    assert (gpu.name, gpu.title, gpu.capability) == ("l20", "NVIDIA L20", (8, 9))
    assert gpu.capacity_bytes == 49140 * MIB - driver_reserve_bytes(49140 * MIB)
    assert gpu.throughput_basis == "stand-in"
    assert "rtx-2000-ada" in gpu.source
    assert gpu.fp32_tflops == min(card.fp32_tflops for card in load_gpus() if card.capability == (8, 9))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('echo "No devices were found"; exit 6', "found no GPU: No devices were found"),
        ('echo "NVIDIA-SMI has failed" >&2; exit 9', "found no GPU: NVIDIA-SMI has failed"),
        ("exit 0", "found no GPU: no answer"),
        ('echo "NVIDIA GB10, [N/A]"', "without a memory size"),
        ('echo "15360"', "without a memory size"),
        ('case "$*" in *compute_cap*) echo 3.5;; *) echo "Tesla K40c, 11441";; esac', "'Tesla K40c' is not in the"),
        ('case "$*" in *compute_cap*) exit 2;; *) echo "Tesla K40c, 11441";; esac', "found no GPU"),
    ],
)
def test_unusable_answers_lead_to_naming_a_card(fake_driver: FakeDriver, body: str, message: str) -> None:
    fake_driver(body)
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        detect_gpu()
    assert "srsplan gpus" in caught.value.hint


def test_no_driver_and_a_hanging_driver(fake_driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="no NVIDIA driver here"):
        detect_gpu()
    fake_driver("exec /bin/sleep 20")
    monkeypatch.setattr(detect, "TIMEOUT_S", 0.2)
    with pytest.raises(InputError, match="did not answer"):
        detect_gpu()


def test_naming_a_card_imports_nothing_heavy() -> None:
    code = (
        "import sys; from srsplan.models import units; import srsplan.planner.cli.gpus;"
        "from srsplan.profiler.probes import catalogue; catalogue.find_gpu('a100-40gb'); units.parse_bytes('40GB');"
        "print({'torch', 'numpy', 'pandas', 'pydantic', 'pyarrow', 'rich.table'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# --- the verb


def run(*arguments: str) -> str:
    app = typer.Typer()
    app.command()(gpus_command)
    done = CliRunner().invoke(app, list(arguments))
    if done.exception:
        raise done.exception
    return done.output


@pytest.mark.parametrize("columns", [80, 100, 120])
def test_table_shows_every_card_whole(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console.out, "_width", columns)
    lines = run().splitlines()
    assert max(map(len, lines)) <= columns
    assert "…" not in "".join(lines)
    assert [line.split()[0] for line in lines if line.strip() and line.split()[0] in GPUS] == list(GPUS)


def test_filter_takes_names_and_architectures() -> None:
    assert {gpu["name"] for gpu in json.loads(run("a100", "--json"))} == {"a100-40gb", "a100-80gb", "a100-80gb-pcie"}
    assert {gpu["architecture"] for gpu in json.loads(run("Hopper", "--json"))} == {"Hopper"}
    assert "39.39 GiB" in run("NVIDIA A100-SXM4-40GB")
    with pytest.raises(InputError, match="'a100-48gb'") as caught:
        run("a100-48gb")
    assert "a100-40gb" in caught.value.hint
    with pytest.raises(InputError):
        run("?")


def test_json_has_every_card_and_every_field() -> None:
    listed = json.loads(run("--json"))
    assert [gpu["name"] for gpu in listed] == list(GPUS)
    assert all(set(gpu) == set(Gpu.__dataclass_fields__) for gpu in listed)
    header = files("srsplan.profiler.probes.data").joinpath("gpus.csv").read_text().splitlines()[0].split(",")
    assert {"bandwidth_gb_s"} == set(header) - set(Gpu.__dataclass_fields__)
