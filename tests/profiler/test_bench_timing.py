"""How calls are timed: on a card in the order that keeps the host out, and the device's limits with every target."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from srsplan.profiler.bench import ceilings, environment, timing
from srsplan.profiler.bench.timing import Pace, card_ms, times

CPU, CARD = torch.device("cpu"), torch.device("cuda")


def a_card(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A card that notes what it is told to do."""
    done: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            done.append("event")

        def elapsed_time(self, end: Event) -> float:
            assert done.count("event") == 2
            assert isinstance(end, Event)
            return 12.5

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: done.append(f"sleep {cycles}"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: done.append("wait"))
    return done


def test_the_card_sleeps_while_the_host_hands_a_call_over(monkeypatch: pytest.MonkeyPatch) -> None:
    done = a_card(monkeypatch)
    flushed = torch.ones(4)
    assert card_ms(lambda: done.append(f"call {float(flushed.sum()):g}"), flushed, 700) == 12.5
    assert done == ["sleep 700", "event", "call 0", "event", "wait"]


def test_it_sleeps_longer_than_the_host_needed_and_not_for_ever() -> None:
    assert Pace(1.0, 0.001).sleep_cycles == 3_000_000
    assert Pace(9.0, 8.0).sleep_cycles == 200_000_000


def on_a_card(monkeypatch: pytest.MonkeyPatch, paces: list[Pace]) -> list[tuple[int, Pace]]:
    """What is asked of a card whose calls have these paces, one after another."""
    asked: list[tuple[int, Pace]] = []

    def card_times(run: Callable[[], object], device: torch.device, repeats: int, seen: Pace) -> list[float]:
        asked.append((repeats, seen))
        return [1.0] * repeats

    monkeypatch.setattr(timing, "_card_times", card_times)
    monkeypatch.setattr(timing, "pace", lambda run, device: paces.pop(0))
    return asked


def test_a_quick_call_is_warmed_up_and_the_last_pace_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    paces = [Pace(0.9, 0.9), Pace(0.5, 0.4), Pace(0.1, 0.01), Pace(9.0, 9.0)]
    asked = on_a_card(monkeypatch, paces)
    assert len(times(lambda: None, CARD)) == 10
    assert asked == [(10, Pace(0.1, 0.01))]
    assert paces == [Pace(9.0, 9.0)]


def test_a_slow_call_that_was_seen_is_not_made_again_before_it_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = on_a_card(monkeypatch, [])
    times(lambda: None, CARD, seen=Pace(2.5, 0.1))
    times(lambda: None, CARD, seen=Pace(6.0, 0.1))
    assert asked == [(3, Pace(2.5, 0.1)), (1, Pace(6.0, 0.1))]


def test_a_cpu_is_timed_as_often_as_asked() -> None:
    calls: list[int] = []
    assert len(times(lambda: calls.append(1), CPU, 4)) == 4
    assert len(calls) == 5
    assert len(times(lambda: calls.append(1), CPU, 4, Pace(0.1, 0.1))) == 4
    assert len(calls) == 9


def test_rows_are_added_all_over_a_small_and_a_large_target(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each target's rate is its own: here a call takes as many seconds as its target has rows."""
    targets: list[tuple[int, int]] = []

    class Added(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten.index_add_.default:
                targets.append((len(args[0]), int(args[2].max()) + 1))
            return func(*args, **(kwargs or {}))

    def timed(run: Callable[[], object], device: torch.device) -> list[float]:
        before = len(targets)
        run()
        return [1e3 * targets[-1][0] if len(targets) > before else 1.0]

    monkeypatch.setattr(ceilings, "times", timed)
    with Added():
        found = ceilings.measure_ceilings(torch.float32, CPU)
    assert [rows for rows, _ in targets] == [15_000, 32_768]
    assert all(reached > 0.99 * rows for rows, reached in targets)
    assert found.add_rows_small_s == pytest.approx(32_768 / 15_000)
    assert found.add_rows_s == pytest.approx(32_768 / 32_768)
    assert [4 * 256 * rows for rows in ceilings.ADDED_TARGETS["cuda"]] == [15_360_000, 1_700_864_000]
    assert found.added_rows_s(100 << 20) == found.add_rows_small_s
    assert found.added_rows_s(180 << 20) == found.add_rows_s


def test_a_source_tree_says_that_it_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "installed", lambda package: "")
    monkeypatch.setattr(environment, "measure_ceilings", lambda *_: SimpleNamespace())
    assert environment.measure_environment(torch.float32, CPU).srsplan == "from its sources"
