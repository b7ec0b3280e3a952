"""Text environments from plain functions.

A game is three functions over its own state, which may be any object:

    start(random) -> state                      start an episode
    prompt(state) -> text                       text that the agent reads
    play(state, action, random) -> TextStep     result of the agent's text

If actions can be listed, `candidates(state) -> texts` lists them; without it any text is an action. `random` is the
environment's own numpy generator. With several agents, `prompt`, `candidates` and `action` have one entry for each.
"""

import re
import string
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from gymnasium import spaces

from marl.envs.tools import Tool, Toolbox, shortened
from marl.errors import ConfigError, EnvironmentContractError
from marl.messages import Message, messages_text, parse_messages, plain_text, to_messages
from marl.protocols import State
from marl.types import EnvSpec, Obs, Step

NOOP = "wait"
"""The only candidate of a dead agent, and of every agent after the episode."""
MAX_PROMPT_LENGTH, MAX_ACTION_LENGTH = 20_000, 2_000
"""Number of characters that the spaces allow."""

Invalid = Literal["error", "ignore"]


@dataclass(frozen=True)
class TextStep:
    """Result of an action.

    `state`: next state. `reward`: of the team, or one for each of N agents. `ended`: the episode terminates, with or
    without `success`. `duration`: primitive steps that a macro action took.
    """

    state: Any
    reward: float | Sequence[float] = 0.0
    ended: bool = False
    success: bool = False
    duration: int = 1


class TextEnv:
    """Text environment made of the functions of a game.

    `tools`: functions that a single agent can call, listed under the prompt. An action that calls one, such as
    `add(2, 3)`, takes a step, is answered under the next prompt, and does not reach `play`. Calls and answers take at
    most `notes_length` characters of a prompt: long ones are cut and older ones left out. Limits: `marl.envs.tools`.
    `alive`: function of the state that returns N booleans (default: all True).
    `max_steps`: primitive steps after which an episode is truncated.
    `words`: texts that contain the words of the game, for models with a word vocabulary.
    `characters`: characters beyond ASCII that prompts and candidates use.
    `conversation`: the agent's context grows over the episode. `prompt(state)` is then what is new since the agent's
    last action: a text, or messages with the roles system, user and tool (`marl.messages`). An observation is their
    JSON. Answers of tools are tool messages.

    `invalid`: effect of a living agent's action that is blank or not among its candidates. "error" raises ValueError.
    "ignore" takes a step without effect for all agents and counts it in `info["invalid"]`. Default: "error" with
    candidates, "ignore" for free text, which a model may leave empty.

    `info` at the end of an episode: `success`; `discounted_return`, with `gamma` per primitive step, mean over agents;
    `normalized_return`, its ratio to `optimum` if that is given.

    The saved state of an episode is its actions. `set_state` plays them again, tool calls included.
    """

    def __init__(
        self,
        name: str,
        start: Callable[[np.random.Generator], Any],
        prompt: Callable[[Any], Any],
        play: Callable[[Any, Any, np.random.Generator], TextStep],
        candidates: Callable[[Any], Any] | None = None,
        *,
        tools: Sequence[Tool] = (),
        notes_length: int = 500,
        agents: Sequence[str] = ("agent",),
        alive: Callable[[Any], Sequence[bool]] | None = None,
        max_steps: int | None = None,
        team_reward: bool = True,
        gamma: float = 1.0,
        optimum: float | None = None,
        words: Iterable[str] = (),
        characters: str = "",
        invalid: Invalid | None = None,
        conversation: bool = False,
    ) -> None:
        if tools and len(agents) > 1:
            raise ConfigError(f"{name}: tools are for one agent, and there are {len(agents)}; answer calls in `play`")
        if notes_length < 40:
            raise ConfigError(
                f"{name}: notes_length={notes_length}, too short for a call and its answer; give 40 or more"
            )
        charset = frozenset(string.printable + characters)
        self._start, self._prompt, self._play, self._candidates = start, prompt, play, candidates
        self._alive = alive
        self.toolbox, self.notes_length, self._charset = Toolbox(tools), notes_length, charset
        self.gamma, self.optimum = gamma, optimum
        self.invalid: Invalid = invalid or ("ignore" if candidates is None else "error")
        self.spec = EnvSpec(
            name=name,
            agents=tuple(agents),
            observation_space=spaces.Text(MAX_PROMPT_LENGTH, charset=charset),
            action_space=spaces.Text(MAX_ACTION_LENGTH, charset=charset),
            max_steps=max_steps,
            team_reward=team_reward,
            words=words_of(*words, NOOP, self.toolbox.manual()),
            conversation=conversation,
        )
        self._random = np.random.default_rng()
        self._actions: list[list[str]] | None = None
        self.state: Any = None
        self.over = True

    def reset(self, seed: int | None = None) -> Obs:
        """Start an episode. A seed restarts the random stream."""
        if seed is not None:
            self._random = np.random.default_rng(seed)
        self._began = self._random.bit_generator.state
        self._actions = []
        self.state = self._start(self._random)
        self.notes: list[str] = []
        self._read = 0
        self.elapsed, self.ignored, self.discounted = 0, 0, 0.0
        self.over = self._ended = False
        self._obs = self._observe()
        return self._obs

    def step(self, action: Any) -> Step:
        """Act with N strings.

        Raises RuntimeError without a running episode, ValueError for an invalid action unless these are ignored.
        """
        if self.over or self._actions is None:
            raise RuntimeError(f"{self.spec.name}: step without a running episode; call reset first")
        texts = self._checked(action)
        self._actions.append([str(text) for text in action])
        result = self._advance(texts)
        reward = np.full(self.spec.num_agents, result.reward, np.float32)
        self.discounted += self.gamma**self.elapsed * float(np.mean(result.reward))
        self.state = result.state
        self.elapsed += result.duration
        self._ended = result.ended
        truncated = not result.ended and self.spec.max_steps is not None and self.elapsed >= self.spec.max_steps
        self.over = result.ended or truncated
        info = self._summary(result.success) if self.over else {}
        self._obs = self._observe()
        return Step(self._obs, reward, result.ended, truncated, info, result.duration)

    def _advance(self, texts: list[str] | None) -> TextStep:
        """Return the result of the actions of N agents, or of a step without effect for None."""
        if texts is None:
            self.ignored += 1
            return TextStep(self.state)
        call = shortened(texts[0].strip(), self.notes_length // 2) + " -> "
        answer = self.toolbox.call(texts[0], self.notes_length - len(call))
        if answer is not None:
            self.notes.append(self._note(call + answer))
            return TextStep(self.state)
        return self.play(texts[0] if self.spec.num_agents == 1 else tuple(texts))

    def play(self, action: Any) -> TextStep:
        """Return the result of a valid action: a string, or N strings of a team."""
        return self._play(self.state, action, self._random)

    def _checked(self, action: Any) -> list[str] | None:
        """Return N strings, empty for dead agents, or None to ignore the action. Raises ValueError if it is invalid."""
        name, count = self.spec.name, self.spec.num_agents
        if isinstance(action, str) or len(action) != count or not all(isinstance(text, str) for text in action):
            raise ValueError(f"{name}: action is {action!r:.200}; give {count} strings, one for each agent")
        obs = self._obs
        for agent in np.flatnonzero(obs.alive):
            text = action[agent]
            allowed = None if obs.candidates is None else obs.candidates[agent]
            if text in allowed if allowed is not None else text.strip():
                continue
            if self.invalid == "ignore":
                return None
            wanted = "a text" if allowed is None else f"one of {list(allowed)}"
            raise ValueError(
                f"{name}: agent {agent} cannot take the action {text!r:.200}; give {wanted}, or set "
                "invalid='ignore' to take a step without effect"
            )
        return [text if living else "" for text, living in zip(action, obs.alive, strict=True)]

    def _summary(self, success: bool) -> dict[str, float]:
        info = {"success": float(success), "discounted_return": self.discounted}
        if self.optimum:
            info["normalized_return"] = self.discounted / self.optimum
        if self.invalid == "ignore":
            info["invalid"] = float(self.ignored)
        return info

    def _observe(self) -> Obs:
        count = self.spec.num_agents
        alive = np.ones(count, dtype=bool) if self._alive is None else np.array(self._alive(self.state), dtype=bool)
        prompt = self._prompt(self.state)
        if self.spec.conversation:
            rows = [prompt] if count == 1 else list(prompt)
            prompts = tuple(messages_text(messages) for messages in self._new_messages(rows))
            return Obs(agents=prompts, alive=alive, candidates=self._choices(alive))
        if not are_texts([prompt] if count == 1 else prompt):
            wanted = "a text" if count == 1 else f"{count} texts"
            raise EnvironmentContractError(f"{self.spec.name}: the prompt is {prompt!r:.200}; return {wanted}")
        prompts = (self._with_tools(prompt),) if count == 1 else tuple(prompt)
        return Obs(agents=prompts, alive=alive, candidates=self._choices(alive))

    def _new_messages(self, rows: list[Any]) -> list[tuple[Message, ...]]:
        """Return the new messages of each agent. A tool's answer stands alone, as its prompt has been read."""
        count, self._read = self._read, len(self.notes)
        if len(self.notes) > count:
            return [(Message("tool", self.notes[-1].split(" -> ", 1)[-1]),)]
        if len(rows) != self.spec.num_agents or isinstance(rows, str):
            raise EnvironmentContractError(
                f"{self.spec.name}: the prompt has {len(rows)} entries; return one for each of the "
                f"{self.spec.num_agents} agents"
            )
        messages = [to_messages(row) for row in rows]
        if self.toolbox.tools and not self._actions:
            messages[0] = (Message("system", self.toolbox.manual()), *messages[0])
        return messages

    def _note(self, text: str) -> str:
        """Return a call and its answer for the prompt. Characters outside the charset become escape sequences."""
        spelt = (c if c in self._charset else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
        return shortened("".join(spelt), self.notes_length)

    def _with_tools(self, prompt: str) -> str:
        if not self.toolbox.tools:
            return prompt
        first, room = len(self.notes), self.notes_length
        while first and room >= len(self.notes[first - 1]):
            first -= 1
            room -= len(self.notes[first])
        left_out = [f"(earlier calls: {first})"] if first else []
        return "\n".join([prompt, self.toolbox.manual(), *left_out, *self.notes[first:]])

    def _choices(self, alive: np.ndarray) -> tuple[tuple[str, ...], ...] | None:
        if self._candidates is None:
            return None
        if self._ended:
            return ((NOOP,),) * self.spec.num_agents
        given = self._candidates(self.state)
        rows: list[Any] = [given] if self.spec.num_agents == 1 else given
        rows = [row if isinstance(row, str) else tuple(row) for row in rows]
        for agent in np.flatnonzero(alive):
            row = rows[agent]
            if not row or not are_texts(row) or len(set(row)) < len(row):
                raise EnvironmentContractError(
                    f"{self.spec.name}: agent {agent} has the candidates {row!r:.200}; return a list of distinct texts"
                )
        return tuple(row if living else (NOOP,) for row, living in zip(rows, alive, strict=True))

    def render(self) -> str:
        """Return prompts and candidates."""
        if self._actions is None:
            return f"{self.spec.name}: no episode has started"
        obs = self._obs
        lines = [f"{self.spec.name}, step {self.elapsed} of {self.spec.max_steps or 'any number'}"]
        for agent, name in enumerate(self.spec.agents):
            label = f"{name}: " if self.spec.num_agents > 1 else ""
            text = plain_text(parse_messages(obs.agents[agent])) if self.spec.conversation else obs.agents[agent]
            lines.append(f"{label}{text if obs.alive[agent] else 'is not there any more'}")
            if obs.candidates is not None and not self.over:
                lines += [f"  - {text}" for text in obs.candidates[agent]]
        return "\n".join(lines)

    def get_state(self) -> State:
        """Return the random stream at the start of the episode and the actions since."""
        if self._actions is None:
            raise RuntimeError(f"{self.spec.name}: get_state before the first reset; call reset first")
        return {"random": self._began, "actions": [list(texts) for texts in self._actions]}

    def set_state(self, state: State) -> Obs:
        """Continue from `get_state`: play its actions again."""
        self._random.bit_generator.state = state["random"]
        obs = self.reset()
        for action in state["actions"]:
            obs = self.step(action).obs
        return obs

    def close(self) -> None:
        """Do nothing: there are no resources."""


def are_texts(row: Any) -> bool:
    """Return True for a collection of strings, False for a single string."""
    return not isinstance(row, str) and all(isinstance(text, str) for text in row)


def words_of(*texts: str) -> tuple[str, ...]:
    """Return the distinct words, digits and punctuation marks of texts, sorted."""
    return tuple(sorted({piece for text in texts for piece in re.findall(r"[^\W\d_]+|\d|[^\w\s]|_", text)}))
