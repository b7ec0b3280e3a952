"""Vector environment in this process."""

from collections.abc import Callable, Sequence
from typing import Any

from marl.errors import MarlError
from marl.protocols import Env
from marl.vector.base import VectorBase, require_env_fns
from marl.vector.shard import Shard
from marl.vector.shared_memory import Buffers


class SyncVector(VectorBase):
    """E environments in this process, one shard over private memory.

    `name` stands for the environment in errors (default: the name of the spec).
    """

    def __init__(self, env_fns: Sequence[Callable[[], Env]], name: str = "") -> None:
        require_env_fns(env_fns)
        self._shard = Shard(env_fns, 0, name)
        spec = self._shard.spec
        try:
            super().__init__(spec, name, [range(len(env_fns))], bytearray(Buffers.size(spec, len(env_fns))))
        except MarlError:
            self._shard.close()
            raise
        self._shard.attach(self._buffers)

    def _call(self, method: str, arguments: dict[int, tuple[Any, ...]]) -> dict[int, Any]:
        self._require_open()
        try:
            return {0: getattr(self._shard, method)(*arguments[0])}
        except MarlError:
            self.close()
            raise

    def close(self) -> None:
        """Close all environments."""
        self._closed = True
        self._shard.close()
