"""What does not fit in memory is halved, with a message."""

import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from marl.errors import MemoryLimitError

LOGGER = logging.getLogger("marl")
Result = TypeVar("Result")


class MicroBatchBackoff:
    """How much smaller forward passes are than they were asked to be: `divisor`, which doubles where memory runs out.

    `advice`: how a user begins with smaller ones.
    """

    def __init__(self, advice: str) -> None:
        self.advice = advice
        self.reduction = 1

    def run(
        self,
        split: Callable[[int], Sequence[Any]],
        size: Callable[[Any], int],
        work: Callable[[Sequence[Any]], Result],
        least: int = 1,
    ) -> Result:
        """`work(split(divisor))`, all of it again with smaller passes where memory runs out. `size` counts rows.

        Raises MemoryLimitError where `least` rows, which cannot be parted, are too much.
        """
        while True:
            passes = split(self.reduction)
            try:
                return work(passes)
            except (RuntimeError, MemoryError) as error:
                if not ran_out_of_memory(error):
                    raise
                reason = str(error).partition("\n")[0]
            # Outside the handler, whose traceback keeps the tensors of the failed pass alive.
            largest = max(map(size, passes))
            if largest <= least:
                rows = "one row" if largest == 1 else f"{largest} rows"
                raise MemoryLimitError(
                    f"a forward pass of {rows} does not fit in memory ({reason}); take a smaller model, or shorter "
                    "observations"
                )
            while max(map(size, split(self.reduction))) >= largest:
                self.reduction *= 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            LOGGER.warning(
                "out of memory in a forward pass of up to %d rows (%s); from now on they are smaller. %s",
                largest,
                reason,
                self.advice,
            )


def ran_out_of_memory(error: Any) -> bool:
    """Whether an allocator, of a GPU or of the CPU, refused."""
    return isinstance(error, torch.cuda.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)
