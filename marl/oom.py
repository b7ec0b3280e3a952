"""Smaller forward passes after running out of memory."""

import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from marl.errors import MemoryLimitError

LOGGER = logging.getLogger("marl")
Result = TypeVar("Result")


class MicroBatchBackoff:
    """Divisor of the rows of a forward pass. `reduction` doubles each time the memory runs out.

    `advice` is the end of the warning: the option that sets smaller passes.
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
        """Return `work(split(reduction))`, repeated as a whole with smaller passes after running out of memory.

        `size` counts the rows of a pass. Raises MemoryLimitError if `least` rows, the smallest pass, do not fit.
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
                    f"a forward pass of {rows} does not fit in memory ({reason}); use a smaller model or shorter "
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
    """Return True for the out-of-memory error of a GPU or the CPU."""
    return isinstance(error, torch.cuda.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)
