"""Data parallelism under torchrun; every function is a plain no-op in a single process."""

import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from marl.errors import ConfigError


def start(device: str) -> torch.device:
    """Join the process group that torchrun announced, gloo on CPU and nccl on GPU; returns this rank's device."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device is {device!r} but this torch sees no GPU; use --device cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"device is {device!r}; give auto, cpu, cuda or cuda:NUMBER") from error
    if "WORLD_SIZE" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        return chosen
    if chosen.type == "cuda":
        chosen = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(chosen)
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
        # The other ranks wait while rank 0 evaluates.
        dist.init_process_group(backend, timeout=timedelta(hours=2))
    return chosen


def wait_for_all() -> None:
    """Return once every rank got here: no rank may leave the group while another still talks to it."""
    if dist.is_initialized():
        dist.barrier()


def stop() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def all_reduce(x: Tensor) -> Tensor:
    """The sum of `x` over ranks, in place."""
    if dist.is_initialized():
        dist.all_reduce(x)
    return x


def local_world_size() -> int:
    """The ranks on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if dist.is_initialized() else 1


def any_rank(flag: bool, device: torch.device) -> bool:
    """True on every rank where it is True on one: the common decision to stop."""
    if not dist.is_initialized():
        return flag
    return bool(all_reduce(torch.tensor(float(flag), device=device)) > 0)


def broadcast_module(module: nn.Module) -> None:
    """Give every rank the parameters and buffers of rank 0."""
    if dist.is_initialized():
        for tensor in module.state_dict().values():
            dist.broadcast(tensor, src=0)


def sum_gradients(parameters: list[nn.Parameter], numbers: Tensor) -> Tensor:
    """Add up the gradients of all ranks, and `numbers` (K,), in one message; returns the sum of the numbers.

    A parameter that has no gradient on any rank keeps none.
    """
    if not dist.is_initialized():
        return numbers
    gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
    given = torch.tensor([float(p.grad is not None) for p in parameters], device=gradients[0].device)
    flat = all_reduce(torch.cat([*(gradient.flatten() for gradient in gradients), given, numbers]))
    *parts, given, numbers = flat.split([*(p.numel() for p in parameters), len(parameters), len(numbers)])
    for parameter, part, ranks in zip(parameters, parts, given.tolist(), strict=True):
        parameter.grad = part.view_as(parameter) if ranks else None
    return numbers


def gather(value: Any) -> list[Any]:
    """Every rank's value, in the order of ranks, on every rank."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
