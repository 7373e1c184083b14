"""The constants of the step-time model from measured steps: non-negative least squares of relative error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from numpy.typing import NDArray

from srsplan.planner.step_time import Rates, StepCost
from srsplan.profiler.probes.catalogue import Gpu

FEWEST = 8
"""Three constants want this many steps at least, for a held-out error that says something."""


@dataclass(frozen=True, kw_only=True)
class Timed:
    """A measured step: what it does, where, in which precision, how long."""

    cost: StepCost
    gpu: Gpu
    precision: str
    step_ms: float


@dataclass(frozen=True, kw_only=True)
class TimeFit:
    """Constants, and what they are worth."""

    rates: Rates
    held_out: tuple[float, ...]
    """Relative error of every step when the constants come from the others."""

    def describe(self) -> str:
        """For people."""
        sizes = [abs(error) for error in self.held_out]
        return f"each of {len(sizes)} measured steps held out: median error {median(sizes):.0%}, worst {max(sizes):.0%}"


def fit_rates(steps: Sequence[Timed]) -> TimeFit:
    """Fitted to all steps; ValueError for fewer than `FEWEST`."""
    if len(steps) < FEWEST:
        raise ValueError(f"{len(steps)} measured steps are fewer than {FEWEST}")
    shares = np.array([_terms(step) for step in steps]) / np.array([[step.step_ms] for step in steps])
    held_out = [_factors(np.delete(shares, left, 0)) @ shares[left] - 1 for left in range(len(steps))]
    products, traffic, launch = _factors(shares)
    rates = Rates(
        product_efficiency=_inverse(products), bandwidth_efficiency=_inverse(traffic), launch_us=float(launch)
    )
    return TimeFit(rates=rates, held_out=tuple(float(error) for error in held_out))


def _terms(step: Timed) -> tuple[float, float, float]:
    """Milliseconds at the datasheet's rates, and at one microsecond a launch."""
    products = step.cost.product_flops / (step.gpu.tflops(step.precision) * 1e12)
    return 1e3 * products, 1e3 * step.cost.moved_bytes / step.gpu.bandwidth_bytes_s, 1e-3 * step.cost.launches


def _factors(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.optimize import nnls

    found: NDArray[np.float64] = nnls(shares, np.ones(len(shares)))[0]
    return found


def _inverse(factor: float) -> float:
    """A term that explains nothing costs nothing."""
    return float(1 / factor) if factor else float("inf")
