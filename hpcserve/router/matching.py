"""The assignment problem: one column for each row, so that the costs together are least.

Shortest augmenting paths with dual prices (Kuhn 1955, Munkres 1957; in the form of Jonker and Volgenant 1987), the
inner loop over columns in numpy: 0.2 ms for 10 rows and 16 columns, 2 ms for 32 and 128.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_Floats = NDArray[np.float64]
_Ints = NDArray[np.int64]


def match(costs: _Floats) -> list[int]:
    """Return a column for each row, no column twice. `costs` is (rows, columns), finite, rows <= columns."""
    num_rows, num_columns = costs.shape
    if num_rows == 1:
        return [int(costs[0].argmin())]
    row_prices, column_prices = np.zeros(num_rows), np.zeros(num_columns)
    rows = np.full(num_columns, -1)  # which row has a column; -1: none
    for row in range(num_rows):
        _augment(row, costs, row_prices, column_prices, rows)
    columns = [0] * num_rows
    for column, row in enumerate(rows):
        if row >= 0:
            columns[row] = column
    return columns


def _augment(new_row: int, costs: _Floats, row_prices: _Floats, column_prices: _Floats, rows: _Ints) -> None:
    """Give `new_row` a column, moving earlier rows along the cheapest path that ends at a column without one."""
    num_columns = len(rows)
    distances = np.full(num_columns, np.inf)  # to reach each column, in reduced costs
    came_from = np.full(num_columns, -1)  # the column whose row would move here; -1: the new row
    visited = np.zeros(num_columns, dtype=bool)
    row, column = new_row, -1
    while row >= 0:
        reduced = costs[row] - row_prices[row] - column_prices
        nearer = (reduced < distances) & ~visited
        distances[nearer] = reduced[nearer]
        came_from[nearer] = column
        column = int(np.where(visited, np.inf, distances).argmin())
        step = distances[column]
        row_prices[new_row] += step
        row_prices[rows[visited]] += step
        column_prices[visited] -= step
        distances[~visited] -= step
        visited[column] = True
        row = int(rows[column])
    while column >= 0:
        before = int(came_from[column])
        rows[column] = rows[before] if before >= 0 else new_row
        column = before
