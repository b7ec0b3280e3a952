"""Text of the kitchen: prompts and action labels."""

from collections.abc import Sequence

from marl.envs.overcooked.grid import distance
from marl.envs.overcooked.kitchen import BOWL, Kitchen, Rules, Thing, has_bowl, is_chopped, is_raw
from marl.envs.overcooked.macros import Macro, sees

WORDS = (
    "You cook in a kitchen with one two cutting board first second boards. A raw chopped bowl and is are on the "
    "counter. On there is. You stand at and carry nothing. To serve with in, the best next step is to "
    "fetch add go lay set chop the dish"
)
ORDINALS = ("first", "second")


class TextRenderer:
    """Texts of one dish. With `offer_useless_chop`, chopping is offered for chopped food and with full hands too."""

    def __init__(self, rules: Rules, offer_useless_chop: bool = False) -> None:
        self.rules, self.offer_useless_chop = rules, offer_useless_chop
        boards = rules.layout.boards
        self.boards = ("the cutting board",) if len(boards) == 1 else tuple(f"the {n} cutting board" for n in ORDINALS)
        room = "one cutting board" if len(boards) == 1 else "two cutting boards"
        self.opening = f"You cook in a kitchen with {room}."
        chopped = join_names([f"chopped {name}" for name in rules.dish.recipe])
        self.closing = f"To serve a {rules.dish.name}, with {chopped} in a bowl, the best next step is to"
        self.words = (WORDS, *(name for name, _ in rules.starts), rules.dish.name)

    def prompt(self, kitchen: Kitchen) -> str:
        """Describe things in view at their first cells or on boards, the cook's place, and what it carries."""
        seen = [
            thing
            for thing, (_, start) in zip(kitchen.things, self.rules.starts, strict=True)
            if thing.cell == start and sees(kitchen, start)
        ]
        parts = [self.opening]
        if seen:
            names = join_names([describe_thing(thing) for thing in seen])
            parts.append(f"{names[0].upper()}{names[1:]} {'is' if len(seen) == 1 else 'are'} on the counter.")
        for cell, board in zip(self.rules.layout.boards, self.boards, strict=True):
            if kitchen.at(cell) and sees(kitchen, cell):
                parts.append(f"On {board} there is {describe_cell(kitchen.at(cell))}.")
        board = self._board_at_hand(kitchen)
        place = "" if board is None else f"stand at {self.boards[board]} and "
        parts.append(f"You {place}carry {describe_cell(kitchen.carried) if kitchen.carried else 'nothing'}.")
        return " ".join([*parts, self.closing])

    def label(self, kitchen: Kitchen, macro: Macro) -> str:
        """Return the text of a macro action in the present kitchen."""
        carried = kitchen.carried
        if macro.kind == "get":
            adds = has_bowl(carried) and macro.name != BOWL
            return f"add the {macro.name} to the bowl" if adds else f"fetch the {macro.name}"
        if macro.kind == "go":
            board = self.boards[macro.board]
            if not carried:
                return f"go to {board}"
            return f"set the bowl on {board}" if has_bowl(carried) else f"lay the {carried[0].name} on {board}"
        if macro.kind == "deliver":
            return "serve the dish" if carried else "serve nothing"
        return f"chop {self._choppable(kitchen)}"

    def _board_at_hand(self, kitchen: Kitchen) -> int | None:
        boards = self.rules.layout.boards
        return next((index for index, cell in enumerate(boards) if distance(kitchen.cook, cell) == 1), None)

    def _choppable(self, kitchen: Kitchen) -> str:
        index = self._board_at_hand(kitchen)
        if index is None:
            return "nothing"
        food = kitchen.at(self.rules.layout.boards[index])
        useless = self.offer_useless_chop and (is_raw(food) or is_chopped(food))
        offered = useless or (is_raw(food) and not kitchen.carried)
        return f"the {food[0].name}" if offered else "nothing"


def join_names(names: Sequence[str]) -> str:
    """Join names: a, b and c."""
    return " and ".join(([", ".join(names[:-1])] if len(names) > 1 else []) + [names[-1]])


def describe_thing(thing: Thing) -> str:
    """Return a thing with its article and state."""
    if thing.name == BOWL:
        return "a bowl"
    return f"a {'chopped' if thing.chopped else 'raw'} {thing.name}"


def describe_cell(things: tuple[Thing, ...]) -> str:
    """Describe the things in one cell: a food, or the bowl and its content."""
    if not has_bowl(things):
        return describe_thing(things[0])
    inside = [describe_thing(thing) for thing in things if thing.name != BOWL]
    return f"a bowl with {join_names(inside)}" if inside else "a bowl"
