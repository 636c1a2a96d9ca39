# SPDX-License-Identifier: Apache-2.0
"""Linear costs from measurements: least squares without negative coefficients. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vllm_epd.errors import ConfigError
from vllm_epd.planner.profile.profile import Fit

Array = NDArray[np.float64]

TOLERANCE = 1e-10
"""Below this, a gradient counts as none; columns are scaled to a norm of 1 before."""


@dataclass(frozen=True, slots=True)
class Line:
    """A linear cost, and how well it describes what was measured.

    Attributes:
        coefficients: one for each column, none negative.
        fit: errors relative to the measurements.
    """

    coefficients: tuple[float, ...]
    fit: Fit


def fit_line(rows: Sequence[Sequence[float]], seconds: Sequence[float]) -> Line:
    """Fit `seconds[i]` by the sum of `rows[i][j] * coefficient[j]`, with the least squares of relative errors.

    Relative ones, so that short times count as much as long ones. A constant cost is a column of ones.

    Args:
        rows: what causes the time of each measurement.
        seconds: measured, all above 0.

    Raises:
        ConfigError: fewer measurements than columns, rows of unequal length, or numbers out of range.
    """
    _check(rows, seconds)
    causes, times = np.asarray(rows, float), np.asarray(seconds, float)
    relative = causes / times[:, None]
    coefficients = nonnegative_least_squares(relative, np.ones(len(times)))
    return Line(tuple(float(each) for each in coefficients), _fit_of(relative @ coefficients - 1))


def relative_fit(predicted: Sequence[float], seconds: Sequence[float]) -> Fit:
    """How well predictions describe what was measured."""
    return _fit_of(np.asarray(predicted, float) / np.asarray(seconds, float) - 1)


def nonnegative_least_squares(matrix: Array, target: Array) -> Array:
    """The x >= 0 with the least |matrix @ x - target|, by the active-set method of Lawson and Hanson (1974).

    Args:
        matrix: rows x columns.
        target: rows.
    """
    norms = np.linalg.norm(matrix, axis=0)
    scaled = matrix / np.where(norms > 0, norms, 1)
    found = np.zeros(matrix.shape[1])
    free = np.zeros(matrix.shape[1], bool)
    for _ in range(3 * matrix.shape[1]):
        gradient = scaled.T @ (target - scaled @ found)
        gradient[free] = 0
        if gradient.max() <= TOLERANCE * max(1, float(np.linalg.norm(target))):
            break
        free[gradient.argmax()] = True
        found = _inside(scaled, target, found, free)
    found /= np.where(norms > 0, norms, 1)
    return found


def _inside(matrix: Array, target: Array, found: Array, free: NDArray[np.bool_]) -> Array:
    """Go to the best point of the free columns, or as far as all stay positive; those at 0 are held there."""
    while True:
        best = np.zeros_like(found)
        best[free] = np.linalg.lstsq(matrix[:, free], target, rcond=None)[0]
        below = free & (best <= 0)
        if not below.any():
            return best
        steps = found[below] / (found[below] - best[below])
        found = found + steps.min() * (best - found)
        free &= ~(below & (found <= TOLERANCE))
        found[~free] = 0


def _fit_of(errors: Array) -> Fit:
    size = np.abs(errors)
    return Fit(points=len(size), mean=float(size.mean()), worst=float(size.max()))


def _check(rows: Sequence[Sequence[float]], seconds: Sequence[float]) -> None:
    if not rows or len(rows) != len(seconds) or len({len(row) for row in rows}) != 1:
        raise ConfigError(f"a fit needs as many rows of one length as times, got {len(rows)} and {len(seconds)}")
    if len(rows) < len(rows[0]):
        raise ConfigError(f"{len(rows[0])} coefficients need as many measurements at least, got {len(rows)}")
    if not all(np.isfinite(second) and second > 0 for second in seconds):
        raise ConfigError(f"measured times must be above 0, got {min(seconds)}")
    if not np.isfinite(np.asarray(rows, float)).all():
        raise ConfigError("what causes the measured times must be finite numbers")
