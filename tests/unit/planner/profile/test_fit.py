# SPDX-License-Identifier: Apache-2.0
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_epd.errors import ConfigError
from vllm_epd.planner.profile.fit import fit_line, nonnegative_least_squares

numbers = st.floats(-10, 10, allow_nan=False).map(lambda each: round(each, 2))


def test_exact_costs_are_found():
    rows = [(1.0, n, n * n) for n in (1.0, 10.0, 100.0, 1000.0, 5000.0)]
    line = fit_line(rows, [3e-3 + 2e-5 * n + 4e-9 * square for _, n, square in rows])
    assert line.coefficients == pytest.approx((3e-3, 2e-5, 4e-9), rel=1e-6)
    assert line.fit.worst < 1e-9
    assert line.fit.points == 5


def test_no_cost_is_negative():
    rows = [(1.0, n) for n in (1.0, 2.0, 3.0, 4.0)]
    line = fit_line(rows, [0.1, 1.4, 2.4, 4.0])
    assert line.coefficients[0] == 0
    assert 0 < line.fit.mean < line.fit.worst


def test_short_times_count_as_much_as_long_ones():
    rows = [(1.0, n) for n in (0.0, 0.0, 1e6, 1e6)]
    base, _ = fit_line(rows, [0.9, 1.1, 9e5, 1.1e6]).coefficients
    assert base == pytest.approx(0.99, abs=0.01)


def best_by_trying(matrix, target):
    """The least distance over all sets of columns whose best coefficients are not negative."""
    least = np.linalg.norm(target)
    for size in range(1, matrix.shape[1] + 1):
        for columns in itertools.combinations(range(matrix.shape[1]), size):
            chosen = matrix[:, columns]
            best = np.linalg.lstsq(chosen, target, rcond=None)[0]
            if (best >= 0).all():
                least = min(least, np.linalg.norm(chosen @ best - target))
    return least


@settings(max_examples=300)
@given(st.lists(st.tuples(numbers, numbers, numbers, numbers), min_size=3, max_size=8))
def test_no_set_of_columns_is_nearer(rows):
    table = np.array(rows)
    matrix, target = table[:, :3], table[:, 3]
    found = nonnegative_least_squares(matrix, target)
    assert (found >= 0).all()
    assert np.linalg.norm(matrix @ found - target) == pytest.approx(best_by_trying(matrix, target), abs=1e-6)


@pytest.mark.parametrize(
    ("rows", "seconds", "why"),
    [
        ([], [], "as many rows"),
        ([(1.0,)], [1.0, 2.0], "as many rows"),
        ([(1.0, 2.0), (1.0,)], [1.0, 2.0], "as many rows"),
        ([(1.0, 2.0)], [1.0], "2 coefficients need"),
        ([(1.0,), (1.0,)], [1.0, 0.0], "above 0, got 0.0"),
        ([(float("nan"),), (1.0,)], [1.0, 1.0], "finite"),
    ],
)
def test_measurements_that_say_nothing_are_refused(rows, seconds, why):
    with pytest.raises(ConfigError, match=why):
        fit_line(rows, seconds)
