"""Cells of a grid and the shortest ways between them."""

import heapq
from collections.abc import Container
from dataclasses import dataclass

Cell = tuple[int, int]

RIGHT, DOWN, LEFT, UP = (0, 1), (1, 0), (0, -1), (-1, 0)
NOOP = (0, 0)
MOVES = (RIGHT, LEFT, DOWN, UP)


def beside(cell: Cell, move: Cell) -> Cell:
    return cell[0] + move[0], cell[1] + move[1]


def distance(a: Cell, b: Cell) -> int:
    return abs(a[0] - b[0]) + abs(a[1] - b[1])


@dataclass(frozen=True)
class Path:
    """A way from the start: its first move, where it leads, its steps, and how long it is to the goal at least.

    Of two equal bounds each counts as the lower one. Together with the order of `MOVES` this decides, inside the heap,
    between equally short ways, and as the published code does.
    """

    bound: int
    steps: int
    cell: Cell
    first: Cell | None

    def __lt__(self, other: "Path") -> bool:
        return self.bound <= other.bound


def next_move(start: Cell, goal: Cell, floor: Container[Cell]) -> Cell | None:
    """The first move of a shortest way to the goal over floor alone (the goal itself may be anything), by A*.

    None where there is no way, or nowhere to go.
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
