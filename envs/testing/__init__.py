"""The conformance suite: does an environment keep the promises of `marl.protocols` and of its own `EnvSpec`?

`check_env` is for one environment, `check_vector_env` for a batch of them. Both return what they checked,
one line each, and raise EnvironmentContractError at the first broken promise. The message starts with the
number of the broken promise (see `Promise`), and says where, which entry, its value and what was expected.
"""

from marl.envs.testing.contract import Promise
from marl.envs.testing.env import check_env
from marl.envs.testing.vector import check_vector_env

__all__ = ["Promise", "check_env", "check_vector_env"]
