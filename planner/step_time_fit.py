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
"""The fewest steps that three constants are fitted to: with fewer the held-out error says nothing."""


@dataclass(frozen=True, kw_only=True)
class Timed:
    """A measured step: its counted work, the card, the precision, and how long it took."""

    cost: StepCost
    gpu: Gpu
    precision: str
    step_ms: float


@dataclass(frozen=True, kw_only=True)
class TimeFit:
    """Fitted constants and how well they predict."""

    rates: Rates
    held_out: tuple[float, ...]
    """The relative error of every step where the constants come from the others."""

    def describe(self) -> str:
        """Return the held-out errors as a sentence."""
        sizes = [abs(error) for error in self.held_out]
        return f"each of {len(sizes)} measured steps held out: median error {median(sizes):.0%}, worst {max(sizes):.0%}"


def fit_rates(steps: Sequence[Timed]) -> TimeFit:
    """Return constants fitted to all steps, and held-out errors; ValueError for fewer than `FEWEST` steps."""
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
    """Return milliseconds of products and traffic at the datasheet's rates, and of launches of a microsecond each."""
    products = step.cost.product_flops / (step.gpu.tflops(step.precision) * 1e12)
    return 1e3 * products, 1e3 * step.cost.moved_bytes / step.gpu.bandwidth_bytes_s, 1e-3 * step.cost.launches


def _factors(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.optimize import nnls

    found: NDArray[np.float64] = nnls(shares, np.ones(len(shares)))[0]
    return found


def _inverse(factor: float) -> float:
    """Return the efficiency of a factor; infinite where the term explains nothing and so costs nothing."""
    return float(1 / factor) if factor else float("inf")
