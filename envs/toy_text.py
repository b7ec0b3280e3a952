"""Tiny text games with known optima, for tests, examples and debugging of language agents.

`env.optimum` is the best expected discounted return, with `env.gamma` per step.

| task | steps | tests |
|---|---|---|
| chain | length | delayed reward after long actions, against a small reward for stopping at once |
| wording | 1 | one choice between a long and a short action |
| mdp | unlimited | a random Markov decision process with known tables |
| bake | up to 5 | the first word of an action decides, the others are forced |
| chores | length | a team whose members must take distinct actions |
| free_text | 1 | free text: repeat some words |
| guess | turns | a conversation: a number is guessed in turns, so an agent must know what it said before |
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.random import Generator

from marl.envs.text import Invalid, TextEnv, TextStep
from marl.envs.toy import make_game, option_names
from marl.errors import ConfigError
from marl.registry import register_env


@dataclass(frozen=True)
class TextOptions:
    """Options of the toy text games. None is the default of the task. A task refuses an option that it lacks."""

    agents: int | None = None
    """Number of agents (chores)."""
    length: int | None = None
    """Steps of an episode (chain, chores), words to repeat (free_text)."""
    verbosity: int | None = None
    """Words of an action (chain)."""
    consolation: float | None = None
    """Reward of stopping in the first room; 0 removes that action (chain)."""
    long: int | None = None
    """Words of the action that earns 1 (wording)."""
    short: int | None = None
    """Words of the action that earns `inferior` (wording)."""
    inferior: float | None = None
    """Reward of the lesser action (wording)."""
    numbers: int | None = None
    """Numbers among which one is secret (guess)."""
    turns: int | None = None
    """Guesses of an episode (guess)."""
    states: int | None = None
    """Number of places (mdp)."""
    actions: int | None = None
    """Number of actions (mdp)."""
    table: int | None = None
    """Seed of the tables of transitions and rewards (mdp)."""
    named: bool | None = None
    """Put the agent's name into its prompt, so that agents with a shared policy can differ (chores)."""
    leaves: bool | None = None
    """Remove the last agent after the first round (chores)."""
    discount: float | None = None
    """Discount per step in the summary and the optimum (chain, wording, mdp, bake)."""
    invalid: Invalid | None = None
    """Effect of an action that is not offered: error, or a step without effect (default: error; free_text: ignore)."""


@dataclass(frozen=True)
class Progress:
    """Number of rooms passed, and of wrong doors."""

    room: int = 0
    mistakes: int = 0


def chain(
    length: int = 4, verbosity: int = 6, consolation: float = 0.4, discount: float = 0.95, invalid: Invalid = "error"
) -> TextEnv:
    """Return the game of rooms with a red and a blue door. A sign names the right one.

    The last room ends the episode and rewards the share of right doors. In the first room the agent may also stop for
    `consolation`. With a discount per step, walking is worth discount^(length - 1), and half of that by chance. With a
    discount per word, it is worth discount^(length * verbosity - 1), which at the defaults is less than stopping.
    """
    colors = ("red", "blue")
    _between("chain", "length", length, 1, 9)
    tail = "door then close it behind you and listen for steps on the stairs"
    doors = {color: _first_words("chain", "verbosity", f"{color} {tail}", verbosity) for color in colors}

    def right(state: Progress) -> str:
        return colors[(state.room + 1) % 2]

    def prompt(state: Progress) -> str:
        if state.room == length:
            return f"You are out. Mistakes: {state.mistakes}."
        return f"Room {state.room + 1} of {length}. The sign says {right(state)}. Mistakes: {state.mistakes}."

    def candidates(state: Progress) -> list[str]:
        return [*doors.values(), *(["stop"] if state.room == 0 and consolation else [])]

    def play(state: Progress, action: str, _: Generator) -> TextStep:
        if action == "stop":
            return TextStep(replace(state, room=length), consolation, ended=True)
        after = Progress(state.room + 1, state.mistakes + (action != doors[right(state)]))
        ended = after.room == length
        return TextStep(after, ended * (1 - after.mistakes / length), ended, ended and not after.mistakes)

    return TextEnv(
        "text/chain",
        lambda _: Progress(),
        prompt,
        play,
        candidates,
        max_steps=length,
        gamma=discount,
        optimum=max(consolation, discount ** (length - 1)),
        words=["You are out. Room of. The sign says. Mistakes: stop 0123456789", *doors.values()],
        invalid=invalid,
    )


def wording(
    long: int = 3, short: int = 1, inferior: float = 0.95, discount: float = 0.95, invalid: Invalid = "error"
) -> TextEnv:
    """Return the game of two actions: walking earns 1, jumping `inferior`.

    `long` and `short` set their numbers of words. A discount per word values walking at discount^(long - 1) and may so
    reverse the choice; a discount per step does not.
    """
    walk = _first_words("wording", "long", "walk slowly around the green hill until you reach the well", long)
    jump = _first_words("wording", "short", "jump quickly over the deep ditch until you reach the well", short)
    rewards = {walk: 1.0, jump: inferior}
    optimum = max(rewards.values())

    def play(_: str, action: str, __: Generator) -> TextStep:
        return TextStep("You are at the well.", rewards[action], ended=True, success=rewards[action] == optimum)

    return TextEnv(
        "text/wording",
        lambda _: "Two ways lead to the well.",
        lambda state: state,
        play,
        lambda _: rewards,
        max_steps=1,
        gamma=discount,
        optimum=optimum,
        words=["Two ways lead to the well. You are at", *rewards],
        invalid=invalid,
    )


class TextMdp(TextEnv):
    """A random Markov decision process with S states and A actions.

    `transition` (S, A, S); the missing probability ends the episode. `reward` (S, A). `start` (S,). `prompts` (S,) and
    `actions` (A,) are the texts. No action is a prefix of another; some share a prefix.
    """

    places = ("lake", "hill", "wood", "farm", "mill", "cave", "road", "gate")
    phrases = ("look", "go north", "go south by boat", "go south on foot", "rest")
    ending = 0.25

    def __init__(
        self, states: int = 4, actions: int = 4, table: int = 0, discount: float = 0.9, invalid: Invalid = "error"
    ) -> None:
        _between("mdp", "states", states, 1, len(self.places))
        _between("mdp", "actions", actions, 1, len(self.phrases))
        random = np.random.default_rng(table)
        self.transition = (1 - self.ending) * random.dirichlet(np.full(states, 0.5), size=(states, actions))
        self.reward = random.uniform(size=(states, actions))
        self.start = random.dirichlet(np.ones(states))
        self.prompts = tuple(f"You are at the {place}." for place in self.places[:states])
        self.actions = self.phrases[:actions]
        value = np.zeros(states)
        for _ in range(500):
            value = (self.reward + discount * self.transition @ value).max(axis=1)
        super().__init__(
            "text/mdp",
            lambda random: int(random.choice(states, p=self.start)),
            lambda state: self.prompts[state],
            self._move,
            lambda _: self.actions,
            gamma=discount,
            optimum=float(self.start @ value),
            words=[*self.prompts, *self.actions],
            invalid=invalid,
        )

    def _move(self, state: int, action: str, random: Generator) -> TextStep:
        choice = self.actions.index(action)
        chances = np.append(self.transition[state, choice], self.ending)
        following = int(random.choice(len(chances), p=chances / chances.sum()))
        ended = following == len(self.prompts)
        return TextStep(state if ended else following, float(self.reward[state, choice]), ended)


@dataclass(frozen=True)
class Oven:
    """State of the oven and the bread, and the number of steps."""

    opened: bool = False
    inside: bool = False
    steps: int = 0


def bake(discount: float = 0.95, invalid: Invalid = "error") -> TextEnv:
    """Return the game of baking: open the oven, put the bread in, and close it, within five steps or lose 1.

    If there is a choice, the first word makes it: "open" or "close"; the other words are the same.
    """
    limit = 5
    both = ("open the oven door", "close the oven door")
    prompts = {
        (False, False): "The oven is closed. The bread is in your hand.",
        (True, False): "The oven is open. The bread is in your hand.",
        (True, True): "The oven is open. The bread is in the oven.",
        (False, True): "The oven is closed. The bread is in the oven.",
    }

    def candidates(state: Oven) -> tuple[str, ...]:
        return ("put the bread in the oven",) if state.opened and not state.inside else both

    def play(state: Oven, action: str, _: Generator) -> TextStep:
        after = Oven(action != both[1], state.inside or action.startswith("put"), state.steps + 1)
        success = after.inside and not after.opened
        late = after.steps == limit and not success
        return TextStep(after, float(success) - float(late), success or late, success)

    return TextEnv(
        "text/bake",
        lambda _: Oven(),
        lambda state: prompts[state.opened, state.inside],
        play,
        candidates,
        max_steps=limit,
        gamma=discount,
        optimum=discount**2,
        words=[*prompts.values(), *both, "put the bread in the oven"],
        invalid=invalid,
    )


@dataclass(frozen=True)
class Rounds:
    """Number of rounds played and won."""

    played: int = 0
    won: int = 0


PEOPLE = ("Ada", "Bo", "Cy", "Dee")
CHORES = ("chop the wood", "fetch the water", "feed the hens", "sweep the yard")


def chores(
    agents: int = 2, length: int = 1, named: bool = True, leaves: bool = False, invalid: Invalid = "error"
) -> TextEnv:
    """Return the game of N agents and N chores. A round in which all chores are distinct earns 1/length.

    Unnamed agents that share a policy and do not see each other's choice win a round with probability n!/n^n at most.
    """
    _between("chores", "agents", agents, 2, len(PEOPLE))
    _between("chores", "length", length, 1, 9)
    people, work = PEOPLE[:agents], CHORES[:agents]

    def present(rounds: Rounds) -> int:
        return agents - (leaves and rounds.played > 0)

    def prompt(rounds: Rounds) -> tuple[str, ...]:
        if rounds.played == length:
            return ("The day is over.",) * agents
        text = f"Round {rounds.played + 1} of {length}. {present(rounds)} are here, each for another chore."
        return tuple(f"You are {name}. {text}" if named else text for name in people)

    def play(rounds: Rounds, action: tuple[str, ...], _: Generator) -> TextStep:
        done = action[: present(rounds)]
        won = len(set(done)) == len(done)
        after = Rounds(rounds.played + 1, rounds.won + won)
        return TextStep(after, won / length, after.played == length, after.won == length)

    return TextEnv(
        "text/chores",
        lambda _: Rounds(),
        prompt,
        play,
        lambda _: (work,) * agents,
        agents=people,
        alive=lambda rounds: [agent < present(rounds) for agent in range(agents)],
        max_steps=length,
        optimum=1.0,
        words=["You are. Round of. are here, each for another chore. The day is over. 0123456789", *people, *work],
        invalid=invalid,
    )


def free_text(length: int = 2, invalid: Invalid = "ignore") -> TextEnv:
    """Return the game of repeating `length` words. Reward: words in their place / words of the longer text."""
    known = ("apple", "bell", "cloud", "drum", "ember", "frost", "grape", "horn")
    _between("free_text", "length", length, 1, len(known))

    def play(wanted: str, action: str, _: Generator) -> TextStep:
        said, asked = action.split(), wanted.split()
        right = sum(one == other for one, other in zip(said, asked, strict=False))
        return TextStep(wanted, right / max(len(said), len(asked)), ended=True, success=said == asked)

    return TextEnv(
        "text/free_text",
        lambda random: " ".join(random.choice(known, size=length)),
        lambda wanted: f"Say: {wanted}",
        play,
        max_steps=1,
        optimum=1.0,
        words=["Say:", *known],
        invalid=invalid,
    )


NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def guess(numbers: int = 10, turns: int = 10, invalid: Invalid = "error") -> TextEnv:
    """Return the conversation in which one of `numbers` is secret, and every guess is answered "wrong" or ends it.

    The right guess earns 1. Guessing without repetition finds it with probability min(1, turns / numbers). An agent
    without memory reads the same message after every wrong guess. Its best policy takes one number first, and then one
    of the other n - 1 uniformly: 1/n + (1 - 1/n) (1 - (1 - 1/(n - 1))^(turns - 1)), .69 at the defaults.
    """
    _between("guess", "numbers", numbers, 2, len(NUMBERS))
    _between("guess", "turns", turns, 1, 99)
    known = NUMBERS[:numbers]

    def prompt(state: tuple[str, int]) -> Any:
        if not state[1]:
            return [{"role": "system", "content": "Guess the number."}, {"role": "user", "content": "Your guess?"}]
        return "Wrong."

    def play(state: tuple[str, int], action: str, _: Generator) -> TextStep:
        found = action == state[0]
        return TextStep((state[0], state[1] + 1), float(found), found or state[1] + 1 == turns, found)

    return TextEnv(
        "text/guess",
        lambda random: (str(random.choice(known)), 0),
        prompt,
        play,
        lambda _: known,
        max_steps=turns,
        optimum=min(1.0, turns / numbers),
        words=["Guess the number. Your guess? Wrong. system: user: tool:", *known],
        invalid=invalid,
        conversation=True,
    )


GAMES: dict[str, Callable[..., TextEnv]] = {
    "chain": chain,
    "wording": wording,
    "mdp": TextMdp,
    "bake": bake,
    "chores": chores,
    "free_text": free_text,
    "guess": guess,
}

TASKS = tuple(GAMES)


@register_env(
    "text",
    tasks=TASKS,
    options=TextOptions,
    reads=partial(option_names, GAMES),
    summary="tiny games of text with known optima",
)
def make(task: str, **options: Any) -> TextEnv:
    """Return the game `task`. An option of None keeps the default of the task."""
    return make_game("text", GAMES, task, options)


def _between(task: str, option: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise ConfigError(f"text/{task}: {option}={value}; give {least} to {most}")


def _first_words(task: str, option: str, text: str, count: int) -> str:
    words = text.split()
    _between(task, option, count, 1, len(words))
    return " ".join(words[:count])
