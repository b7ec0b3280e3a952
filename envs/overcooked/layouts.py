"""Data of kitchens and dishes. A cell is (row, column)."""

from dataclasses import dataclass

from marl.envs.overcooked.grid import Cell


@dataclass(frozen=True)
class Layout:
    """A square kitchen with the first cell of everything in it. Its border and `counters` hold things.

    `foods`: name and cell of the raw ingredients.
    """

    cook: Cell
    foods: tuple[tuple[str, Cell], ...]
    bowl: Cell
    boards: tuple[Cell, ...]
    delivery: Cell
    size: int = 7
    counters: tuple[Cell, ...] = ()


@dataclass(frozen=True)
class Dish:
    """A dish: its recipe of chopped foods, and its kitchen.

    `optimum`: best return, discounted by 0.99 per primitive step, found by exhaustive dynamic programming.
    """

    task: str
    name: str
    recipe: tuple[str, ...]
    layout: Layout
    optimum: float | None = None


ONE_BOARD = Layout(cook=(1, 4), foods=(("tomato", (0, 5)),), bowl=(6, 5), boards=((1, 0),), delivery=(3, 0))
TWO_BOARDS = Layout(
    cook=(1, 4),
    foods=(("tomato", (0, 5)), ("lettuce", (1, 6)), ("onion", (2, 6))),
    bowl=(6, 5),
    boards=((1, 0), (2, 0)),
    delivery=(3, 0),
)

DISHES = {
    dish.task: dish
    for dish in (
        Dish("tomato-salad", "tomato salad", ("tomato",), ONE_BOARD, optimum=0.920518),
        Dish("tomato-lettuce-salad", "tomato and lettuce salad", ("tomato", "lettuce"), TWO_BOARDS, optimum=0.947656),
    )
}
