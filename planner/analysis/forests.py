"""Random forests from the knobs to a metric: how well they predict runs they have not seen, and what they need for it.

Forests see every run, the full softmax as twice the largest ns, which a tree can split off. A forest's fit to its
own training rows says nothing about the next run, so it stands next to two figures that do: out of bag, and 5-fold
cross-validation. Permutation importance is the R2 lost on held-out folds when one column is shuffled; impurity
importance is a by-product of training.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from srsplan.planner.analysis.features import FEATURES

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

MIN_ROWS = 20
MOST_ROWS = 1_000
"""Runs of one dataset that a forest is fitted to; of more, so many are drawn at random."""

FEW_FORESTS = 6
"""Fewest forests that worker processes are started for: fewer are fitted sooner than those start."""


@dataclass(frozen=True, kw_only=True)
class ForestOptions:
    """Options for fitting and judging forests."""

    seed: int = 0
    """Seeds the trees, the folds and the shuffles; equal seeds give equal figures."""
    trees: int = 200
    """Trees of the forest that is scored in-sample and out of bag."""
    fold_trees: int = 60
    """Trees of each fold's forest: R2 with 60 differs from 200 by less than another seed of the folds does."""
    folds: int = 5
    """Folds of the cross-validation."""
    shuffles: int = 10
    """Shuffles of each column and fold for the permutation importance."""
    jobs: int = 1
    """Processes that fit forests side by side; figures do not depend on it."""


@dataclass(frozen=True, kw_only=True)
class ForestFit:
    """One forest: R2 of three kinds, and what each feature is worth."""

    runs: int
    """Rows it was fitted to."""
    r2_in_sample: float
    r2_out_of_bag: float
    r2_cv: float
    impurity: dict[str, float]
    """Share of the variance split off in training, by feature."""
    permutation: dict[str, float]
    """R2 lost on held-out runs when the feature is shuffled."""
    permutation_spread: dict[str, float]
    """Standard deviation of that loss: over folds and shuffles, or over datasets for an average."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    """Rows [runs, features] and the metric of each, [runs]."""

    rows: NDArray[np.float64]
    target: NDArray[np.float64]


def samples_of(features: pd.DataFrame, metric: pd.Series[float] | None, seed: int) -> Samples | None:
    """Return the runs that have the metric, at most MOST_ROWS; None where they are too few or all equal."""
    import numpy as np

    if metric is None:
        return None
    places = np.flatnonzero(metric.notna())
    if len(places) > MOST_ROWS:
        places = np.sort(np.random.default_rng(seed).choice(places, MOST_ROWS, replace=False))
    target = metric.to_numpy(dtype=float)[places]
    if len(target) < MIN_ROWS or target.min() == target.max():
        return None
    return Samples(rows=features[list(FEATURES)].to_numpy(dtype=float)[places], target=target)


def fit_all(samples: Sequence[Samples], options: ForestOptions) -> Iterator[ForestFit]:
    """Fit one forest to each, in order, in several processes where that is worth their start."""
    if options.jobs < 2 or len(samples) < FEW_FORESTS:
        return (fit(each, options) for each in samples)
    from joblib import Parallel, delayed

    tasks = (delayed(fit)(each, options) for each in samples)
    results: Iterator[ForestFit] = Parallel(options.jobs, return_as="generator")(tasks)
    return results


def fit(samples: Samples, options: ForestOptions) -> ForestFit:
    """Fit and judge one forest."""
    forest = _new_forest(options, options.trees, oob_score=True).fit(samples.rows, samples.target)
    r2_cv, mean, spread = _held_out(samples, options)
    return ForestFit(
        runs=len(samples.target),
        r2_in_sample=float(forest.score(samples.rows, samples.target)),
        r2_out_of_bag=float(forest.oob_score_),
        r2_cv=r2_cv,
        impurity=_by_feature(forest.feature_importances_),
        permutation=_by_feature(mean),
        permutation_spread=_by_feature(spread),
    )


def _new_forest(options: ForestOptions, trees: int, **more: Any) -> Any:
    from sklearn.ensemble import RandomForestRegressor

    # one thread: at hundreds of rows threads cost more than they bring, and sums keep their order
    return RandomForestRegressor(trees, random_state=options.seed, n_jobs=1, **more)


def _by_feature(values: NDArray[np.float64]) -> dict[str, float]:
    return dict(zip(FEATURES, map(float, values), strict=True))


def _held_out(samples: Samples, options: ForestOptions) -> tuple[float, NDArray[np.float64], NDArray[np.float64]]:
    """Return R2 over all held-out predictions, and what each shuffled column costs of it: mean [features] and spread.

    A fold's loss counts as if all runs were like those of the fold, so that the mean over folds is the loss of all.
    """
    import numpy as np
    from sklearn.model_selection import KFold

    random = np.random.default_rng(options.seed)
    variance = float(((samples.target - samples.target.mean()) ** 2).mean())
    plain, losses, weights = 0.0, [], []
    for train, test in KFold(options.folds, shuffle=True, random_state=options.seed).split(samples.rows):
        forest = _new_forest(options, options.fold_trees).fit(samples.rows[train], samples.target[train])
        errors = _errors(forest, samples.rows[test], samples.target[test], options.shuffles, random)
        plain += errors[0, 0] * len(test)
        losses.append((errors[1:] - errors[0]) / variance)
        weights.append(len(test) / len(samples.target))
    mean = np.average([loss.mean(axis=1) for loss in losses], axis=0, weights=weights)
    spread = np.concatenate(losses, axis=1).std(axis=1)
    return 1 - plain / (variance * len(samples.target)), mean, spread


def _errors(
    forest: Any, rows: NDArray[np.float64], truth: NDArray[np.float64], shuffles: int, random: np.random.Generator
) -> NDArray[np.float64]:
    """Return the mean squared errors [1 + features, shuffles]: of the rows as they are, then with each column shuffled.

    All are predicted in one call: scikit-learn's permutation_importance calls the forest once per shuffle, which on
    folds of 30 rows is ten times slower.
    """
    import numpy as np

    # [1 + column, shuffle, row, column]
    copies = np.tile(rows, (1 + rows.shape[1], shuffles, 1, 1))
    for column in range(rows.shape[1]):
        copies[1 + column, ..., column] = random.permuted(copies[1 + column, ..., column], axis=1)
    predicted = forest.predict(copies.reshape(-1, rows.shape[1])).reshape(copies.shape[:3])
    errors: NDArray[np.float64] = ((predicted - truth) ** 2).mean(axis=2)
    return errors


def mean_fit(fits: Sequence[ForestFit | None]) -> ForestFit | None:
    """Return the plain mean over the datasets that have a forest; the spread is that between datasets."""
    present = [fit for fit in fits if fit is not None]
    if not present:
        return None
    scores = {
        field.name: statistics.fmean(getattr(fit, field.name) for fit in present)
        for field in fields(ForestFit)
        if field.name.startswith("r2_")
    }
    return ForestFit(
        runs=sum(fit.runs for fit in present),
        **scores,
        impurity={name: statistics.fmean(fit.impurity[name] for fit in present) for name in FEATURES},
        permutation={name: statistics.fmean(fit.permutation[name] for fit in present) for name in FEATURES},
        permutation_spread={name: statistics.pstdev(fit.permutation[name] for fit in present) for name in FEATURES},
    )
