"""Conformance suite of environments: the promises of `marl.protocols` and of the environment's own `EnvSpec`.

`check_env` checks one environment, `check_vector_env` a batch. Both return one line for each check and raise
EnvironmentContractError at the first broken promise. The message starts with the number of the promise (see
`Promise`), then names the place, the entry, its value and the expected value.
"""

from marl.envs.testing.contract import Promise
from marl.envs.testing.env import check_env
from marl.envs.testing.vector import check_vector_env

__all__ = ["Promise", "check_env", "check_vector_env"]
