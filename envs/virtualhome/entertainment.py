"""Entertainment: watch the TV from the sofa, with chips and milk at hand."""

from dataclasses import dataclass, replace

from numpy.random import Generator

from marl.envs.text import TextStep
from marl.envs.virtualhome.appliance_task import HOME, ROOMS

SNACKS = ("chips", "milk")
FURNITURE = ("coffee table", "TV", "sofa")
HELD, TABLE = "held", "table"
PURPOSE = "In order to enjoy the chips and the milk while you watch TV, your next step is to"
TURN_ON, TURN_OFF = "turn on the TV", "turn off the TV"
SIT, STAND = "sit down on the sofa", "stand up from the sofa"


@dataclass(frozen=True)
class EntertainmentState:
    """`near`: what was walked to last in this room, or nothing; what is held is at hand anyway.

    `chips` and `milk` are in the kitchen, held, or on the table.
    """

    room: str = "kitchen"
    near: str = ""
    chips: str = "kitchen"
    milk: str = "kitchen"
    playing: bool = False
    sitting: bool = False

    def where(self, snack: str) -> str:
        return self.chips if snack == "chips" else self.milk

    @property
    def held(self) -> list[str]:
        return [snack for snack in SNACKS if self.where(snack) == HELD]


class Entertainment:
    """The rules of the evening, and its words.

    A seated agent can only stand up. With `reproduce_upstream_bugs` it is as in the published code:

    - Standing up is offered beside the sofa to an agent that stands, while the TV is on. Sitting down too early never
      ends the episode, and every walk fails from there.
    - Turning the TV off is offered only while it is off.
    - With empty hands the only way from the coffee table is out of the room.
    - Beside one snack the other cannot be put down. With one snack on the table, the kitchen offers a walk to that one,
      which fails.
    """

    best_steps = 11

    def __init__(self, reproduce_upstream_bugs: bool = False) -> None:
        self.reproduce_upstream_bugs = reproduce_upstream_bugs
        self.walks = {f"walk to the {room}": room for room in ROOMS}
        self.approaches = {f"walk to the {thing}": thing for thing in (*SNACKS, *FURNITURE)}
        self.grabs = {f"grab the {snack}": snack for snack in SNACKS}
        self.puts = {f"put the {snack} on the coffee table": snack for snack in SNACKS}
        self.words = (
            HOME,
            "You are in the. You sit on the sofa and watch TV. Here are and a. The TV is on off. You hold nothing.",
            "Within reach:",
            PURPOSE,
            *(*self.walks, *self.approaches, *self.grabs, *self.puts, TURN_ON, TURN_OFF, SIT, STAND),
        )

    def start(self, _: Generator) -> EntertainmentState:
        return EntertainmentState()

    def prompt(self, evening: EntertainmentState) -> str:
        if evening.sitting:
            return " ".join([HOME, "You sit on the sofa and watch TV.", PURPOSE])
        parts = [HOME, f"You are in the {evening.room}."]
        if evening.room == "kitchen" and (here := [snack for snack in SNACKS if evening.where(snack) == "kitchen"]):
            parts.append(f"Here are {_listed(here)}.")
        if evening.room == "living room":
            parts.append("Here are a coffee table and a sofa and a TV.")
            parts.append(f"The TV is {'on' if evening.playing else 'off'}.")
        parts.append(f"You hold {_listed(evening.held)}.")
        parts.append(f"Within reach: {_listed([evening.near] if evening.near else [])}.")
        return " ".join([*parts, PURPOSE])

    def candidates(self, evening: EntertainmentState) -> list[str]:
        rooms = [walk for walk, room in self.walks.items() if room != evening.room]
        if evening.sitting:
            return rooms if self.reproduce_upstream_bugs else [STAND]
        if evening.room == "kitchen":
            return [*rooms, *self._snacks(evening)]
        if evening.room == "living room":
            return [*rooms, *self._furniture(evening), *self._uses(evening)]
        return rooms

    def _snacks(self, evening: EntertainmentState) -> list[str]:
        """What can be done about the snacks in the kitchen."""
        grabs = {snack: grab for grab, snack in self.grabs.items()}
        walks = {thing: walk for walk, thing in self.approaches.items()}
        here = [snack for snack in SNACKS if evening.where(snack) == "kitchen"]
        gone = [snack for snack in SNACKS if evening.where(snack) == TABLE]
        if self.reproduce_upstream_bugs and gone:
            return [grabs[snack] if snack == evening.near else walks[gone[0]] for snack in here]
        return [grabs[snack] if snack == evening.near else walks[snack] for snack in here]

    def _furniture(self, evening: EntertainmentState) -> list[str]:
        """The walks to furniture."""
        if self.reproduce_upstream_bugs and evening.near == "coffee table" and not evening.held:
            return []
        return [walk for walk, thing in self.approaches.items() if thing in FURNITURE and thing != evening.near]

    def _uses(self, evening: EntertainmentState) -> list[str]:
        """What can be done with the furniture within reach."""
        if evening.near == "coffee table":
            if self.reproduce_upstream_bugs and TABLE in (evening.chips, evening.milk):
                return []
            return [put for put, snack in self.puts.items() if snack in evening.held]
        if evening.near == "TV" and self.reproduce_upstream_bugs:
            return [] if evening.playing else [TURN_ON, TURN_OFF]
        if evening.near == "TV":
            return [TURN_OFF if evening.playing else TURN_ON]
        if evening.near == "sofa" and evening.playing:
            return [SIT, STAND] if self.reproduce_upstream_bugs else [SIT]
        return []

    def play(self, evening: EntertainmentState, action: str, _: Generator) -> TextStep:
        after = self.after(evening, action)
        success = after.sitting and after.playing and "kitchen" not in (after.chips, after.milk)
        return TextStep(after, float(success), success, success)

    def after(self, evening: EntertainmentState, action: str) -> EntertainmentState:
        """The evening after an action; unchanged where the action fails."""
        if evening.sitting:
            return replace(evening, sitting=action != STAND)
        if action in self.walks:
            return replace(evening, room=self.walks[action], near="")
        if action in self.approaches:
            thing = self.approaches[action]
            out_of_sight = thing in SNACKS and evening.where(thing) == TABLE
            return evening if out_of_sight else replace(evening, near=thing)
        if action in self.grabs:
            return replace(evening, near="", **{self.grabs[action]: HELD})
        if action in self.puts:
            return replace(evening, **{self.puts[action]: TABLE})
        if action == TURN_ON:
            return evening if len(evening.held) == len(SNACKS) else replace(evening, playing=True)
        if action == TURN_OFF:
            return replace(evening, playing=False)
        return replace(evening, sitting=action == SIT)


def _listed(names: list[str]) -> str:
    return " and ".join(f"the {name}" for name in names) or "nothing"
