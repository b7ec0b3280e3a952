"""Vector environments: E environments stepped together, in this process or over worker processes.

`SyncVector` and `ProcessVector` run the same code over the same arrays (`marl.vector.shard.Shard`), so they return the
same bits.
"""

from typing import Any

from marl.errors import ConfigError
from marl.protocols import VectorEnv
from marl.registry import EnvFactory, find_env
from marl.vector.process import ProcessVector
from marl.vector.sync import SyncVector

__all__ = ["ProcessVector", "SyncVector", "make_vector"]


def make_vector(
    name: str,
    options: dict[str, Any],
    num_envs: int,
    workers: int = 0,
    threads: int = 1,
    *,
    restart: bool = False,
    seed: int = 0,
) -> VectorEnv:
    """Return E environments of a registered name, in `workers` processes, or in this process if `workers` is 0.

    An environment that is batched by nature is its own vector with `threads` threads in this process. `seed` seeds the
    global random generators of the workers. Raises ConfigError for an option that has no effect here.
    """
    if num_envs < 1:
        raise ConfigError(f"num_envs={num_envs} holds no environment; give 1 or more")
    if not 0 <= workers <= num_envs:
        raise ConfigError(f"workers={workers} cannot share num_envs={num_envs} environments; give 0 to {num_envs}")
    if threads < 1:
        raise ConfigError(f"threads={threads} cannot run; give 1 or more")
    if restart and workers == 0:
        raise ConfigError("restart=True restarts lost worker processes, and workers=0 has none; set workers")
    entry, task = find_env(name)
    if entry.make_vector is not None and workers == 0:
        return entry.make_vector(task, num_envs, threads, **options)
    if threads > 1:
        reason = "workers run one thread each" if workers else "it is not batched by nature"
        raise ConfigError(f"{name}: threads={threads} has no effect, {reason}; set threads=1")
    env_fns = [EnvFactory(name, options)] * num_envs
    if workers == 0:
        return SyncVector(env_fns, name)
    return ProcessVector(env_fns, workers, restart, name, seed=seed)
