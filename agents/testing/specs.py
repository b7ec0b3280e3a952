"""Toy environments of every kind, as specs and random observations; nothing is simulated."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from gymnasium import spaces

from marl.types import EntityLayout, EnvSpec, Obs

AGENTS, WIDTH, ACTIONS, STATE = 3, 4, 3, 2
NAMES = tuple(f"agent_{i}" for i in range(AGENTS))
ORDINARY, TARGETS, ENEMY, ALLY = 2, 3, 3, 2
PROMPTS = ("You stand in the kitchen.", "You stand in the hall.", "The door is shut.", "It is dark.")
CANDIDATES = (("go north", "go south", "wait"), ("open the door", "wait"), ("wait",), ("go north", "wait"))


def discrete_spec() -> EnvSpec:
    """Return a spec of discrete actions, fewer for agent 1, with a state."""
    return EnvSpec(
        name="discrete",
        agents=NAMES,
        observation_space=spaces.Box(-np.inf, np.inf, (WIDTH,), np.float32),
        action_space=spaces.Discrete(ACTIONS),
        max_steps=10,
        state_space=spaces.Box(-np.inf, np.inf, (STATE,), np.float32),
    )


def continuous_spec() -> EnvSpec:
    """Return a spec of continuous actions, of which agent 1 lacks the last dimension."""
    low, high = np.array([-2.0, 0.0, -1.0], np.float32), np.array([2.0, 1.0, 1.0], np.float32)
    sizes = (ACTIONS, ACTIONS - 1, ACTIONS)
    return replace(discrete_spec(), name="continuous", action_space=spaces.Box(low, high), action_sizes=sizes)


def mixed_spec() -> EnvSpec:
    """Return a spec of a team in which agent 1 acts continuously and the others discretely."""
    team = [spaces.Discrete(ACTIONS), spaces.Box(-1.0, 1.0, (2,)), spaces.Discrete(ACTIONS)]
    return replace(discrete_spec(), name="mixed", action_space=spaces.Tuple(team), action_sizes=())


def entity_spec() -> EnvSpec:
    """Return a spec of entity observations with targeted actions."""
    blocks = (("own", 1, 2), ("enemy", TARGETS, ENEMY), ("ally", AGENTS, ALLY))
    entities = EntityLayout(blocks, TARGETS, "enemy", 1, "ally")
    return EnvSpec(
        name="entities",
        agents=NAMES,
        observation_space=spaces.Box(-np.inf, np.inf, (entities.width,), np.float32),
        action_space=spaces.Discrete(ORDINARY + TARGETS),
        max_steps=10,
        entities=entities,
    )


def text_spec() -> EnvSpec:
    """Return a spec of text observations and candidate actions."""
    words = tuple(text for texts in CANDIDATES for text in texts)
    text = spaces.Text(1000)
    return EnvSpec("text", NAMES, text, text, 10, words=(*PROMPTS, *words))


def free_text_spec() -> EnvSpec:
    """Return a spec of text observations and free text actions."""
    return replace(text_spec(), name="free text")


KINDS: dict[str, Callable[[], EnvSpec]] = {
    "discrete": discrete_spec,
    "continuous": continuous_spec,
    "mixed": mixed_spec,
    "entities": entity_spec,
    "text": text_spec,
    "free text": free_text_spec,
}
"""Kinds of environments, by the name of their spec."""


def random_obs(spec: EnvSpec, rows: int, rng: np.random.Generator, deaths: bool = True) -> Obs:
    """Return a random observation of `rows` environments. With `deaths` some agents are dead, and all in row 0."""
    shape = (rows, spec.num_agents)
    alive = rng.random(shape) < 0.7 if deaths else np.ones(shape, bool)
    if deaths:
        alive[0], alive[1] = False, [True, False, True]
    if not spec.observation_sizes:
        index = rng.integers(0, len(PROMPTS), shape)
        prompts = tuple(tuple(PROMPTS[i] for i in row) for row in index)
        candidates = tuple(tuple(CANDIDATES[i] for i in row) for row in index)
        return Obs(prompts, alive, candidates=None if spec.name == "free text" else candidates)
    agents = rng.normal(size=(*shape, spec.observation_size)).astype(np.float32)
    if spec.entities is not None:
        agents[..., 1] = rng.random(shape) < 0.4
        agents[..., 2 + ENEMY : 2 + 2 * ENEMY] *= rng.random((*shape, 1)) < 0.5
    state = rng.normal(size=(rows, STATE)).astype(np.float32) if spec.state_size else None
    return Obs(agents, alive, random_mask(spec, shape, rng), state)


def random_mask(spec: EnvSpec, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Return an action mask (E, N, A): random for discrete agents, the dimensions that exist for continuous ones."""
    mask = np.broadcast_to(
        np.arange(spec.action_size) < np.array(spec.action_sizes)[:, None], (*shape, spec.action_size)
    )
    mask = mask.copy()
    for agent, space in enumerate(spec.action_spaces):
        if isinstance(space, spaces.Discrete):
            own = rng.random((shape[0], spec.action_size)) < 0.6
            own[np.arange(shape[0]), rng.integers(0, int(space.n), shape[0])] = True
            mask[:, agent] &= own
    return mask


def change_dead(obs: Obs) -> Obs:
    """Return the observation with other numbers or texts at dead agents."""
    if isinstance(obs.agents, tuple):
        rows = zip(obs.agents, obs.alive, strict=True)
        agents = tuple(tuple(t if a else PROMPTS[-1] for t, a in zip(*row, strict=True)) for row in rows)
        return replace(obs, agents=agents)
    return replace(obs, agents=np.where(obs.alive[..., None], obs.agents, 50.0).astype(np.float32))


def overwrite(obs: Obs) -> None:
    """Write garbage into an observation's arrays, as an environment does in its next step."""
    for array in (obs.agents, obs.state):
        if isinstance(array, np.ndarray):
            array[...] = 77.0
    for array in (obs.alive, obs.action_mask):
        if array is not None:
            array[...] = ~array


def copy_obs(obs: Obs) -> Obs:
    """Return a copy of an observation."""
    parts = {name: getattr(obs, name) for name in ("agents", "alive", "action_mask", "state")}
    return replace(obs, **{name: x.copy() for name, x in parts.items() if isinstance(x, np.ndarray)})
