"""Published scores, which reports draw as marked lines and list beside measured ones.

They stand in `published.yaml`: lists of entries by source. A score of another environment version is marked, because
it cannot be compared in size.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

PATH = Path(__file__).with_suffix(".yaml")


@dataclass(frozen=True)
class Published:
    """A published score.

    `spread`: standard deviation over seeds, or None. `approximate`: read from a figure. `version`: how the environment
    differs from this one; empty if it does not.
    """

    task: str
    agent: str
    metric: str
    value: float
    spread: float | None
    steps: int
    source: str
    table: str
    version: str
    approximate: bool


@cache
def read_published(path: Path = PATH) -> tuple[Published, ...]:
    """Return all published scores."""
    made = []
    for block in yaml.safe_load(path.read_text(encoding="utf-8")):
        shared: dict[str, Any] = {name: value for name, value in block.items() if name != "scores"}
        for task, entry in block["scores"].items():
            for agent, score in entry["agents"].items():
                value, spread = score if isinstance(score, list) else (score, None)
                made.append(
                    Published(
                        task=task,
                        agent=agent,
                        metric=shared["metric"],
                        value=float(value),
                        spread=None if spread is None else float(spread),
                        steps=int(entry["steps"]),
                        source=shared["source"],
                        table=shared["table"],
                        version=shared.get("version", ""),
                        approximate=bool(shared.get("approximate", False)),
                    )
                )
    return tuple(made)


def find_published(task: str, agent: str, metric: str) -> tuple[Published, ...]:
    """Return the published scores of an agent on a task."""
    return tuple(each for each in read_published() if (each.task, each.agent, each.metric) == (task, agent, metric))
