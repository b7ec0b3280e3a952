"""Overcooked for one cook, in text and macro actions: chop salads, put them in a bowl, and serve them.

Grid, primitive dynamics, macro actions and rewards follow TWOSOME (Tan et al., "True Knowledge Comes from Practice",
ICLR 2024) and POAD (Wen et al., "Reinforcing Language Agents via Policy Optimization with Action Decomposition",
NeurIPS 2024). The texts are our own. A macro action takes a number of primitive steps (`Step.duration`). Its reward is
the sum of their rewards, each discounted by 0.99 per step.
"""

from dataclasses import dataclass

from numpy.random import Generator

from marl.envs.overcooked.kitchen import BOWL, Kitchen, Rules
from marl.envs.overcooked.layouts import DISHES, Dish
from marl.envs.overcooked.macros import GAMMA, Cook
from marl.envs.overcooked.text_rendering import TextRenderer
from marl.envs.text import Invalid, TextEnv, TextStep
from marl.errors import ConfigError, UnknownNameError
from marl.registry import register_env, unknown_name_message


@dataclass(frozen=True)
class OvercookedOptions:
    """Options of Overcooked."""

    max_steps: int = 200
    """Primitive steps after which an episode is truncated."""
    reproduce_upstream_bugs: bool = False
    """Reproduce three bugs of the published code: wasted food rewards chopping again, a macro action continues after
    the time limit, and chopping is offered where it has no effect."""
    invalid: Invalid = "error"
    """Effect of an action that is not offered: an error, or a step without effect."""


class Overcooked(TextEnv):
    """Text environment of one dish; see `OvercookedOptions`. Its state is a `Kitchen`."""

    def __init__(
        self, dish: Dish, max_steps: int = 200, reproduce_upstream_bugs: bool = False, invalid: Invalid = "error"
    ) -> None:
        if max_steps < 1:
            raise ConfigError(f"overcooked: max_steps={max_steps}; give 1 or more")
        rules = Rules(dish, repay_chop=reproduce_upstream_bugs)
        self.cook, self.renderer = Cook(rules), TextRenderer(rules, offer_useless_chop=reproduce_upstream_bugs)
        self.reproduce_upstream_bugs = reproduce_upstream_bugs
        super().__init__(
            f"overcooked/{dish.task}",
            lambda _: rules.start(),
            self.renderer.prompt,
            self._cook,
            lambda kitchen: [self.renderer.label(kitchen, macro) for macro in self.cook.macros],
            max_steps=max_steps,
            gamma=GAMMA,
            optimum=dish.optimum,
            words=self.renderer.words,
            invalid=invalid,
        )

    def _cook(self, kitchen: Kitchen, action: str, _: Generator) -> TextStep:
        macro = next(macro for macro in self.cook.macros if self.renderer.label(kitchen, macro) == action)
        assert self.spec.max_steps is not None
        limit = None if self.reproduce_upstream_bugs else self.spec.max_steps - self.elapsed
        outcome = self.cook.perform(kitchen, macro, limit)
        return TextStep(outcome.kitchen, outcome.reward, outcome.served, outcome.served, outcome.duration)

    def render(self) -> str:
        """Return prompt, candidates and a map of the kitchen."""
        text = super().render()
        return text if self.state is None else f"{text}\n\n{draw_map(self.renderer.rules, self.state)}"


def draw_map(rules: Rules, kitchen: Kitchen) -> str:
    """Return a map of the kitchen: C cook, B board, D delivery, # counter, o bowl, foods by their first letter."""
    layout = rules.layout
    rows = [["#"] * layout.size for _ in range(layout.size)]
    marks = [*((cell, ".") for cell in rules.floor), *((cell, "B") for cell in layout.boards), (layout.delivery, "D")]
    marks += [(thing.cell, "o" if thing.name == BOWL else thing.name[0]) for thing in kitchen.things]
    for (row, column), mark in [*marks, (kitchen.cook, "C")]:
        rows[row][column] = mark
    return "\n".join(" ".join(row) for row in rows)


@register_env(
    "overcooked", tasks=tuple(DISHES), options=OvercookedOptions, summary="a cook in text and macro actions, one agent"
)
def make(
    task: str, max_steps: int = 200, reproduce_upstream_bugs: bool = False, invalid: Invalid = "error"
) -> Overcooked:
    """Return the environment of a dish. Raises UnknownNameError for an unknown one."""
    if task not in DISHES:
        raise UnknownNameError(unknown_name_message("task of overcooked", task, DISHES))
    return Overcooked(DISHES[task], max_steps, reproduce_upstream_bugs, invalid)
