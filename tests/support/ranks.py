"""Run by torchrun: one update on this rank's rows, then everything that ranks must agree on, to a file."""

import json
import os
import random
import sys
import time
from dataclasses import replace

import torch

from marl import distributed
from marl.advantages import explained_variance, mean_over_ranks, standardize
from marl.config import default_config, override
from marl.objective import Batch
from marl.rollout import rows_of
from marl.run import build
from marl.trainer import Trainer
from marl.types import Nodes
from marl.value_norm import RunningMoments, ValueNorm
from marl.vector import make_vector

ROWS, CHUNK = 12, 4


def main(path: str) -> None:
    device = distributed.start("cpu")
    rank, world = distributed.rank(), distributed.world_size()
    settings = {"num_envs": 2, "embedding": 16, "ratio_level": "agent", "minibatches": 3}
    config = override(default_config("toy/agent_death", "mat"), settings)
    env = make_vector(config.env, {}, 2 // world)
    trainer = build(config, env, device, 1)
    g = torch.Generator().manual_seed(0)
    agents, actions = env.spec.num_agents, env.spec.action_size
    alive = torch.rand((ROWS, agents), generator=g) < 0.7
    inputs = {
        "agents": torch.randn((ROWS, agents, env.spec.observation_size), generator=g),
        "alive": alive,
        "action_mask": torch.ones((ROWS, agents, actions), dtype=torch.bool),
        "state": torch.randn((ROWS, env.spec.state_size), generator=g),
    }
    shape = (ROWS, agents, 1)
    mask = alive.unsqueeze(-1)
    nodes = Nodes(torch.randint(actions, shape, generator=g), mask, mask)
    rest = [torch.randn(shape, generator=g) for _ in range(4)]
    batch = Batch(inputs, nodes, -rest[0].abs(), *rest[1:])
    mine = batch.rows(torch.arange(rank, ROWS, world)) if rank or world > 1 else batch
    parts = update(trainer, mine)
    one_by_one = update_one_by_one(mine, device, world)
    remembering = update_with_memory(batch, device, rank, world)
    moments, norm = RunningMoments(agents, env.spec.observation_size), ValueNorm(0.9)
    moments.update(mine.inputs["agents"], mine.inputs["alive"])
    norm.update(mine.returns, mine.nodes.node_mask)
    scaled = standardize(mine.returns, mine.nodes.node_mask)
    result = {
        "parts": {name: float(x) for name, x in parts.items()},
        "gradients": torch.cat([p.grad.flatten() for p in trainer.updater.parameters if p.grad is not None]).tolist(),
        "one by one": one_by_one,
        "remembering": remembering,
        "moments": torch.cat([moments.mean.flatten(), moments.variance.flatten()]).tolist(),
        "value_norm": [float(x) for x in norm.moments()],
        "scaled": float(distributed.all_reduce(scaled.square().sum())),
        "logged": [
            explained_variance(mine.value, mine.returns, mine.nodes.node_mask),
            mean_over_ranks(mine.value, mine.nodes.node_mask),
        ],
        "drawn": sum(
            counts
            for _, counts in trainer.updater.iter_minibatches([mine], [trainer.updater.objective.row_counts(mine)])
        ).tolist(),
        "sums": sums(rank, world),
        "stop": distributed.any_rank(rank == world - 1, device),
    }
    everyone = distributed.gather(result)
    if rank == 0:
        with open(path, "w") as file:
            json.dump(everyone, file)
    distributed.barrier()
    distributed.stop()


def sums(rank: int, world: int) -> list[bool]:
    """Check sums of messages of every size and type, and of many in a row with late ranks."""
    delay = random.Random(rank)
    kinds = [(distributed.SLOT // 4 * 5 // 2, torch.float32), (2, torch.float64), (1, torch.int64), (0, torch.float32)]
    right = []
    for size, dtype in kinds * 20:
        time.sleep(delay.choice((0.0, 0.0, 0.002)))
        numbers = torch.arange(size).to(dtype).view(1, -1)
        total = distributed.all_reduce(numbers * (rank + 1))
        right.append(torch.equal(total, numbers * (world * (world + 1) // 2)))
    return right


def update(trainer: Trainer, batch: Batch) -> dict[str, torch.Tensor]:
    """A step on what the ranks have of a minibatch."""
    counts = distributed.all_reduce(trainer.updater.objective.counts(batch).unsqueeze(0))
    return trainer.updater.step([batch], counts, 0)


def update_one_by_one(batch: Batch, device: torch.device, world: int) -> list[float]:
    """The weights of the actors after two rounds of updates of one agent after another."""
    settings = {"num_envs": 2, "hidden": (8,), "epochs": 1, "agent_updates": "sequential", "value_coef": 0.0}
    config = override(default_config("toy/agent_death", "happo"), settings)
    trainer = build(config, make_vector("toy/agent_death", {}, 2 // world), device, 1)
    for _ in range(2):
        trainer.updater.update_sequentially(batch, trainer.agent_order())
    return torch.cat([p.detach().flatten() for p in trainer.policy.actor.parameters()]).tolist()


def update_with_memory(batch: Batch, device: torch.device, rank: int, world: int) -> list[float]:
    """Return the gradient of a recurrent agent. Each rank has other segments."""
    config = override(default_config("toy/agent_death", "mat"), {"num_envs": 2, "embedding": 16, "bptt_steps": CHUNK})
    trainer = build(config, make_vector("toy/agent_death", {}, 2 // world), device, 1)
    g = torch.Generator().manual_seed(1)
    memory = torch.randn((ROWS, *trainer.policy.recurrent_shape), generator=g)
    began = torch.rand(ROWS, generator=g) < 0.3
    batch = replace(batch, inputs=batch.inputs | {"recurrent_state": memory, "episode_start": began})
    update(trainer, batch.rows(rows_of(torch.arange(rank, ROWS // CHUNK, world), CHUNK)))
    return torch.cat([p.grad.flatten() for p in trainer.updater.parameters if p.grad is not None]).tolist()


def leave() -> None:
    """Three ranks add up, rank 1 ends without a word, and the others add up."""
    distributed.start("cpu")
    print("sums", all(sums(distributed.rank(), distributed.world_size())), flush=True)
    if distributed.rank() == 1:
        os._exit(0)
    distributed.all_reduce(torch.ones(1))


if __name__ == "__main__":
    leave() if sys.argv[1] == "leave" else main(sys.argv[1])
