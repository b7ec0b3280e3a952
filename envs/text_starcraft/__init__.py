"""Text StarCraft: Protoss against a Zerg opponent of ten levels, in words, on an embedded macro simulator.

The interface (observation, single-frame text, 72 actions, cadence, metrics) is that of TextStarCraft II (Ma et al.,
"Large Language Models Play StarCraft II: Benchmarks and A Chain of Summarization Approach", NeurIPS 2024).
`FIDELITY.md` lists what the simulator models, what it leaves out, and which faults of the original are mended.

Tasks: `pvz-1` to `pvz-10` are full games; `opening`, `defend`, `expand` and `tech` are short scenarios.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from marl.errors import ConfigError, UnknownNameError
from marl.registry import register_env, unknown_name_message

if TYPE_CHECKING:
    from marl.envs.text_starcraft.env import TextStarcraftEnv, TextStarcraftVector

LEVELS = 10
TASKS = (*(f"pvz-{level}" for level in range(1, LEVELS + 1)), "opening", "defend", "expand", "tech")
MAX_ACTIONS = 10


@dataclass(frozen=True)
class TextStarcraftOptions:
    """Options of Text StarCraft. One step of the game is 4 loops, 0.18 seconds."""

    observation: Literal["text", "vector"] = "text"
    """Form of observations and actions: text, or the same numbers as a vector with 72 discrete actions and a mask."""
    frames: int | None = None
    """Steps of the game between two decisions. None: 1 in full games and 10 (1.8 seconds) in scenarios. With more than
    one, the prompt also lists the changes since the decision before."""
    actions: int = 1
    """Actions per prompt, 1 to 10, spread evenly over its frames (10 by default then). With candidates, each is a
    decision of its own. In free text, one answer names them all as `Decisions:` and lines `0: <BUILD PYLON>`."""
    summary: Literal["rule", "model"] = "rule"
    """Summary of the frames in the prompt. rule: the last frame and the changes. model: the last frame and what a
    frozen language model writes about 5 of the frames."""
    summary_model: str = "smollm2"
    """Language model that writes summaries: smollm2, a model's folder, or a .gguf file."""
    summary_tokens: int = 64
    """Largest number of tokens of a summary."""
    candidates: bool = True
    """List the actions that can be carried out now. False: free text."""
    two_agents: bool = False
    """Two agents share the base: one for the economy, one for the army. Both act in every decision, for one reward."""
    building_limits: bool = True
    """Apply the original's limits on structures by time and its conditions for pylons."""
    max_steps: int | None = None
    """Steps after which an episode is truncated. None: the task's own limit, 30 minutes in full games."""
    reward_win: float = 50.0
    """Reward of a win."""

    def __post_init__(self) -> None:
        if self.observation not in ("text", "vector"):
            raise ConfigError(f"observation={self.observation!r} does not exist; give text or vector")
        if self.summary not in ("rule", "model"):
            raise ConfigError(f"summary={self.summary!r} does not exist; give rule or model")
        most_of = {"frames": 1_000, "actions": MAX_ACTIONS, "max_steps": 1_000_000, "summary_tokens": 1_000}
        for name, most in most_of.items():
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int) and 1 <= value <= most):
                raise ConfigError(f"{name}={value!r} is out of range; give a whole number from 1 to {most}")
        if self.observation == "vector" and self.actions > 1:
            raise ConfigError(f"actions={self.actions} needs text; give observation=text or actions=1")
        if self.observation == "vector" and self.summary == "model":
            raise ConfigError(f"summary={self.summary!r} needs text; give observation=text or summary=rule")
        if self.candidates and self.actions > self.window(1):
            raise ConfigError(
                f"actions={self.actions} with candidates are as many decisions, one in each of frames={self.frames}; "
                f"give frames={self.actions} or more, or candidates=False"
            )

    def window(self, default: int) -> int:
        """Return the number of steps of a prompt. `default` is that of a single action."""
        return self.frames or (max(default, MAX_ACTIONS) if self.actions > 1 else default)


def parse_options(given: dict[str, Any]) -> TextStarcraftOptions:
    """Return the options. Raises UnknownNameError with the closest names."""
    names = [option.name for option in fields(TextStarcraftOptions)]
    for name in given:
        if name not in names:
            raise UnknownNameError(unknown_name_message("option of text-starcraft", name, names))
    return TextStarcraftOptions(**given)


def batch(task: str, num_envs: int, threads: int = 1, **options: Any) -> TextStarcraftVector:
    """Return `num_envs` games, stepped by `threads` threads. Results do not depend on `threads`."""
    check_task(task)
    from marl.envs.text_starcraft.env import TextStarcraftVector

    return TextStarcraftVector(task, num_envs, threads, parse_options(options))


def check_task(task: str) -> None:
    """Raise UnknownNameError for an unknown level, race or scenario."""
    if task not in TASKS:
        raise UnknownNameError(unknown_name_message("task of text-starcraft", task, TASKS))


def external_files(task: str, options: Mapping[str, Any]) -> list[str]:  # noqa: ARG001 - the interface of entries
    """Return the language model that writes summaries, if there is one."""
    return [f"summary_model {options['summary_model']}"] if options.get("summary") == "model" else []


@register_env(
    "text-starcraft",
    options=TextStarcraftOptions,
    make_vector=batch,
    tasks=TASKS,
    requires=("numba",),
    install="pip install 'seqmarl[smac]'",
    external=external_files,
    summary="StarCraft II in text: full Protoss games against ten levels of Zerg, and short scenarios",
)
def make(task: str, **options: Any) -> TextStarcraftEnv:
    """Return one game."""
    check_task(task)
    from marl.envs.text_starcraft.env import TextStarcraftEnv

    return TextStarcraftEnv(task, parse_options(options))
