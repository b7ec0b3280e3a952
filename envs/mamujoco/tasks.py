"""Task names, partitions of the robots, and the upstream environments behind them."""
# pyright: reportAttributeAccessIssue=false
# (mujoco's names come from C++, so the type checker does not know them)

import contextlib
import io
import itertools
import re
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium

from marl.errors import ConfigError, UnknownNameError
from marl.registry import unknown_name_message

PARTITIONS: dict[str, tuple[str, ...]] = {
    "Ant": ("2x4", "2x4d", "4x2", "8x1"),
    "HalfCheetah": ("2x3", "3x2", "6x1"),
    "Hopper": ("3x1",),
    "Humanoid": ("9|8", "17x1"),
    "HumanoidStandup": ("9|8", "17x1"),
    "InvertedDoublePendulum": (),
    "InvertedPendulum": (),
    "Pusher": ("3p",),
    "Reacher": ("2x1",),
    "Swimmer": ("2x1",),
    "Walker2d": ("2x3", "3x2", "6x1"),
}
"""Partitions of each scenario."""

_HUMANOID = (
    "left_shoulder1|left_shoulder2|abdomen_x|abdomen_y|abdomen_z|right_shoulder1|right_shoulder2|right_elbow|"
    "left_elbow|left_hip_x|left_hip_y|left_hip_z|right_hip_x|right_hip_y|right_hip_z|right_knee|left_knee"
)

REPARTITIONS: dict[tuple[str, str], str] = {
    ("Ant", "8x1"): "hip1|ankle1|hip2|ankle2|hip3|ankle3|hip4|ankle4",
    ("HalfCheetah", "3x2"): "bfoot bshin|bthigh ffoot|fshin fthigh",
    ("Walker2d", "3x2"): "foot_joint leg_joint|thigh_joint foot_left_joint|leg_left_joint thigh_left_joint",
    ("Walker2d", "6x1"): "foot_joint|leg_joint|thigh_joint|foot_left_joint|leg_left_joint|thigh_left_joint",
    ("Humanoid", "17x1"): _HUMANOID,
    ("HumanoidStandup", "17x1"): _HUMANOID,
}
"""Partitions of the MAT and HAPPO papers that gymnasium-robotics lacks: the joints of each agent in order."""

SEGMENTED = {"ManySegmentAnt": "Ant", "ManySegmentSwimmer": "Swimmer"}
"""Robots of any length, with partition `<agents>x<segments of each>`, and the scenario whose rules they follow."""

TASKS: tuple[str, ...] = (
    *(f"{scenario}-{partition}" for scenario, names in PARTITIONS.items() for partition in names),
    *PARTITIONS,
    *("ManySegmentAnt-2x3", "ManySegmentAnt-3x2", "ManySegmentSwimmer-10x2", "ManySegmentSwimmer-6x1"),
)
"""Listed tasks. ManySegmentAnt-AxB and ManySegmentSwimmer-AxB exist for any A and B."""


@dataclass(frozen=True)
class Task:
    """A scenario, its partition (None for one agent), and the scenario whose rules it follows."""

    scenario: str
    partition: str | None
    rules: str


def parse_task(name: str) -> Task:
    """Parse a task name.

    Raises UnknownNameError with the closest tasks, ConfigError for a task that upstream cannot run.
    """
    scenario, _, partition = name.partition("-")
    if scenario == "CoupledHalfCheetah":
        raise ConfigError(
            f"task {name!r}: gymnasium-robotics runs CoupledHalfCheetah with mujoco<=3.5 only, because it reads the "
            "tendon Jacobian as a dense matrix; choose another task, such as 'HalfCheetah-6x1'"
        )
    if scenario in SEGMENTED:
        count = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", partition)
        if count is None or int(count[1]) * int(count[2]) < 2:
            raise UnknownNameError(
                f"unknown partition {partition!r} of {scenario}; give <agents>x<segments of each> with at least two "
                f"segments in all, such as '{scenario}-3x2'"
            )
        return Task(scenario, partition, SEGMENTED[scenario])
    if scenario not in PARTITIONS or (name != scenario and partition not in PARTITIONS[scenario]):
        raise UnknownNameError(unknown_name_message("task of mamujoco", name, TASKS))
    return Task(scenario, partition or None, scenario)


@contextlib.contextmanager
def _known_deprecations_ignored() -> Iterator[None]:
    """Drop MuJoCo's notice that half_cheetah.xml uses `settotalmass`, which only upstream can change.

    MuJoCo would print it and append it to MUJOCO_LOG.TXT in the working folder. Other notices become warnings.
    """
    import mujoco

    def forward(message: str) -> None:
        if "settotalmass" not in message:
            warnings.warn(message, RuntimeWarning, stacklevel=2)

    previous = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(forward)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(previous)


def _import_upstream() -> Any:
    # On import the package prints a notice about its Adroit hand tasks, which are not used here.
    with contextlib.redirect_stderr(io.StringIO()):
        from gymnasium_robotics.envs.multiagent_mujoco import mujoco_multi
    return mujoco_multi


def single_agent_env(task: Task) -> Any:
    """Return the unwrapped Gymnasium environment with the model, the constants and the reset distribution."""
    upstream = _import_upstream()
    with tempfile.TemporaryDirectory() as folder, _known_deprecations_ignored():
        options: dict[str, Any] = {}
        if task.scenario in SEGMENTED:
            generator = {
                "ManySegmentAnt": upstream.many_segment_ant,
                "ManySegmentSwimmer": upstream.many_segment_swimmer,
            }
            agents, segments = map(int, str(task.partition).split("x"))
            options["xml_file"] = str(Path(folder) / "robot.xml")
            generator[task.scenario].gen_asset(n_segs=agents * segments, asset_path=options["xml_file"])
        return gymnasium.make(f"{task.rules}-v5", disable_env_checker=True, **options).unwrapped


def default_max_steps(task: Task) -> int:
    """Return the number of steps at which Gymnasium truncates an episode of the scenario."""
    limit = gymnasium.spec(f"{task.rules}-v5").max_episode_steps
    assert limit is not None
    return limit


def factorization(task: Task) -> dict[str, Any] | None:
    """Return mamujoco_v1's `agent_factorization`: partition, graph and root of the robot; None for one agent.

    Upstream sorts an agent's observation by joint label, and three joints of Pusher share a label, so their order would
    change from process to process. Here their index is appended to the label.
    """
    if task.partition is None:
        return None
    labels = REPARTITIONS.get((task.scenario, task.partition))
    partition, edges, roots = _import_upstream().get_parts_and_edges(task.scenario, None if labels else task.partition)
    nodes = {node.label: node for part in partition for node in part}
    if labels:
        partition = [tuple(nodes[label] for label in part.split()) for part in labels.split("|")]
    uses = Counter(node.label for part in partition for node in part)
    for node in itertools.chain(*partition):
        if uses[node.label] > 1:
            node.label = f"{node.label} {node.act_ids}"
    return {"partition": partition, "edges": edges, "globals": roots}


def multi_agent_env(task: Task, agent_obsk: int | None, single: Any) -> Any:
    """Return `mamujoco_v1.parallel_env` of the task around `single`. It defines observations and actions."""
    return _import_upstream().parallel_env(
        task.scenario, task.partition, agent_obsk, agent_factorization=factorization(task), gym_env=single
    )
