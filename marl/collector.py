"""Collecting of rollouts from a vector environment, and bootstrap values of cut chains."""

import copy
import logging
import time
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from marl.errors import NonFiniteError
from marl.info import finite_info
from marl.policy import Policy
from marl.protocols import State, VectorEnv
from marl.recurrent_state import RecurrentState
from marl.rollout import Rollout
from marl.step_checks import Bounds, check_action_mask, non_finite, require_alive, require_ending, require_team_reward
from marl.transitions import Recorder
from marl.types import Obs, VectorStep
from marl.value_norm import ValueNorm

LOGGER = logging.getLogger("marl")


@dataclass
class Episodes:
    """Episodes that ended during a rollout: team-mean `returns`, `agent_returns` (N,), `lengths`, and the scalars of
    their last info. `dropped` counts the episodes left out of learning."""

    returns: list[float] = field(default_factory=list)
    agent_returns: list[np.ndarray] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    infos: list[dict[str, float]] = field(default_factory=list)
    dropped: int = 0


class Collector:
    """Collector of rollouts from a vector environment.

    `drop_nonfinite`: an episode with a NaN or an infinity is left out of learning and its environment reset. Otherwise
    NonFiniteError names environment, agent and step. `sequential_agents`: all agents share one chain.
    """

    def __init__(
        self,
        env: VectorEnv,
        policy: Policy,
        value_norm: ValueNorm,
        steps: int,
        generator: Generator,
        *,
        seeds: list[int],
        drop_nonfinite: bool = False,
        sequential_agents: bool = False,
    ) -> None:
        self.sequential_agents = sequential_agents
        self.env, self.policy, self.value_norm = env, policy, value_norm
        self.steps, self.generator, self.drop_nonfinite = steps, generator, drop_nonfinite
        self.total = 0
        self.nonfinite = False
        self.rollout: Rollout | None = None
        self.recorder: Recorder | None = None
        """Copies raw steps if a callback reads them."""
        self.seconds = {"env": 0.0, "act": 0.0}
        self.episode_return = np.zeros((env.num_envs, env.spec.num_agents))
        self.episode_length = np.zeros(env.num_envs, dtype=np.int64)
        self.recurrent_state = RecurrentState(policy, env.num_envs)
        self.obs = env.reset(seeds)
        self.warned: set[str] = set()
        self.bounds = Bounds(env.spec)
        check_action_mask(env.spec, self.obs)
        require_alive(env.spec, self.obs)
        self.bounds.check(self.obs)
        self._require_finite(np.asarray([], dtype=np.int64), non_finite(self.obs))

    def collect(self, seeds: list[int] | None = None) -> tuple[Rollout, Episodes]:
        """Return the next T steps and the episodes that ended. The next call reuses the rollout's storage.

        With `seeds` (E,), each environment starts an episode, and the steps after that episode have no nodes. Raises
        NonFiniteError for a NaN or an infinity, or if `drop_nonfinite` left no step.
        """
        episodes = Episodes()
        done = np.zeros(self.env.num_envs, dtype=bool)
        self.nonfinite = False
        if seeds is not None:
            self._begin(seeds)
        for t in range(self.steps):
            clock = time.perf_counter()
            with torch.inference_mode():
                inputs = self.policy.encode(mask_done(self.obs, done))
                inputs = self.recurrent_state.add_to(inputs)
                decision = self.policy.act(inputs, self.generator)
                self.recurrent_state.update(decision)
            if self.rollout is None:
                self.rollout = Rollout(
                    self.steps, inputs, decision, self.env.spec.num_agents, self.policy.bptt_steps or 1
                )
            rollout = self.rollout
            rollout.write(t, inputs, decision)
            acted = time.perf_counter()
            if self.recorder is not None:
                self.recorder.observe(self.obs)
            step = self.env.step(decision.action)
            if self.recorder is not None:
                self.recorder.add(decision.action, step, done)
            self.seconds["env"] += time.perf_counter() - acted
            self.seconds["act"] += acted - clock
            self.total += int((~done).sum())
            ended = self._store(rollout, t, step, episodes, done=done, whole=seeds is not None)
            self.recurrent_state.reset(ended)
            if seeds is not None:
                done = done | ended
                if done.all():
                    self._leave_out(rollout, t + 1)
                    break
        rollout = self.rollout
        assert rollout is not None
        if self.nonfinite and not rollout.node_mask.any():
            raise NonFiniteError(
                f"{self.env.spec.name}: every step of a rollout was dropped for NaN or infinite numbers, so it holds "
                "no training data; mend the environment"
            )
        if not done.all():
            ended = rollout.truncated[-1].unsqueeze(-1) | rollout.agent_truncated[-1]
            if self.sequential_agents:
                ended = ended.any(-1, keepdim=True)
            obs = mask_done(self.obs, done)
            self._bootstrap_rows(rollout, self.steps - 1, np.arange(self.env.num_envs), obs, ended)
        return rollout, episodes

    def _begin(self, seeds: list[int]) -> None:
        """Start an episode in every environment. Raises NonFiniteError for a NaN or infinite observation."""
        self.obs = self.env.reset(seeds)
        self.recurrent_state.reset()
        check_action_mask(self.env.spec, self.obs)
        require_alive(self.env.spec, self.obs)
        self.bounds.check(self.obs)
        self.episode_return[:] = 0.0
        self.episode_length[:] = 0
        if (bad := non_finite(self.obs)).any():
            index = int(np.flatnonzero(bad.any(-1))[0])
            raise NonFiniteError(f"{self.env.spec.name}: environment {index}: `reset` returned a NaN or infinity")

    def _leave_out(self, rollout: Rollout, t: int) -> None:
        """Clear the rows from `t` on, which were not played."""
        ends = (rollout.terminated, rollout.truncated, rollout.agent_truncated)
        for x in (rollout.node_mask, rollout.loss_mask, rollout.reward, *ends):
            x[t:] = 0
        rollout.duration[t:] = 1

    def _store(
        self, rollout: Rollout, t: int, step: VectorStep, episodes: Episodes, *, done: np.ndarray, whole: bool
    ) -> np.ndarray:
        """Store one transition and go on to the next observation. Returns where episodes ended, shape (E,) bool.

        Steps of environments that are `done` are ignored. If episodes are `whole`, so are all steps after this one in
        environments that end here.
        """
        self.obs = step.obs
        require_ending(self.env.spec, step)
        taken = np.where(step.terminated | step.truncated, 0, self.episode_length + 1)
        check_action_mask(self.env.spec, step.obs, taken)
        unseen = done | step.terminated | step.truncated if whole else done
        bad = self._bad(step, unseen)
        if done.any():
            gone = torch.as_tensor(done, device=rollout.node_mask.device)
            rollout.node_mask[t, gone] = False
            rollout.loss_mask[t, gone] = False
            bad[done] = False
        lost: np.ndarray = np.any(bad, axis=-1)
        require_team_reward(self.env.spec, step.reward, done | lost)
        self.bounds.check(step.obs, unseen | lost)
        if step.final is not None:
            self.bounds.check(step.final.obs, (done | lost)[step.final.env], step.final.env)
        if step.agent_final is not None:
            self.bounds.check(step.agent_final.obs, (done | lost)[step.agent_final.env], step.agent_final.env)
        if lost.any():
            self._require_finite(np.flatnonzero((step.terminated | step.truncated) & ~done), bad)
            LOGGER.warning(
                "%s: environment %d: a NaN or infinite observation or reward at step %d; its episode is left out",
                self.env.spec.name,
                int(np.flatnonzero(lost)[0]),
                int(self.episode_length[np.flatnonzero(lost)[0]]) + 1,
            )
            self.nonfinite = True
            step = copy.deepcopy(step)  # what it shows may be overwritten when an environment is reset
            self._drop(rollout, t, lost, ~(step.terminated | step.truncated), whole)
        out = done | lost
        reward = np.where(out[:, None], np.float32(0), step.reward)
        terminated, truncated = step.terminated & ~out, (step.truncated & ~done) | lost
        rollout.reward[t] = torch.as_tensor(reward)
        rollout.terminated[t] = torch.as_tensor(terminated)
        rollout.truncated[t] = torch.as_tensor(truncated)
        rollout.duration[t] = 1 if step.duration is None else torch.as_tensor(step.duration)
        rollout.agent_truncated[t] = False
        self.episode_return += reward
        self.episode_length += 1
        if step.final is not None:
            keep = np.flatnonzero((truncated & ~lost)[step.final.env])
            if keep.size:
                self._bootstrap_rows(rollout, t, step.final.env[keep], take(step.final.obs, keep))
        if step.agent_truncated is not None:
            self._cut_agents(rollout, t, step, out)
        if step.restarted is not None:
            self._pass_over(rollout, t, step.restarted & ~done, whole)
            lost = lost | step.restarted
        self._count(step, terminated | truncated, lost, episodes)
        return terminated | truncated

    def _cut_agents(self, rollout: Rollout, t: int, step: VectorStep, out: np.ndarray) -> None:
        """Bootstrap agents that are truncated alone from their last observations, except in environments `out`."""
        assert step.agent_final is not None
        assert step.agent_truncated is not None
        keep = np.flatnonzero(~out[step.agent_final.env])
        if keep.size:
            rows = step.agent_final.env[keep]
            cut = torch.as_tensor(step.agent_truncated[rows], device=rollout.reward.device)
            index = torch.as_tensor(rows, device=rollout.reward.device)
            rollout.agent_truncated[t, index] = cut
            self._bootstrap_rows(rollout, t, rows, take(step.agent_final.obs, keep))

    def _pass_over(self, rollout: Rollout, t: int, restarted: np.ndarray, whole: bool) -> None:
        """Remove row t of these environments: the step before it leads directly to its observation.

        `whole` episodes are removed completely, because their return is unknown.
        """
        rows, first = torch.as_tensor(restarted, device=rollout.node_mask.device), 0 if whole else t
        rollout.node_mask[first : t + 1, rows] = False
        rollout.loss_mask[first : t + 1, rows] = False
        rollout.duration[t, rows] = 0

    def _count(self, step: VectorStep, ended: np.ndarray, lost: np.ndarray, episodes: Episodes) -> None:
        """Record the episodes that ended. Lost ones are only counted as dropped."""
        if not ended.any():
            return
        episodes.dropped += int((lost & ended).sum())
        infos = {} if step.final is None else dict(zip(step.final.env.tolist(), step.final.info, strict=True))
        for i in np.flatnonzero(ended):
            if not lost[i]:
                episodes.returns.append(float(self.episode_return[i].mean()))
                episodes.agent_returns.append(self.episode_return[i].copy())
                episodes.lengths.append(int(self.episode_length[i]))
                episodes.infos.append(finite_info(infos.get(int(i), {}), self.env.spec.name, self.warned))
            self.episode_return[i] = 0.0
            self.episode_length[i] = 0

    def _bootstrap_rows(self, rollout: Rollout, t: int, rows: np.ndarray, obs: Obs, done: Tensor | None = None) -> None:
        """Store the bootstrap values of the observations that follow row t of environments `rows`.

        Chains that are already `done` (E, N or 1) keep theirs.
        """
        sequential = self.sequential_agents
        value = bootstrap_value(
            self.policy, self.value_norm, obs, self.recurrent_state, rows, sequential_agents=sequential
        )
        index = torch.as_tensor(rows, device=value.device)
        if done is not None:
            value = torch.where(done[index], rollout.bootstrap[t, index], value)
        rollout.bootstrap[t, index] = value

    def _bad(self, step: VectorStep, unseen: np.ndarray) -> np.ndarray:
        """Return where a reward or observation is not finite, shape (E, N) bool.

        The next observation of environments `unseen` (E,) is never read, so it is not checked.
        """
        bad = ~np.isfinite(step.reward) | (non_finite(self.obs) & ~unseen[:, None])
        if step.final is not None:
            bad[step.final.env] |= non_finite(step.final.obs)
        if step.agent_final is not None:
            bad[step.agent_final.env] |= non_finite(step.agent_final.obs)
        return bad

    def _require_finite(self, ended: np.ndarray, bad: np.ndarray) -> None:
        if not bad.any() or (self.drop_nonfinite and self.rollout is not None):
            return
        index, agent = (int(i) for i in np.argwhere(bad)[0])
        when = "the last step" if index in ended else f"step {int(self.episode_length[index]) + 1}"
        raise NonFiniteError(
            f"{self.env.spec.name}: environment {index}, agent {self.env.spec.agents[agent]!r}: a NaN or infinite "
            f"observation or reward at {when} of its episode, after {self.total} environment steps; mend the "
            "environment, or use --on-nonfinite drop to leave such episodes out"
        )

    def _drop(self, rollout: Rollout, t: int, lost: np.ndarray, running: np.ndarray, whole: bool) -> None:
        """Remove the present episode of each lost environment from the rollout, and reset those still running.

        Raises NonFiniteError if the reset observation is not finite, except for `whole` episodes, which end there.
        """
        for i in np.flatnonzero(lost):
            start = max(0, t - int(self.episode_length[i]))
            rollout.node_mask[start : t + 1, i] = False
            rollout.loss_mask[start : t + 1, i] = False
            if running[i]:
                self.obs = self.env.reset_at(int(i))
        again = non_finite(self.obs).any(-1) & lost
        if again.any() and not whole:
            index = int(np.flatnonzero(again)[0])
            raise NonFiniteError(f"{self.env.spec.name}: environment {index}: `reset` returned a NaN or infinity")

    def get_state(self, environments: bool = True) -> dict[str, Any]:
        """Return the running episodes, recurrent state and environment states, left out if `environments=False`."""
        states = self.env.get_state() if environments else [None] * self.env.num_envs
        return {
            "return": self.episode_return.tolist(),
            "length": self.episode_length.tolist(),
            "total": self.total,
            "envs": states,
            "recurrent_state": self.recurrent_state.get_state(),
        }

    def set_state(self, data: dict[str, Any]) -> bool:
        """Continue from `get_state`. Returns False if the environments cannot be restored and need new episodes."""
        self.total = data["total"]
        states: list[State] = [state for state in data["envs"] if state is not None]
        if len(states) != self.env.num_envs:
            return False
        self.obs = self.env.set_state(states)
        self.recurrent_state.set_state(data["recurrent_state"])
        self.episode_return[:] = data["return"]
        self.episode_length[:] = data["length"]
        return True


@torch.inference_mode()
def bootstrap_value(
    policy: Policy,
    value_norm: ValueNorm,
    obs: Obs,
    recurrent_state: RecurrentState,
    rows: np.ndarray,
    *,
    sequential_agents: bool = False,
) -> Tensor:
    """Bootstrap value of every chain that was cut before `obs` in environments `rows`, shape (E, N), critic's units.

    The value of the chain of sequential agents is that of its next node, the first living agent.
    """
    value = policy.value(recurrent_state.bootstrap_inputs(policy.encode(obs), rows))
    alive = torch.as_tensor(obs.alive).to(value.device)
    if sequential_agents:
        first = alive.to(torch.uint8).argmax(-1, keepdim=True)
        value, alive = (x.gather(-1, first).expand_as(x) for x in (value, alive))
    elif policy.spec.team_reward:
        mean = value.masked_fill(~alive, 0.0).sum(-1, keepdim=True) / alive.sum(-1, keepdim=True).clamp(min=1)
        value = torch.where(alive, value, mean)
    # Dead agents, and teams that are all dead, bootstrap with zero reward.
    someone = alive.any(-1, keepdim=True) if policy.spec.team_reward else alive
    return torch.where(someone, value, value_norm.normalize(torch.zeros_like(value)))


def mask_done(obs: Obs, done: np.ndarray) -> Obs:
    """Return the observation with all agents dead in environments that are `done`, so that they have no nodes.

    Numbers are zero there. A NaN would reach the gradient of every weight, even through a row that no loss reads.
    """

    if not done.any():
        return obs

    def rest(x: Any) -> Any:
        return np.where(done.reshape(-1, *(1,) * (x.ndim - 1)), x.dtype.type(0), x) if isinstance(x, np.ndarray) else x

    return replace(obs, agents=rest(obs.agents), state=rest(obs.state), alive=obs.alive & ~done[:, None])


def take(obs: Obs, index: np.ndarray) -> Obs:
    """Return the rows of a batched observation at `index` (K,)."""

    def rows(x: Any) -> Any:
        return x[index] if isinstance(x, np.ndarray) else [x[i] for i in index]

    return Obs(
        agents=rows(obs.agents),
        alive=obs.alive[index],
        action_mask=None if obs.action_mask is None else obs.action_mask[index],
        state=None if obs.state is None else obs.state[index],
        candidates=None if obs.candidates is None else rows(obs.candidates),
    )
