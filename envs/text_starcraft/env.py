"""Environments: a batch of games with same-step autoreset, and one game."""

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from gymnasium import spaces

from marl.envs.compiling import must_compile
from marl.envs.text import words_of
from marl.envs.text_starcraft import TextStarcraftOptions
from marl.envs.text_starcraft.data.names import ACTIONS, LEVELS, NUM_ACTIONS, NUM_SHOWN
from marl.envs.text_starcraft.data.rules import REASONS
from marl.envs.text_starcraft.engine import simulator
from marl.envs.text_starcraft.engine.observation import LABEL_TEXTS, PLANNED_UNITS, information
from marl.envs.text_starcraft.engine.scenarios import SCENARIOS
from marl.envs.text_starcraft.engine.state import (
    CHOICE,
    FAILURES,
    GAME,
    KILLED,
    LEVEL,
    LIMITS,
    LOOP,
    LOST,
    MAX_STEPS,
    OUTCOME,
    RANDOM,
    RUNNING,
    SCENARIO,
    SCORE,
    STEPS,
    TEXT_BYTES,
    new_games,
    new_views,
    random_stream,
)
from marl.envs.text_starcraft.metrics import metrics
from marl.envs.text_starcraft.parsing import UNKNOWN, choice_line, parse_actions, result_line, unknown_action
from marl.envs.text_starcraft.roles import ROLE_LINES, TEAM, other_role, role_masks
from marl.envs.text_starcraft.summaries import KEPT_FRAMES, Summarizer
from marl.errors import CheckpointError, ConfigError, EnvironmentContractError
from marl.protocols import State
from marl.types import EnvSpec, Final, Obs, Step, VectorStep

MAX_PROMPT, MAX_ACTION = TEXT_BYTES + 4_000, 4_000
"""Characters that the spaces declare."""
SCENARIO_FRAMES = 10
SUCCESS_SCORE = 0.9
"""Score at which a scenario counts as a success."""
_NUM_NUMBERS = 1 + NUM_SHOWN + 60
_SCALE = np.concatenate(
    [[1 / 600, 1 / 50, 1 / 1000, 1 / 1000, 1 / 20, 1 / 100, 1 / 100, 1 / 50], np.full(NUM_SHOWN - 7, 0.1)]
)
_SCALE[1 + PLANNED_UNITS :] = 0.01
NUMBER_SCALE = np.concatenate([_SCALE, np.full(60, 0.1)]).astype(np.float32)


class Games:
    """State, views, observations, checks of actions and infos of E games. Episodes begin only with `begin`."""

    def __init__(self, task: str, num_envs: int, threads: int, options: TextStarcraftOptions) -> None:
        if num_envs < 1 or num_envs != int(num_envs):
            raise ConfigError(f"text-starcraft/{task}: num_envs={num_envs}; give a whole number of 1 or more")
        if threads < 1:
            raise ConfigError(f"text-starcraft/{task}: threads={threads}; give 1 or more")
        if must_compile(simulator.advance):
            print("text-starcraft: compiling the simulator, once, in up to a minute ...", file=sys.stderr, flush=True)
        self.scenario, self.options = SCENARIOS[task], options
        self.frames = options.window(SCENARIO_FRAMES if self.scenario.number else 1)
        self.reads_text = options.observation == "text"
        self.summarizer = None
        if options.summary == "model":
            self.summarizer = Summarizer(options.summary_model, options.summary_tokens, self.frames)
        self._texts = 0 if not self.reads_text else 1 if self.frames == 1 or self.summarizer else 2
        self.lists_candidates = self.reads_text and options.candidates
        self.choices = options.actions if self.lists_candidates else 1
        self.agents = TEAM if options.two_agents else ("protoss",)
        self.role_masks = role_masks(self.agents)
        self.games, self.views = new_games(num_envs), new_views(num_envs)
        core = self.games.core
        core[:, SCENARIO], core[:, LEVEL] = self.scenario.number, self.scenario.level
        core[:, LIMITS] = options.building_limits
        core[:, MAX_STEPS] = options.max_steps or self.scenario.max_steps
        self.spec = self._spec(task)
        self._actions = np.full((num_envs, options.actions // self.choices, len(self.agents)), -1)
        kept = min(KEPT_FRAMES, self.frames) if self.summarizer else 0
        self._kept = np.zeros((num_envs, kept, TEXT_BYTES if kept else 0), np.uint8)
        self._kept_lengths = np.zeros((num_envs, kept), np.int64)
        self._heads = [""] * num_envs
        self._unknown: list[list[str]] = [[] for _ in range(num_envs)]
        self._results: dict[tuple[int, int, int], str] = {}
        self._candidates: dict[bytes, tuple[tuple[str, ...], ...]] = {}
        self._alive = np.ones((num_envs, len(self.agents)), bool)
        parts = np.array_split(np.arange(num_envs), min(threads, num_envs))
        self._parts = [slice(int(part[0]), int(part[-1]) + 1) for part in parts]
        self._pool = ThreadPoolExecutor(len(self._parts)) if len(self._parts) > 1 else None
        for index in range(num_envs):
            self.seed(index, None)

    def _spec(self, task: str) -> EnvSpec:
        name, steps = f"text-starcraft/{task}", int(self.games.core[0, MAX_STEPS])
        if not self.reads_text:
            box = spaces.Box(-np.inf, np.inf, (_NUM_NUMBERS,), np.float32)
            types = self.agents if self.options.two_agents else ()
            return EnvSpec(name, self.agents, box, spaces.Discrete(NUM_ACTIONS), steps, agent_types=types)
        return EnvSpec(
            name=name,
            agents=self.agents,
            agent_types=self.agents if self.options.two_agents else (),
            observation_space=spaces.Text(MAX_PROMPT, charset=PRINTABLE),
            action_space=spaces.Text(MAX_ACTION, charset=PRINTABLE),
            max_steps=steps,
            words=words_of(
                *ACTIONS,
                *LABEL_TEXTS,
                *REASONS,
                unknown_action("TRAIN PROBES"),
                result_line(0, 0),
                UNKNOWN,
                *(scenario.goal for scenario in SCENARIOS.values()),
                *(TEAM_WORDS if self.options.two_agents else ()),
                *(CHOICE_WORDS if self.choices > 1 else ()),
                "Goal: Decisions: <>0123456789.",
            ),
        )

    def seed(self, index: int, seed: int | None) -> None:
        """Seed one game's random stream. None takes fresh entropy."""
        self.games.core[index, RANDOM] = random_stream(seed)

    def begin(self, indices: Sequence[int] | np.ndarray) -> None:
        """Begin an episode in each of the games."""
        simulator.restart(self.games, self.views, np.asarray(indices, np.int64), self._texts)
        for index in indices:
            self._unknown[index] = []
        self._read_heads(indices, summaries=False)

    def advance(self, action: np.ndarray) -> int:
        """Play one decision (E, N) of every game. Return the number of ended episodes. Raises EnvironmentContractError
        for actions of another kind."""
        self._read(action)
        ended = self._advance(self._parts[0]) if self._pool is None else sum(self._pool.map(self._advance, self._parts))
        if self.reads_text:
            core = self.games.core
            self._read_heads(np.flatnonzero((core[:, CHOICE] == 0) | (core[:, RUNNING] == 0)), summaries=True)
        return ended

    def _advance(self, part: slice) -> int:
        return simulator.advance(
            self.games[part],
            self.views[part],
            self._kept[part],
            self._kept_lengths[part],
            self._actions[part],
            self.frames,
            self.choices,
            float(self.options.reward_win),
            self._texts,
        )

    def _read_heads(self, indices: Sequence[int] | np.ndarray, summaries: bool) -> None:
        """Keep what prompts begin with until the next window: a frame, and what changed or a model's summary."""
        if not self.reads_text:
            return
        for index in indices:
            view = self.views[index]
            self._heads[index] = view.text[: view.length].tobytes().decode("ascii")
        if self.summarizer is not None and summaries and len(indices):
            texts = self.summarizer.summarize([self._window(int(index)) for index in indices])
            for index, text in zip(indices, texts, strict=True):
                self._heads[index] += text

    def _window(self, index: int) -> list[str]:
        """Return the frames that were kept of the present window, in order."""
        rows = zip(self._kept[index], self._kept_lengths[index], strict=True)
        frames = [text[:length].tobytes().decode("ascii") for text, length in rows if length]
        return frames or [self._heads[index]]

    def _read(self, action: np.ndarray) -> None:
        """Fill `_actions` (E, L, N) with ids."""
        name, count = self.spec.name, len(self.games)
        if action.shape != self._alive.shape:
            raise EnvironmentContractError(f"{name}: the action's shape is {action.shape}; give {self._alive.shape}")
        if not self.games.core[:, RUNNING].all():
            raise RuntimeError(f"{name}: step without a running episode; call reset first")
        if not self.reads_text:
            if action.dtype.kind not in "iu" or not ((action >= 0) & (action < NUM_ACTIONS)).all():
                raise EnvironmentContractError(
                    f"{name}: action {action.ravel().tolist()} is out of range; give whole numbers from 0 to "
                    f"{NUM_ACTIONS - 1}"
                )
            self._actions[:, 0] = action
            self._refuse_roles()
            return
        for text in action.flat:
            if not isinstance(text, str):
                raise EnvironmentContractError(f"{name}: action {text!r:.100} is no text; give a string")
        self._actions[:] = -1
        for index in range(count):
            if self.games.core[index, CHOICE] == 0:
                self._unknown[index] = []
            for agent, text in enumerate(action[index]):
                ids, unknown = parse_actions(text, self._actions.shape[1])
                self._actions[index, : len(ids), agent] = ids
                self._unknown[index] += [self._signed(agent, line) for line in unknown]
                self.games.core[index, FAILURES] += len(unknown)
        self._refuse_roles()

    def _refuse_roles(self) -> None:
        """Take out of `_actions` those that belong to the other agent of a team, as failures with a reason."""
        if len(self.agents) == 1:
            return
        allowed = np.take_along_axis(self.role_masks.T[None], np.maximum(self._actions, 0), axis=1)
        for index, place, agent in np.argwhere((allowed == 0) & (self._actions >= 0)).tolist():
            action = int(self._actions[index, place, agent])
            self._actions[index, place, agent] = -1
            self.games.core[index, FAILURES] += 1
            line = f"Action failed: {ACTIONS[action]}, Reason: {other_role(action)}\n"
            self._unknown[index].append(self._signed(agent, line))

    def _signed(self, agent: int, line: str) -> str:
        """Return a line about an action, in a team with the agent's name before it."""
        return line if len(self.agents) == 1 else f"{self.agents[agent]}: {line}"

    def obs(self, index: int | None = None) -> Obs:
        """The observation of one game, or of all with a leading axis E. Arrays are copies."""
        chosen = range(len(self.games)) if index is None else (index,)
        if not self.reads_text:
            rows = np.repeat(self._numbers(chosen)[:, None], len(self.agents), axis=1)
            mask = (self.views.mask[list(chosen)][:, None] & self.role_masks).view(bool)
            return Obs(rows[0], self._alive[0], mask[0]) if index is not None else Obs(rows, self._alive, mask)
        prompts = tuple(self.prompts(each) for each in chosen)
        candidates = tuple(self._list(each) for each in chosen) if self.lists_candidates else None
        if index is None:
            return Obs(prompts, self._alive, candidates=candidates)
        return Obs(prompts[0], self._alive[0], candidates=candidates and candidates[0])

    def prompts(self, index: int) -> tuple[str, ...]:
        """Return the prompt of each agent: `prompt`, in a team with the agent's role at its end."""
        text = self.prompt(index)
        return tuple(text + ROLE_LINES[agent] if agent in ROLE_LINES else text for agent in self.agents)

    def prompt(self, index: int) -> str:
        """Return the frame at the start of the window, its summary, and what became of the actions since."""
        text = self._heads[index]
        for action, reason, agent in self.games.results[index].tolist():
            if action >= 0:
                text += self._result(action, reason, agent)
        text += "".join(self._unknown[index])
        choice = int(self.games.core[index, CHOICE])
        return text + choice_line(choice + 1, self.choices) if choice else text

    def _result(self, action: int, reason: int, agent: int) -> str:
        line = self._results.get((action, reason, agent))
        if line is None:
            line = self._results[action, reason, agent] = self._signed(agent, result_line(action, reason))
        return line

    def _list(self, index: int) -> tuple[tuple[str, ...], ...]:
        key = self.views.mask[index].tobytes()
        row = self._candidates.get(key)
        if row is None:
            if len(self._candidates) > 10_000:
                self._candidates.clear()
            masks = (self.views.mask[index] & self.role_masks).tolist()
            row = tuple(tuple(ACTIONS[action] for action, given in enumerate(mask) if given) for mask in masks)
            self._candidates[key] = row
        return row

    def _numbers(self, chosen: Sequence[int]) -> np.ndarray:
        """Time, what is shown and the enemies of games (K, D) float32, scaled to about 1."""
        rows = slice(None) if len(chosen) == len(self.games) else list(chosen)
        seconds = self.games.core[rows, LOOP, None] / 22.4
        enemies = self.views.enemies[rows].reshape(len(chosen), -1)
        return np.concatenate([seconds, self.views.shown[rows], enemies], axis=1, dtype=np.float32) * NUMBER_SCALE

    def information(self, index: int) -> dict[str, Any]:
        """The observation dictionary of the original; see `engine.observation.information`."""
        return information(self.games[index], self.views[index])

    def infos(self, indices: Sequence[int] | np.ndarray) -> tuple[dict[str, float], ...]:
        """Metrics of episodes that have just ended."""
        return tuple(self._info(int(index)) for index in indices)

    def _info(self, index: int) -> dict[str, float]:
        core, totals = self.games.core[index], self.games.totals[index]
        full = self.scenario.number == 0
        success = core[OUTCOME] == simulator.WON if full else totals[SCORE] >= SUCCESS_SCORE
        info = {"success": float(success), "lost": float(core[OUTCOME] == simulator.LOST_GAME)}
        if not full:
            info["score"] = float(totals[SCORE])
        return (
            info
            | metrics(totals)
            | {
                "game_seconds": float(core[LOOP] / 22.4),
                "failed_actions": float(core[FAILURES]),
                "killed_value": float(totals[KILLED]),
                "lost_value": float(totals[LOST]),
            }
        )

    def render(self, index: int) -> str:
        """Return one game as text."""
        if not self.games.core[index, STEPS] and not self.games.core[index, RUNNING]:
            return f"{self.spec.name}: no episode has begun"
        level = LEVELS[self.scenario.level - 1]
        head = f"{self.spec.name}, level {self.scenario.level} ({level}), step {self.games.core[index, STEPS]}"
        return f"{head}\nGoal: {self.scenario.goal}\n{self.prompt(index)}" if self.reads_text else head

    def get_state(self, index: int) -> State:
        """Return a copy of one game's state."""
        fields: dict[str, Any] = {name: self.games[name][index].copy() for name in GAME.names or ()}
        texts = {"head": self._heads[index], "unknown": list(self._unknown[index])}
        kept = {"kept": self._kept[index].copy(), "kept_lengths": self._kept_lengths[index].copy()}
        return {"task": self.spec.name, **texts, **kept, **fields}

    def set_state(self, index: int, state: State) -> None:
        """Raises CheckpointError for a state of another task or version."""
        for name in GAME.names or ():
            given, kept = np.asarray(state.get(name)), np.asarray(state.get("kept"))
            same = given.shape == self.games[name][index].shape and kept.shape == self._kept[index].shape
            if state.get("task") != self.spec.name or not same:
                raise CheckpointError(
                    f"{self.spec.name}: the state was saved in {state.get('task')} or by another version; begin a new "
                    "episode"
                )
        for name in GAME.names or ():
            self.games[name][index] = state[name]
        self._kept[index], self._kept_lengths[index] = state["kept"], state["kept_lengths"]
        self._heads[index], self._unknown[index] = state["head"], list(state["unknown"])
        simulator.refresh(self.games, self.views, np.array([index]), self._texts)

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()


TEAM_WORDS = (*ROLE_LINES.values(), *(f"{agent}: " for agent in TEAM), *map(other_role, range(NUM_ACTIONS)))
CHOICE_WORDS = (choice_line(0, 0),)
PRINTABLE = "".join(map(chr, range(32, 127))) + "\n\t\r\x0b\x0c"


class TextStarcraftVector:
    """`num_envs` games of one task; see `marl.protocols.VectorEnv`."""

    def __init__(self, task: str, num_envs: int, threads: int = 1, options: TextStarcraftOptions | None = None) -> None:
        self.games = Games(task, num_envs, threads, options or TextStarcraftOptions())

    @property
    def spec(self) -> EnvSpec:
        """Specification of the task."""
        return self.games.spec

    @property
    def num_envs(self) -> int:
        """Number of games E."""
        return len(self.games.games)

    def reset(self, seeds: Sequence[int]) -> Obs:
        """Begin an episode in every game, with one seed each."""
        self._check_count("seeds", seeds)
        for index, seed in enumerate(seeds):
            self.games.seed(index, seed)
        self.games.begin(np.arange(self.num_envs))
        return self.games.obs()

    def reset_at(self, index: int, seed: int | None = None) -> Obs:
        """Begin an episode in one game. Raises ConfigError for an index out of range."""
        if not 0 <= index < self.num_envs:
            raise ConfigError(f"{self.spec.name}: index={index} is out of range; give 0 to {self.num_envs - 1}")
        if seed is not None:
            self.games.seed(index, seed)
        self.games.begin([index])
        return self.games.obs()

    def step(self, action: np.ndarray) -> VectorStep:
        """Play one decision of every game, and restart ended episodes."""
        games = self.games
        count = games.advance(np.asarray(action))
        views = games.views
        reward = np.repeat(views.reward.astype(np.float32)[:, None], len(games.agents), axis=1)
        terminated, truncated = views.terminated.astype(bool), views.truncated.astype(bool)
        duration, final = views.duration.copy(), None
        if count:
            ended = (terminated | truncated).nonzero()[0]
            final = Final(ended, _stack([games.obs(int(index)) for index in ended]), games.infos(ended))
            games.begin(ended)
        return VectorStep(games.obs(), reward, terminated, truncated, final, duration=duration)

    def render(self, index: int = 0) -> str:
        """Return one game as text."""
        return self.games.render(index)

    def get_state(self) -> list[State | None]:
        """Return the state of every game."""
        return [self.games.get_state(index) for index in range(self.num_envs)]

    def set_state(self, states: Sequence[State]) -> Obs:
        """Restore the state of every game. Return the observations."""
        self._check_count("states", states)
        for index, state in enumerate(states):
            self.games.set_state(index, state)
        return self.games.obs()

    def close(self) -> None:
        """End the threads."""
        self.games.close()

    def _check_count(self, what: str, given: Sequence[object]) -> None:
        if len(given) != self.num_envs:
            raise ConfigError(f"{self.spec.name}: {len(given)} {what} for {self.num_envs} environments; give one each")


class TextStarcraftEnv:
    """One game, a batch of one that waits for `reset`; see `marl.protocols.Env`."""

    def __init__(self, task: str, options: TextStarcraftOptions | None = None) -> None:
        self.games = Games(task, 1, 1, options or TextStarcraftOptions())

    @property
    def spec(self) -> EnvSpec:
        """Specification of the task."""
        return self.games.spec

    def reset(self, seed: int | None = None) -> Obs:
        """Begin an episode."""
        if seed is not None:
            self.games.seed(0, seed)
        self.games.begin([0])
        return self.games.obs(0)

    def step(self, action: np.ndarray) -> Step:
        """Play one decision."""
        ended, view = self.games.advance(np.asarray(action)[None]), self.games.views[0]
        info = self.games.infos([0])[0] if ended else {}
        reward = np.full(len(self.games.agents), view.reward, np.float32)
        return Step(self.games.obs(0), reward, bool(view.terminated), bool(view.truncated), info, int(view.duration))

    def information(self) -> dict[str, Any]:
        """The observation dictionary of the original."""
        return self.games.information(0)

    def render(self) -> str:
        """Return the game as text."""
        return self.games.render(0)

    def get_state(self) -> State | None:
        """Return a copy of the state."""
        return self.games.get_state(0)

    def set_state(self, state: State) -> Obs:
        """Restore a state. Return the observation."""
        self.games.set_state(0, state)
        return self.games.obs(0)

    def close(self) -> None:
        """End the game."""
        self.games.close()


def _stack(rows: Sequence[Obs]) -> Obs:
    """Observations of single games, with a leading axis."""
    alive = np.stack([row.alive for row in rows])
    masks = [row.action_mask for row in rows if row.action_mask is not None]
    if masks:
        return Obs(np.stack([row.agents for row in rows]), alive, np.stack(masks))
    candidates = None if rows[0].candidates is None else tuple(row.candidates for row in rows)
    return Obs(tuple(row.agents for row in rows), alive, candidates=candidates)
