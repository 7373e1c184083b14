"""What `srsplan compare` does: check, run what is missing, and write the tables."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import typer

from srsplan.models.errors import InputError
from srsplan.models.files import locked, write_atomically
from srsplan.planner.analysis.run_files import COMPARISON, RUN_FILE
from srsplan.planner.cli.compare_orders import Comparison, comparison_of, matched, ready
from srsplan.planner.cli.compare_progress import Told, introduce
from srsplan.planner.comparison import output as folders
from srsplan.planner.comparison import tables
from srsplan.planner.comparison.diagram import draw
from srsplan.planner.comparison.document import read_compare_file
from srsplan.planner.comparison.findings import Findings, find
from srsplan.planner.comparison.output import PlannedRun
from srsplan.planner.comparison.results import read_results, read_run_rows
from srsplan.planner.comparison.running import Outcome, run_all
from srsplan.planner.comparison.scheduling import MOST_JOBS, Room, jobs_on_cpu, threads_of_a_run
from srsplan.planner.pricing import machine_bytes

INTERRUPTED = 130


@dataclass(frozen=True, kw_only=True)
class Done:
    """A comparison after its report was written."""

    findings: Findings
    document: Mapping[str, object]
    """What `--json` prints."""
    output: Path
    files: tuple[Path, ...]
    asked: int
    """Runs that the file asks for."""
    failed: Mapping[PlannedRun, str] = field(default_factory=dict)


def compare(file: Path, output: Path | None, jobs: int | None, *, overwrite: bool) -> Done:
    """Run what is missing, then write the report; everything that can be known to be wrong is said before."""
    comparison = _opened(file, output)
    _check_data(comparison)
    comparison = matched(comparison, overwrite=overwrite)
    waiting = [run for run in comparison.runs if run.replaces or not run.ended]
    waiting = ready(comparison, waiting)
    room, threads = _room(waiting, len(comparison.runs), jobs)
    introduce(comparison, waiting, room, threads)
    folders.begin(comparison.output, _document(comparison, None, {}))
    with locked(comparison.output / folders.LOCK, f"the output {comparison.output}"):
        outcome = _run(comparison, waiting, room, threads)
    untouched = {run.folder for run in waiting} - {run.folder for run in outcome.finished}
    stale = {run.folder for run in comparison.runs if run.replaces} & untouched
    return _report(comparison, [run for run in comparison.runs if run.folder not in stale], outcome.failed)


def report(file: Path, output: Path | None) -> Done:
    """Write the report on the runs that have ended; InputError where there is none."""
    comparison = matched(_opened(file, output), overwrite=False)
    if not any(run.ended for run in comparison.runs):
        raise InputError(f"no run of {file} has ended in {comparison.output}", "start them without --report-only")
    return _report(comparison, comparison.runs, {})


def _opened(file: Path, output: Path | None) -> Comparison:
    comparison = comparison_of(read_compare_file(file), file, output)
    folders.check_folder(comparison.output)
    return comparison


def _check_data(comparison: Comparison) -> None:
    """Raise InputError where a data file is not there, before any is read."""
    for each in comparison.ordered:
        if not each.order.data.path.exists():
            raise InputError(
                f"no interactions at {each.order.data.path}", "paths in a comparison file start from its own folder"
            )


def _run(comparison: Comparison, waiting: Sequence[PlannedRun], room: Room, threads: int) -> Outcome:
    """Run what is waiting; Ctrl-C ends with a sentence on what is kept and the command that goes on."""
    done = len(comparison.runs) - len(waiting)
    told = Told(len(comparison.runs), done, waiting)
    try:
        with told:
            return run_all(waiting, room, threads, told)
    except KeyboardInterrupt:
        told.say_stopped(comparison.output)
        raise typer.Exit(INTERRUPTED) from None


def _room(waiting: Sequence[PlannedRun], runs: int, jobs: int | None) -> tuple[Room, int]:
    """Return what the runs share, and the threads that each has; `runs` are all of the comparison."""
    cores, largest = _cores(), max((run.need_bytes for run in waiting), default=0)
    if _on_card(waiting):
        at_once = min(jobs or max(1, min(cores, MOST_JOBS)), runs)
        return Room(jobs=at_once, memory_bytes=_card_bytes()), threads_of_a_run(cores, at_once)
    memory = machine_bytes()
    at_once = min(jobs or jobs_on_cpu(cores, runs, largest, memory), runs)
    return Room(jobs=at_once, memory_bytes=memory if jobs is None else None), threads_of_a_run(cores, at_once)


def _on_card(waiting: Sequence[PlannedRun]) -> bool:
    return any(run.on_card for run in waiting)


def _card_bytes() -> int:
    """Return the bytes of the present GPU that runs may share: this process may hold a context as well."""
    from srsplan.planner.budget import CONTEXT_BYTES

    return int(torch.cuda.get_device_properties(0).total_memory) - CONTEXT_BYTES


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _report(comparison: Comparison, runs: Sequence[PlannedRun], failed: Mapping[PlannedRun, str]) -> Done:
    names = [one.name for one in comparison.configurations]
    findings = find(read_results(runs, comparison.metric), names, comparison.blocks, comparison.metric)
    findings = replace(findings, notes=(*comparison.notes, *findings.notes))
    document = _document(comparison, findings, failed)
    return Done(
        findings=findings,
        document=document,
        output=comparison.output,
        files=_write(comparison.output, findings, runs, document),
        asked=len(comparison.runs),
        failed=failed,
    )


def _document(comparison: Comparison, findings: Findings | None, failed: Mapping[PlannedRun, str]) -> dict[str, object]:
    if findings is None:
        return {"comparison": tables.VERSION, "metric": comparison.metric, "configurations": []}
    said = {str(run.folder): failure for run, failure in failed.items()}
    return tables.document(findings, said, {one.name: one.options for one in comparison.configurations})


def _write(
    output: Path, findings: Findings, runs: Sequence[PlannedRun], document: Mapping[str, object]
) -> tuple[Path, ...]:
    """Write every file of the report; one that this comparison does not have is removed, it was of an earlier one."""
    rows = read_run_rows(runs)
    contents = {
        RUN_FILE: None if rows.empty else rows.to_csv(index=False).encode(),
        folders.SUMMARY: tables.summary(findings).to_csv(index=False).encode(),
        folders.SUMMARY_TEXT: tables.summary_text(findings).encode(),
        folders.TESTS: tables.tests(findings).to_csv(index=False).encode(),
        folders.DIAGRAM: draw(findings),
    }
    for name, content in contents.items():
        if content is None:
            (output / name).unlink(missing_ok=True)
        else:
            write_atomically(output / name, content)
    folders.write_document(output, document)
    written = [name for name, content in contents.items() if content is not None]
    return tuple(output / name for name in (*written, COMPARISON))
