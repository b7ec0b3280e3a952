"""Speed baseline of `marl bench`: the Multi-Agent Transformer, structured like its released code.

Written from a description of that code, for speed comparisons and as an independent check. The whole decoder runs once
per agent on all positions. Every agent gets a new, validated distribution. Masks are applied by boolean indexing. Keys,
queries and values are three linear maps. Rollouts are numpy arrays of every field, copied twice per epoch.

Shape legend: E environments, T steps, N agents, A actions, D embedding, O observation.
"""

import copy
import time
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the field's usual name
from torch import Tensor, nn
from torch.distributions import Categorical, Normal

from marl.agents.heads import GaussianHead
from marl.agents.mat.agents import MAT
from marl.protocols import VectorEnv


class Attention(nn.Module):
    """Attention with three separate maps and the causal mask as a buffer."""

    mask: Tensor

    def __init__(self, ours: Any, agents: int, causal: bool) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (
            copy.deepcopy(layer) for layer in (ours.query, ours.key, ours.value, ours.out)
        )
        self.heads, self.causal = ours.heads, causal
        self.register_buffer("mask", torch.tril(torch.ones(agents + 1, agents + 1))[None, None])

    def forward(self, key: Tensor, value: Tensor, query: Tensor) -> Tensor:
        rows, agents, width = query.shape
        shape = (rows, agents, self.heads, width // self.heads)
        k, q, v = (
            layer(x).view(shape).transpose(1, 2)
            for layer, x in ((self.key, key), (self.query, query), (self.value, value))
        )
        score = (q @ k.transpose(-2, -1)) * k.shape[-1] ** -0.5
        if self.causal:
            score = score.masked_fill(self.mask[:, :, :agents, :agents] == 0, float("-inf"))
        y = F.softmax(score, dim=-1) @ v
        return self.out(y.transpose(1, 2).contiguous().view(rows, agents, width))


class EncoderBlock(nn.Module):
    """Encoder block with post-normalization."""

    def __init__(self, ours: Any, agents: int) -> None:
        super().__init__()
        self.attention = Attention(ours.attention, agents, causal=False)
        self.norms, self.mlp = copy.deepcopy(ours.norms), copy.deepcopy(ours.mlp)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norms[0](x + self.attention(x, x, x))
        return self.norms[1](x + self.mlp(x))


class DecoderBlock(nn.Module):
    """Decoder block with causal self-attention and causal cross-attention."""

    def __init__(self, ours: Any, agents: int) -> None:
        super().__init__()
        self.self_attention = Attention(ours.self_attention, agents, causal=True)
        self.cross_attention = Attention(ours.cross_attention, agents, causal=True)
        self.norms, self.mlp = copy.deepcopy(ours.norms), copy.deepcopy(ours.mlp)

    def forward(self, x: Tensor, representation: Tensor) -> Tensor:
        x = self.norms[0](x + self.self_attention(x, x, x))
        x = self.norms[1](representation + self.cross_attention(key=x, value=x, query=representation))
        return self.norms[2](x + self.mlp(x))


class ReferenceMAT(nn.Module):
    """Network and decoding with the weights of `ours`, fixed order, all agents alive."""

    def __init__(self, ours: MAT) -> None:
        super().__init__()
        spec, encoder, decoder = ours.spec, list(ours.encoder.blocks), list(ours.decoder.blocks)
        self.spec, self.continuous = spec, isinstance(ours.head, GaussianHead)
        self.agent_id = ours.agent_id
        self.embed, self.critic, self.actor = (
            copy.deepcopy(part) for part in (ours.encoder.embed, ours.critic, ours.actor)
        )
        self.encoder = nn.ModuleList(EncoderBlock(block, spec.num_agents) for block in encoder)
        self.decoder = nn.ModuleList(DecoderBlock(block, spec.num_agents) for block in decoder)
        self.token_norm = copy.deepcopy(ours.decoder.token_norm)
        if isinstance(ours.head, GaussianHead):
            self.token = copy.deepcopy(ours.decoder.token)
            self.log_std, self.max_std = nn.Parameter(ours.head.log_std[0].detach().clone()), ours.head.max_std
        else:
            table: Any = ours.decoder.token
            self.token = nn.Linear(spec.action_size + 1, ours.options.embedding, bias=False)
            self.token.weight.data.copy_(table.weight.T)

    def encode(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """(E, N, O) to the representation (E, N, D) and values (E, N, 1)."""
        if self.agent_id:
            obs = torch.cat([obs, torch.eye(self.spec.num_agents).expand(*obs.shape[:-1], -1)], -1)
        x = self.embed(obs)
        for block in self.encoder:
            x = block(x)
        return x, self.critic(x)

    def decode(self, shifted: Tensor, representation: Tensor) -> Tensor:
        """Logits or means (E, N, A) of all agents from the shifted actions (E, N, A + 1), or (E, N, A)."""
        x = self.token_norm(F.gelu(self.token(shifted)))
        for block in self.decoder:
            x = block(x, representation)
        return self.actor(x)

    def distribution(self, parameters: Tensor, available: Tensor | None) -> Categorical | Normal:
        if self.continuous:
            return Normal(parameters, torch.sigmoid(self.log_std) * self.max_std)
        if available is not None:
            parameters[available == 0] = -1e10
        return Categorical(logits=parameters)

    @torch.no_grad()
    def act(
        self, obs: np.ndarray, available: np.ndarray | None, deterministic: bool = False
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return actions and log-probabilities (E, N, L), and values (E, N, 1), of observations (E, N, O)."""
        representation, value = self.encode(torch.from_numpy(obs))
        mask = None if available is None else torch.from_numpy(available)
        rows, agents, size = len(obs), self.spec.num_agents, self.spec.action_size
        slots, start = (size, 0) if self.continuous else (1, 1)
        shifted = torch.zeros(rows, agents, size + start)
        shifted[:, 0, :start] = 1.0
        action = torch.zeros(rows, agents, slots, dtype=torch.float32 if self.continuous else torch.long)
        log_prob = torch.zeros(rows, agents, slots)
        for i in range(agents):
            parameters = self.decode(shifted, representation)[:, i]
            chosen = self.distribution(parameters, None if mask is None else mask[:, i])
            if isinstance(chosen, Categorical):
                pick = chosen.probs.argmax(-1) if deterministic else chosen.sample()
                action[:, i], log_prob[:, i] = pick.unsqueeze(-1), chosen.log_prob(pick).unsqueeze(-1)
                token = F.one_hot(pick, size).float()
            else:
                token = chosen.mean if deterministic else chosen.sample()
                action[:, i], log_prob[:, i] = token, chosen.log_prob(token)
            if i + 1 < agents:
                shifted[:, i + 1, start:] = token
        return action.numpy(), log_prob.numpy(), value.numpy()

    def evaluate(self, obs: Tensor, action: Tensor, available: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return log-probabilities and entropies (B, N, L), and values (B, N, 1), of stored actions (B, N, L)."""
        representation, value = self.encode(obs)
        rows, agents, size = len(obs), self.spec.num_agents, self.spec.action_size
        if self.continuous:
            shifted = torch.zeros(rows, agents, size)
            shifted[:, 1:] = action[:, :-1]
        else:
            shifted = torch.zeros(rows, agents, size + 1)
            shifted[:, 0, 0] = 1.0
            shifted[:, 1:, 1:] = F.one_hot(action.squeeze(-1), size)[:, :-1].float()
        chosen = self.distribution(self.decode(shifted, representation), available)
        if isinstance(chosen, Categorical):
            return chosen.log_prob(action.squeeze(-1)).unsqueeze(-1), chosen.entropy().unsqueeze(-1), value
        return chosen.log_prob(action), chosen.entropy(), value


class ReferenceUpdate:
    """One epoch over a rollout of T steps of E environments, as in the released trainer.

    The rollout, its returns and its advantages are random numbers: their values do not change the speed.
    """

    def __init__(self, policy: ReferenceMAT, steps: int, envs: int, minibatches: int = 1, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        spec, shape = policy.spec, (steps, envs, policy.spec.num_agents)
        self.policy, self.shape, self.minibatches = policy, shape, minibatches
        self.optimizer = torch.optim.Adam(policy.parameters(), lr=1e-6, eps=1e-5)
        slots = spec.action_size if policy.continuous else 1
        floats = {"obs": spec.observation_size, "share": spec.state_size or 1, "rnn": 64, "rnn_critic": 64}
        floats |= {"value": 1, "returns": 1, "log_prob": slots, "advantage": 1}
        self.buffer = {name: rng.normal(size=(*shape, width)).astype(np.float32) for name, width in floats.items()}
        self.buffer["mask"] = np.ones((*shape, 1), np.float32)
        self.buffer["active"] = np.ones((*shape, 1), np.float32)
        if policy.continuous:
            self.buffer["action"] = rng.normal(size=(*shape, slots)).astype(np.float32)
        else:
            self.buffer["action"] = rng.integers(spec.action_size, size=(*shape, 1)).astype(np.float32)
            self.buffer["available"] = np.ones((*shape, spec.action_size), np.float32)
        self.moments = torch.zeros(3)

    def samples(self) -> Iterator[dict[str, np.ndarray]]:
        """Yield minibatches: every field permuted over the T E rows, then gathered and flattened per minibatch."""
        steps, envs, agents = self.shape
        order = torch.randperm(steps * envs).numpy()
        rows = {name: x.reshape(steps * envs, agents, -1)[order] for name, x in self.buffer.items()}
        for part in np.arange(len(order) // self.minibatches * self.minibatches).reshape(self.minibatches, -1):
            yield {name: x[part].reshape(len(part) * agents, -1) for name, x in rows.items()}

    def normalize(self, returns: Tensor) -> Tensor:
        """Normalize returns by moving moments, which each minibatch updates first."""
        decay = 0.99999
        batch = torch.stack([returns.mean(), returns.square().mean(), torch.ones(())])
        self.moments.mul_(decay).add_(batch * (1.0 - decay))
        mean, square = self.moments[:2] / self.moments[2].clamp(min=1e-5)
        return (returns - mean) / (square - mean**2).clamp(min=1e-2).sqrt()

    def loss(self, sample: dict[str, Tensor]) -> Tensor:
        """Return the PPO loss of a minibatch."""
        policy, agents = self.policy, self.shape[-1]
        action = sample["action"].view(-1, agents, sample["action"].shape[-1])
        available = sample["available"].view(-1, agents, policy.spec.action_size) if "available" in sample else None
        log_prob, entropy, value = policy.evaluate(
            sample["obs"].view(-1, agents, policy.spec.observation_size),
            action if policy.continuous else action.long(),
            available,
        )
        log_prob, entropy = (x.reshape(-1, x.shape[-1]) for x in (log_prob, entropy))
        value, active = value.reshape(-1, 1), sample["active"]
        ratio = torch.exp(log_prob - sample["log_prob"].clamp(-1.0, 1.0))
        plain, clipped = ratio * sample["advantage"], torch.clamp(ratio, 0.95, 1.05) * sample["advantage"]
        policy_loss = -(torch.min(plain, clipped).sum(-1, keepdim=True) * active).sum() / active.sum()
        target = self.normalize(sample["returns"])
        near = sample["value"] + (value - sample["value"]).clamp(-0.05, 0.05)
        errors = [F.huber_loss(x, target, reduction="none", delta=10.0) for x in (value, near)]
        value_loss = torch.max(*errors).mean()
        return policy_loss - 0.01 * (entropy * active).sum() / active.sum() + value_loss

    def __call__(self) -> None:
        for sample in self.samples():
            loss = self.loss({name: torch.from_numpy(x) for name, x in sample.items()})
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.policy.parameters(), 10.0)
            self.optimizer.step()


class ReferenceTrainer:
    """Rollouts of T steps of `env`, and epochs of updates, without the small cost of returns and advantages."""

    def __init__(self, env: VectorEnv, policy: ReferenceMAT, steps: int, epochs: int, minibatches: int) -> None:
        self.env, self.policy, self.steps, self.epochs = env, policy, steps, epochs
        self.update = ReferenceUpdate(policy, steps, env.num_envs, minibatches)
        self.obs = env.reset(list(range(env.num_envs)))

    def iterate(self) -> dict[str, float]:
        """Collect a rollout and update on it; return the seconds of each phase."""
        seconds = {"env": 0.0, "act": 0.0}
        buffer, space = self.update.buffer, cast(Any, self.env.spec.action_space)
        for t in range(self.steps):
            start = time.perf_counter()
            available = None
            if "available" in buffer and self.obs.action_mask is not None:
                available = self.obs.action_mask.astype(np.float32)
            action, log_prob, value = self.policy.act(self.obs.agents, available)
            row = {"obs": self.obs.agents, "action": action, "log_prob": log_prob, "value": value}
            row["active"] = self.obs.alive[..., None]
            if available is not None:
                row["available"] = available
            for name, x in row.items():
                buffer[name][t] = x
            acted = time.perf_counter()
            continuous = self.policy.continuous
            self.obs = self.env.step(np.clip(action, space.low, space.high) if continuous else action[..., 0]).obs
            seconds["act"] += acted - start
            seconds["env"] += time.perf_counter() - acted
        start = time.perf_counter()
        for _ in range(self.epochs):
            self.update()
        return seconds | {"learn": time.perf_counter() - start}
