"""The assignment problem, against trying all assignments."""

from itertools import permutations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hpcserve.router.matching import match

SHAPES = st.integers(1, 5).flatmap(lambda rows: st.tuples(st.just(rows), st.integers(rows, 6)))
COSTS = SHAPES.flatmap(lambda shape: arrays(np.float64, shape, elements=st.floats(-1e4, 1e4)))


@given(COSTS)
def test_no_assignment_costs_less(costs: np.ndarray) -> None:
    columns = match(costs)
    rows = range(len(costs))
    assert len(set(columns)) == len(columns) == len(costs)
    least = min(sum(costs[rows, list(each)]) for each in permutations(range(costs.shape[1]), len(costs)))
    assert sum(costs[rows, columns]) <= least + 1e-6


def test_a_row_moves_for_another_that_needs_its_column_more() -> None:
    assert match(np.array([[1.0, 2.0], [1.0, 100.0]])) == [1, 0]
