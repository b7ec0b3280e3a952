"""Primitive dynamics and rewards of the kitchen."""

from dataclasses import dataclass, replace

from marl.envs.overcooked.grid import NOOP, Cell, beside
from marl.envs.overcooked.layouts import Dish

BOWL = "bowl"
CHOPS = 3
"""Number of chop steps until a food is chopped."""
STEP_REWARD, CHOP_REWARD, SERVE_REWARD, WASTE_REWARD = -0.001, 0.2, 1.0, -0.1


@dataclass(frozen=True)
class Thing:
    """A food or the bowl. A carried thing has the cook's cell, a food in the bowl has the bowl's cell.

    `paid`: chopping it was rewarded and is not rewarded again.
    """

    name: str
    cell: Cell
    chops: int = 0
    paid: bool = False

    @property
    def chopped(self) -> bool:
        """True for a food that is fully chopped."""
        return self.chops == CHOPS


@dataclass(frozen=True)
class Kitchen:
    """The cook's cell, and the things: foods in the layout's order, then the bowl.

    The published cook remembers where it last saw each thing. A single cook is always right about that: things move
    only by its own actions, or back to their first cells, where it looks for things that it does not find.
    """

    cook: Cell
    things: tuple[Thing, ...]

    def at(self, cell: Cell) -> tuple[Thing, ...]:
        """Return the things in a cell."""
        return tuple(thing for thing in self.things if thing.cell == cell)

    @property
    def carried(self) -> tuple[Thing, ...]:
        """Things that the cook carries."""
        return self.at(self.cook)

    def __getitem__(self, name: str) -> Thing:
        return next(thing for thing in self.things if thing.name == name)


class Rules:
    """Primitive dynamics of one dish. With `repay_chop`, chopping a wasted food again is rewarded again."""

    def __init__(self, dish: Dish, repay_chop: bool = False) -> None:
        layout = dish.layout
        self.dish, self.layout, self.repay_chop = dish, layout, repay_chop
        self.starts: tuple[tuple[str, Cell], ...] = (*layout.foods, (BOWL, layout.bowl))
        inside = range(1, layout.size - 1)
        taken = {*layout.counters, *layout.boards, layout.delivery, *(cell for _, cell in self.starts)}
        self.floor = frozenset((row, column) for row in inside for column in inside) - taken

    def start(self) -> Kitchen:
        """Return the kitchen at the start of an episode."""
        return Kitchen(self.layout.cook, tuple(Thing(name, cell) for name, cell in self.starts))

    def step(self, kitchen: Kitchen, move: Cell) -> tuple[Kitchen, float, bool]:
        """Return the kitchen after a move, the reward, and True if the dish was served."""
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
        """Deliver the carried things. Anything but the dish is wasted and returns, unchopped, to its first cell."""
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
        """Use a counter or a board: chop, pick up, put down, or put food into the bowl."""
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
    """Return True if the bowl is among the things."""
    return any(thing.name == BOWL for thing in things)


def is_raw(things: tuple[Thing, ...]) -> bool:
    """Return True for a single food that is not chopped."""
    return bool(things) and not has_bowl(things) and not things[0].chopped


def is_chopped(things: tuple[Thing, ...]) -> bool:
    """Return True for a single chopped food outside the bowl."""
    return bool(things) and not has_bowl(things) and things[0].chopped


def _moved(kitchen: Kitchen, moving: tuple[Thing, ...], target: Cell) -> Kitchen:
    things = tuple(replace(thing, cell=target) if thing in moving else thing for thing in kitchen.things)
    return replace(kitchen, things=things)
