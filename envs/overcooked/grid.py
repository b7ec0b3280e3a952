"""Cells of a grid and shortest paths between them."""

import heapq
from collections.abc import Container
from dataclasses import dataclass

Cell = tuple[int, int]

RIGHT, DOWN, LEFT, UP = (0, 1), (1, 0), (0, -1), (-1, 0)
NOOP = (0, 0)
MOVES = (RIGHT, LEFT, DOWN, UP)


def beside(cell: Cell, move: Cell) -> Cell:
    """Return the cell after a move."""
    return cell[0] + move[0], cell[1] + move[1]


def distance(a: Cell, b: Cell) -> int:
    """Return the Manhattan distance."""
    return abs(a[0] - b[0]) + abs(a[1] - b[1])


@dataclass(frozen=True)
class Path:
    """Path from the start: a lower bound of its length to the goal, its steps, its last cell, and its first move.

    Paths with equal bounds compare as lower in both directions. With the order of `MOVES`, this breaks ties in the heap
    as the published code does.
    """

    bound: int
    steps: int
    cell: Cell
    first: Cell | None

    def __lt__(self, other: "Path") -> bool:
        return self.bound <= other.bound


def next_move(start: Cell, goal: Cell, floor: Container[Cell]) -> Cell | None:
    """Return the first move of a shortest path over `floor` to `goal`, by A*. The goal itself need not be floor.

    Returns None if there is no path, or if the start is the goal.
    """
    frontier = [Path(distance(start, goal), 0, start, None)]
    reached = {start}
    while frontier:
        path = heapq.heappop(frontier)
        for move in MOVES:
            cell, first = beside(path.cell, move), path.first or move
            if cell == goal and cell not in reached:
                return first
            if cell not in reached and cell in floor:
                reached.add(cell)
                heapq.heappush(frontier, Path(path.steps + 1 + distance(cell, goal), path.steps + 1, cell, first))
    return None
