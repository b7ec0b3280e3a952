"""Cells of a grid and the shortest ways between them."""

import heapq
from collections.abc import Container

Cell = tuple[int, int]

RIGHT, DOWN, LEFT, UP = (0, 1), (1, 0), (0, -1), (-1, 0)
STAY = (0, 0)
MOVES = (RIGHT, DOWN, LEFT, UP)
"""In the order in which equally short ways are preferred."""


def beside(cell: Cell, move: Cell) -> Cell:
    return cell[0] + move[0], cell[1] + move[1]


def distance(a: Cell, b: Cell) -> int:
    return abs(a[0] - b[0]) + abs(a[1] - b[1])


def next_move(start: Cell, goal: Cell, floor: Container[Cell]) -> Cell | None:
    """The first move of a shortest way to the goal over floor alone (the goal itself may be anything), by A*.

    None where there is no way, or nowhere to go.
    """
    tie = 0
    frontier: list[tuple[int, int, int, Cell, Cell | None]] = [(distance(start, goal), tie, 0, start, None)]
    reached = {start}
    while frontier:
        _, _, steps, cell, first = heapq.heappop(frontier)
        if cell == goal:
            return first
        for move in MOVES:
            following = beside(cell, move)
            if following in reached or (following != goal and following not in floor):
                continue
            reached.add(following)
            tie += 1
            bound = steps + 1 + distance(following, goal)
            heapq.heappush(frontier, (bound, tie, steps + 1, following, first or move))
    return None
