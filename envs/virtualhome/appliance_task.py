"""Fetch-and-place tasks: put a thing into a kitchen appliance and close it."""

from dataclasses import dataclass, replace

from numpy.random import Generator

from marl.envs.text import TextStep

ROOMS = ("kitchen", "living room", "bathroom", "bedroom")
HOME = "This home has four rooms: kitchen, living room, bathroom and bedroom."


@dataclass(frozen=True)
class TaskWords:
    """Words in which the tasks differ. `plural`: the thing is a plural noun."""

    thing: str
    appliance: str
    purpose: str
    plural: bool = False


APPLIANCE_TASKS = {
    "food-preparation": TaskWords("pancake", "microwave", "heat up the pancake in the microwave"),
    "cheese": TaskWords("cheese", "microwave", "heat up the cheese in the microwave"),
    "hamburger": TaskWords("hamburger", "microwave", "heat up the hamburger in the microwave"),
    "apple-pie": TaskWords("apple pie", "microwave", "heat up the apple pie in the microwave"),
    "pizza": TaskWords("pizza", "microwave", "heat up the pizza in the microwave"),
    "washing-plate": TaskWords("dishes", "dishwasher", "wash the dishes in the dishwasher", plural=True),
    "laundry": TaskWords("clothes", "washing machine", "wash the clothes in the washing machine", plural=True),
}


@dataclass(frozen=True)
class Home:
    """State of a task. `near_thing` and `near_appliance`: within reach, as a held thing always is.

    `upstream_room`: with the upstream bugs, the first other room that the thing was carried to.
    """

    room: str = "kitchen"
    near_thing: bool = False
    near_appliance: bool = False
    holding: bool = False
    opened: bool = False
    inside: bool = False
    upstream_room: str = ""


class ApplianceTask:
    """Rules and texts of a fetch-and-place task.

    Walking to a held thing has no effect. With `reproduce_upstream_bugs` it has the effect of the published code: the
    agent leaves the appliance and moves to the first other room that the thing was carried to, if any. Opening the
    appliance is then offered once the thing is inside, although it is open.
    """

    best_steps = 6

    def __init__(self, nouns: TaskWords, reproduce_upstream_bugs: bool = False) -> None:
        self.nouns, self.reproduce_upstream_bugs = nouns, reproduce_upstream_bugs
        thing, appliance = f"the {nouns.thing}", f"the {nouns.appliance}"
        self.walks = {f"walk to the {room}": room for room in ROOMS}
        self.to_thing, self.to_appliance = f"walk to {thing}", f"walk to {appliance}"
        self.grab, self.put = f"grab {thing}", f"put {thing} into {appliance}"
        self.open, self.close = f"open {appliance}", f"close {appliance}"
        self.words = (
            HOME,
            "You are in the. Here is a. Here are the. It is open closed. You hold. Within reach: nothing and",
            f"In order to {nouns.purpose}, your next step is to",
            *(*self.walks, self.to_thing, self.to_appliance, self.grab, self.put, self.open, self.close),
        )

    def start(self, _: Generator) -> Home:
        """Return the state at the start of an episode."""
        return Home()

    def prompt(self, home: Home) -> str:
        """Describe the state and the task."""
        nouns, parts = self.nouns, [HOME, f"You are in the {home.room}."]
        if home.room == "kitchen":
            parts.append(f"Here is a {nouns.appliance}. It is {'open' if home.opened else 'closed'}.")
        if home.holding:
            parts.append(f"You hold the {nouns.thing}.")
        elif home.room == "kitchen" and (home.opened or not home.inside):
            parts.append(f"Here {'are the' if nouns.plural else 'is a'} {nouns.thing}.")
        near = [f"the {nouns.thing}"] if home.near_thing else []
        near += [f"the {nouns.appliance}"] if home.near_appliance else []
        parts.append(f"Within reach: {' and '.join(near) or 'nothing'}.")
        return " ".join([*parts, f"In order to {nouns.purpose}, your next step is to"])

    def candidates(self, home: Home) -> list[str]:
        """Return the offered actions."""
        rooms = [walk for walk, room in self.walks.items() if room != home.room]
        if home.room != "kitchen":
            return rooms
        if home.holding:
            there = [self.put, self.open, self.close] if home.near_appliance else [self.to_appliance]
            return [*rooms, self.to_thing, *there]
        if home.near_thing:
            if not home.near_appliance:
                return [*rooms, self.to_appliance, self.grab]
            return [*rooms, *([self.open] if self.reproduce_upstream_bugs else []), self.close]
        return [*rooms, self.to_thing, *([self.open, self.close] if home.near_appliance else [self.to_appliance])]

    def play(self, home: Home, action: str, _: Generator) -> TextStep:
        """Return the result of an action: reward 1 at success, which ends the episode."""
        after = self.after(home, action)
        success = after.inside and not after.opened
        return TextStep(after, float(success), success, success)

    def after(self, home: Home, action: str) -> Home:
        """Return the state after an action, unchanged if the action fails."""
        if action in self.walks:
            return self._walked(home, self.walks[action])
        if action == self.to_thing:
            if not home.holding:
                return replace(home, near_thing=True, near_appliance=home.inside)
            if not self.reproduce_upstream_bugs:
                return home
            return self._walked(home, home.upstream_room) if home.upstream_room else replace(home, near_appliance=False)
        if action == self.to_appliance:
            return replace(home, near_appliance=True, near_thing=home.holding or home.inside)
        if action == self.grab:
            return replace(home, holding=True)
        if action == self.put:
            return replace(home, holding=False, inside=True, upstream_room="") if home.opened else home
        return replace(home, opened=action == self.open)

    def _walked(self, home: Home, room: str) -> Home:
        records_room = self.reproduce_upstream_bugs and home.holding and not home.upstream_room and room != "kitchen"
        upstream_room = room if records_room else home.upstream_room
        return replace(home, room=room, near_thing=home.holding, near_appliance=False, upstream_room=upstream_room)
