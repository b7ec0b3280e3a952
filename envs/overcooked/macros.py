"""Macro actions of the cook, executed in primitive steps as in the published code."""

from dataclasses import dataclass

from marl.envs.overcooked.grid import MOVES, NOOP, Cell, beside, distance, next_move
from marl.envs.overcooked.kitchen import BOWL, CHOPS, Kitchen, Rules, is_chopped, is_raw

SIGHT = 2
"""View distance of the cook in cells, diagonals included."""
GAMMA = 0.99
"""Discount of a primitive step."""


@dataclass(frozen=True)
class Macro:
    """A macro action. `kind`: get, go, deliver or chop. `name`: thing to get. `board`: index of the board to go to."""

    kind: str
    name: str = ""
    board: int = 0


@dataclass(frozen=True)
class Outcome:
    """Result of a macro action: `reward` discounted over its `duration` primitive steps; `served` ends the episode."""

    kitchen: Kitchen
    reward: float
    served: bool
    duration: int


def sees(kitchen: Kitchen, cell: Cell) -> bool:
    """Return True if the cook sees a cell."""
    return max(abs(cell[0] - kitchen.cook[0]), abs(cell[1] - kitchen.cook[1])) <= SIGHT


class Cook:
    """Macro actions of one dish: get each food and the bowl, go to each board, deliver, chop."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        fetched = [Macro("get", name) for name, _ in rules.starts]
        boards = [Macro("go", board=index) for index in range(len(rules.layout.boards))]
        self.macros = (*fetched, *boards, Macro("deliver"), Macro("chop"))

    def perform(self, kitchen: Kitchen, macro: Macro, limit: int | None = None) -> Outcome:
        """Execute a macro action until it finishes, the dish is served, or `limit` primitive steps have passed."""
        reward, duration, finished, served = 0.0, 0, False, False
        while not (finished or served or duration == limit):
            move, last = self._chop(kitchen, duration) if macro.kind == "chop" else self._walk(kitchen, macro)
            kitchen, gained, served = self.rules.step(kitchen, move)
            reward += GAMMA**duration * gained
            duration += 1
            finished = last or self._has_arrived(kitchen, macro)
        return Outcome(kitchen, reward, served, duration)

    def _chop(self, kitchen: Kitchen, duration: int) -> tuple[Cell, bool]:
        """Return the next move, and True if it is the last: chop a raw food on a board beside the cook, else wait.

        A cook that carries something takes the same number of steps, without effect.
        """
        for move in MOVES:
            cell = beside(kitchen.cook, move)
            if cell in self.rules.layout.boards and is_raw(kitchen.at(cell)):
                return move, duration + 1 == CHOPS
        return NOOP, True

    def _walk(self, kitchen: Kitchen, macro: Macro) -> tuple[Cell, bool]:
        """Return the next move towards the goal of the macro action, and True if it is the last."""
        goal, carried = self._goal(kitchen, macro), kitchen.carried
        if self._is_food(macro) and goal == kitchen[BOWL].cell and sees(kitchen, goal):
            return NOOP, True
        move = next_move(kitchen.cook, goal, self.rules.floor)
        if move is None:
            return NOOP, True
        if distance(kitchen.cook, goal) > 1:
            return move, False
        if macro.name == BOWL and is_chopped(carried):
            return move, False  # first the food goes into the bowl, then the cook takes the bowl
        keeps_off = (
            (macro.kind == "go" and not carried)
            or (macro.name == BOWL and is_raw(carried))
            or self._is_raw_on_board(kitchen, macro)
        )
        return NOOP if keeps_off else move, True

    def _has_arrived(self, kitchen: Kitchen, macro: Macro) -> bool:
        """Return True if the macro action ends because the cook stands beside its goal and would not use it."""
        if macro.kind == "chop" or distance(kitchen.cook, self._goal(kitchen, macro)) != 1:
            return False
        idle = macro.kind in ("go", "deliver") and not kitchen.carried
        return idle or self._is_raw_on_board(kitchen, macro)

    def _goal(self, kitchen: Kitchen, macro: Macro) -> Cell:
        layout = self.rules.layout
        if macro.kind == "get":
            return kitchen[macro.name].cell
        return layout.delivery if macro.kind == "deliver" else layout.boards[macro.board]

    def _is_food(self, macro: Macro) -> bool:
        return macro.kind == "get" and macro.name != BOWL

    def _is_raw_on_board(self, kitchen: Kitchen, macro: Macro) -> bool:
        """Return True if the food to get is raw and on a board: using the board would chop it."""
        return (
            self._is_food(macro)
            and self._goal(kitchen, macro) in self.rules.layout.boards
            and (not kitchen[macro.name].chopped)
        )
