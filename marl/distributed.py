"""Data parallelizm under torchrun; every function is a plain no-op in a single process."""

import ctypes
import mmap
import os
import shlex
import signal
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from marl.errors import ConfigError, RankError

TIMEOUT = timedelta(hours=2)
"""How long a rank waits for the others: rank 0 evaluates alone."""
SLOT = 1 << 20
"""Bytes of a rank's part of shared memory; a larger message goes in pieces."""

_shared: "SharedMemoryAllReduce | None" = None


def start(device: str) -> torch.device:
    """Join the process group that torchrun announced; returns this rank's device.

    Ranks talk through nccl on GPUs, on CPUs through gloo, and through shared memory where all are on one machine.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device is {device!r} but this torch sees no GPU; use --device cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"device is {device!r:.60}; give auto, cpu, cuda or cuda:NUMBER") from error
    if chosen.type not in ("cpu", "cuda"):
        raise ConfigError(f"device is {device!r}; give auto, cpu, cuda or cuda:NUMBER")
    count = torch.cuda.device_count()
    if chosen.type == "cuda" and (chosen.index or 0) >= count:
        raise ConfigError(f"device is {device!r}, and there are {count} GPUs; give a smaller number")
    if "WORLD_SIZE" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        return chosen
    if chosen.type == "cuda":
        chosen = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(chosen)
    end_with_launcher()
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=TIMEOUT)
        if local_world_size() == world_size() and sys.platform == "linux":
            global _shared
            _shared = SharedMemoryAllReduce.join()
    return chosen


PR_SET_PDEATHSIG = 1
"""From linux/prctl.h: the signal that a process gets when its parent ends."""


def end_with_launcher() -> None:
    """Ask Linux for a SIGTERM when torchrun ends, however it ends: this rank then saves and stops.

    Call it before the process group is made. A launcher that ended even before is noticed there, for it keeps the
    store in which ranks meet. Other launchers may end before their ranks on purpose, and are left alone.
    """
    if sys.platform != "linux" or "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    launcher = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != launcher:
        raise RankError("torchrun ended while its ranks started; start it again")


@contextmanager
def comm_errors() -> Iterator[None]:
    """Raises RankError where another rank is not there to talk to."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        where = "its own message says why, or the system's log where it was killed"
        raise RankError(f"another rank has left the run; {where}") from error


def barrier() -> None:
    """Return once every rank got here: no rank may leave the group while another still talks to it."""
    if dist.is_initialized():
        with comm_errors():
            dist.barrier()


def stop() -> None:
    global _shared
    if _shared is not None:
        _shared.close()
        _shared = None
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def all_reduce(x: Tensor) -> Tensor:
    """The sum over ranks of contiguous `x`, in place and outside autograd. Raises RankError where a rank has left."""
    if _shared is not None and x.device.type == "cpu":
        _shared.sum(x)
    elif dist.is_initialized():
        with comm_errors():
            dist.all_reduce(x)
    return x


class SharedMemoryAllReduce:
    """Sums over the ranks of one machine through memory that they share.

    A gradient of 84 000 numbers takes a tenth of a millisecond on two ranks, and milliseconds through gloo's sockets.
    Each rank reads the slots of all, so this is for few.

    Each rank writes its slot and meets the others at rank 0, then adds all slots in the same order. Two sets of slots
    take turns: a rank comes back to a set only after a meeting that all others reach when they have read it.
    """

    def __init__(self, memory: int, peers: list[socket.socket]) -> None:
        """`memory`: descriptor of the slots. `peers`: every other rank on rank 0, and rank 0 on the others."""
        self.peers, self.rank, self.turn = peers, rank(), 0
        for peer in peers:
            peer.settimeout(TIMEOUT.total_seconds())
        shape = (2, world_size(), SLOT)
        self.slots = torch.frombuffer(mmap.mmap(memory, 2 * world_size() * SLOT), dtype=torch.uint8).view(shape)
        os.close(memory)

    @classmethod
    def join(cls) -> "SharedMemoryAllReduce":
        """Called by all ranks at once. The memory has no name: nothing is left behind, however a rank ends."""
        with socket.socket(socket.AF_UNIX) as door:
            if rank() == 0:
                door.bind("")  # an address of the kernel's choice, in no folder
                door.listen(world_size())
            (address, *_) = gather(door.getsockname())
            if rank():
                peer = socket.socket(socket.AF_UNIX)
                peer.connect(address)
                return cls(socket.recv_fds(peer, 1, 1)[1][0], [peer])
            memory = os.memfd_create("marl-ranks")
            os.ftruncate(memory, 2 * world_size() * SLOT)
            peers: list[socket.socket] = []
            while len(peers) < world_size() - 1:
                peer, _ = door.accept()
                # Anyone on the machine may knock at such an address.
                if peer_uid(peer) == os.getuid():
                    socket.send_fds(peer, [b"+"], [memory])
                    peers.append(peer)
        return cls(memory, peers)

    def sum(self, x: Tensor) -> None:
        """Adds up contiguous `x` of all ranks in place. Raises RankError as `meet`."""
        for part in x.view(-1).split(SLOT // x.element_size()):
            slots = self.slots[self.turn, :, : part.numel() * x.element_size()].view(x.dtype)
            slots[self.rank] = part
            self.barrier()
            torch.sum(slots, 0, out=part)
            self.turn = 1 - self.turn

    def barrier(self) -> None:
        """Return once every rank is here. Raises RankError where one has left, or does not come."""
        with comm_errors():
            if self.rank:
                self.peers[0].send(b"+")
            if not all(peer.recv(1) for peer in self.peers):
                raise ConnectionError("a rank closed its socket")
            if not self.rank:
                for peer in self.peers:
                    peer.send(b"+")

    def close(self) -> None:
        """Leave; the others then get a RankError if they still add up."""
        for peer in self.peers:
            peer.close()


def peer_uid(peer: socket.socket) -> int:
    """The user whose process is at the other end."""
    _, user, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return user


def local_world_size() -> int:
    """The ranks on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if dist.is_initialized() else 1


def resume_command(folder: Path, ranks: int | None = None) -> str:
    """What a user types to go on with a run on so many ranks of this machine, by default as many as now."""
    ranks = ranks or world_size()
    start = f"torchrun --nproc-per-node {ranks} -m marl.experiments.cli" if ranks > 1 else "marl"
    return f"{start} resume {shlex.quote(str(folder))}"


def any_rank(flag: bool, device: torch.device) -> bool:
    """True on every rank where it is True on one: the common decision to stop."""
    if not dist.is_initialized():
        return flag
    return bool(all_reduce(torch.tensor(float(flag), device=device)) > 0)


def broadcast_module(module: nn.Module) -> None:
    """Give every rank the parameters and buffers of rank 0."""
    if dist.is_initialized():
        with comm_errors():
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
    with comm_errors():
        dist.all_gather_object(values, value)
    return values
