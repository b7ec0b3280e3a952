"""Environments of the hands: a batch with same-step autoreset, and a single one."""

from marl.envs.hands import HandsOptions
from marl.envs.hands.simulation import HandsSimulation
from marl.envs.mamujoco.env import SimulationEnv, SimulationVector


class HandsVector(SimulationVector):
    """`num_envs` environments of one task; see `marl.protocols.VectorEnv`."""

    def __init__(self, task: str, num_envs: int, threads: int = 1, options: HandsOptions | None = None) -> None:
        super().__init__(HandsSimulation(task, num_envs, threads, options or HandsOptions()))


class HandsEnv(SimulationEnv):
    """One environment of a task, without autoreset; see `marl.protocols.Env`."""

    def __init__(self, task: str, options: HandsOptions | None = None) -> None:
        super().__init__(HandsSimulation(task, 1, 1, options or HandsOptions()))
