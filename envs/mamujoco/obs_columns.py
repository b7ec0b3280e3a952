"""Columns of the feature table that each agent observes, found by probing mamujoco_v1."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from marl.envs.mamujoco.scenarios import Features, Scenario
from marl.errors import EnvironmentContractError


class Scene(Protocol):
    """Features of a model: arrays of MjData, and numbers derived from them."""

    def sources(self, data: Any) -> Features:
        """Return flat views of the arrays of one MjData, by name."""
        ...

    def derived(self, features: Features) -> list[np.ndarray]:
        """Return derived features of E environments, each (E, size)."""
        ...


class FeatureTable:
    """Features of E environments. `values` (E, F) float64: sources, derived features, and a last column of zeros.

    `features` holds a view of each source by name.
    """

    def __init__(self, scene: Scene, data: Any, num_envs: int) -> None:
        self.scene = scene
        sources = scene.sources(data)
        ends = np.cumsum([view.size for view in sources.values()]).tolist()
        self._spans = dict(zip(sources, map(slice, [0, *ends], ends), strict=False))
        width = sum(
            block.shape[1] for block in scene.derived({name: np.zeros((1, v.size)) for name, v in sources.items()})
        )
        self.values = np.zeros((num_envs, ends[-1] + width + 1))
        self.raw = self.values[:, : ends[-1]]
        self.features = self.views(self.raw)
        self._derived = self.values[:, ends[-1] : -1]

    def views(self, raw: np.ndarray) -> Features:
        """Return a view of each source in rows (E, W) of the table."""
        return {name: raw[:, span] for name, span in self._spans.items()}

    def derive(self) -> None:
        """Update the derived features from the sources."""
        blocks = self.scene.derived(self.features)
        if blocks:
            np.concatenate(blocks, axis=1, out=self._derived)


@dataclass(frozen=True)
class Layout:
    """Columns of the feature table and of the joint action.

    `observation` (N * D,) and `state` (S,) are columns of the table; padding is its last column, which is zero.
    `control` (actuators,) are columns of the joint action (N * A,). `mask` (N, A) is False at padding.
    """

    agents: tuple[str, ...]
    observation: np.ndarray
    observation_sizes: tuple[int, ...]
    state: np.ndarray
    control: np.ndarray
    mask: np.ndarray
    action_sizes: tuple[int, ...]


def find_layout(scenario: Scenario, upstream: Any) -> Layout:
    """Fill one MjData with distinct numbers and find them in the observations of `upstream`.

    The first fill is within every clipping range, the second outside. A column that agrees in both is the same feature.
    Raises EnvironmentContractError if upstream shows a number that is not a feature of the scenario.
    """
    data = scenario.base.data
    table = FeatureTable(scenario, data, 2)
    generator = np.random.default_rng(0)
    seen: list[dict[str, np.ndarray]] = []
    for row, (low, high) in enumerate(((0.1, 0.5), (20.0, 100.0))):
        views = list(scenario.sources(data).values())
        for view in views:
            view[:] = generator.uniform(low, high, view.size) * generator.choice((-1, 1), view.size)
        np.concatenate(views, out=table.raw[row])
        seen.append(upstream._get_obs() | {"state": upstream.state()})
    table.derive()
    columns = {name: _columns(name, np.stack([shot[name] for shot in seen]), table.values) for name in seen[0]}
    state = columns.pop("state")
    sizes = tuple(map(len, columns.values()))
    observation = np.full((len(columns), max(sizes)), table.values.shape[1] - 1)
    for row, found in zip(observation, columns.values(), strict=True):
        row[: len(found)] = found
    return Layout(tuple(columns), observation.reshape(-1), sizes, state, *_controls(upstream))


def _columns(name: str, seen: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Return (D,): the column of `table` (2, F) that equals each number of `seen` (2, D) in both rows."""
    same = (seen[:, :, None] == table[:, None, :]).all(axis=0)
    unknown = np.flatnonzero(~same.any(axis=1)).tolist()
    if unknown:
        raise EnvironmentContractError(
            f"entries {unknown} of mamujoco_v1's {name} are not known features; this version of gymnasium-robotics is "
            "newer than the adapter: install an older one (1.4 is known to work)"
        )
    return same.argmax(axis=1)


def _controls(upstream: Any) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    """Return `control`, `mask` and `action_sizes` of the layout, found by mapping numbered actions."""
    sizes = tuple(int(upstream.action_space(agent).shape[0]) for agent in upstream.possible_agents)
    mask = np.arange(max(sizes)) < np.array(sizes)[:, None]
    numbers = np.arange(mask.size).reshape(mask.shape)
    actions = {agent: row[:size] for agent, row, size in zip(upstream.possible_agents, numbers, sizes, strict=True)}
    return upstream.map_local_actions_to_global_action(actions).astype(np.int64), mask, sizes
