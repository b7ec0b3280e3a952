"""Data parallelism under torchrun. In a single process every function works without communication."""

import ctypes
import mmap
import os
import re
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
"""Longest time that a rank waits for the others. It is long because rank 0 evaluates alone."""
SLOT = 1 << 20
"""Bytes of a rank's part of the shared memory. A larger message goes in pieces."""
CONNECTION_ERROR = re.compile("connection|socket|peer|broken pipe|tim(ed|e) ?out", re.IGNORECASE)
"""Matches the message of a RuntimeError that gloo or nccl raises because another rank is gone."""

_shared: "SharedMemoryAllReduce | None" = None


def start(device: str) -> torch.device:
    """Join the process group of torchrun, if there is one, and return this rank's device.

    `device`: auto, cpu, cuda or cuda:NUMBER. GPUs communicate through nccl, CPUs through gloo, and ranks of one machine
    through shared memory. Raises ConfigError for an unusable device.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device={device!r} needs a GPU, and this torch sees none; use --device cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"device={device!r:.60} is unknown; give auto, cpu, cuda or cuda:NUMBER") from error
    if chosen.type not in ("cpu", "cuda"):
        raise ConfigError(f"device={device!r} is not supported; give auto, cpu, cuda or cuda:NUMBER")
    if chosen.type == "cpu" and chosen.index:
        raise ConfigError(f"device={device!r} has a number, and there is one CPU device; give cpu")
    count = torch.cuda.device_count()
    if chosen.type == "cuda" and (chosen.index or 0) >= count:
        raise ConfigError(f"device={device!r} does not exist; there are {count} GPUs, give a smaller number")
    if "WORLD_SIZE" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        return chosen
    if chosen.type == "cuda":
        chosen = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(chosen)
    end_with_launcher()
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=TIMEOUT, **_store_of_attempt())
        if local_world_size() == world_size() and sys.platform == "linux":
            global _shared
            _shared = SharedMemoryAllReduce.join()
    return chosen


def _store_of_attempt() -> dict[str, Any]:
    """Return arguments of `init_process_group` that keep the attempts of torchrun on one machine apart.

    torchrun keeps its store when it starts the ranks again, with the addresses of the ranks that are gone.
    """
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if attempt == "0" or os.environ.get("LOCAL_WORLD_SIZE") != os.environ["WORLD_SIZE"]:
        return {}
    store, rank, size = next(dist.rendezvous("env://", timeout=TIMEOUT))  # pyright: ignore[reportPrivateImportUsage]
    own = dist.PrefixStore(f"attempt-{attempt}", store)  # pyright: ignore[reportPrivateImportUsage]
    return {"store": own, "rank": rank, "world_size": size}


PR_SET_PDEATHSIG = 1
"""Option of prctl, from linux/prctl.h: set the signal that a process gets when its parent ends."""


def end_with_launcher() -> None:
    """Ask Linux for SIGTERM when torchrun ends, so that this rank saves and stops.

    Call it before the process group is made. If the launcher ended earlier, joining the group fails, because the
    launcher holds its store. Does nothing under other launchers, which may end before their ranks on purpose.
    """
    if sys.platform != "linux" or "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    launcher = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != launcher:
        raise RankError("torchrun ended while its ranks started; start it again")


def will_restart() -> bool:
    """Return True if torchrun starts all ranks again after an error of this one (`--max-restarts`)."""
    restarts, limit = (int(os.environ.get(f"TORCHELASTIC_{name}", "0")) for name in ("RESTART_COUNT", "MAX_RESTARTS"))
    return world_size() > 1 and restarts < limit


@contextmanager
def comm_errors() -> Iterator[None]:
    """Raise RankError if communication fails because another rank is gone. Other errors pass."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not CONNECTION_ERROR.search(str(error)):
            raise
        raise RankError(
            f"another rank has left the run ({str(error).strip().partition(chr(10))[0]}); read its own message, or the "
            "system's log if it was killed"
        ) from error


def barrier() -> None:
    """Wait for every rank. No rank may leave the group while another still communicates with it."""
    if dist.is_initialized():
        with comm_errors():
            dist.barrier()


def stop() -> None:
    """Leave the process group."""
    global _shared
    if _shared is not None:
        _shared.close()
        _shared = None
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """Return the number of this process, 0 in a single process."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes of the run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def all_reduce(x: Tensor) -> Tensor:
    """Sum contiguous `x` over ranks, in place and outside autograd. Raises RankError if a rank has left."""
    if _shared is not None and x.device.type == "cpu":
        _shared.sum(x)
    elif dist.is_initialized():
        with comm_errors():
            dist.all_reduce(x)
    return x


class SharedMemoryAllReduce:
    """Sums over the ranks of one machine through shared memory.

    A gradient of 84,000 numbers takes 0.1 ms on two ranks, and milliseconds through gloo's sockets. Each rank reads the
    slots of all ranks, so this suits few ranks.

    Each rank writes its slot, waits for the others, then adds all slots in the same order. Two sets of slots alternate:
    a rank reuses a set only after a barrier that the others reach when they have read it.
    """

    def __init__(self, memory: int, peers: list[socket.socket]) -> None:
        """Map the slots at descriptor `memory`. `peers` are all other ranks on rank 0, and rank 0 on the others."""
        self.peers, self.rank, self.parity = peers, rank(), 0
        for peer in peers:
            peer.settimeout(TIMEOUT.total_seconds())
        shape = (2, world_size(), SLOT)
        self.slots = torch.frombuffer(mmap.mmap(memory, 2 * world_size() * SLOT), dtype=torch.uint8).view(shape)
        os.close(memory)

    @classmethod
    def join(cls) -> "SharedMemoryAllReduce":
        """Connect all ranks. All must call it. The memory has no name, so nothing is left behind when a rank ends."""
        with socket.socket(socket.AF_UNIX) as listener:
            if rank() == 0:
                listener.bind("")  # the kernel chooses an address outside of the file system
                listener.listen(world_size())
            (address, *_) = gather(listener.getsockname())
            if rank():
                peer = socket.socket(socket.AF_UNIX)
                peer.connect(address)
                return cls(socket.recv_fds(peer, 1, 1)[1][0], [peer])
            memory = os.memfd_create("marl-ranks")
            os.ftruncate(memory, 2 * world_size() * SLOT)
            peers: list[socket.socket] = []
            while len(peers) < world_size() - 1:
                peer, _ = listener.accept()
                # Every user of the machine can connect to such an address.
                if peer_uid(peer) == os.getuid():
                    socket.send_fds(peer, [b"+"], [memory])
                    peers.append(peer)
        return cls(memory, peers)

    def sum(self, x: Tensor) -> None:
        """Sum contiguous `x` over all ranks in place. Raises RankError as `barrier`."""
        for part in x.view(-1).split(SLOT // x.element_size()):
            slots = self.slots[self.parity, :, : part.numel() * x.element_size()].view(x.dtype)
            slots[self.rank] = part
            self.barrier()
            torch.sum(slots, 0, out=part)
            self.parity = 1 - self.parity

    def barrier(self) -> None:
        """Wait for every rank. Raises RankError if one has left or does not come in time."""
        with comm_errors():
            if self.rank:
                self.peers[0].send(b"+")
            if not all(peer.recv(1) for peer in self.peers):
                raise ConnectionError("a rank closed its socket")
            if not self.rank:
                for peer in self.peers:
                    peer.send(b"+")

    def close(self) -> None:
        """Leave. The others get a RankError at their next sum."""
        for peer in self.peers:
            peer.close()


def peer_uid(peer: socket.socket) -> int:
    """Return the user id of the process at the other end."""
    _, user, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return user


def local_world_size() -> int:
    """Return the number of ranks on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if dist.is_initialized() else 1


def resume_command(folder: Path, ranks: int | None = None) -> str:
    """Return the command that resumes a run on `ranks` ranks of this machine (default: as many as now)."""
    ranks = ranks or world_size()
    start = f"torchrun --nproc-per-node {ranks} -m marl.experiments.cli" if ranks > 1 else "marl"
    return f"{start} resume {shlex.quote(str(folder))}"


def any_rank(flag: bool, device: torch.device) -> bool:
    """Return True on every rank if `flag` is True on one."""
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
    """Sum the gradients over all ranks in place, and `numbers` (K,), in one message. Returns the sum of the numbers.

    A parameter without a gradient on every rank keeps none.
    """
    if not dist.is_initialized():
        return numbers
    gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
    has_gradient = torch.tensor([float(p.grad is not None) for p in parameters], device=gradients[0].device)
    flat = all_reduce(torch.cat([*(gradient.flatten() for gradient in gradients), has_gradient, numbers]))
    *parts, has_gradient, numbers = flat.split([*(p.numel() for p in parameters), len(parameters), len(numbers)])
    for parameter, part, ranks in zip(parameters, parts, has_gradient.tolist(), strict=True):
        parameter.grad = part.view_as(parameter) if ranks else None
    return numbers


def gather(value: Any) -> list[Any]:
    """Return the values of all ranks, in order, on every rank."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    with comm_errors():
        dist.all_gather_object(values, value)
    return values
