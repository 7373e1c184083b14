"""How long a comparison still takes, from the runs that have ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def remaining_seconds(
    ended: Mapping[str, Sequence[float]], waiting: Sequence[str], running: Sequence[tuple[str, float]], jobs: int
) -> float | None:
    """Return the seconds that are left; None before the first run has ended.

    `ended` are seconds of runs by configuration, `waiting` the configurations of runs to come, `running` those of
    present runs with their seconds so far. A configuration of which no run has ended yet takes the mean of all.
    """
    known = [seconds for each in ended.values() for seconds in each]
    if not known:
        return None
    mean = sum(known) / len(known)
    usual = {name: sum(each) / len(each) for name, each in ended.items() if each}
    left = sum(usual.get(name, mean) for name in waiting)
    last = [max(0.0, usual.get(name, mean) - seconds) for name, seconds in running]
    return max([(left + sum(last)) / max(1, jobs), *last])
