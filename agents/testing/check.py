"""The checks of one agent on every kind of environment that it supports."""

import copy
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Generator, Tensor, nn

from marl.agents.testing.rules import Rule, concatenate, copy_of, fail, require_equal, require_shape, select
from marl.agents.testing.specs import KINDS, change_dead, copy_obs, overwrite, random_obs
from marl.errors import ConfigError
from marl.policy import Policy, require_policy
from marl.recurrent_state import RecurrentState
from marl.registry import AGENTS
from marl.types import Decision, EnvSpec, Evaluation, Inputs, Nodes, Obs

ROWS = 6
"""Environments of a played rollout."""
SAMPLES, FREE_TEXTS = 1000, 40
"""Decisions, and free texts, from which the sampled distribution is judged."""
Make = Callable[[EnvSpec], Policy]


@dataclass(frozen=True)
class Played:
    """A rollout of E environments and T steps, as B = E T rows, environment by environment."""

    inputs: Inputs
    nodes: Nodes
    log_prob: Tensor  # (B, N, L)
    order: Tensor  # (B, N), the decision order, whether the nodes have one or not


def check_agent(
    agent: str | Make,
    kinds: Iterable[str] | None = None,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> list[str]:
    """Check an agent on toy environments and return what was checked, one line per kind.

    `agent` is a name, as for `marl train --agent`, or a function `make(spec, **options) -> Policy`. `kinds` are names
    of `KINDS`. By default all are tried, and those for which the agent raises ConfigError are left out. `options` are
    the agent's options by name.

    Raises AgentContractError with the first broken rule, and ConfigError if the agent supports none of the kinds.
    """
    name = agent if isinstance(agent, str) else getattr(agent, "__name__", type(agent).__name__)
    make, trains = _factory(agent, dict(options or {}))
    lines, reasons = [], []
    with _seeded(seed):
        for kind in KINDS if kinds is None else kinds:
            try:
                policy = _make(make, KINDS[kind](), name)
                policy.encode(random_obs(policy.spec, 1, np.random.default_rng(seed), deaths=False))
            except ConfigError as error:
                if kinds is not None:
                    raise
                reasons.append(f"{kind}: not supported ({str(error).partition('. ')[0]})")
                continue
            rules = _Check(make, policy, f"{name} on {kind}", seed).run(trains)
            lines.append(f"{kind}: {len(rules)} rules ({', '.join(rules)})")
    if not lines:
        raise ConfigError(f"agent={name!r} supports no toy environment, so it cannot be checked. {reasons[0]}")
    return lines + reasons


def _factory(agent: str | Make, options: dict[str, Any]) -> tuple[Make, bool]:
    if not isinstance(agent, str):
        return (lambda spec: agent(spec, **options)), True
    entry = AGENTS.get(agent)
    return (lambda spec: entry.make(spec, entry.options(**options))), entry.trains is not False


def _make(make: Make, spec: EnvSpec, name: str) -> Policy:
    """Return a policy in evaluation mode. Its weights are moved, so that nothing agrees by accident."""
    policy = require_policy(make(spec), name)
    generator = Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                spread = float(parameter.std()) if parameter.numel() > 1 else 0.0
                noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
                parameter += (0.05 + 0.5 * spread) * noise.to(parameter.device)
    policy.after_update()
    return policy.eval()


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the global generators inside the context, and restore them after."""
    python, numpy, pytorch = _global_states()
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - the suite looks for agents that draw from it
    torch.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(pytorch)


def _global_states() -> tuple[Any, Any, Tensor]:
    return random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002


def _same_states(before: tuple[Any, Any, Tensor], after: tuple[Any, Any, Tensor]) -> str:
    """Return the name of the first global generator that has moved, or nothing."""
    if before[0] != after[0]:
        return "random"
    if any(not np.array_equal(x, y) for x, y in zip(before[1][1:3], after[1][1:3], strict=True)):
        return "numpy.random"
    return "" if torch.equal(before[2], after[2]) else "torch"


class _Check:
    """All rules for one policy on one spec."""

    def __init__(self, make: Make, policy: Policy, where: str, seed: int) -> None:
        self.make, self.policy, self.where, self.seed = make, policy, where, seed
        self.spec = policy.spec
        self.rng = np.random.default_rng(seed)
        self.steps = 2 * policy.bptt_steps or 3

    def run(self, trains: bool) -> list[str]:
        """Check all rules, and return their names."""
        rules = [self.check_determinism, self.check_inputs, self.check_dead]
        if trains:
            rules += [self.check_order, self.check_gradient, self.check_distribution, self.check_saving]
        played = self.play()
        names = ["interface", "action"]
        if trains:
            self.check_log_prob(played)
            names += ["log prob", "value"] + (["recurrence"] if self.policy.bptt_steps else [])
        for rule in rules:
            rule(played)
            names.append(rule.__name__.removeprefix("check_").replace("_", " "))
        return names

    # Playing

    def act(self, inputs: Inputs, seed: int = 0, deterministic: bool = False) -> Decision:
        """Return a decision, of the generator with that seed."""
        with torch.no_grad():
            return self.policy.act(inputs, Generator(device=self.policy.device).manual_seed(seed), deterministic)

    def start(self, obs: Obs) -> Inputs:
        """Return the inputs of a first step."""
        inputs = self.policy.encode(obs)
        return RecurrentState(self.policy, len(obs.alive)).add_to(inputs)

    def play(self) -> Played:
        """Return a rollout. In the middle episodes end in half of the environments."""
        recurrent_state = RecurrentState(self.policy, ROWS)
        inputs, nodes, log_probs, orders = [], [], [], []
        for step in range(self.steps):
            obs = random_obs(self.spec, ROWS, self.rng)
            seen = recurrent_state.add_to(self.policy.encode(obs))
            before = copy_of(seen)
            decision = self.act(seen, self.seed + step)
            self.check_decision(obs, decision)
            self.require_unchanged(before, seen, "act")
            recurrent_state.update(decision)
            if step == self.steps // 2:
                recurrent_state.reset(np.arange(ROWS) % 2 == 0)
            order = decision.nodes.order
            if order is None:
                order = torch.arange(self.spec.num_agents, device=self.policy.device).expand(ROWS, -1)
            for store, x in ((inputs, seen), (nodes, decision.nodes), (log_probs, decision.log_prob), (orders, order)):
                store.append(copy_of(x))
        if any(x.order is not None for x in nodes):
            nodes = [replace(x, order=order) for x, order in zip(nodes, orders, strict=True)]
        return Played(*(concatenate(parts) for parts in (inputs, nodes, log_probs, orders)))

    def require_unchanged(self, before: Inputs, after: Inputs, method: str) -> None:
        """Raise if a method wrote to its inputs."""
        for name, x in before.items():
            if not torch.equal(x, after[name]):
                fail(Rule.INPUTS, self.where, f"{method} changed inputs[{name!r}] in place; work on a copy")

    def check_decision(self, obs: Obs, decision: Decision) -> None:
        """Check types, shapes, nodes and actions of a decision."""
        if not isinstance(decision, Decision):
            fail(Rule.INTERFACE, self.where, f"act returned a {type(decision).__name__}; return a marl.types.Decision")
        nodes, agents = decision.nodes, self.spec.num_agents
        rows, shape = len(obs.alive), (len(obs.alive), agents, self.policy.slots)
        for name, x in (("nodes.action", nodes.action), ("nodes.node_mask", nodes.node_mask)):
            require_shape(Rule.INTERFACE, self.where, name, x, shape)
        require_shape(Rule.INTERFACE, self.where, "nodes.loss_mask", nodes.loss_mask, shape)
        require_shape(Rule.INTERFACE, self.where, "act's log_prob", decision.log_prob, shape)
        require_shape(Rule.VALUE, self.where, "act's value", decision.value, shape, (rows, agents, 1))
        for name in ("node_mask", "loss_mask"):
            if getattr(nodes, name).dtype != torch.bool:
                fail(Rule.INTERFACE, self.where, f"nodes.{name} is {getattr(nodes, name).dtype}; return torch.bool")
        if bool((nodes.loss_mask & ~nodes.node_mask).any()):
            fail(Rule.INTERFACE, self.where, "nodes.loss_mask is True where nodes.node_mask is False; learn from nodes")
        if nodes.order is not None:
            require_shape(Rule.INTERFACE, self.where, "nodes.order", nodes.order, (rows, agents))
            if not torch.equal(nodes.order.sort(-1).values.cpu(), torch.arange(agents).expand(rows, -1)):
                fail(Rule.INTERFACE, self.where, "nodes.order is no permutation of the agents in every row")
        alive = torch.as_tensor(obs.alive)
        has_node = nodes.node_mask.any(-1).cpu()
        if bool((has_node & ~alive).any()):
            place = (has_node & ~alive).nonzero()[0].tolist()
            fail(Rule.DEAD_AGENTS, self.where, f"dead agent {place[1]} of row {place[0]} has a node; mask it")
        if bool((alive & ~has_node).any()):
            place = (alive & ~has_node).nonzero()[0].tolist()
            fail(Rule.INTERFACE, self.where, f"living agent {place[1]} of row {place[0]} has no node; give it one")
        if self.policy.recurrent_shape is not None:
            state: Any = decision.recurrent_state
            require_shape(Rule.RECURRENCE, self.where, "recurrent_state", state, (rows, *self.policy.recurrent_shape))
        self.check_action(obs, decision.action)

    def check_action(self, obs: Obs, action: Any) -> None:
        """Check that the environment accepts the action."""
        rows, agents = obs.alive.shape
        size = () if self.spec.discrete or not self.spec.observation_sizes else (self.spec.action_size,)
        if np.shape(action) != (rows, agents, *size):
            fail(
                Rule.ACTION,
                self.where,
                f"action has shape {np.shape(action)}; expected {(rows, agents, *size)}",
            )
        for row, agent in np.argwhere(obs.alive).tolist():
            own, at = action[row][agent], f"row {row}, agent {agent}"
            if not self.spec.observation_sizes:
                if not isinstance(own, str):
                    fail(Rule.ACTION, self.where, f"the action of {at} is a {type(own).__name__}; give a string")
                if obs.candidates is not None and own not in obs.candidates[row][agent]:
                    fail(Rule.ACTION, self.where, f"the action of {at} is {own!r}, which is no candidate; choose one")
            elif isinstance(space := self.spec.action_spaces[agent], spaces.Discrete):
                index = float(np.ravel(own)[0])
                allowed = np.flatnonzero(np.asarray(obs.action_mask)[row, agent]).tolist()
                if index not in allowed:
                    fail(Rule.ACTION, self.where, f"the action of {at} is {index:g}, available are {allowed}; mask it")
            elif isinstance(space, spaces.Box):
                own = np.asarray(own)[: space.shape[0]]
                if not np.isfinite(own).all() or (own < space.low - 1e-5).any() or (own > space.high + 1e-5).any():
                    fail(Rule.ACTION, self.where, f"the action of {at} is {own}, outside its bounds; clip or scale it")

    # Rules

    def evaluate(self, inputs: Inputs, nodes: Nodes) -> Evaluation:
        """Return an evaluation with checked shapes."""
        before = copy_of(inputs)
        evaluation = self.policy.evaluate(inputs, nodes)
        self.require_unchanged(before, inputs, "evaluate")
        if not isinstance(evaluation, Evaluation):
            kind = type(evaluation).__name__
            fail(Rule.INTERFACE, self.where, f"evaluate returned a {kind}; return a marl.types.Evaluation")
        shape = tuple(nodes.node_mask.shape)
        require_shape(Rule.INTERFACE, self.where, "evaluate's log_prob", evaluation.log_prob, shape)
        require_shape(Rule.INTERFACE, self.where, "evaluate's entropy", evaluation.entropy, shape)
        require_shape(Rule.VALUE, self.where, "evaluate's value", evaluation.value, shape, (*shape[:2], 1))
        return evaluation

    def check_log_prob(self, played: Played) -> None:
        """Compare the log-probabilities of act and evaluate, and check values."""
        with torch.no_grad():
            evaluation = self.evaluate(played.inputs, played.nodes)
        rule = Rule.RECURRENCE if self.policy.bptt_steps else Rule.LOG_PROB
        text = "log_prob of act and evaluate differ"
        if self.policy.bptt_steps:
            text += f" over segments of bptt_steps={self.policy.bptt_steps} in which episodes end"
        require_equal(rule, self.where, text, played.log_prob, evaluation.log_prob, played.nodes.node_mask)
        inputs = self.start(random_obs(self.spec, ROWS, self.rng))
        with torch.no_grad():
            value = self.policy.value(inputs)
        require_shape(Rule.VALUE, self.where, "value(inputs)", value, (ROWS, self.spec.num_agents))

    def check_inputs(self, played: Played) -> None:
        """Check that nothing depends on an observation's buffers once they are overwritten."""
        del played
        obs = random_obs(self.spec, ROWS, self.rng)
        mine = copy_obs(obs)
        inputs = self.start(mine)
        for name in ("agents", "alive", "action_mask", "state"):
            x = getattr(obs, name)
            if isinstance(x, np.ndarray) and not np.array_equal(x, getattr(mine, name)):
                fail(Rule.INPUTS, self.where, f"encode changed obs.{name} in place; work on a copy")
        kept = copy_of(inputs)
        decision = self.act(kept)
        first, state = copy_of(decision), copy_of(decision.recurrent_state)
        overwrite(mine)
        again = self.act(kept)
        require_equal(
            Rule.INPUTS,
            self.where,
            "act depends on an observation's buffers after they were overwritten; keep a copy, not a view",
            again.log_prob,
            first.log_prob,
            tolerance=1e-5,
        )
        if state is not None:
            text = "recurrent_state is a view of an observation's buffers; copy it"
            require_equal(Rule.INPUTS, self.where, text, decision.recurrent_state, state)  # pyright: ignore[reportArgumentType]

    def check_dead(self, played: Played) -> None:
        """Check that the observation of dead agents changes nothing for living ones."""
        del played
        obs = random_obs(self.spec, ROWS, self.rng)
        alive = torch.as_tensor(obs.alive, device=self.policy.device)
        one, two = (self.act(self.start(x)) for x in (obs, change_dead(obs)))
        text = "the observation of a dead agent changes the {} of a living one; hide dead agents"
        for name in ("log_prob", "value"):
            x, y = getattr(one, name), getattr(two, name)
            require_equal(Rule.DEAD_AGENTS, self.where, text.format(name), x, y, alive.unsqueeze(-1))
        with torch.no_grad():
            one, two = (self.policy.value(self.start(x)) for x in (obs, change_dead(obs)))
        require_equal(Rule.DEAD_AGENTS, self.where, text.format("value"), one, two, alive)

    def check_determinism(self, played: Played) -> None:
        """Check that a decision is a function of inputs and generator, and that different seeds differ."""
        del played
        rows = 4 * ROWS if self.spec.observation_sizes else ROWS
        inputs = self.start(random_obs(self.spec, rows, self.rng, deaths=False))
        before = _global_states()
        decisions = [self.act(inputs, seed) for seed in (0, 1, 0)]
        moved = _same_states(before, _global_states())
        if moved:
            fail(Rule.DETERMINISM, self.where, f"act drew from the global generator of {moved}; draw from `generator`")
        if not _same_nodes(decisions[0], decisions[2]):
            text = "act with the same inputs and the same generator decided differently; keep no hidden state"
            fail(Rule.DETERMINISM, self.where, text)
        if _same_nodes(decisions[0], decisions[1]) and bool(decisions[0].nodes.loss_mask.any()):
            text = f"act decided the same in {rows} rows with two generators; sample from `generator`"
            fail(Rule.DETERMINISM, self.where, text)
        greedy = [self.act(inputs, 0, deterministic=True) for _ in range(2)]
        if not _same_nodes(*greedy):
            fail(Rule.DETERMINISM, self.where, "act with deterministic=True decided differently when repeated")

    def check_order(self, played: Played) -> None:
        """Check that a log-probability depends only on actions that were decided before."""
        if self.policy.bptt_steps:  # an action may reach later steps
            return
        other = self.act(played.inputs, self.seed + 99).nodes
        nodes = played.nodes
        rows = torch.arange(len(played.order), device=played.order.device)
        rank = played.order.argsort(-1)
        with torch.no_grad():
            base = self.evaluate(played.inputs, nodes).log_prob
            for position in range(self.spec.num_agents):
                who = played.order[:, position]
                fields = {name: getattr(nodes, name).clone() for name in ("action", "node_mask", "loss_mask")}
                for name, x in fields.items():
                    x[rows, who] = getattr(other, name)[rows, who]
                changed = self.evaluate(played.inputs, replace(nodes, **fields)).log_prob
                earlier = (rank < position).unsqueeze(-1) & nodes.node_mask
                text = "log_prob depends on an action that is decided later"
                require_equal(Rule.ORDER, self.where, text, changed, base, earlier)

    def check_gradient(self, played: Played) -> None:
        """Compare the gradient of all rows with that of micro-batches."""
        inputs, nodes = played.inputs, played.nodes
        rows = len(nodes.node_mask)
        size = max(4, self.policy.bptt_steps)
        parts = self.policy.micro_batches(inputs, nodes, size, 1)
        covered = torch.cat([torch.arange(rows, device=nodes.node_mask.device)[part] for part in parts])
        if not torch.equal(covered.sort().values.cpu(), torch.arange(rows)):
            fail(
                Rule.GRADIENT,
                self.where,
                f"micro_batches holds {covered.tolist()}; hold rows 0 to {rows - 1} once",
            )
        weights = {name: p for name, p in self.policy.named_parameters() if p.requires_grad}
        whole = self.gradients([slice(0, rows)], inputs, nodes, weights)
        parted = self.gradients(parts, inputs, nodes, weights)
        scale = max((float(x.abs().max()) for x in whole.values()), default=1.0)
        for name, x in whole.items():
            text = f"the gradient of {name} depends on the split into micro-batches; keep rows independent"
            require_equal(Rule.GRADIENT, self.where, text, parted[name] / scale, x / scale, tolerance=1e-3)

    def gradients(
        self, parts: Any, inputs: Inputs, nodes: Nodes, weights: dict[str, nn.Parameter]
    ) -> dict[str, Tensor]:
        """Return the gradient of a fixed loss, summed over forward passes."""
        self.policy.zero_grad()
        with self.policy.accumulation_context():
            for part in parts:
                mine = select(nodes, part)
                evaluation = self.policy.evaluate(select(inputs, part), mine)
                terms = [evaluation.log_prob, evaluation.entropy, evaluation.policy_loss]
                loss = sum(x[mine.node_mask].square().sum() for x in terms if x is not None)
                exists = mine.node_mask if evaluation.value.shape[-1] > 1 else mine.node_mask.any(-1, keepdim=True)
                loss = loss + (evaluation.value[exists[..., : evaluation.value.shape[-1]]] - 1.0).square().sum()
                if isinstance(loss, Tensor) and loss.requires_grad:
                    loss.backward()
        found = {}
        for name, parameter in weights.items():
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
            if not bool(gradient.isfinite().all()):
                fail(
                    Rule.GRADIENT, self.where, f"the gradient of {name} is not finite; check rows without living agents"
                )
            found[name] = gradient
        self.policy.zero_grad()
        return found

    def check_distribution(self, played: Played) -> None:
        """Check that sampled actions follow the distribution that evaluate reports.

        The mean of log_prob + entropy over samples is zero then, for every node and in any decision order.
        """
        del played
        if self.policy.bptt_steps:  # evaluate takes whole segments
            return
        obs = random_obs(self.spec, 1, self.rng, deaths=False)
        samples = FREE_TEXTS if self.spec.name == "free text" else SAMPLES
        inputs = {name: x.repeat_interleave(samples, 0) for name, x in self.start(obs).items()}
        decision = self.act(inputs, self.seed)
        if decision.behavior_log_prob is not None and not torch.allclose(
            decision.behavior_log_prob, decision.log_prob, atol=1e-4
        ):
            return  # sampled from another distribution, and weighted by importance in the update
        with torch.no_grad():
            entropy = self.policy.evaluate(inputs, decision.nodes).entropy
        gap = (decision.log_prob + entropy).double() * decision.nodes.node_mask
        error = gap.std(0) / samples**0.5
        bad = gap.mean(0).abs() > 5.0 * error + 1e-3
        if bool(bad.any()):
            place = tuple(bad.nonzero()[0].tolist())
            text = (
                f"agent {place[0]}, slot {place[1]}: the mean log_prob of {samples} samples differs from -entropy by "
                f"{float(gap.mean(0)[place]):.3g} (standard error {float(error[place]):.2g}); sample from the "
                "distribution that evaluate reports, and return its entropy"
            )
            fail(Rule.DISTRIBUTION, self.where, text)

    def check_saving(self, played: Played) -> None:
        """Check that a second policy with the first one's state_dict does the same."""
        self.policy.update_statistics(played.inputs, played.nodes)
        with torch.no_grad():
            for parameter in self.policy.parameters():
                parameter.mul_(1.01)
        self.policy.after_update()
        other = require_policy(self.make(self.spec), self.where).eval()
        try:
            other.load_state_dict(copy.deepcopy(self.policy.state_dict()))
        except Exception as error:
            fail(Rule.SAVING, self.where, f"load_state_dict raised {type(error).__name__}: {error}")
        obs = random_obs(self.spec, ROWS, self.rng)
        mine, theirs = self.policy, other
        one = self.act(self.start(obs))
        self.policy = theirs
        two = self.act(self.start(obs))
        self.policy = mine
        text = "a policy that loaded the state_dict has another {}; keep its parts in parameters or buffers"
        mask = one.nodes.node_mask
        require_equal(Rule.SAVING, self.where, text.format("log_prob"), two.log_prob, one.log_prob, mask)
        require_equal(Rule.SAVING, self.where, text.format("value"), two.value, one.value)


def _same_nodes(one: Decision, two: Decision) -> bool:
    """Return True if two decisions have the same actions and masks at their nodes."""
    if not torch.equal(one.nodes.node_mask, two.nodes.node_mask):
        return False
    mask = one.nodes.node_mask
    return torch.equal(one.nodes.action[mask], two.nodes.action[mask])
