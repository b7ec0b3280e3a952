"""What the cook can set out to do, carried out step by step from where it believes things to be."""

from collections.abc import Generator
from dataclasses import dataclass, replace

from envs.overcooked.grid import MOVES, STAY, Cell, beside, next_move
from envs.overcooked.kitchen import BOWL, CHOPS, Kitchen, Rules, is_raw

SIGHT = 2
"""Cells that the cook sees in each direction, diagonals included."""
GAMMA = 0.99
"""Discount of a primitive step."""


@dataclass(frozen=True)
class Macro:
    """`kind` is get, go, deliver or chop; `name` the thing that get is about, `board` the index that go is about."""

    kind: str
    name: str = ""
    board: int = 0


@dataclass(frozen=True)
class Outcome:
    """`reward` is discounted by the primitive steps inside, `duration` their number; `served` ends the episode."""

    kitchen: Kitchen
    reward: float
    served: bool
    duration: int


def sees(kitchen: Kitchen, cell: Cell) -> bool:
    return max(abs(cell[0] - kitchen.cook[0]), abs(cell[1] - kitchen.cook[1])) <= SIGHT


class Cook:
    """The macro actions of one dish: get each food and the bowl, go to each board, deliver, chop."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        fetched = [Macro("get", name) for name, _ in rules.starts]
        boards = [Macro("go", board=index) for index in range(len(rules.layout.boards))]
        self.macros = (*fetched, *boards, Macro("deliver"), Macro("chop"))

    def perform(self, kitchen: Kitchen, macro: Macro, limit: int | None = None) -> Outcome:
        """Act until the macro is finished, the dish is served, or `limit` steps have passed."""
        plan = self._chop(kitchen) if macro.kind == "chop" else self._walk(kitchen, macro)
        reward, duration, served = 0.0, 0, False
        move: Cell | None = next(plan)
        while move is not None:
            kitchen, gained, served = self.rules.step(kitchen, move)
            kitchen = self._look(kitchen)
            reward += GAMMA**duration * gained
            duration += 1
            move = None if served or duration == limit else _continued(plan, kitchen)
        return Outcome(kitchen, reward, served, duration)

    def _chop(self, kitchen: Kitchen) -> Generator[Cell, Kitchen, None]:
        """Chop the raw food on a board beside the cook; stay where there is none, or no hand is free."""
        for move in () if kitchen.carried else MOVES:
            cell = beside(kitchen.cook, move)
            food = kitchen.at(cell)
            if cell in self.rules.layout.boards and is_raw(food):
                for _ in range(CHOPS - food[0].chops):
                    yield move
                return
        yield STAY

    def _walk(self, kitchen: Kitchen, macro: Macro) -> Generator[Cell, Kitchen, None]:
        """Walk to what the macro is about and use it. One that is over before its first step stays for one."""
        goal = self._goal(kitchen, macro)
        move = self._towards(kitchen, macro, goal)
        if move is None:
            yield STAY
        while move is not None:
            arrived = beside(kitchen.cook, move) == goal
            carried = bool(kitchen.carried)
            kitchen = yield move
            if arrived:
                if macro.name == BOWL and carried and not kitchen.carried:
                    yield move
                return
            move = self._towards(kitchen, macro, goal)

    def _towards(self, kitchen: Kitchen, macro: Macro, goal: Cell) -> Cell | None:
        """The next move of a walk, None where it is over before its goal is used."""
        if self._is_futile(kitchen, macro) or self._goal(kitchen, macro) != goal:
            return None
        move = next_move(kitchen.cook, goal, self.rules.floor)
        if move is None or (beside(kitchen.cook, move) == goal and self._keeps_off(kitchen, macro, goal)):
            return None
        return move

    def _goal(self, kitchen: Kitchen, macro: Macro) -> Cell:
        layout = self.rules.layout
        if macro.kind == "get":
            return kitchen.believed[kitchen.index(macro.name)]
        return layout.delivery if macro.kind == "deliver" else layout.boards[macro.board]

    def _is_futile(self, kitchen: Kitchen, macro: Macro) -> bool:
        """Whether the food is seen to be in the bowl already, or the hands hold raw food and cannot take the bowl."""
        if macro.kind != "get":
            return False
        if macro.name == BOWL:
            return is_raw(kitchen.carried)
        cell = kitchen[macro.name].cell
        return cell == kitchen[BOWL].cell and sees(kitchen, cell)

    def _keeps_off(self, kitchen: Kitchen, macro: Macro, goal: Cell) -> bool:
        """Whether empty hands beside a board would do there what was not asked for: chop, or pick up."""
        if kitchen.carried or goal not in self.rules.layout.boards:
            return False
        return macro.kind == "go" or is_raw(kitchen.at(goal))

    def _look(self, kitchen: Kitchen) -> Kitchen:
        """The cook believes what it sees, and of a thing that is gone, that it is back where it was at first."""
        believed = []
        for thing, cell, (_, start) in zip(kitchen.things, kitchen.believed, self.rules.starts, strict=True):
            if sees(kitchen, thing.cell):
                believed.append(thing.cell)
            else:
                believed.append(start if sees(kitchen, cell) else cell)
        return replace(kitchen, believed=tuple(believed))


def _continued(plan: Generator[Cell, Kitchen, None], kitchen: Kitchen) -> Cell | None:
    try:
        return plan.send(kitchen)
    except StopIteration:
        return None
