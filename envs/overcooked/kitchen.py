"""What one primitive step does in the kitchen."""

from dataclasses import dataclass, replace

from marl.envs.overcooked.grid import NOOP, Cell, beside
from marl.envs.overcooked.layouts import Dish

BOWL = "bowl"
CHOPS = 3
"""Strokes that chop a food."""
STEP_REWARD, CHOP_REWARD, SERVE_REWARD, WASTE_REWARD = -0.001, 0.2, 1.0, -0.1


@dataclass(frozen=True)
class Thing:
    """A food or the bowl. What is carried is where the cook is, what is in the bowl where the bowl is.

    `paid`: chopping it has been rewarded and is not again.
    """

    name: str
    cell: Cell
    chops: int = 0
    paid: bool = False

    @property
    def chopped(self) -> bool:
        return self.chops == CHOPS


@dataclass(frozen=True)
class Kitchen:
    """The cook's cell, and the things: foods in the layout's order, then the bowl.

    The published cook goes by where it saw a thing last. One that is alone always knows where things are: they move by
    its own hands, or back to their first cells, where it takes those to be that it does not find.
    """

    cook: Cell
    things: tuple[Thing, ...]

    def at(self, cell: Cell) -> tuple[Thing, ...]:
        return tuple(thing for thing in self.things if thing.cell == cell)

    @property
    def carried(self) -> tuple[Thing, ...]:
        return self.at(self.cook)

    def __getitem__(self, name: str) -> Thing:
        return next(thing for thing in self.things if thing.name == name)


class Rules:
    """The primitive dynamics of one dish. With `farming`, a food that was wasted pays for its chopping again."""

    def __init__(self, dish: Dish, farming: bool = False) -> None:
        layout = dish.layout
        self.dish, self.layout, self.repay_chop = dish, layout, farming
        self.starts: tuple[tuple[str, Cell], ...] = (*layout.foods, (BOWL, layout.bowl))
        inside = range(1, layout.size - 1)
        taken = {*layout.counters, *layout.boards, layout.delivery, *(cell for _, cell in self.starts)}
        self.floor = frozenset((row, column) for row in inside for column in inside) - taken

    def start(self) -> Kitchen:
        return Kitchen(self.layout.cook, tuple(Thing(name, cell) for name, cell in self.starts))

    def step(self, kitchen: Kitchen, move: Cell) -> tuple[Kitchen, float, bool]:
        """The kitchen after a move, its reward, and whether the dish was served."""
        target = beside(kitchen.cook, move)
        served = False
        if move == NOOP:
            after, reward = kitchen, 0.0
        elif target in self.floor:
            after, reward = replace(_moved(kitchen, kitchen.carried, target), cook=target), 0.0
        elif target == self.layout.delivery:
            after, reward, served = self._deliver(kitchen)
        else:
            after, reward = self._handle(kitchen, target)
        return after, reward + STEP_REWARD, served

    def _deliver(self, kitchen: Kitchen) -> tuple[Kitchen, float, bool]:
        """Serve what is carried; anything but the dish is wasted, and is back where it was at first, fresh."""
        names = sorted(thing.name for thing in kitchen.carried)
        if not names:
            return kitchen, 0.0, False
        if names == sorted((*self.dish.recipe, BOWL)):
            return kitchen, SERVE_REWARD, True
        first = dict(self.starts)
        things = tuple(
            Thing(thing.name, first[thing.name], paid=thing.paid and not self.repay_chop)
            if thing.cell == kitchen.cook
            else thing
            for thing in kitchen.things
        )
        return replace(kitchen, things=things), WASTE_REWARD, False

    def _handle(self, kitchen: Kitchen, target: Cell) -> tuple[Kitchen, float]:
        """Use a counter or a board: chop, pick up, put down, or bring food and bowl together."""
        there, carried = kitchen.at(target), kitchen.carried
        on_board = target in self.layout.boards
        if not there:
            return _moved(kitchen, carried, target), 0.0
        if not carried:
            if on_board and is_raw(there):
                return self._chop(kitchen, there[0])
            return _moved(kitchen, there, kitchen.cook), 0.0
        if has_bowl(there) and is_chopped(carried):
            filled = _moved(kitchen, carried, target)
            return _moved(filled, filled.at(target), kitchen.cook) if on_board else filled, 0.0
        if has_bowl(carried) and is_chopped(there):
            return _moved(kitchen, there, kitchen.cook), 0.0
        return kitchen, 0.0

    def _chop(self, kitchen: Kitchen, food: Thing) -> tuple[Kitchen, float]:
        cut = replace(food, chops=food.chops + 1)
        pays = cut.chopped and food.name in self.dish.recipe and not food.paid
        cut = replace(cut, paid=food.paid or pays)
        things = tuple(cut if thing == food else thing for thing in kitchen.things)
        return replace(kitchen, things=things), CHOP_REWARD * pays


def has_bowl(things: tuple[Thing, ...]) -> bool:
    return any(thing.name == BOWL for thing in things)


def is_raw(things: tuple[Thing, ...]) -> bool:
    """Whether they are one food that is not chopped."""
    return bool(things) and not has_bowl(things) and not things[0].chopped


def is_chopped(things: tuple[Thing, ...]) -> bool:
    """Whether they are one chopped food, outside the bowl."""
    return bool(things) and not has_bowl(things) and things[0].chopped


def _moved(kitchen: Kitchen, moving: tuple[Thing, ...], target: Cell) -> Kitchen:
    things = tuple(replace(thing, cell=target) if thing in moving else thing for thing in kitchen.things)
    return replace(kitchen, things=things)
