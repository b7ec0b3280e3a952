"""Entertainment: watch TV from the sofa, with chips and milk."""

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
    """State of the task. `near`: the thing that the agent last walked to in this room, or empty.

    `chips` and `milk` are in the kitchen, held, or on the table.
    """

    room: str = "kitchen"
    near: str = ""
    chips: str = "kitchen"
    milk: str = "kitchen"
    playing: bool = False
    sitting: bool = False

    def where(self, snack: str) -> str:
        """Return the place of a snack."""
        return self.chips if snack == "chips" else self.milk

    @property
    def held(self) -> list[str]:
        """Snacks that the agent holds."""
        return [snack for snack in SNACKS if self.where(snack) == HELD]


class Entertainment:
    """Rules and texts of the entertainment task.

    A seated agent can only stand up. With `reproduce_upstream_bugs` the rules are those of the published code:

    - A standing agent beside the sofa is offered to stand up while the TV is on. After sitting down too early, the
      episode never terminates and every walk fails.
    - Turning the TV off is offered only while it is off.
    - With empty hands, the coffee table offers only walks out of the room.
    - A second snack cannot be put beside the first. With one snack on the table, the kitchen offers a walk to that
      snack, which fails.
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
        """Return the state at the start of an episode."""
        return EntertainmentState()

    def prompt(self, state: EntertainmentState) -> str:
        """Describe the state and the task."""
        if state.sitting:
            return " ".join([HOME, "You sit on the sofa and watch TV.", PURPOSE])
        parts = [HOME, f"You are in the {state.room}."]
        if state.room == "kitchen" and (here := [snack for snack in SNACKS if state.where(snack) == "kitchen"]):
            parts.append(f"Here are {_listed(here)}.")
        if state.room == "living room":
            parts.append("Here are a coffee table and a sofa and a TV.")
            parts.append(f"The TV is {'on' if state.playing else 'off'}.")
        parts.append(f"You hold {_listed(state.held)}.")
        parts.append(f"Within reach: {_listed([state.near] if state.near else [])}.")
        return " ".join([*parts, PURPOSE])

    def candidates(self, state: EntertainmentState) -> list[str]:
        """Return the offered actions."""
        rooms = [walk for walk, room in self.walks.items() if room != state.room]
        if state.sitting:
            return rooms if self.reproduce_upstream_bugs else [STAND]
        if state.room == "kitchen":
            return [*rooms, *self._snacks(state)]
        if state.room == "living room":
            return [*rooms, *self._furniture(state), *self._uses(state)]
        return rooms

    def _snacks(self, state: EntertainmentState) -> list[str]:
        """Return the actions on snacks in the kitchen."""
        grabs = {snack: grab for grab, snack in self.grabs.items()}
        walks = {thing: walk for walk, thing in self.approaches.items()}
        here = [snack for snack in SNACKS if state.where(snack) == "kitchen"]
        gone = [snack for snack in SNACKS if state.where(snack) == TABLE]
        if self.reproduce_upstream_bugs and gone:
            return [grabs[snack] if snack == state.near else walks[gone[0]] for snack in here]
        return [grabs[snack] if snack == state.near else walks[snack] for snack in here]

    def _furniture(self, state: EntertainmentState) -> list[str]:
        """Return the walks to furniture."""
        if self.reproduce_upstream_bugs and state.near == "coffee table" and not state.held:
            return []
        return [walk for walk, thing in self.approaches.items() if thing in FURNITURE and thing != state.near]

    def _uses(self, state: EntertainmentState) -> list[str]:
        """Return the actions on furniture within reach."""
        if state.near == "coffee table":
            if self.reproduce_upstream_bugs and TABLE in (state.chips, state.milk):
                return []
            return [put for put, snack in self.puts.items() if snack in state.held]
        if state.near == "TV" and self.reproduce_upstream_bugs:
            return [] if state.playing else [TURN_ON, TURN_OFF]
        if state.near == "TV":
            return [TURN_OFF if state.playing else TURN_ON]
        if state.near == "sofa" and state.playing:
            return [SIT, STAND] if self.reproduce_upstream_bugs else [SIT]
        return []

    def play(self, state: EntertainmentState, action: str, _: Generator) -> TextStep:
        """Return the result of an action: reward 1 at success, which ends the episode."""
        after = self.after(state, action)
        success = after.sitting and after.playing and "kitchen" not in (after.chips, after.milk)
        return TextStep(after, float(success), success, success)

    def after(self, state: EntertainmentState, action: str) -> EntertainmentState:
        """Return the state after an action, unchanged if the action fails."""
        if state.sitting:
            return replace(state, sitting=action != STAND)
        if action in self.walks:
            return replace(state, room=self.walks[action], near="")
        if action in self.approaches:
            thing = self.approaches[action]
            out_of_sight = thing in SNACKS and state.where(thing) == TABLE
            return state if out_of_sight else replace(state, near=thing)
        if action in self.grabs:
            return replace(state, near="", **{self.grabs[action]: HELD})
        if action in self.puts:
            return replace(state, **{self.puts[action]: TABLE})
        if action == TURN_ON:
            return state if len(state.held) == len(SNACKS) else replace(state, playing=True)
        if action == TURN_OFF:
            return replace(state, playing=False)
        return replace(state, sitting=action == SIT)


def _listed(names: list[str]) -> str:
    return " and ".join(f"the {name}" for name in names) or "nothing"
